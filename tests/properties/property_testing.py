"""Properties of ops, checked on the golden and on the kernel, and the faults under which each must be seen to fail.

    @holds("rms_norm", on=BOTH, spoil=shifted)
    def test_negating_x_negates_y(trial):
        assert_same(trial.run(x=-trial["x"])["x_normed"], -trial.run()["x_normed"])

`holds` makes a test of a body. Situations come from `specs.strategies`; a failure prints the command that draws the
same inputs. `test_properties_can_fail.py` checks every property once more with `spoil` applied to the outputs: there
it must fail.
"""

from __future__ import annotations

import functools
import importlib
import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, note, seed, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.devices import get_device
from harness.run import Run
from specs import strategies
from specs.registry import Op, load_op
from specs.variations import Situation

GOLDEN, KERNEL = ("golden",), ("kernel",)
BOTH = GOLDEN + KERNEL
SHARE = {"golden": 1, "kernel": 4}
"""A kernel on the emulator is slower: it gets one in so many of the golden's examples."""

TOKEN_TENSORS = {
    "rms_norm": ("x",),
    "hc_pre": ("x",),
    "hc_post": ("x", "residual", "post", "comb"),
    "gate": ("x_mixed", "input_ids"),
    "expert_shared": ("x_local_i8", "x_local_scale_dq"),
    "hc_head": ("x_hc",),
    "mtp_projection": ("hidden_states", "prev_hidden_states"),
    "qkv_proj_rope": ("x", "rope_cos", "rope_sin"),
    "lm_head": ("hidden_states",),
}
"""Inputs with a row per token (mtp_projection: per request). A golden takes any number of them, a kernel only whole
tiles."""
TOKEN_AXIS = {"lm_head": 1}
"""The axis of those rows, where it is not the first."""

Outputs = dict[str, Tensor]
Spoil = Callable[[Outputs, dict[str, Any]], Outputs]


class Trial:
    """One example: an op, its inputs, and how to run it, by golden or by kernel.

    For the golden the token rows are cut to a number that need not be a multiple of anything.
    """

    def __init__(self, subject: str, situation: Situation, data: st.DataObject, spoil: Spoil | None = None) -> None:
        self.subject, self.data, self.spoil = subject, data, spoil
        self.op = situation.load()
        self.inputs = situation.inputs()
        names = TOKEN_TENSORS.get(situation.op, ())
        if subject == "golden" and names:
            axis = TOKEN_AXIS.get(situation.op, 0)
            tokens = data.draw(st.integers(1, self.inputs[names[0]].shape[axis]), label="token rows")
            self.inputs |= {name: self.inputs[name].narrow(axis, 0, tokens).contiguous() for name in names}

    def __getitem__(self, name: str) -> Any:
        return self.inputs[name]

    def run(self, op: Op | None = None, **changes: Any) -> Outputs:
        """The outputs with some inputs (of a golden also parameters) replaced; undefined elements are 0.

        `op`: the same op at the sizes of the replaced inputs, where these differ from the situation's.
        """
        if self.subject == "kernel":
            arguments = {**self.inputs, **changes}
            found = kernel_outputs(op or self.op, arguments)
        else:
            arguments = {**self.inputs, **self.op.parameters, **changes}
            found = golden(self.op.name)(**arguments)
        return found if self.spoil is None else self.spoil(found, arguments)

    def stages(self, **changes: Any) -> Outputs:
        """The golden's intermediates, whatever the subject: what outputs are compared with."""
        taps: Outputs = {}
        golden(self.op.name)(**{**self.inputs, **changes}, **self.op.parameters, taps=taps)
        return taps

    def judged_stages(self) -> Outputs:
        """The golden's intermediates as what is judged: a planted fault shows in them."""
        taps = self.stages()
        return taps if self.spoil is None else self.spoil(taps, self.inputs)

    def permutation(self, length: int) -> Tensor:
        """A drawn order of `length` things; never the identity where there are two or more."""
        generator = torch.Generator().manual_seed(self.data.draw(strategies.seeds(), label="order"))
        order = torch.randperm(length, generator=generator)
        return order.roll(1) if torch.equal(order, torch.arange(length)) else order

    def power_of_two(self) -> float:
        return 2.0 ** self.data.draw(st.sampled_from((1, -1, 3, -4)), label="power")


def golden(name: str) -> Callable[..., Outputs]:
    """The golden function as it is now in its module."""
    function: Callable[..., Outputs] = getattr(importlib.import_module(f"goldens.{name}"), name)
    return function


@functools.lru_cache(maxsize=64)
def _kernel(name: str, sizes: tuple[tuple[str, int | float], ...]) -> Any:
    return get_device("emulator").load(load_op(name).kernel, name, dict(sizes), None)


def kernel_outputs(op: Op, inputs: dict[str, Any]) -> Outputs:
    """What the shipped kernel writes under schedule 0; elements that the contract leaves undefined are 0."""
    run = get_device("emulator").run(_kernel(op.name, tuple(op.sizes.items())), op, dict(inputs), 0)
    outputs = {}
    masks = op.valid(inputs)
    for name in (spec.name for spec in op.outputs):
        valid = masks[name]
        unwritten = run.undefined.get(name)
        output = run.outputs[name]
        if unwritten is not None:
            assert valid is not None
            assert not bool((unwritten & valid).any()), f"{name}: defined elements are never written"
        outputs[name] = output if valid is None else torch.where(valid, output, torch.zeros_like(output))
    return outputs


@dataclass(frozen=True)
class Property:
    """A property as it was declared: for the test that it can fail."""

    name: str
    subjects: tuple[str, ...]
    check: Callable[[str, Spoil | None], None]
    spoil: Spoil


PROPERTIES: dict[str, list[Property]] = {}
"""By op."""


def holds(
    ops: str | tuple[str, ...],
    *,
    on: Collection[str],
    spoil: Spoil,
    among: st.SearchStrategy[Situation] | None = None,
    where: Callable[[Situation], bool] = lambda situation: True,
    costs: int = 1,
    **which: Collection[str],
) -> Callable[[Callable[[Trial], None]], Callable[[str, str], None]]:
    """A test of a body for situations of each of `ops`: those `among`, or all with `which` as in
    `strategies.situations`; of these, those `where` it says so.

    `costs`: how many examples of another op one of these is as slow as; so many times fewer are run.
    """
    names = (ops,) if isinstance(ops, str) else ops

    def decorate(body: Callable[[Trial], None]) -> Callable[[str, str], None]:
        def label(op: str, subject: str) -> str:
            return subject if len(names) == 1 else f"{op}-{subject}"

        def check(op: str, subject: str, spoiled: Spoil | None = None) -> None:
            examples = max(2, settings.default.max_examples // (SHARE[subject] * costs))  # type: ignore[union-attr]
            chosen = settings(max_examples=examples)
            if spoiled is not None:
                chosen = settings(
                    max_examples=12,
                    phases=[Phase.generate],
                    database=None,
                    derandomize=True,
                    report_multiple_bugs=False,
                )

            def example(situation: Situation, data: st.DataObject) -> None:
                note(f"{subject} of {op}; the same inputs: {_command(situation)}")
                body(Trial(subject, situation, data, spoiled))

            example.__qualname__ = f"{body.__module__}.{body.__name__}[{label(op, subject)}]"
            drawn = strategies.situations(op, **which) if among is None else among
            wrapped = given(situation=drawn.filter(where), data=st.data())(example)
            if chosen.derandomize:  # examples of its own for every property
                wrapped = seed(zlib.crc32(example.__qualname__.encode()))(wrapped)
            chosen(wrapped)()

        runs = [pytest.param(op, subject, id=label(op, subject)) for op in names for subject in on]

        @pytest.mark.parametrize(("op", "subject"), runs)
        def test(op: str, subject: str) -> None:
            check(op, subject)

        test.__name__, test.__doc__, test.__module__ = body.__name__, body.__doc__, body.__module__
        for op in names:
            declared = Property(body.__name__, tuple(on), functools.partial(check, op), spoil)
            PROPERTIES.setdefault(op, []).append(declared)
        return test

    return decorate


def _command(situation: Situation) -> str:
    return Run(
        situation.op,
        situation.preset,
        situation.deployment,
        situation.case,
        situation.seed,
        overrides=situation.overrides,
    ).command


def assert_same(actual: Tensor, expected: Tensor, *, zero_sign: bool = True) -> None:
    """Equal bits, NaN being NaN; with `zero_sign=False` -0 is +0. The first difference is named."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    same = actual == expected
    if actual.is_floating_point():
        if zero_sign:
            same &= actual.signbit() == expected.signbit()
        same |= actual.isnan() & expected.isnan()
    _assert_all(same, actual, expected, "bits differ")


def assert_near(actual: Tensor, expected: Tensor, *, ulp: int = 0, rtol: float = 0.0, atol: Any = 0.0) -> None:
    """|a - e| <= ulp * (unit of the last place of the larger) + rtol * |e| + atol, in FP64; all finite."""
    a, e = actual.double(), expected.double()
    assert bool(a.isfinite().all())
    unit = 0.0
    if ulp:
        largest = torch.maximum(a.abs(), e.abs()).clamp(min=torch.finfo(actual.dtype).tiny)
        unit = ulp * torch.finfo(actual.dtype).eps * 2.0 ** torch.floor(torch.log2(largest))
    _assert_all((a - e).abs() <= unit + rtol * e.abs() + atol, actual, expected, "too far apart")


def _assert_all(right: Tensor, actual: Tensor, expected: Tensor, what: str) -> None:
    wrong = torch.nonzero(~right)
    if len(wrong):
        at = tuple(wrong[0].tolist())
        raise AssertionError(
            f"{what} in {len(wrong)} of {right.numel()} elements, first {list(at)}: "
            f"{actual[at].item()!r}, expected {expected[at].item()!r}"
        )


def _each(change: Callable[[Tensor], Tensor]) -> Spoil:
    def spoil(outputs: Outputs, inputs: dict[str, Any]) -> Outputs:
        return {name: change(output).to(output.dtype) for name, output in outputs.items()}

    return spoil


def _rows(x: Tensor) -> Tensor:
    return torch.arange(x.shape[0]).reshape(-1, *[1] * (x.dim() - 1))


def _columns(x: Tensor) -> Tensor:
    return torch.arange(x.shape[-1])


shifted = _each(lambda x: x + 1)
"""A constant is added: what must be odd, scale or vanish does not."""
by_row = _each(lambda x: x * (1 + _rows(x)) if x.is_floating_point() else x + _rows(x))
"""A row depends on where it stands."""
by_column = _each(lambda x: x * (1 + _columns(x)) if x.is_floating_point() else x + _columns(x))
"""A column depends on where it stands."""
mixed = _each(lambda x: x + x.double().sum(dim=0, keepdim=True).nan_to_num())
"""Rows leak into each other."""
scaled = _each(lambda x: x * 1.5)
"""A factor is wrong."""
huge = _each(lambda x: x * 1000.0)
"""Bounds are exceeded."""


def leaky(outputs: Outputs, inputs: dict[str, Any]) -> Outputs:
    """Outputs depend on the magnitude and on every element of every input."""
    total = sum(
        float((value.double().nan_to_num().flatten() * torch.linspace(1, 2, value.numel())).sum())
        for value in inputs.values()
        if isinstance(value, Tensor)
    )
    return {
        name: (x * (1.5 + torch.sin(torch.tensor(total)))).to(x.dtype) if x.is_floating_point() else x + int(total) % 7
        for name, x in outputs.items()
    }
