"""The benchmark table has a row for every op, with a plain formula or without; the formulas are those of the ops."""

from __future__ import annotations

import argparse

import pytest
import torch

from benchmarks import plain
from benchmarks.__main__ import op_times, row_of
from specs.registry import load_op

FORMULAS = (
    "rms_norm", "hc_pre", "hc_post", "expert_shared", "expert_routed", "hc_head", "mtp_projection", "qkv_proj_rope",
    "lm_head",
)  # fmt: skip


@pytest.mark.parametrize("formula", [True, False])
def test_an_op_has_its_row(formula: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not formula:
        monkeypatch.delattr(plain, "rms_norm")
    times = op_times("rms_norm", argparse.Namespace(preset="tiny", deployment="decode", repeat=1))
    row = row_of(times)
    assert times["golden"] > 0
    assert (row["golden / plain"] is not None) == formula


@pytest.mark.parametrize("op", FORMULAS)
def test_a_plain_formula_computes_the_op(op: str) -> None:
    """To 1e-2 of the norm of every output: another rounding, a flipped code, but not another formula."""
    loaded = load_op(op)
    inputs = loaded.inputs()
    found = getattr(plain, op)(**inputs, **loaded.parameters)
    found = found if isinstance(found, tuple) else (found,)
    expected = loaded.golden(inputs)
    assert len(found) == len(expected)
    for (name, wanted), value in zip(expected.items(), found, strict=True):
        assert value.shape == wanted.shape, name
        difference = torch.linalg.vector_norm(value.double() - wanted.double())
        assert difference <= 1e-2 * torch.linalg.vector_norm(wanted.double()), name
