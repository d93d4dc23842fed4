"""All error figures of one output in one chunked pass: constant memory, any size, no verdict.

What is compared are the elements that are valid (the contract defines them) and defined (the device wrote
them). Most of an honest output is bit-equal, so a chunk is compared as bits first and only the elements that
differ are looked at as numbers. Every figure is defined in the docstring of `Metrics`;
`tests/harness/test_metrics.py` has the slow definition.

`figures` says what is measured; `one_pass` goes over the tensors, which `bits` reads; `sums` and `distances` hold what
adds up on the way.
"""

from harness.metrics.bits import point_at
from harness.metrics.figures import PERCENTILES, SWEEP, Array, Metrics, Point, Points, Rule
from harness.metrics.one_pass import measure

__all__ = ["PERCENTILES", "SWEEP", "Array", "Metrics", "Point", "Points", "Rule", "measure", "point_at"]
