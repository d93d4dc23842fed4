"""The embedded device: executes PyPTO kernels on the CPU from their source, with device semantics.

The specification is contracts/pypto_dsl.md. It is a numerics sanitizer, not a mock:

* `loader` executes a kernel file in a fresh module; `functions` collects its decorated functions.
* `frontend/` rewrites what plain Python cannot express and refuses, with file and line, what the compiler would refuse;
  `constructs` has the names that it rewrites.
* `runtime` is what rewritten code calls: `loops`, `regions` with `lanes`, `subfunctions`, `scalars`. `control` and
  `ops/` hold the operations, one table entry each.
* `values` is the memory: storage whose undefined elements are tracked to the output they would reach.
* `variance` lists what a legal device may choose; the schedule seed draws from it. `lint` lists the finding codes.
* `device` binds an op's inputs to an entry and runs it.

Nothing here imports goldens: rounding, quantisation and reductions exist a second time, on purpose.
"""

from harness.devices.emulator.device import EmulatorDevice

__all__ = ["EmulatorDevice"]
