"""Calls of sub-functions, pl.submit and pl.yield_: whole statements or whole right-hand sides (pypto_dsl.md 1.3 to 1.5,
2.4, 2.6, 4.5)."""

from __future__ import annotations

import ast

from harness.devices.emulator.constructs import Construct
from harness.devices.emulator.frontend.blocks import Blocks
from harness.devices.emulator.frontend.trees import names_store
from harness.devices.emulator.functions import KernelFunction


class SubCalls(Blocks):
    """Translates the calls that are no ordinary operations."""

    def _assign_call(self, node: ast.stmt, names: list[str], call: ast.Call) -> list[ast.stmt] | None:
        """Sub-function calls, pl.submit and its kin, pl.yield_; None when the call is an ordinary operation."""
        target = self.expressions.callee(call.func)
        if isinstance(target, KernelFunction):
            return self._sub_call(node, names, target, call)
        if isinstance(target, Construct):
            if target.name in ("submit", "spmd_submit"):
                return self._submit(node, names, call, target.name)
            if target.name != "yield_":
                self.refuse(node, f"{ast.unparse(call.func)} cannot stand here; {target.place}")
            values = [self.expressions.expr(a) for a in call.args]
            if len(values) != len(names):
                self.refuse(node, f"pl.yield_ gives {len(values)} values to {len(names)} names")
            assigned = self._assign_names(node, names, values)
            self.bind(*names)
            return [assigned]
        return None

    def _construct(self, call: ast.Call) -> str | None:
        """The name of the construct of pl that a call names."""
        target = self.expressions.callee(call.func)
        return target.name if isinstance(target, Construct) else None

    def _submit(self, node: ast.stmt, names: list[str], call: ast.Call, kind: str) -> list[ast.stmt]:
        """`out, tid = pl.submit(self.kernel, *args, deps=[…])` and its sibling with `core_num=` (2.4, 2.6)."""
        target = self.expressions.callee(call.args[0]) if call.args else None
        if not isinstance(target, KernelFunction) or target.kind != "incore":
            self.refuse(node, f"pl.{kind} takes an in-core function first")
        own = ("deps", "allow_early_resolve", "name_hint") + (
            ("core_num", "sync_start") if kind == "spmd_submit" else ()
        )
        plain = ast.Call(func=call.args[0], args=call.args[1:], keywords=[k for k in call.keywords if k.arg not in own])
        given = ast.Call(func=call.func, args=[], keywords=[k for k in call.keywords if k.arg in own])
        if kind == "spmd_submit" and not any(k.arg == "core_num" for k in given.keywords):
            self.refuse(node, "pl.spmd_submit needs core_num=")
        values = [self.expressions.expr(a) for a in self.expressions.arguments(node, target, plain)]
        reference = self.expressions.reference(call.args[0], target)
        run = self.expressions.rt(kind, reference, *values, keywords=self.expressions.keywords(given))
        self.bind(*names)
        if not names:
            return [ast.Expr(value=run)]
        return [ast.Assign(targets=[names_store(names, len(names) > 1)], value=run)]

    def _sub_call(self, node: ast.stmt, names: list[str], target: KernelFunction, call: ast.Call) -> list[ast.stmt]:
        if self.function.kind == "host" and target.kind == "entry":
            return self._child(node, names, target, call)
        if target.kind in ("entry", "host"):
            self.refuse(node, f"{target.name} is an entry (@pl.jit) and cannot be called from a kernel")
        if target.kind == "extern":
            self.refuse(
                node, f"{target.name} is a hand-written C++ kernel (pl.jit.extern): there is nothing to execute"
            )
        if target is self.function:
            self.refuse(node, f"{target.name} calls itself")
        arguments = self.expressions.arguments(node, target, call)
        compiled = target.compiled
        if names and not compiled.returns:
            self.refuse(node, f"{target.name} returns nothing")
        new_call = self.expressions.rt(
            "call", self.expressions.reference(call.func, target), *(self.expressions.expr(a) for a in arguments)
        )
        order = [p.name for p in target.parameters]
        carried: list[str] = []
        for parameter in compiled.writebacks:
            actual = arguments[order.index(parameter)]
            if not isinstance(actual, ast.Name) or actual.id not in self.expressions.locals:
                self.refuse(
                    node,
                    f"{target.name} rebinds its parameter {parameter} in a nested body: pass a variable",
                )
            carried.append(actual.id)
        self.bind(*names, *carried)
        value_target: ast.expr = (
            names_store(names, len(names) > 1) if names else ast.Name(id="gg_unused", ctx=ast.Store())
        )
        if not compiled.writebacks:
            return [ast.Assign(targets=[value_target], value=new_call)]
        pair = ast.Tuple(elts=[value_target, names_store(carried, True)], ctx=ast.Store())
        return [ast.Assign(targets=[pair], value=new_call)]

    def _child(self, node: ast.stmt, names: list[str], target: KernelFunction, call: ast.Call) -> list[ast.stmt]:
        """`child(x[r], out[r], window, r, device=r)` in a host program: submit the child to rank r (4.5)."""
        device = [k.value for k in call.keywords if k.arg == "device"]
        if not device:
            self.refuse(node, f"the call of {target.name} needs device=")
        plain = ast.Call(func=call.func, args=call.args, keywords=[k for k in call.keywords if k.arg != "device"])
        arguments = [self.expressions.expr(a) for a in self.expressions.arguments(node, target, plain)]
        run = self.expressions.rt(
            "child", self.expressions.reference(call.func, target), self.expressions.expr(device[0]), *arguments
        )
        self.bind(*names)
        if not names:
            return [ast.Expr(value=run)]
        return [ast.Assign(targets=[names_store(names, len(names) > 1)], value=run)]
