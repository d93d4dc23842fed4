"""Reference numerics: one pure function per op, numpy and torch only.

`goldens/<op>.py` holds the golden of op `<op>`: tensors and scalars in the contract's order, then
keyword-only model parameters, then `taps`. It returns a dict with every out and inout tensor, all of them
new. `STAGES` in the same file names the intermediates that a `taps` dict receives, in the order in which they
are computed.

A golden rounds where the contract says that the device rounds and nowhere else. Sums that the contract leaves
open are accumulated in FP64 and rounded once. The result does not depend on the number of threads.
"""
