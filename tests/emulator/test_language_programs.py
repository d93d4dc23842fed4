"""Programs, submissions and explicit function kinds (pypto_dsl.md 1.1)."""

from __future__ import annotations

import pytest
import torch
from language_testing import SCHEDULES, X, outputs

from harness.devices.base import KernelRefused
from harness.devices.emulator.device import EmulatorDevice

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
