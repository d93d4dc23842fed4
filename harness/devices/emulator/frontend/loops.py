"""Loops and the values that they carry (pypto_dsl.md 1.5, 2.6)."""

from __future__ import annotations

import ast

from harness.devices.emulator.constructs import Construct
from harness.devices.emulator.frontend.nested import Nested
from harness.devices.emulator.frontend.trees import names_load, names_store, stored_names

_LOOPS = ("range", "parallel", "pipeline", "unroll")
_INNER_EXITS = ("range", "while")  # loops that break and continue may leave


class Loops(Nested):
    """Translates `for`, `while`, `break` and `continue`."""

    def _for(self, node: ast.For) -> list[ast.stmt]:
        if node.orelse:
            self.refuse(node, "for … else is not accepted in a kernel")
        if not isinstance(node.iter, ast.Call):
            self.refuse(
                node,
                f"a loop runs over pl.range and its kin, not over {ast.unparse(node.iter)!r}",
            )
        target = self.expressions.callee(node.iter.func)
        if not isinstance(target, Construct):
            self.refuse(node, f"a loop cannot run over {ast.unparse(node.iter)!r}")
        if target.name in _LOOPS:
            return self._counted(node, node.iter, target.name)
        if target.name in ("spmd", "split_aiv"):
            return self._lanes(node, node.iter, target.name)
        if target.name == "while_":
            return self._while_carried(node, node.iter)
        self.refuse(node, f"a loop cannot run over {ast.unparse(node.iter.func)}")

    def _counted(self, node: ast.For, call: ast.Call, kind: str) -> list[ast.stmt]:
        init = next((k.value for k in call.keywords if k.arg == "init_values"), None)
        keywords = [k for k in self.expressions.keywords(call) if k.arg != "init_values"]
        bounds = [self.expressions.expr(a) for a in call.args]
        if kind == "unroll" and not all(isinstance(b, ast.Constant) for b in bounds):
            self.refuse(node, "pl.unroll takes literal bounds")
        variable, carried = self._loop_header(node, init)
        iterator = self.expressions.rt(f"{kind}_", *bounds, keywords=keywords)
        out: list[ast.stmt] = []
        if carried:
            assert init is not None
            out.append(self._initial(node, carried, init))
        before = set(self.bound)
        self.bind(variable)
        self.running.add(variable)
        self._know([variable], dynamic=kind != "unroll")
        body, after = self._carrying_body(node, kind, node.body, carried)
        self.running.discard(variable)
        if variable not in before:
            self.expressions.bound.discard(variable)
        if kind == "parallel" and not self.private:
            first, body, last = self._joined_ids(node, carried, body)
            out, after = [*out, *first], [*last, *after]
        out.append(ast.For(target=ast.Name(id=variable, ctx=ast.Store()), iter=iterator, body=body, orelse=[]))
        return out + after

    def _loop_header(self, node: ast.For, init: ast.expr | None) -> tuple[str, list[str]]:
        """The loop variable and the carried names of `for i` or `for i, (a, b)`."""
        target = node.target
        if isinstance(target, ast.Name):
            if init is not None:
                self.refuse(node, "init_values= needs the header `for i, (names) in …`")
            return target.id, []
        if isinstance(target, ast.Tuple) and len(target.elts) == 2 and isinstance(target.elts[0], ast.Name):
            if init is None:
                self.refuse(node, "a header with carried names needs init_values=")
            return target.elts[0].id, self._target_names(target.elts[1])
        self.refuse(node, f"the loop header {ast.unparse(target)!r} is not accepted")

    def _while(self, node: ast.While) -> list[ast.stmt]:
        if node.orelse:
            self.refuse(node, "while … else is not accepted in a kernel")
        test = self.expressions.rt("truth", self.expressions.expr(node.test))
        return [ast.While(test=test, body=self._loop_body("while", node.body), orelse=[])]

    def _while_carried(self, node: ast.For, call: ast.Call) -> list[ast.stmt]:
        """`for (a, b) in pl.while_(init_values=(…)): pl.cond(…); …; a, b = pl.yield_(…)`."""
        init = next((k.value for k in call.keywords if k.arg == "init_values"), None)
        if init is None:
            self.refuse(node, "pl.while_ needs init_values=")
        carried = self._target_names(node.target)
        start = self._initial(node, carried, init)
        first = node.body[0]
        if not (isinstance(first, ast.Expr) and isinstance(first.value, ast.Call) and len(first.value.args) == 1
                and ast.unparse(first.value.func).endswith(".cond")):  # fmt: skip
            self.refuse(node, "the first statement of a pl.while_ body is pl.cond(…)")
        test = self.expressions.rt("truth", self.expressions.expr(first.value.args[0]))
        body, after = self._carrying_body(node, "while", node.body[1:] or [ast.Pass()], carried)
        return [start, ast.While(test=test, body=body, orelse=[]), *after]

    def _break(self, node: ast.Break) -> list[ast.stmt]:
        return [self._exit(node, "break", ast.Break())]

    def _continue(self, node: ast.Continue) -> list[ast.stmt]:
        return [self._exit(node, "continue", ast.Continue())]

    def _exit(self, node: ast.stmt, word: str, new: ast.stmt) -> ast.stmt:
        if not self.loops or self.loops[-1] not in _INNER_EXITS:
            self.refuse(node, f"{word} belongs to the innermost pl.range or while")
        return new

    # -- bodies and carried names -----------------------------------------------------------------------

    def _loop_body(self, kind: str, body: list[ast.stmt]) -> list[ast.stmt]:
        self.loops.append(kind)
        self.depth += 1
        self._know([n for n in stored_names(body) if n in self.first], dynamic=False)  # carried: no constants
        translated = self.block(body)
        self.depth -= 1
        self.loops.pop()
        return translated

    def _carrying_body(
        self, node: ast.For, kind: str, body: list[ast.stmt], carried: list[str]
    ) -> tuple[list[ast.stmt], list[ast.stmt]]:
        """A loop body, and what follows the loop. `a, b = pl.yield_(…)` at its end feeds the carried names; a and b
        are their values after the loop. Without it the carried names are rebound plainly."""
        last = body[-1]
        call = last.value if isinstance(last, ast.Assign) else None
        if not carried or not isinstance(call, ast.Call) or not self._is_yield(call):
            return self._loop_body(kind, body), []
        assert isinstance(last, ast.Assign)
        names = self._target_names(last.targets[0])
        if not len(names) == len(carried) == len(call.args):
            self.refuse(
                last, f"pl.yield_ gives {len(call.args)} values to {len(names)} names, the loop carries {len(carried)}"
            )
        translated = self._loop_body(kind, body[:-1])
        values = [self.expressions.expr(a) for a in call.args]
        self.depth += 1
        feed = self._assign_names(last, carried, values)
        self.depth -= 1
        self.bind(*names)
        after = ast.Assign(targets=[names_store(names, True)], value=names_load(carried))
        return [*translated, ast.copy_location(feed, last)], [after]

    def _is_yield(self, call: ast.Call) -> bool:
        target = self.expressions.callee(call.func)
        return isinstance(target, Construct) and target.name == "yield_"

    def _initial(self, node: ast.For, names: list[str], init: ast.expr) -> ast.stmt:
        if not isinstance(init, (ast.Tuple, ast.List)) or len(init.elts) != len(names):
            self.refuse(node, f"init_values= must be a tuple of {len(names)} values")
        values = [self.expressions.expr(e) for e in init.elts]
        self.bind(*names)
        for name in names:
            self.first[name] = self.depth
        return ast.Assign(targets=[names_store(names, True)], value=ast.Tuple(elts=values, ctx=ast.Load()))

    def _joined_ids(
        self, node: ast.For, carried: list[str], body: list[ast.stmt]
    ) -> tuple[list[ast.stmt], list[ast.stmt], list[ast.stmt]]:
        """Task ids that leave a pl.parallel stand for all its iterations (2.6): before, the new body, after."""
        names = sorted((stored_names(node.body) & self._loaded_outside(node)) | set(carried))
        if not names:
            return [], body, []
        joined = f"gg_ids_{node.lineno}"
        start = ast.Assign(targets=[ast.Name(id=joined, ctx=ast.Store())], value=self.expressions.rt("ParallelIds"))

        def each(method: str) -> list[ast.stmt]:
            function = ast.Attribute(value=ast.Name(id=joined, ctx=ast.Load()), attr=method, ctx=ast.Load())
            out: list[ast.stmt] = []
            for name in names:
                arguments: list[ast.expr] = [ast.Constant(value=name), ast.Name(id=name, ctx=ast.Load())]
                value = ast.Call(func=function, args=arguments, keywords=[])
                out.append(ast.Assign(targets=[ast.Name(id=name, ctx=ast.Store())], value=value))
            return out

        return [start], [*each("enter"), *body, *each("leave")], each("all")
