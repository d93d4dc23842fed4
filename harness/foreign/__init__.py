"""Kernel scripts that Goldengate has never seen, run as they are: `goldengate run-file PATH [-- ARGS]`.

A script imports PyPTO and a package `golden` (specs, runner, comparators). Both are answered here:

* `golden_specs`, `golden_compare`, `golden_validate`, `golden_snapshots`, `golden_run` are the stand-in for `golden`,
  after contracts/reference_harness.md: its names, formulas, messages and verdicts. Where the reference passes
  something that Goldengate would refuse, the verdict stays and a line `note: …` says so.
* `modules` binds the stand-ins for the time of a run; `script` runs a file as `__main__`; `command` is the sub-command.

The comparators here are the reference's, for reading its verdicts side by side; `harness.compare` has ours.
"""
