"""Statements of the kernel language: accepted and translated, or refused (pypto_dsl.md 1.3 to 1.6, 2)."""

from __future__ import annotations

import ast
from typing import NoReturn

from harness.devices.emulator import runtime
from harness.devices.emulator.annotations import ScalarType
from harness.devices.emulator.effects import body_effects
from harness.devices.emulator.frontend_expressions import Expressions
from harness.devices.emulator.functions import KernelFunction
from harness.devices.emulator.liveness import last_uses

_REFUSED = {
    ast.AugAssign: "augmented assignment",
    ast.Assert: "assert",
    ast.Delete: "del",
    ast.Raise: "raise",
    ast.Try: "try",
    ast.FunctionDef: "a nested def",
    ast.AsyncFunctionDef: "a nested async def",
    ast.ClassDef: "a nested class",
    ast.Import: "import",
    ast.ImportFrom: "import",
    ast.Global: "global",
    ast.Nonlocal: "nonlocal",
    ast.AsyncFor: "async for",
    ast.AsyncWith: "async with",
    ast.Match: "match",
}
_LOOPS = ("range", "parallel", "pipeline", "unroll")
_INNER_EXITS = ("range", "while")  # loops that break and continue may leave


class Statements:
    """Translates the body of one function. `loops` are the kinds of the enclosing loops, innermost last; `private`
    counts the enclosing bodies that became nested functions, `clusters` the enclosing pl.cluster. `depth` is the depth
    of loops and branches, `first` the depth at which a name was first assigned."""

    def __init__(
        self,
        function: KernelFunction,
        parameters: list[str],
        writebacks: tuple[str, ...],
        dims: dict[str, tuple[str, int]],
    ) -> None:
        self.function = function
        self.writebacks = writebacks
        self.expressions = Expressions(function, dims)
        self.expressions.bound |= set(parameters)
        self.expressions.locals |= set(parameters) | stored_names(function.tree.body)
        self.loops: list[str] = []
        self.private = 0
        self.clusters = 0
        self.depth = 0
        self.first = dict.fromkeys(parameters, 0)
        self.running: set[str] = set()  # variables of the enclosing loops
        self.returns = False
        self.releases: dict[ast.stmt, frozenset[str]] = {}
        if function.kind == "entry":
            constants = {p.name for p in function.parameters if isinstance(p.type, ScalarType) and not p.type.runtime}
            self.expressions.literals = constants - stored_names(function.tree.body)

    # -- shorthand ----------------------------------------------------------------------------------

    @property
    def bound(self) -> set[str]:
        return self.expressions.bound

    def refuse(self, node: ast.AST, reason: str) -> NoReturn:
        self.expressions.refuse(node, reason)

    def bind(self, *names: str) -> None:
        self.expressions.bound |= set(names)
        self.expressions.partial -= set(names)
        for name in names:
            self.first.setdefault(name, self.depth)

    def _assign_names(self, node: ast.stmt, names: list[str], values: list[ast.expr]) -> ast.Assign:
        """`names = values`, one each. A name of an outer level is carried: its type must stay (1.5)."""
        checked = []
        for name, value in zip(names, values, strict=True):
            if name in self.running:
                self.refuse(node, f"the loop variable {name} must not be assigned")
            if self.depth > self.first.get(name, self.depth):
                arguments = (ast.Constant(value=name), ast.Name(id=name, ctx=ast.Load()), value)
                value = self.expressions.rt("carried", *arguments)
            checked.append(value)
        new = checked[0] if len(names) == 1 else ast.Tuple(elts=checked, ctx=ast.Load())
        return ast.Assign(targets=[_names_store(names, len(names) > 1)], value=new)

    def _know(self, names: list[str], dynamic: bool) -> None:
        """Note whether the values of names are compile-time constants; those of an outer level stay unknown."""
        carried = {n for n in names if self.depth > self.first.get(n, self.depth)}
        self.expressions.dynamic |= set(names) if dynamic else carried
        if not dynamic:
            self.expressions.dynamic -= set(names) - carried

    # -- bodies -------------------------------------------------------------------------------------

    def body(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        """The whole body of the function, with the final write-back return of an inline."""
        for node in ast.walk(ast.Module(body=statements, type_ignores=[])):
            if isinstance(node, ast.Return) and self.function.kind == "inline" and node is not statements[-1]:
                self.refuse(node, "an inline has one return, as its last statement")
        translated = self.block(statements)
        parameters = {p.name for p in self.function.parameters}
        translated[:0] = unassigned(self.expressions.locals - parameters, self.function.tree)
        if self.writebacks and not (statements and isinstance(statements[-1], ast.Return)):
            translated.append(self._returning(None, statements[-1]))
        return translated

    def block(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        """A list of statements; never empty."""
        out: list[ast.stmt] = []
        for statement in statements:
            for kind, words in _REFUSED.items():
                if isinstance(statement, kind):
                    self.refuse(statement, f"{words} is not accepted in a kernel")
            method = getattr(self, f"_{type(statement).__name__.lower()}", None)
            if method is None:
                self.refuse(statement, f"the statement {type(statement).__name__} is not accepted in a kernel")
            for new in method(statement):
                # keep inner positions: only nodes made here lack one, and theirs is the first line of the statement
                ast.copy_location(new, statement)
                new.end_lineno, new.end_col_offset = new.lineno, new.col_offset
                out.append(new)
            out += self._released(statement)
        return out or [ast.Pass()]

    def _released(self, statement: ast.stmt) -> list[ast.stmt]:
        """Names that nothing reads after this statement let go of their tiles, as the compiler's allocator does."""
        names = self.releases.get(statement, frozenset()) & self.expressions.locals
        out: list[ast.stmt] = []
        for name in sorted(names):
            value = self.expressions.rt("release", ast.Name(id=name, ctx=ast.Load()))
            release = ast.Assign(targets=[ast.Name(id=name, ctx=ast.Store())], value=value)
            out.append(ast.copy_location(release, statement))
        return out

    # -- simple statements --------------------------------------------------------------------------

    def _pass(self, node: ast.Pass) -> list[ast.stmt]:
        return [ast.Pass()]

    def _expr(self, node: ast.Expr) -> list[ast.stmt]:
        value = node.value
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            return []  # doc string
        if not isinstance(value, ast.Call):
            self.refuse(node, f"the statement {ast.unparse(node)!r} has no effect")
        if isinstance(value.func, ast.Attribute) and value.func.attr == "bind_dynamic":
            return []  # read by frontend._dynamic_dims
        if self._construct(value) == "func_attr":
            if node is not next((s for s in self.function.tree.body if not _is_text(s)), None):
                self.refuse(node, "pl.func_attr is the first statement of a function")
            return []  # chooses code generation, not results
        return self._assign_call(node, [], value) or [ast.Expr(value=self.expressions.expr(value))]

    def _assign(self, node: ast.Assign) -> list[ast.stmt]:
        if len(node.targets) != 1:
            self.refuse(node, "assign to one name at a time")
        return self._store(node, node.targets[0], node.value)

    def _annassign(self, node: ast.AnnAssign) -> list[ast.stmt]:
        if node.value is None:
            self.refuse(node, "an annotated name needs a value")
        return self._store(node, node.target, node.value)

    def _store(self, node: ast.stmt, target: ast.expr, value: ast.expr) -> list[ast.stmt]:
        if isinstance(target, ast.Subscript):
            return self._store_item(node, target, value)
        names = self._target_names(target)
        if isinstance(value, ast.Call):
            special = self._assign_call(node, names, value)
            if special is not None:
                return special
        new = self.expressions.expr(value)
        if len(names) == 1 and _creates_tensor(value):
            outer = ast.Constant(value=self.function.kind == "entry")
            new = self.expressions.rt("created", ast.Constant(value=names[0]), new, outer)
        several = isinstance(target, ast.Tuple)
        shape = isinstance(value, ast.Attribute) and value.attr == "shape"
        dynamic = self.expressions.is_dynamic(value) or (several and not shape)
        if isinstance(new, ast.Tuple) and several and len(new.elts) == len(names):
            assigned = self._assign_names(node, names, new.elts)
        elif several:
            assigned = ast.Assign(targets=[_names_store(names, True)], value=new)
        else:
            assigned = self._assign_names(node, names, [new])
        self.bind(*names)
        self._know(names, dynamic)
        return [assigned]

    def _target_names(self, target: ast.expr) -> list[str]:
        if isinstance(target, ast.Name):
            return [target.id]
        if isinstance(target, ast.Tuple) and all(isinstance(e, ast.Name) for e in target.elts):
            return [e.id for e in target.elts if isinstance(e, ast.Name)]
        self.refuse(target, f"cannot assign to {ast.unparse(target)!r} in a kernel")

    def _store_item(self, node: ast.stmt, target: ast.Subscript, value: ast.expr) -> list[ast.stmt]:
        if not isinstance(target.value, ast.Name):
            self.refuse(target, "the target of a subscript assignment must be a plain name")
        base = self.expressions.expr(target.value)
        index = self.expressions.index(target.slice)
        new = self.expressions.rt("set_item", base, index, self.expressions.expr(value))
        if self.expressions.lanes:
            new = self.expressions.rt("on_cube", new.func, *new.args)
        return [ast.Expr(value=new)]

    def _return(self, node: ast.Return) -> list[ast.stmt]:
        if self.private:
            self.refuse(node, "return inside a with, spmd or lane body is not accepted")
        self.returns = self.returns or node.value is not None
        before: list[ast.stmt] = []
        value = node.value
        if isinstance(value, ast.Call):
            name = "gg_result"
            special = self._assign_call(node, [name], value)
            if special is not None:
                return [*special, self._returning(ast.Name(id=name, ctx=ast.Load()), node)]
        new = None if value is None else self.expressions.expr(value)
        return [*before, self._returning(new, node)]

    def _returning(self, value: ast.expr | None, at: ast.AST) -> ast.stmt:
        if not self.writebacks:
            return ast.copy_location(ast.Return(value=value), at)
        finals = ast.Tuple(elts=[ast.Name(id=n, ctx=ast.Load()) for n in self.writebacks], ctx=ast.Load())
        pair = ast.Tuple(elts=[value or ast.Constant(value=None), finals], ctx=ast.Load())
        return ast.copy_location(ast.Return(value=pair), at)

    # -- calls that are whole statements ------------------------------------------------------------

    def _assign_call(self, node: ast.stmt, names: list[str], call: ast.Call) -> list[ast.stmt] | None:
        """Sub-function calls, pl.yield_ and pl.parallel's kin; None when the call is an ordinary operation."""
        target = self.expressions.callee(call.func)
        if isinstance(target, KernelFunction):
            return self._sub_call(node, names, target, call)
        if isinstance(target, runtime.Construct):
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
        return target.name if isinstance(target, runtime.Construct) else None

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
        return [ast.Assign(targets=[_names_store(names, len(names) > 1)], value=run)]

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
            _names_store(names, len(names) > 1) if names else ast.Name(id="gg_unused", ctx=ast.Store())
        )
        if not compiled.writebacks:
            return [ast.Assign(targets=[value_target], value=new_call)]
        pair = ast.Tuple(elts=[value_target, _names_store(carried, True)], ctx=ast.Store())
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
        return [ast.Assign(targets=[_names_store(names, len(names) > 1)], value=run)]

    # -- control flow -------------------------------------------------------------------------------

    def _if(self, node: ast.If) -> list[ast.stmt]:
        test = self.expressions.rt("truth", self.expressions.expr(node.test))
        before = set(self.bound)
        self.depth += 1
        body = self.block(node.body)
        after_body = set(self.bound)
        self.expressions.bound = set(before)
        orelse = self.block(node.orelse) if node.orelse else []
        self.depth -= 1
        after_else = set(self.bound)
        self.expressions.bound = after_body & after_else
        self.expressions.partial |= (after_body ^ after_else) - self.bound
        return [ast.If(test=test, body=body, orelse=orelse)]

    def _while(self, node: ast.While) -> list[ast.stmt]:
        if node.orelse:
            self.refuse(node, "while … else is not accepted in a kernel")
        test = self.expressions.rt("truth", self.expressions.expr(node.test))
        return [ast.While(test=test, body=self._loop_body("while", node.body), orelse=[])]

    def _loop_body(self, kind: str, body: list[ast.stmt]) -> list[ast.stmt]:
        self.loops.append(kind)
        self.depth += 1
        self._know([n for n in stored_names(body) if n in self.first], dynamic=False)  # carried: no constants
        translated = self.block(body)
        self.depth -= 1
        self.loops.pop()
        return translated

    def _break(self, node: ast.Break) -> list[ast.stmt]:
        return [self._exit(node, "break", ast.Break())]

    def _continue(self, node: ast.Continue) -> list[ast.stmt]:
        return [self._exit(node, "continue", ast.Continue())]

    def _exit(self, node: ast.stmt, word: str, new: ast.stmt) -> ast.stmt:
        if not self.loops or self.loops[-1] not in _INNER_EXITS:
            self.refuse(node, f"{word} belongs to the innermost pl.range or while")
        return new

    def _for(self, node: ast.For) -> list[ast.stmt]:
        if node.orelse:
            self.refuse(node, "for … else is not accepted in a kernel")
        if not isinstance(node.iter, ast.Call):
            self.refuse(
                node,
                f"a loop runs over pl.range and its kin, not over {ast.unparse(node.iter)!r}",
            )
        target = self.expressions.callee(node.iter.func)
        if not isinstance(target, runtime.Construct):
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

    def _initial(self, node: ast.For, names: list[str], init: ast.expr) -> ast.stmt:
        if not isinstance(init, (ast.Tuple, ast.List)) or len(init.elts) != len(names):
            self.refuse(node, f"init_values= must be a tuple of {len(names)} values")
        values = [self.expressions.expr(e) for e in init.elts]
        self.bind(*names)
        for name in names:
            self.first[name] = self.depth
        return ast.Assign(targets=[_names_store(names, True)], value=ast.Tuple(elts=values, ctx=ast.Load()))

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
        after = ast.Assign(targets=[_names_store(names, True)], value=_names_load(carried))
        return [*translated, ast.copy_location(feed, last)], [after]

    def _is_yield(self, call: ast.Call) -> bool:
        target = self.expressions.callee(call.func)
        return isinstance(target, runtime.Construct) and target.name == "yield_"

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

    # -- bodies that become nested functions --------------------------------------------------------

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
        if not isinstance(call, ast.Call) or not isinstance(target, runtime.Construct):
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
            keywords + self._effects(node.body) + [_constant("gg_kept", tuple(outputs)), _constant("gg_stable", stable)]
        )
        run = self.expressions.rt("at", ast.Name(id=name, ctx=ast.Load()), *arguments, keywords=keywords)
        if tid is not None:
            self.bind(tid)
        target = ast.Tuple(
            elts=[ast.Name(id=tid or "gg_unused", ctx=ast.Store()), _names_store(outputs, True)],
            ctx=ast.Store(),
        )
        return [definition, ast.Assign(targets=[target], value=run)]

    def _with_spmd(
        self, node: ast.With, tid: str | None, arguments: list[ast.expr], keywords: list[ast.keyword]
    ) -> list[ast.stmt]:
        if not _reads_block_index(node.body) and not self._is_single_call(node.body):
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
            _constant("gg_reads", tuple(sorted(effects.reads))),
            _constant("gg_writes", tuple(sorted(effects.writes))),
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
        translated.append(ast.copy_location(ast.Return(value=_names_load(outputs)), node))
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


def unassigned(names: set[str], at: ast.AST) -> list[ast.stmt]:
    """A loop of zero iterations leaves names without a value; Python must not trip over them where they are not
    used.
    """
    if not names:
        return []
    value = ast.Attribute(value=ast.Name(id=runtime.ALIAS, ctx=ast.Load()), attr="UNASSIGNED", ctx=ast.Load())
    targets: list[ast.expr] = [ast.Name(id=n, ctx=ast.Store()) for n in sorted(names)]
    return [ast.copy_location(ast.Assign(targets=targets, value=value), at)]


def stored_names(body: list[ast.stmt]) -> set[str]:
    """Every name that the statements assign, at any depth."""
    module = ast.Module(body=body, type_ignores=[])
    return {n.id for n in ast.walk(module) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def loaded_names(body: list[ast.stmt]) -> set[str]:
    """Every name that the statements read, at any depth."""
    module = ast.Module(body=body, type_ignores=[])
    return {n.id for n in ast.walk(module) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def _reads_block_index(body: list[ast.stmt]) -> bool:
    module = ast.Module(body=body, type_ignores=[])
    return any(isinstance(n, ast.Attribute) and n.attr == "get_block_idx" for n in ast.walk(module))


def _constant(name: str, value: object) -> ast.keyword:
    return ast.keyword(arg=name, value=ast.parse(repr(value), mode="eval").body)


def _names_store(names: list[str], as_tuple: bool) -> ast.expr:
    if not as_tuple:
        return ast.Name(id=names[0], ctx=ast.Store())
    return ast.Tuple(elts=[ast.Name(id=n, ctx=ast.Store()) for n in names], ctx=ast.Store())


def _names_load(names: list[str]) -> ast.expr:
    return ast.Tuple(elts=[ast.Name(id=n, ctx=ast.Load()) for n in names], ctx=ast.Load())


def _creates_tensor(value: ast.expr) -> bool:
    """Whether a value is `pl.create_tensor(…)` or one of its other spellings."""
    call = value.func if isinstance(value, ast.Call) else None
    return isinstance(call, ast.Attribute) and call.attr in ("create_tensor", "create")


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
