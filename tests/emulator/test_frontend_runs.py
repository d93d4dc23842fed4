"""What rewritten code computes: loops, carried values, blocks, regions, inlines, scalars (pypto_dsl.md 1, 2)."""

from __future__ import annotations

import pytest
import torch

from harness.devices.base import KernelFault

INDENT = " " * 16  # of the statements that a test puts into scalars_kernel


def scalars_kernel(kernel, body: str, dtype: str = "INT32"):
    """A kernel that computes `r` from the INT32 scalars a, b inside a region and writes it to out[0, 0]."""
    return kernel(f"""
        @pl.jit
        def kernel(x: pl.Tensor[[8, 8], pl.{dtype}], out: pl.Out[pl.Tensor[[8, 8], pl.{dtype}]]):
            with pl.at(level=pl.Level.CORE_GROUP):
                a = pl.read(x, [0, 0])
                b = pl.read(x, [0, 1])
                {body}
                pl.write(out, [0, 0], r)
            return out
        """)


def run_scalars(kernel, body: str, a: float, b: float, dtype: str = "INT32"):
    kinds = {"INT32": torch.int32, "FP32": torch.float32, "INT64": torch.int64}
    x = torch.zeros(8, 8, dtype=kinds[dtype])
    x[0, 0], x[0, 1] = a, b
    return scalars_kernel(kernel, body, dtype).run(x=x)


@pytest.mark.parametrize(
    ("body", "a", "b", "expected"),
    [
        ("r = a // b", -7, 2, -3),
        ("r = a % b", -7, 2, -1),
        ("r = a // b", 7, -2, -3),
        ("r = a % b", 7, -2, 1),
        ("r = a / b", -7, 2, -3),
        ("r = a + b", 2**31 - 1, 1, -(2**31)),
        ("r = a * b", 2**20, 2**20, 0),
        ("r = a << b", 1, 31, -(2**31)),
        ("r = a >> b", -8, 1, -4),
        ("r = -a", 5, 0, -5),
        ("r = ~a", 5, 0, -6),
    ],
)
def test_integer_scalars_follow_c(kernel, body: str, a: int, b: int, expected: int) -> None:
    assert int(run_scalars(kernel, body, a, b).outputs["out"][0, 0]) == expected


def test_negative_division_is_a_warning(kernel) -> None:
    run = run_scalars(kernel, "r = a // b", -7, 2)
    assert [(f.code, f.severity) for f in run.findings] == [("GG301", "warning")]


def test_constants_fold_with_python_floor(kernel) -> None:
    file = kernel("""
        S = -7
        @pl.jit
        def kernel(x: pl.Tensor[[8, 8], pl.INT64], out: pl.Out[pl.Tensor[[8, 8], pl.INT64]]):
            with pl.at(level=pl.Level.CORE_GROUP):
                r = pl.cast(S // 2, pl.INT64)
                pl.write(out, [0, 0], r)
            return out
        """)
    assert int(file.run(x=torch.zeros(8, 8, dtype=torch.int64)).outputs["out"][0, 0]) == -4


def test_float_scalars_round_each_operation_to_fp32(kernel) -> None:
    run = run_scalars(kernel, "r = a * b + a", 1.1, 3.3, "FP32")
    a, b = torch.tensor(1.1), torch.tensor(3.3)
    assert run.outputs["out"][0, 0] == a * b + a


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("r = a + 1.0", "mixes"),
        ("r = a // (b - b)", "division by zero"),
        ("c = a > 0\n                r = a + c", "Bool operand"),
        ("if a:\n                    r = a\n                else:\n                    r = b", "must be Bool"),
    ],
)
def test_rejects_scalar_category_errors(kernel, body: str, reason: str) -> None:
    with pytest.raises(KernelFault, match=reason):
        run_scalars(kernel, body, 3, 2)


def test_and_evaluates_both_sides(kernel) -> None:
    with pytest.raises(KernelFault, match="out of"):
        run_scalars(kernel, f"r = a\n{INDENT}if a < 0 and pl.read(x, [9, 0]) > 0:\n{INDENT}    r = b", 3, 2)


def test_and_is_refused_in_orchestration(kernel) -> None:
    file = kernel("""
        @pl.jit
        def kernel(n: pl.Scalar[pl.INT32], out: pl.Out[pl.Tensor[[8, 8], pl.FP32]]):
            if n > 0 and n < 8:
                with pl.at(level=pl.Level.CORE_GROUP):
                    out = pl.assemble(out, pl.full([8, 8], pl.FP32, 1.0), [0, 0])
            return out
        """)
    with pytest.raises(KernelFault, match="code generator"):
        file.run(n=3)


def test_carried_values_in_both_spellings(kernel) -> None:
    file = kernel("""
        @pl.jit
        def kernel(x: pl.Tensor[[8, 64], pl.FP32], a: pl.Out[pl.Tensor[[8, 8], pl.FP32]],
                   b: pl.Out[pl.Tensor[[8, 8], pl.FP32]], c: pl.Out[pl.Tensor[[8, 8], pl.FP32]]):
            with pl.at(level=pl.Level.CORE_GROUP):
                s = pl.full([8, 8], pl.FP32, 0.0)
                for k in pl.range(0, 64, 8):
                    s = pl.add(s, x[:, k : k + 8])
                a = pl.assemble(a, s, [0, 0])
                for k, (u,) in pl.pipeline(8, stage=2, init_values=(pl.full([8, 8], pl.FP32, 0.0),)):
                    v = pl.add(u, x[:, k * 8 : k * 8 + 8])
                    w = pl.yield_(v)
                b = pl.assemble(b, w, [0, 0])
                for k, (u,) in pl.range(0, init_values=(pl.full([8, 8], pl.FP32, 5.0),)):
                    z = pl.yield_(pl.add(u, 1.0))
                c = pl.assemble(c, z, [0, 0])
            return a, b, c
        """)
    x = torch.arange(512.0).reshape(8, 64)
    run = file.run(x=x)
    expected = x.reshape(8, 8, 8).sum(1)
    assert torch.equal(run.outputs["a"], expected)
    assert torch.equal(run.outputs["b"], expected)
    assert torch.equal(run.outputs["c"], torch.full((8, 8), 5.0)), "zero iterations keep the initial value"


def test_while_and_break(kernel) -> None:
    body = "r = a\n                while r < 100:\n                    r = r * b\n"
    body += "                for k in pl.range(10):\n                    if k > 2:\n                        break\n"
    body += "                    r = r + b"
    assert int(run_scalars(kernel, body, 3, 2).outputs["out"][0, 0]) == 192 + 6


BLOCKS = """
    @pl.jit
    def kernel(x: pl.Tensor[[8, 64], pl.FP32], out: pl.Out[pl.Tensor[[8, 64], pl.FP32]]):
        {form}
            t = x[:, i * 8 : i * 8 + 8]
            out[:, i * 8 : i * 8 + 8] = pl.mul(t, 2.0)
        return out
    """


@pytest.mark.parametrize(
    "form", ["for i in pl.spmd(8, name_hint='double'):", "with pl.spmd(8):\n            i = pl.tile.get_block_idx()"]
)
@pytest.mark.parametrize("schedule", [0, 1, 7])
def test_blocks_run_in_any_order(kernel, form: str, schedule: int) -> None:
    x = torch.arange(512.0).reshape(8, 64)
    run = kernel(BLOCKS.format(form=form)).run(x=x, schedule=schedule)
    assert torch.equal(run.outputs["out"], x * 2)
    assert run.counters["blocks"] == 8
    assert run.undefined["out"] is None


def test_block_order_depends_on_the_schedule(kernel) -> None:
    """Blocks that overwrite one another leave the last one's value: a race that only some schedules show."""
    file = kernel("""
        @pl.jit
        def kernel(x: pl.Tensor[[8, 64], pl.FP32], out: pl.Out[pl.Tensor[[8, 8], pl.FP32]]):
            for i in pl.spmd(8):
                out[:, :] = x[:, i * 8 : i * 8 + 8]
            return out
        """)
    x = torch.arange(8.0).repeat_interleave(8).repeat(8, 1)
    last = {int(file.run(x=x, schedule=s).outputs["out"][0, 0]) for s in range(12)}
    assert 7 in last
    assert len(last) > 2


def test_block_variables_are_private(kernel) -> None:
    file = kernel("""
        @pl.jit
        def kernel(out: pl.Out[pl.Tensor[[8, 32], pl.FP32]]):
            n = 1
            for i in pl.spmd(4):
                n = n + i
                out[:, i * 8 : i * 8 + 8] = pl.add(pl.full([8, 8], pl.FP32, 0.0), pl.cast(n, pl.FP32))
            return out
        """)
    for schedule in (0, 3):
        row = file.run(schedule=schedule).outputs["out"][0]
        assert row[::8].tolist() == [1.0, 2.0, 3.0, 4.0]


def test_a_name_of_a_block_is_unknown_outside(kernel) -> None:
    from harness.devices.base import KernelRefused

    file = kernel("""
        @pl.jit
        def kernel(out: pl.Out[pl.Tensor[[8, 8], pl.FP32]]):
            for i in pl.spmd(1):
                t = pl.full([8, 8], pl.FP32, 0.0)
                out[:, :] = t
            for i in pl.spmd(1):
                out[:, :] = t
            return out
        """)
    with pytest.raises(KernelRefused, match="outside the block"):
        file.load()


def test_regions_do_not_nest(kernel) -> None:
    file = kernel("""
        @pl.jit.inline
        def inner(out: pl.Tensor[[8, 8], pl.FP32]):
            with pl.at(level=pl.Level.CORE_GROUP):
                out[:, :] = pl.full([8, 8], pl.FP32, 0.0)
            return out

        @pl.jit
        def kernel(out: pl.Out[pl.Tensor[[8, 8], pl.FP32]]):
            with pl.at(level=pl.Level.CORE_GROUP):
                out = inner(out)
            return out
        """)
    with pytest.raises(KernelFault, match="do not nest"):
        file.run()


def test_inline_writes_reach_the_caller_and_rebinding_at_top_level_does_not(kernel) -> None:
    file = kernel("""
        @pl.jit.inline
        def bump(v: pl.Scalar[pl.INDEX], out: pl.Tensor[[8, 8], pl.INT64], column: pl.Scalar[pl.INDEX]):
            v = v + 1
            pl.write(out, [0, column], pl.cast(v, pl.INT64))

        @pl.jit
        def kernel(n: pl.Scalar[pl.INT32], out: pl.Out[pl.Tensor[[8, 8], pl.INT64]]):
            k = n + 0
            bump(k, out, 0)
            bump(v=k, column=1, out=out)
            pl.write(out, [0, 2], pl.cast(k, pl.INT64))
        """)
    run = file.run(n=5)
    assert run.outputs["out"][0, :3].tolist() == [6, 6, 5]


def test_inline_rebinding_in_a_nested_body_changes_the_callers_variable(kernel) -> None:
    """Trap 28 of section 7: surprising, real, and a finding."""
    file = kernel("""
        @pl.jit.inline
        def bump(v: pl.Scalar[pl.INDEX]):
            for i in pl.range(3):
                v = v + 1
            return v

        @pl.jit
        def kernel(n: pl.Scalar[pl.INT32], out: pl.Out[pl.Tensor[[8, 8], pl.INT64]]):
            k = n + 0
            r = bump(k)
            pl.write(out, [0, 0], pl.cast(r, pl.INT64))
            pl.write(out, [0, 1], pl.cast(k, pl.INT64))
        """)
    run = file.run(n=5)
    assert run.outputs["out"][0, :2].tolist() == [8, 8]
    assert "GG302" in [f.code for f in run.findings]


def test_dynamic_dimension_is_the_runtime_size(kernel) -> None:
    file = kernel("""
        T = pl.dynamic("T")

        @pl.jit.inline
        def halves(x: pl.Tensor[[T, 8], pl.FP32], out: pl.Tensor[[T, 8], pl.FP32]):
            x.bind_dynamic(0, T)
            for i in pl.spmd(T // 8):
                out[i * 8 : i * 8 + 8, :] = pl.mul(x[i * 8 : i * 8 + 8, :], 0.5)
            return out

        @pl.jit
        def kernel(x: pl.Tensor[[T, 8], pl.FP32], out: pl.Out[pl.Tensor[[T, 8], pl.FP32]]):
            out = halves(x, out)
            return out
        """)
    for rows in (8, 24):
        x = torch.ones(rows, 8)
        assert torch.equal(file.run(x=x).outputs["out"], x / 2)


def test_unwritten_output_elements_are_undefined(kernel) -> None:
    file = kernel("""
        @pl.jit
        def kernel(x: pl.Tensor[[16, 8], pl.FP32], out: pl.Out[pl.Tensor[[16, 8], pl.FP32]]):
            for i in pl.spmd(1):
                out[i * 8 : i * 8 + 8, :] = x[i * 8 : i * 8 + 8, :]
            return out
        """)
    run = file.run(x=torch.ones(16, 8))
    assert not run.undefined["out"][:8].any()
    assert run.undefined["out"][8:].all()
    assert run.outputs["out"][8:].isnan().all()


def test_garbage_that_reaches_an_output_is_undefined_there(kernel) -> None:
    file = kernel("""
        @pl.jit
        def kernel(x: pl.Tensor[[8, 8], pl.FP32], out: pl.Out[pl.Tensor[[8, 8], pl.FP32]]):
            scratch = pl.create_tensor([8, 8], dtype=pl.FP32)
            with pl.at(level=pl.Level.CORE_GROUP):
                scratch[0:8, :] = x[:, :]
            with pl.at(level=pl.Level.CORE_GROUP):
                never = pl.create_tensor([8, 8], dtype=pl.FP32)
                out[:, :] = pl.add(scratch[:, :], never)
            return out
        """)
    assert file.run(x=torch.ones(8, 8)).undefined["out"].all()


def test_a_branch_on_garbage_is_a_fault(kernel) -> None:
    file = kernel("""
        @pl.jit
        def kernel(out: pl.Out[pl.Tensor[[8, 8], pl.INT32]]):
            scratch = pl.create_tensor([8, 8], dtype=pl.INT32)
            n = pl.read(scratch, [0, 0])
            if n > 0:
                pl.write(out, [0, 0], n)
            return out
        """)
    with pytest.raises(KernelFault, match="never-written element of") as error:
        file.run()
    assert error.value.line == file.line("pl.read")


def test_a_write_to_a_plain_input_is_a_fault(kernel) -> None:
    file = kernel("""
        @pl.jit
        def kernel(x: pl.Tensor[[8, 8], pl.FP32], out: pl.Out[pl.Tensor[[8, 8], pl.FP32]]):
            with pl.at(level=pl.Level.CORE_GROUP):
                x[:, :] = pl.full([8, 8], pl.FP32, 0.0)
                out[:, :] = pl.full([8, 8], pl.FP32, 0.0)
            return out
        """)
    x = torch.ones(8, 8)
    with pytest.raises(KernelFault, match="plain input x"):
        file.run(x=x)
    assert torch.equal(x, torch.ones(8, 8))


def test_scratch_dies_with_its_scope(kernel) -> None:
    file = kernel("""
        @pl.jit(auto_scope=False)
        def kernel(x: pl.Tensor[[8, 8], pl.FP32], out: pl.Out[pl.Tensor[[8, 8], pl.FP32]]):
            with pl.scope():
                scratch = pl.create_tensor([8, 8], dtype=pl.FP32)
                with pl.at(level=pl.Level.CORE_GROUP):
                    scratch[:, :] = x[:, :]
            with pl.at(level=pl.Level.CORE_GROUP):
                out[:, :] = scratch[:, :]
            return out
        """)
    with pytest.raises(KernelFault, match="end of the scope") as error:
        file.run(x=torch.ones(8, 8))
    assert error.value.line == file.line("out[:, :] = scratch")


def test_manual_scope_with_dependencies(kernel) -> None:
    file = kernel("""
        @pl.jit
        def kernel(x: pl.Tensor[[8, 8], pl.FP32], out: pl.Out[pl.Tensor[[8, 8], pl.FP32]]):
            tids = pl.array.create(2, pl.TASK_ID)
            scratch = pl.create_tensor([8, 8], dtype=pl.FP32)
            with pl.manual_scope():
                with pl.at(level=pl.Level.CORE_GROUP) as first:
                    scratch[:, :] = pl.add(x[:, :], 1.0)
                tids[0] = first
                with pl.at(level=pl.Level.CORE_GROUP, deps=[tids[i] for i in range(2)]) as second:
                    out[:, :] = scratch[:, :]
            return out
        """)
    assert torch.equal(file.run(x=torch.ones(8, 8)).outputs["out"], torch.full((8, 8), 2.0))


def test_both_lanes_run_the_body(kernel) -> None:
    file = kernel("""
        @pl.jit
        def kernel(x: pl.Tensor[[8, 16], pl.FP32], out: pl.Out[pl.Tensor[[8, 16], pl.FP32]]):
            with pl.at(level=pl.Level.CORE_GROUP):
                for lane in pl.split_aiv(2, mode=pl.SplitMode.NONE):
                    out[:, lane * 8 : lane * 8 + 8] = pl.add(x[:, lane * 8 : lane * 8 + 8], 1.0)
            return out
        """)
    assert torch.equal(file.run(x=torch.ones(8, 16)).outputs["out"], torch.full((8, 16), 2.0))


def test_a_wrong_argument_of_an_op_names_the_line(kernel) -> None:
    file = kernel("""
        @pl.jit
        def kernel(x: pl.Tensor[[8, 8], pl.FP32], out: pl.Out[pl.Tensor[[8, 8], pl.FP32]]):
            with pl.at(level=pl.Level.CORE_GROUP):
                t = pl.add(x)
                out[:, :] = t
            return out
        """)
    with pytest.raises(KernelFault, match="add") as error:
        file.run(x=torch.ones(8, 8))
    assert error.value.line == file.line("pl.add")


def test_names_of_a_loop_without_iterations_do_no_harm(kernel) -> None:
    """The same name is assigned in two regions; in the first its loop does not run."""
    file = kernel("""
        @pl.jit
        def kernel(n: pl.Scalar[pl.INT32], out: pl.Out[pl.Tensor[[8, 8], pl.FP32]]):
            with pl.at(level=pl.Level.CORE_GROUP):
                for i in pl.range(n):
                    c = i * 8
                    out[:, c : c + 8] = pl.full([8, 8], pl.FP32, 1.0)
            with pl.at(level=pl.Level.CORE_GROUP):
                c = 0
                out[:, c : c + 8] = pl.full([8, 8], pl.FP32, 2.0)
            return out
        """)
    assert torch.equal(file.run(n=0).outputs["out"], torch.full((8, 8), 2.0))


def test_subscript_store_writes_the_valid_part_only(kernel) -> None:
    """A window may reach beyond the tensor where the source's valid part does not (3.3), as pl.assemble has it."""
    file = kernel("""
        @pl.jit
        def kernel(x: pl.Tensor[[12, 8], pl.FP32], out: pl.Out[pl.Tensor[[12, 8], pl.FP32]]):
            for i in pl.spmd(2):
                rows = pl.min(8, 12 - i * 8)
                t = pl.slice(x, [8, 8], [i * 8, 0], valid_shape=[rows, 8])
                out[i * 8 : i * 8 + 8, :] = t
            return out
        """)
    x = torch.arange(96.0).reshape(12, 8)
    assert torch.equal(file.run(x=x).outputs["out"], x)
    broken = kernel(file.source.removeprefix("import pypto.language as pl\n").replace("[rows, 8]", "[8, 8]"))
    with pytest.raises(KernelFault, match="GG501"):
        broken.run(x=x)
