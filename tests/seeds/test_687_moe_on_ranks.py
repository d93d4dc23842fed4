"""Seeds #687, #638 and #660 about the running MoE program: residency, scopes, the order of the protocol."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import torch

from harness.compare import PASS
from harness.devices import get_device
from harness.devices.base import DeviceRun
from harness.devices.emulator.device import EmulatorDevice
from harness.devices.emulator.host import execute_host
from harness.report import failure_text
from harness.run import Run
from harness.tolerances import load_tolerances
from harness.verify import Session, checksums
from specs.registry import load_op

RANKS, DISPATCHES = 2, 3


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor | int | float]:
    return load_op("moe", ep_world_size=RANKS).inputs("score_bias")


def run(inputs: dict[str, torch.Tensor | int | float], *, resident: bool, path: Path | None = None) -> DeviceRun:
    """The program, dispatched several times on one set of ranks."""
    op = load_op("moe", ep_world_size=RANKS)
    kernel = EmulatorDevice().load(op.kernel if path is None else path, "moe", op.sizes)
    modes = {spec.name: spec.resident for spec in op.signature if getattr(spec, "resident", None) is not None}
    return execute_host(
        kernel.entry, inputs, 1, kernel.files, world=RANKS, residency=modes if resident else {}, dispatches=DISPATCHES
    )


def test_687_1_resident_weights_are_uploaded_once_never_read_back_and_change_no_bit(inputs) -> None:
    op = load_op("moe", ep_world_size=RANKS)
    resident, plain = run(inputs, resident=True), run(inputs, resident=False)
    weights = [spec.name for spec in op.signature if getattr(spec, "resident", None) == "stacked"]
    assert len(weights) == 19
    for name in weights:
        assert resident.counters[f"uploads.{name}"] == RANKS
        assert plain.counters[f"uploads.{name}"] == RANKS * DISPATCHES
        assert f"downloads.{name}" not in resident.counters
    assert resident.counters["upload_bytes"] < plain.counters["upload_bytes"]
    assert resident.counters["uploads.x_hc"] == RANKS * DISPATCHES
    assert torch.equal(resident.outputs["x_next"], plain.outputs["x_next"])


def test_687_7_resident_weights_are_the_same_after_any_number_of_dispatches(inputs) -> None:
    before = checksums(inputs)
    run(inputs, resident=True)
    assert checksums(inputs) == before


def test_638_6_no_value_depends_on_memory_scopes(inputs, tmp_path: Path) -> None:
    """Routed experts, combine and hc_post in a scope of their own, as in July: every bit as without."""
    source = load_op("moe").kernel.read_text(encoding="utf-8")
    first, last = "    expert_routed_inline(\n", "    hc_post_inline(ffn_out, x_hc, post, comb, x_next)\n"
    start, end = source.index(first), source.index(last) + len(last)
    scoped = tmp_path / "moe.py"
    inside = textwrap.indent(source[start:end], "    ")
    scoped.write_text(f"{source[:start]}    with pl.scope():\n{inside}{source[end:]}", encoding="utf-8")
    plain, inner = run(inputs, resident=True), run(inputs, resident=True, path=scoped)
    assert torch.equal(plain.outputs["x_next"], inner.outputs["x_next"])
    assert not inner.findings


@pytest.mark.parametrize("schedule", [1, 2, 3])
def test_660_10_every_order_that_the_protocol_allows_gives_the_same(schedule: int) -> None:
    """Counts, payload, wait, combine, wait, sum: whatever the ranks' order, nothing is read before it is there."""
    session = Session(get_device("emulator"), load_tolerances())
    verdict = session.verify(Run("moe", case="score_bias", schedule=schedule, overrides=(("ep_world_size", RANKS),)))
    assert verdict.status == PASS, failure_text(verdict)
    assert not [finding for finding in verdict.findings if finding.code.startswith("GG4")]
