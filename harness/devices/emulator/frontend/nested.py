"""Bodies that become nested functions: regions, blocks, lanes; and runtime scopes (pypto_dsl.md 2.2, 2.4, 2.5)."""

from __future__ import annotations

import ast

from harness.devices.emulator.constructs import Construct
from harness.devices.emulator.effects import body_effects
from harness.devices.emulator.frontend.assignments import Assignments
from harness.devices.emulator.frontend.trees import (
    constant_keyword,
    loaded_names,
    names_load,
    names_store,
    reads_block_index,
    stored_names,
    unassigned,
)
from harness.devices.emulator.functions import KernelFunction
from harness.devices.emulator.liveness import last_uses


class Nested(Assignments):
    """Translates `with` and the loops whose bodies run once per block or lane."""

    def _lanes(self, node: ast.For, call: ast.Call, kind: str) -> list[ast.stmt]:
        """`for i in pl.spmd(n)` and `for lane in pl.split_aiv(2)`: the body runs once per block or lane."""
        if not isinstance(node.target, ast.Name):
            self.refuse(node, f"pl.{kind} has one loop variable")
        if any(k.arg == "init_values" for k in call.keywords):
            self.refuse(node, f"pl.{kind} carries no values between its bodies")
        arguments = [self.expressions.expr(a) for a in call.args]
        keywords = self.expressions.keywords(call)
        name, definition = self._nested(node, node.body, kind, first=node.target.id, keep=())
        if kind == "spmd":
            keywords = keywords + self._effects(node.body)
        run = self.expressions.rt(kind, ast.Name(id=name, ctx=ast.Load()), *arguments, keywords=keywords)
        return [definition, ast.Expr(value=run)]

    def _with(self, node: ast.With) -> list[ast.stmt]:
        if len(node.items) != 1:
            self.refuse(node, "one context per with")
        item = node.items[0]
        call = item.context_expr
        target = self.expressions.callee(call.func) if isinstance(call, ast.Call) else None
        if not isinstance(call, ast.Call) or not isinstance(target, Construct):
            self.refuse(node, f"`with {ast.unparse(call)}` is not a context of pypto.language")
        if item.optional_vars is not None and not isinstance(item.optional_vars, ast.Name):
            self.refuse(node, "`as` binds one name")
        tid = item.optional_vars.id if isinstance(item.optional_vars, ast.Name) else None
        arguments = [self.expressions.expr(a) for a in call.args]
        keywords = self.expressions.keywords(call)
        if target.name in ("scope", "manual_scope", "cluster"):
            if tid is not None:
                self.refuse(node, f"pl.{target.name} gives no task id")
            self._check_scope(node, call, target.name)
            context = self.expressions.rt(target.name, *arguments, keywords=keywords)
            self.clusters += target.name == "cluster"
            body = self.block(node.body)
            self.clusters -= target.name == "cluster"
            return [ast.With(items=[ast.withitem(context_expr=context)], body=body)]
        if target.name == "at":
            return self._at(node, tid, arguments, keywords)
        if target.name == "spmd":
            return self._with_spmd(node, tid, arguments, keywords)
        self.refuse(node, f"pl.{target.name} is not a context")

    def _check_scope(self, node: ast.With, call: ast.Call, name: str) -> None:
        """An AUTO scope is the author's only where the compiler places none (2.2)."""
        automatic = name == "scope" and "MANUAL" not in ast.unparse(call)
        spliced = self.function.kind in ("inline", "template")
        if automatic and not spliced and self.function.options.get("auto_scope", True) is not False:
            self.refuse(node, "pl.scope() needs auto_scope=False on the function")

    def _at(
        self, node: ast.With, tid: str | None, arguments: list[ast.expr], keywords: list[ast.keyword]
    ) -> list[ast.stmt]:
        keep = tuple(sorted(stored_names(node.body) & self._loaded_outside(node)))
        name, definition = self._nested(node, node.body, "at", first=None, keep=keep)
        outputs = [n for n in keep if n in self.bound]
        stable = not set(outputs) & body_effects(self.function, node.body).rebound
        keywords = (
            keywords
            + self._effects(node.body)
            + [constant_keyword("gg_kept", tuple(outputs)), constant_keyword("gg_stable", stable)]
        )
        run = self.expressions.rt("at", ast.Name(id=name, ctx=ast.Load()), *arguments, keywords=keywords)
        if tid is not None:
            self.bind(tid)
        target = ast.Tuple(
            elts=[ast.Name(id=tid or "gg_unused", ctx=ast.Store()), names_store(outputs, True)],
            ctx=ast.Store(),
        )
        return [definition, ast.Assign(targets=[target], value=run)]

    def _with_spmd(
        self, node: ast.With, tid: str | None, arguments: list[ast.expr], keywords: list[ast.keyword]
    ) -> list[ast.stmt]:
        if not reads_block_index(node.body) and not self._is_single_call(node.body):
            self.refuse(
                node,
                "the body of `with pl.spmd` is one call of an incore function or reads pl.tile.get_block_idx()",
            )
        if tid is not None and self.clusters:
            self.refuse(node, "`with pl.spmd … as tid` may not stand inside pl.cluster")
        if tid is None and any(k.arg == "deps" for k in keywords):
            self.refuse(node, "deps= on `with pl.spmd` needs `as tid`")
        name, definition = self._nested(node, node.body, "spmd", first="gg_block", keep=())
        keywords = keywords + self._effects(node.body)
        run = self.expressions.rt("spmd", ast.Name(id=name, ctx=ast.Load()), *arguments, keywords=keywords)
        if tid is not None:
            self.bind(tid)
        target = ast.Name(id=tid or "gg_unused", ctx=ast.Store())
        return [definition, ast.Assign(targets=[target], value=run)]

    def _effects(self, body: list[ast.stmt]) -> list[ast.keyword]:
        """What the task reads and writes, for the scheduler."""
        effects = body_effects(self.function, body)
        return [
            constant_keyword("gg_reads", tuple(sorted(effects.reads))),
            constant_keyword("gg_writes", tuple(sorted(effects.writes))),
        ]

    def _is_single_call(self, body: list[ast.stmt]) -> bool:
        if len(body) != 1 or not isinstance(body[0], (ast.Expr, ast.Assign)) or not isinstance(body[0].value, ast.Call):
            return False
        target = self.expressions.callee(body[0].value.func)
        return isinstance(target, KernelFunction) and target.kind == "incore"

    def _nested(
        self, node: ast.stmt, body: list[ast.stmt], kind: str, *, first: str | None, keep: tuple[str, ...]
    ) -> tuple[str, ast.stmt]:
        """The body as a nested function. Its parameters: `first`, then a snapshot of the outer names it reads.

        `keep` are the names whose final values it returns and that stay visible; other names it assigns are private.
        """
        before = set(self.bound)
        read = loaded_names(body) & before - {first or ""}
        self.private += 1
        if first is not None:
            self.bind(first)
            self._know([first], dynamic=True)
            self.running.add(first)
        outer_loops, self.loops = self.loops, []
        outer_releases, self.releases = self.releases, last_uses(body, stored_names(body) - {first or ""}, set(keep))
        self.expressions.lanes += kind == "split_aiv"
        translated = self.block(body)
        self.expressions.lanes -= kind == "split_aiv"
        self.running.discard(first or "")
        self.loops = outer_loops
        self.releases = outer_releases
        self.private -= 1
        outputs = [n for n in keep if n in self.bound]
        self.expressions.bound = before | set(outputs)
        read |= {n for n in outputs if n in before}  # a kept name may be assigned on some path only
        own = stored_names(body) - read - {first or ""}
        translated[:0] = unassigned(own, node)
        translated.append(ast.copy_location(ast.Return(value=names_load(outputs)), node))
        names = sorted(read)
        name = f"gg_{kind}_{node.lineno}"
        definition = ast.FunctionDef(
            name=name,
            args=ast.arguments(
                posonlyargs=[],
                args=[ast.arg(arg=n) for n in ([first] if first else []) + names],
                kwonlyargs=[],
                kw_defaults=[],
                defaults=[ast.Name(id=n, ctx=ast.Load()) for n in names],
            ),
            body=translated,
            decorator_list=[],
        )
        if hasattr(definition, "type_params"):
            definition.type_params = []
        return name, definition

    def _loaded_outside(self, node: ast.With | ast.For) -> set[str]:
        """Names that the function reads anywhere but in the body of `node`."""
        inside = {id(n) for statement in node.body for n in ast.walk(statement)}
        loads = (n for n in ast.walk(self.function.tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load))
        return {n.id for n in loads if id(n) not in inside} | set(self.writebacks)
