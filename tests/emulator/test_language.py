"""The language beyond loops and regions: programs, submissions, lanes, task ids, constants (pypto_dsl.md 1, 2)."""

from __future__ import annotations

import pytest
import torch

from harness.devices.base import KernelFault, KernelRefused
from harness.devices.emulator.device import EmulatorDevice

SCHEDULES = range(8)
X = torch.arange(128.0).reshape(8, 16)


def outputs(file, entry: str = "kernel", name: str = "out", **inputs) -> torch.Tensor:
    """The output that every schedule agrees on, without findings."""
    seen = []
    for schedule in SCHEDULES:
        run = file.run(schedule=schedule, entry=entry, **inputs)
        assert run.findings == []
        seen.append(run.outputs[name])
    assert all(torch.equal(s, seen[0]) for s in seen)
    return seen[0]


# -- programs and explicit function kinds (1.1) -------------------------------------------------------------------

PROGRAM = """
    N = 16

    @pl.program
    class Doubler:
        @pl.function(type=pl.FunctionType.InCore)
        def double(self, x: pl.Tensor[[8, N], pl.FP32], out: pl.Out[pl.Tensor[[8, N], pl.FP32]]):
            t = pl.load(x, [0, 0], [8, N])
            out = pl.store(pl.mul(t, 2.0), [0, 0], out)
            return out

        @pl.function(type=pl.FunctionType.Inline)
        def twice(self, x: pl.Tensor[[8, N], pl.FP32], tmp: pl.Tensor[[8, N], pl.FP32],
                  out: pl.Tensor[[8, N], pl.FP32]):
            tmp = self.double(x, tmp)
            out = self.double(out=out, x=tmp)
            return out

        @pl.function(type=pl.FunctionType.Orchestration, strict_ssa=False, auto_scope=True)
        def main(self, x: pl.Tensor[[8, N], pl.FP32], out: pl.Out[pl.Tensor[[8, N], pl.FP32]]):
            pl.func_attr({"any": 1})
            tmp = pl.create_tensor([8, N], dtype=pl.FP32)
            out = self.twice(x, tmp, out)
            return out
    """


def test_accepts_a_program(kernel) -> None:
    assert torch.equal(outputs(kernel(PROGRAM), "Doubler", x=X), 4 * X)


def test_a_program_is_an_entry_of_its_file(kernel) -> None:
    file = kernel(PROGRAM)
    loaded = EmulatorDevice().load(file.path, "Doubler", {})
    assert loaded.entry.name == "main"
    assert EmulatorDevice().load(file.path, "anything", {}).entry is not None, "the only entry is taken"


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ("self.double(x, tmp)", "self.triple(x, tmp)", "no method triple"),
        ("type=pl.FunctionType.Orchestration, ", "type=pl.FunctionType.InCore, ", "0 entries"),
        ("strict_ssa=False, auto_scope=True", "type=3", "repeated"),
        ("x: pl.Tensor[[8, N], pl.FP32], tmp", "x, tmp", "no annotation"),
    ],
)
def test_rejects_a_program(kernel, before: str, after: str, reason: str) -> None:
    with pytest.raises(KernelRefused, match=reason):
        kernel(PROGRAM.replace(before, after)).load()


def test_an_opaque_method_that_nobody_calls_is_the_entry(kernel) -> None:
    source = PROGRAM.replace("type=pl.FunctionType.Orchestration, ", "")
    assert torch.equal(outputs(kernel(source), "Doubler", x=X), 4 * X)


SUBMIT = """
    @pl.jit.incore
    def double(x: pl.Tensor[[8, 16], pl.FP32], out: pl.Out[pl.Tensor[[8, 16], pl.FP32]]):
        out[:, :] = pl.mul(x[:, :], 2.0)
        return out

    @pl.jit.incore
    def column(x: pl.Tensor[[8, 16], pl.FP32], out: pl.Out[pl.Tensor[[8, 16], pl.FP32]]):
        i = pl.tile.get_block_idx() * 8
        out[:, i : i + 8] = pl.add(x[:, i : i + 8], 1.0)
        return out

    @pl.jit
    def kernel(x: pl.Tensor[[8, 16], pl.FP32], out: pl.Out[pl.Tensor[[8, 16], pl.FP32]]):
        tmp = pl.create_tensor([8, 16], dtype=pl.FP32)
        with pl.manual_scope():
            tmp, first = pl.submit(double, x, tmp)
            out, second = pl.spmd_submit(column, tmp, out, core_num=2, sync_start=False, deps=[{deps}])
        return out
    """


def test_accepts_submissions_with_dependencies(kernel) -> None:
    assert torch.equal(outputs(kernel(SUBMIT.format(deps="first")), x=X), 2 * X + 1)


def test_rejects_a_submission_without_its_dependency(kernel) -> None:
    file = kernel(SUBMIT.format(deps=""))
    codes = [{f.code for f in file.run(x=X, schedule=s).findings} for s in SCHEDULES]
    assert all(c & {"GG402", "GG403"} for c in codes)


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ("pl.submit(double, x, tmp)", "pl.submit(kernel, x, tmp)", "in-core function first"),
        ("core_num=2, ", "", "needs core_num"),
        ("pl.submit(double, x, tmp)", "pl.submit(double, x)", "'out' is missing"),
    ],
)
def test_rejects_submissions(kernel, before: str, after: str, reason: str) -> None:
    with pytest.raises(KernelRefused, match=reason):
        kernel(SUBMIT.format(deps="first").replace(before, after)).load()


def test_a_dispatch_of_one_incore_call(kernel) -> None:
    call = "tmp, first = pl.submit(double, x, tmp)"
    source = SUBMIT.format(deps="").replace(call, "with pl.spmd(1):\n                double(x, tmp)")
    source = source.replace("with pl.manual_scope():", "with pl.scope():")
    source = source.replace("@pl.jit\n", "@pl.jit(auto_scope=False)\n")
    assert torch.equal(outputs(kernel(source), x=X), 2 * X + 1)


TEMPLATE = """
    {decorator}
    def scaled(x: pl.Tensor[[8, 16], pl.FP32], factor: pl.Scalar[pl.FP32]):
        y = pl.mul(x, factor)
        {end}

    @pl.jit
    def kernel(x: pl.Tensor[[8, 16], pl.FP32], out: pl.Out[pl.Tensor[[8, 16], pl.FP32]]):
        with pl.at(level=pl.Level.CORE_GROUP):
            t = x[:, :]
            out[:, :] = pl.add(scaled(t, 3.0), scaled(t, 1.0))
        return out
    """


def test_accepts_the_old_inline_in_an_expression(kernel) -> None:
    assert torch.equal(outputs(kernel(TEMPLATE.format(decorator="@pl.inline", end="return y")), x=X), 4 * X)


@pytest.mark.parametrize(
    ("decorator", "end", "reason"),
    [("@pl.inline", "pass", "returns nothing"), ("@pl.jit.inline", "return y", "whole right-hand side")],
)
def test_rejects_inlines_in_an_expression(kernel, decorator: str, end: str, reason: str) -> None:
    with pytest.raises(KernelRefused, match=reason):
        kernel(TEMPLATE.format(decorator=decorator, end=end)).load()


OPAQUE = """
    {decorator}
    def halve(x: pl.Tensor[[8, 16], pl.FP32], out: pl.Out[pl.Tensor[[8, 16], pl.FP32]]):
        with pl.at(level=pl.Level.CORE_GROUP):
            out[:, :] = pl.mul(x[:, :], 0.5)
        return out

    @pl.jit
    def kernel(x: pl.Tensor[[8, 16], pl.FP32], out: pl.Out[pl.Tensor[[8, 16], pl.FP32]]):
        out = halve(x, out)
        return out
    """


@pytest.mark.parametrize("decorator", ["@pl.jit.opaque", "@pl.function", "@pl.jit.inline(auto_scope=True)"])
def test_accepts_opaque_functions(kernel, decorator: str) -> None:
    assert torch.equal(outputs(kernel(OPAQUE.format(decorator=decorator)), x=X), X / 2)


@pytest.mark.parametrize(
    ("decorator", "reason"),
    [
        ("@pl.jit.extern", "hand-written C\\+\\+ kernel"),
        ("@pl.jit", "an entry .* cannot be called"),
        ("@pl.jit.opaque(auto_scope=False)", "does not take auto_scope"),
        ("@pl.jit.incore(auto_scope=False)", "does not take auto_scope"),
        ("@pl.jit.host(level=1)", "does not take level"),
    ],
)
def test_rejects_function_kinds(kernel, decorator: str, reason: str) -> None:
    with pytest.raises(KernelRefused, match=reason):
        kernel(OPAQUE.format(decorator=decorator)).load()


# -- parameters and constants (1.2) ----------------------------------------------------------------------------------

SCALAR = """
    S = -7

    @pl.jit
    def kernel(n: {type}, out: pl.Out[pl.Tensor[[8, 8], pl.INT64]]):
        {body}
        pl.write(out, [0, 0], pl.cast(r, pl.INT64))
    """


@pytest.mark.parametrize(
    ("kind", "body", "expected"),
    [
        ("pl.Scalar[pl.INT32]", "r = S // n", -4),  # a literal of this compile: Python's floor
        ("pl.Scalar[pl.INT32, pl.RUNTIME]", "r = S // n", -3),  # a runtime value: C
        ("pl.RUNTIME[pl.Scalar[pl.INT32]]", "r = S % n", -1),
        ("pl.INT32", "r = S % n", 1),
        ("pl.Scalar[pl.INT32]", "m = n + 0\n        r = S // m", -3),  # a local is a runtime value
    ],
)
def test_entry_scalars_are_constants(kernel, kind: str, body: str, expected: int) -> None:
    """Trap 29, and trap 12 for constants."""
    run = kernel(SCALAR.format(type=kind, body=body)).run(n=2)
    assert int(run.outputs["out"][0, 0]) == expected


@pytest.mark.parametrize("annotation", ["pl.InOut[pl.Scalar[pl.INT32]]", "pl.Scalar[3]", "pl.RUNTIME[3]", "3"])
def test_rejects_annotations(kernel, annotation: str) -> None:
    with pytest.raises(KernelRefused):
        kernel(SCALAR.format(type=annotation, body="r = n")).load()


def test_accepts_arrays_as_parameters_and_tuples(kernel) -> None:
    file = kernel("""
        @pl.jit.inline
        def fill(a: pl.Array[4, pl.INT32], n: pl.Scalar[pl.INDEX]):
            for i in pl.range(4):
                a[i] = pl.cast(i * n, pl.INT32)

        @pl.jit.inline
        def pair(a: pl.Array[4, pl.INT32]):
            return a[1], a[3]

        @pl.jit
        def kernel(x: pl.Tensor[[8, 16], pl.FP32], out: pl.Out[pl.Tensor[[8, 8], pl.INT32]]):
            M, N = x.shape
            cells = pl.array.create(4, pl.INT32)
            fill(n=M, a=cells)
            low, high = pair(cells)
            count: pl.Scalar[pl.INDEX] = N
            pl.write(out, [0, 0], low)
            pl.write(out, [0, 1], high)
            pl.write(out, [0, 2], pl.cast(count + x.shape[0], pl.INT32))
        """)
    assert file.run(x=X).outputs["out"][0, :3].tolist() == [8, 24, 24]


# -- names (1.5) ------------------------------------------------------------------------------------------------------

NAMES = """
    @pl.jit
    def kernel(x: pl.Tensor[[8, 16], pl.FP32], out: pl.Out[pl.Tensor[[8, 16], pl.FP32]]):
        with pl.at(level=pl.Level.CORE_GROUP):
            t = x[:, :]
            {body}
            out[:, :] = t
        return out
    """
IN = " " * 12


@pytest.mark.parametrize(
    "body",
    [
        "t = pl.cast(t, pl.BF16, mode='rint')\n" + IN + "t = pl.cast(t, pl.FP32)",  # same depth: a new name
        "for i in pl.range(2):\n" + IN + "    t = pl.add(t, 0.0)",
        "for i, (t,) in pl.range(3, init_values=(t,)):\n" + IN + "    t = pl.add(t, 0.0)",
        "i = 0\n" + IN + "while i < 2:\n" + IN + "    i = i + 1",
    ],
)
def test_accepts_rebinding(kernel, body: str) -> None:
    assert torch.equal(outputs(kernel(NAMES.format(body=body)), x=X), X)


@pytest.mark.parametrize(
    "body",
    [
        "for i in pl.range(2):\n" + IN + "    t = pl.cast(t, pl.FP16, mode='rint')",
        "if x.shape[0] > 4:\n" + IN + "    t = pl.row_sum(t)",
        "for i, (t,) in pl.range(3, init_values=(t,)):\n" + IN + "    u = pl.yield_(pl.row_max(t))",
        "for i in pl.range(2):\n" + IN + "    u = pl.mul(t, 2.0)\n" + IN + "    t = pl.row_max(u)",
        "n = 0\n" + IN + "for i in pl.range(2):\n" + IN + "    m = n\n" + IN + "    n = 1.0",
    ],
)
def test_rejects_another_type_in_a_loop_or_branch(kernel, body: str) -> None:
    with pytest.raises(KernelFault, match="GG310"):
        kernel(NAMES.format(body=body)).run(x=X)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("for i in pl.range(2):\n" + IN + "    i = 1", "loop variable i"),
        ("for i in pl.range(2):\n" + IN + "    pass\n" + IN + "k = i + 1", "outside the block"),
        ("for i in pl.unroll(t):\n" + IN + "    pass", "literal bounds"),
        ("pl.func_attr({})", "first statement"),
        ("pl.submit()", "in-core function first"),
    ],
)
def test_rejects_names_and_statements(kernel, body: str, reason: str) -> None:
    with pytest.raises(KernelRefused, match=reason):
        kernel(NAMES.format(body=body)).load()


@pytest.mark.parametrize(
    "body",
    [
        "a, b = 1, 2\n" + IN + "u = x[0:a, :]",
        "for i in pl.range(1, 3):\n" + IN + "    u = x[0:i, :]",
        "for i in pl.range(1, 3):\n" + IN + "    u = pl.slice(x, [i, 16], [0, 0])",
        "n = pl.cast(pl.read(x, [0, 4]), pl.INDEX)\n" + IN + "u = pl.create_tensor([n, 8], dtype=pl.FP32)",
        "n = 8\n" + IN + "for i in pl.range(2):\n" + IN + "    n = n + 8\n" + IN + "u = pl.full([8, n], pl.FP32, 0.0)",
    ],
)
def test_rejects_an_extent_that_is_no_constant(kernel, body: str) -> None:
    file = kernel(NAMES.format(body=body))
    with pytest.raises(KernelFault, match="GG309") as error:
        file.run(x=X)
    assert error.value.line == file.line("u = ")


@pytest.mark.parametrize(
    "body",
    [
        "for i in pl.range(2):\n" + IN + "    u = x[:, i * 8 + 0 : 8 * i + 8]",
        "for i in pl.unroll(1, 3):\n" + IN + "    u = x[0 : i * 4, :]",
        "n = 4 * 2\n" + IN + "u = x[:, n : n + n]",
        "for i in pl.range(2):\n" + IN + "    c = i * 8\n" + IN + "    u = pl.slice(x, [8, 8], [0, c])",
        "for i in pl.range(1, 3):\n" + IN + "    u = pl.slice(x, [8, 8], [0, 0], valid_shape=[i, 8])",
    ],
)
def test_accepts_runtime_offsets_and_constant_extents(kernel, body: str) -> None:
    assert torch.equal(outputs(kernel(NAMES.format(body=body)), x=X), X)


# -- loops (2.1) ------------------------------------------------------------------------------------------------

WHILE = """
    @pl.jit
    def kernel(x: pl.Tensor[[8, 16], pl.FP32], out: pl.Out[pl.Tensor[[8, 16], pl.FP32]]):
        with pl.at(level=pl.Level.CORE_GROUP):
            t = x[:, :]
            for n, acc in pl.while_(init_values=(0, t)):
                {cond}
                if n > 1:
                    step = pl.yield_(pl.add(acc, 1.0))
                else:
                    step = pl.yield_(pl.add(acc, 10.0))
                count, last = pl.yield_(n + 1, step)
            out[:, :] = pl.add(last, pl.cast(count, pl.FP32))
        return out
    """


def test_accepts_while_with_carried_values_and_yields_in_branches(kernel) -> None:
    assert torch.equal(outputs(kernel(WHILE.format(cond="pl.cond(n < 4)")), x=X), X + 22 + 4)


def test_rejects_a_while_without_its_condition(kernel) -> None:
    with pytest.raises(KernelRefused, match=r"pl.cond"):
        kernel(WHILE.format(cond="pass")).load()


@pytest.mark.parametrize(
    ("loop", "reason"),
    [
        ("pl.range(4, 0, -1)", "never count down"),
        ("pl.range(0, 4, 0)", "never count down"),
        ("pl.pipeline(4)", "stage"),
        ("pl.pipeline(4, stage=0)", "stage"),
        ("pl.unroll(0, 4, 0)", "step 0"),
    ],
)
def test_rejects_loops(kernel, loop: str, reason: str) -> None:
    """Trap 38."""
    with pytest.raises(KernelFault, match=reason):
        kernel(NAMES.format(body=f"for i in {loop}:\n{IN}    pass")).run(x=X)


@pytest.mark.parametrize(
    ("loop", "expected"),
    [
        ("pl.range(4, 2)", 0),
        ("pl.range(3)", 3),
        ("pl.range(1, 8, 3)", 12),
        ("pl.unroll(3, 0, -1)", 6),
        ("pl.parallel(3)", 3),
    ],
)
def test_accepts_loops(kernel, loop: str, expected: int) -> None:
    """The sum of the loop variable."""
    body = f"s = 0\n{IN}for i in {loop}:\n{IN}    s = s + i\n{IN}t = pl.add(t, pl.cast(s, pl.FP32))"
    assert torch.equal(outputs(kernel(NAMES.format(body=body)), x=X), X + expected)


# -- where scopes may stand (2.2, 2.4) --------------------------------------------------------------------------------

SCOPES = """
    @pl.jit(auto_scope={auto})
    def kernel(x: pl.Tensor[[8, 16], pl.FP32], out: pl.Out[pl.Tensor[[8, 16], pl.FP32]]):
        {body}
        return out
    """
STORE = "out[:, :] = x[:, :]"
AT = "with pl.at(level=pl.Level.CORE_GROUP):"


def nested(*heads: str, body: str = STORE) -> str:
    lines = [" " * (8 + 4 * depth) + head for depth, head in enumerate((*heads, body))]
    return "\n".join(lines).strip()


@pytest.mark.parametrize(
    ("auto", "heads"),
    [
        (False, ("with pl.scope():", AT)),
        (False, ("with pl.scope():", "with pl.scope():", AT)),
        (False, ("with pl.scope():", "with pl.manual_scope():", AT)),
        (True, ("with pl.scope(mode=pl.ScopeMode.MANUAL):", AT)),
        (True, ("with pl.cluster():", AT)),
        (True, ("with pl.cluster():", "for i in pl.spmd(1):")),
    ],
)
def test_accepts_scopes(kernel, auto: bool, heads: tuple[str, ...]) -> None:
    assert torch.equal(outputs(kernel(SCOPES.format(auto=auto, body=nested(*heads))), x=X), X)


@pytest.mark.parametrize(
    ("auto", "heads", "reason"),
    [
        (True, ("with pl.scope():", AT), "auto_scope=False"),
        (False, ("with pl.manual_scope():", "with pl.scope():", AT), "inside a manual scope"),
        (False, ("with pl.manual_scope():", "with pl.manual_scope():", AT), "inside a manual scope"),
        (False, (AT, "with pl.scope():"), "not inside a compute region"),
        (True, (AT, AT), "do not nest"),
        (True, (AT, "for i in pl.spmd(1):"), "do not nest"),
        (True, ("for i in pl.spmd(1):", AT), "do not nest"),
        (True, ("for i in pl.spmd(1):", "for j in pl.spmd(1):"), "do not nest"),
        (True, ("with pl.cluster():", "with pl.spmd(1) as tid:"), "reads pl.tile.get_block_idx"),
        (True, ("with pl.at():",), "needs a level"),
        (True, ("for lane in pl.split_aiv(2, mode=pl.SplitMode.NONE):",), "inside a compute region"),
        (True, (AT, "for lane in pl.split_aiv(3):"), "literal 2"),
        (True, ("for i in pl.spmd(-1):",), "-1 blocks"),
    ],
)
def test_rejects_scopes(kernel, auto: bool, heads: tuple[str, ...], reason: str) -> None:
    with pytest.raises((KernelRefused, KernelFault), match=reason):
        kernel(SCOPES.format(auto=auto, body=nested(*heads))).run(x=X)


def test_rejects_a_captured_dispatch_in_a_cluster(kernel) -> None:
    body = nested("with pl.cluster():", "with pl.spmd(1) as tid:", body="i = pl.tile.get_block_idx()")
    with pytest.raises(KernelRefused, match=r"inside pl.cluster"):
        kernel(SCOPES.format(auto=True, body=body)).load()


def test_a_synchronous_start_needs_a_core_per_block(kernel) -> None:
    body = nested("for i in pl.spmd(25, sync_start=True):", body="j = i")
    file = kernel(SCOPES.format(auto=True, body=body))
    assert [f.code for f in file.run(x=X).findings] == ["GG311"]


# -- task ids (2.6) ---------------------------------------------------------------------------------------------------

IDS = """
    @pl.jit
    def kernel(x: pl.Tensor[[8, 32], pl.FP32], out: pl.Out[pl.Tensor[[8, 32], pl.FP32]]):
        tmp = pl.create_tensor([8, 32], dtype=pl.FP32)
        with pl.manual_scope():
            {loop}
                with pl.at(level=pl.Level.CORE_GROUP) as tid:
                    tmp[:, i * 8 : i * 8 + 8] = pl.add(x[:, i * 8 : i * 8 + 8], 1.0)
                {end}
            with pl.at(level=pl.Level.CORE_GROUP, deps=[{deps}]):
                out[:, :] = tmp[:, :]
        return out
    """
WIDE = torch.arange(256.0).reshape(8, 32)


@pytest.mark.parametrize(
    ("loop", "end", "deps"),
    [
        ("for i in pl.parallel(4):", "pass", "tid"),
        ("tid = None\n            for i in pl.parallel(4):", "pass", "tid, None"),
        ("for i, (all_ids,) in pl.parallel(4, init_values=(None,)):", "done = pl.yield_(tid)", "done"),
    ],
)
def test_a_carried_task_id_stands_for_all_iterations(kernel, loop: str, end: str, deps: str) -> None:
    file = kernel(IDS.format(loop=loop, end=end, deps=deps))
    assert torch.equal(outputs(file, x=WIDE), WIDE + 1)


def test_a_task_id_of_a_sequential_loop_is_the_last_one(kernel) -> None:
    file = kernel(IDS.format(loop="for i in pl.range(4):", end="pass", deps="tid"))
    assert all({f.code for f in file.run(x=WIDE, schedule=s).findings} & {"GG402", "GG403"} for s in SCHEDULES)


@pytest.mark.parametrize("deps", ["x", "tmp", "3"])
def test_rejects_other_dependencies(kernel, deps: str) -> None:
    with pytest.raises(KernelFault, match="task ids"):
        kernel(IDS.format(loop="for i in pl.range(4):", end="pass", deps=deps)).run(x=WIDE)


# -- lanes (2.5) -----------------------------------------------------------------------------------------------------

LANES = """
    @pl.jit
    def kernel(a: pl.Tensor[[32, 32], pl.FP32], b: pl.Tensor[[32, 32], pl.FP32],
               out: pl.Out[pl.Tensor[[32, 32], pl.FP32]]):
        with pl.at(level=pl.Level.CORE_GROUP):
            acc = pl.matmul(a[:, :], b[:, :], out_dtype=pl.FP32)
            for lane in pl.split_aiv(2, mode=pl.SplitMode.{mode}):
                half = pl.mul(pl.aiv_shard(acc), 0.5)
                whole = pl.aic_gather(half)
                acc = pl.matmul_acc(acc, whole, b[:, :])
                {store}
        return out
    """
STORES = {
    "UP_DOWN": "out[lane * 16 : lane * 16 + 16, :] = pl.add(pl.aiv_shard(acc), 1.0)",
    "LEFT_RIGHT": "out[:, lane * 16 : lane * 16 + 16] = pl.add(pl.aiv_shard(acc), 1.0)",
}
A = torch.randint(-3, 4, (32, 32), generator=torch.Generator().manual_seed(1)).float()
B = torch.randint(-3, 4, (32, 32), generator=torch.Generator().manual_seed(2)).float()


@pytest.mark.parametrize("mode", STORES)
def test_lanes_share_the_work(kernel, mode: str) -> None:
    """Every lane has half of the rows or columns; the cube multiplies and accumulates once."""
    file = kernel(LANES.format(mode=mode, store=STORES[mode]))
    product = A @ B
    assert torch.equal(outputs(file, a=A, b=B), product + (product / 2) @ B + 1)


@pytest.mark.parametrize("mode", STORES)
def test_the_cube_stores_once(kernel, mode: str) -> None:
    file = kernel(LANES.format(mode=mode, store="out[:, :] = acc"))
    product = A @ B
    assert torch.equal(outputs(file, a=A, b=B), product + (product / 2) @ B)


def test_shards_outside_a_split_are_refused_and_under_none_recorded(kernel) -> None:
    with pytest.raises(KernelFault, match=r"inside pl\.split_aiv"):
        kernel(NAMES.format(body="t = pl.aiv_shard(t)")).run(x=X)
    body = f"for lane in pl.split_aiv(2):\n{IN}    u = pl.aiv_shard(t)"
    assert {f.code for f in kernel(NAMES.format(body=body)).run(x=X).findings} == {"GG306"}


def test_an_odd_extent_gives_lane_0_one_more(kernel) -> None:
    file = kernel("""
        @pl.jit
        def kernel(x: pl.Tensor[[5, 8], pl.FP32], out: pl.Out[pl.Tensor[[8, 8], pl.INT32]]):
            with pl.at(level=pl.Level.CORE_GROUP):
                t = x[:, :]
                for lane in pl.split_aiv(2, mode=pl.SplitMode.UP_DOWN):
                    half = pl.aiv_shard(t)
                    pl.write(out, [0, lane], pl.cast(half.shape[0], pl.INT32))
        """)
    assert file.run(x=torch.ones(5, 8)).outputs["out"][0, :2].tolist() == [3, 2]


def test_lanes_that_do_not_both_gather_dead_lock(kernel) -> None:
    body = "for lane in pl.split_aiv(2, mode=pl.SplitMode.UP_DOWN):\n"
    body += f"{IN}    if lane == 0:\n{IN}        u = pl.aic_gather(t)"
    with pytest.raises(KernelFault, match=r"GG405.*other lane"):
        kernel(NAMES.format(body=body)).run(x=X)
