"""From a kernel function's source to an executable form, or to a refusal with file, line and reason.

The language is Python syntax with other semantics (contracts/pypto_dsl.md 1.4 to 1.7, appendix C). What Python would
evaluate differently is rewritten into calls of `runtime`; what the compiler would refuse is refused here. Rewritten
code keeps the line numbers of the kernel file, so a frame of it is a source position.

A body that runs several times or as a task of its own becomes a nested function. It takes the names it reads as
defaults, a snapshot, since a task may run after the orchestrating code went on:

    for i in pl.spmd(n): BODY        def block(i, x=x): BODY
                                     rt.spmd(block, n)
    with pl.at(...) as tid: BODY     def region(x=x): BODY; return (y,)
                                     tid, (y,) = rt.at(region, ...)

Two chains of classes translate, one file each; each class extends the one before by further kinds of nodes:

* `names`, `constants`, `operators`, `subscripts`, `expressions` end in `Expressions`.
* `blocks`, `sub_calls`, `assignments`, `nested`, `loops`, `statements` end in `Statements`, which holds an
  `Expressions`.

`trees` has plain functions over syntax trees; `function` puts a function together.
"""

from harness.devices.emulator.frontend.function import Compiled, compile_function

__all__ = ["Compiled", "compile_function"]
