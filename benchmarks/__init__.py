"""Timings, not tests: `python -m benchmarks`. Ratios are measured in one run."""
