"""Names of the language that the front end rewrites (pypto_dsl.md 1.3, 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Construct:
    """A name of the language that the front end rewrites; it is no value and no operation. `place` says where it may
    stand."""

    name: str
    place: str

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"pl.{self.name} has a meaning inside a kernel only: {self.place}")


CONSTRUCTS = (
    Construct("range", "write `for i in pl.range(…):`"),
    Construct("parallel", "write `for i in pl.parallel(…):`"),
    Construct("pipeline", "write `for i in pl.pipeline(…, stage=k):`"),
    Construct("unroll", "write `for i in pl.unroll(…):`"),
    Construct("while_", "write `for (a,) in pl.while_(init_values=(…)):`"),
    Construct("cond", "it is the first statement of a pl.while_ body"),
    Construct("yield_", "write `a = pl.yield_(…)` as the last statement of a loop or branch"),
    Construct("spmd", "write `for i in pl.spmd(n):` or `with pl.spmd(n):`"),
    Construct("split_aiv", "write `for lane in pl.split_aiv(2, mode=…):`"),
    Construct("at", "write `with pl.at(…):`"),
    Construct("scope", "write `with pl.scope():`"),
    Construct("manual_scope", "write `with pl.manual_scope():`"),
    Construct("cluster", "write `with pl.cluster():`"),
    Construct("submit", "write `out, tid = pl.submit(kernel, …)`"),
    Construct("spmd_submit", "write `out, tid = pl.spmd_submit(kernel, …, core_num=n)`"),
    Construct("func_attr", "it is the first statement of a function"),
)
