"""Parameters, constants and names (pypto_dsl.md 1.2, 1.5)."""

from __future__ import annotations

import pytest
import torch
from language_testing import IN, NAMES, X, outputs

from harness.devices.base import KernelFault, KernelRefused

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
