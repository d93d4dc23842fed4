"""The shipped kernels load for every preset, refuse sizes they would truncate, and do not depend on their tiling."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness.compare import PASS
from harness.devices import get_device
from harness.devices.base import KernelRefused
from harness.devices.emulator.device import EmulatorDevice
from harness.devices.emulator.host import execute_host
from harness.report import failure_text
from harness.run import Run
from harness.tolerances import DEFAULT_PATH, load_tolerances
from harness.verify import Session
from specs.errors import SpecError
from specs.registry import all_ops, load_op

KERNELS = Path(__file__).parents[2] / "kernels"
TILE_SETS = ("pr672", "before_pr672")

REFUSES_PRO = frozenset(op for op in all_ops() if op.startswith("decode_")) - {"decode_metadata"}
"""Ops with compressed pools, whose tables are too short for a million positions (decode_compressor_indexer.md 0)."""


def test_every_op_has_a_kernel_and_every_kernel_an_op() -> None:
    files = {path.stem for path in KERNELS.glob("*.py")} - {"__init__", "sizes"}
    assert files == set(all_ops())


@pytest.mark.parametrize("tiles", TILE_SETS)
@pytest.mark.parametrize("preset", ["tiny", "flash", "pro"])
@pytest.mark.parametrize("op", all_ops())
def test_the_front_end_accepts(op: str, preset: str, tiles: str) -> None:
    if preset == "pro" and op in REFUSES_PRO:
        with pytest.raises(SpecError, match="MAX_SEQ_LEN = 1048576 is outside"):
            load_op(op, preset)
        return
    loaded = load_op(op, preset)
    kernel = get_device("emulator").load(loaded.kernel, op, loaded.sizes, tiles)
    assert kernel.function == op


@pytest.mark.parametrize(
    ("op", "sizes", "reason"),
    [
        ("hc_pre", {"HC_MULT": 2}, "HC_MULT is 2"),
        ("hc_pre", {"D": 100, "HC_DIM": 408}, "HC_DIM = 408 is not a multiple of 16"),
        ("rms_norm", {"D": 100}, "divides the extent 100"),
        ("gate", {"T": 12}, "T = 12 is not a multiple of 8"),
        ("gate", {"N_EXPERTS": 528}, "N_EXPERTS = 528"),
        ("gate", {"TOPK": 9}, "TOPK = 9"),
        ("expert_shared", {"T": 24}, "T = 24"),
        ("expert_shared", {"MOE_INTER": 1000}, "divides the extent 1000"),
        ("expert_routed", {"RECV_MAX": 24}, "RECV_MAX = 24"),
        ("hc_head", {"HC_MULT": 2}, "HC_MULT is 2"),
        ("hc_head", {"D": 101, "HC_DIM": 404}, "HC_DIM = 404 is not a multiple of 8"),
        ("mtp_projection", {"T": 12}, "T = 12 is not a multiple of 8"),
        ("mtp_projection", {"D": 1000}, "divides the extent 1000"),
        ("qkv_proj_rope", {"T": 12}, "T = 12 is not a multiple of 8"),
        ("qkv_proj_rope", {"NOPE_DIM": 384}, "NOPE_DIM = 384 and ROPE_DIM = 64 do not fill 512"),
        ("qkv_proj_rope", {"NOPE_DIM": 464, "ROPE_DIM": 48}, "ROPE_DIM = 48 is no multiple of 32"),
        ("qkv_proj_rope", {"D": 4098}, "D = 4098 is not a multiple of 4"),
        ("decode_metadata", {"WIN": 96}, "WIN = 96 rows is not whole pages of 128"),
        ("decode_compressor_ratio4", {"S": 5}, "S = 5 tokens can close more than one block of 4"),
        ("decode_compressor_ratio4", {"HEAD_DIM": 480}, "no multiple of 32 that divides 480"),
        ("decode_compressor_ratio128", {"STATE128_PAGE": 12}, "pages of 12 rows do not fill a window of 128"),
        ("decode_indexer_compressor", {"IDX_HEAD_DIM": 96}, "ROPE_DIM = 64 does not divide IDX_HEAD_DIM = 96"),
        ("decode_indexer", {"T": 12}, "T = 12 is not a multiple of 8"),
        ("decode_indexer", {"SCORE_LEN": 1000}, "SCORE_LEN = 1000 is not a multiple of 128"),
        ("decode_indexer", {"IDX_TOPK": 4}, "IDX_TOPK = 4 is not a multiple of 8 up to SCORE_LEN = 4096"),
        ("lm_head", {"T": 12}, "T = 12 is not a multiple of 8"),
        ("lm_head", {"T": 136}, "T = 136 is not a multiple of 8 up to 128"),
        ("lm_head", {"T_MAX": 24}, "T_MAX = 24 is not a multiple of 16"),
        ("lm_head", {"TP_SIZE": 4}, "4 shards of 64640 do not make VOCAB = 129280"),
        ("lm_head", {"VOCAB": 1000, "VOCAB_PER_TP": 500}, "VOCAB_PER_TP = 500 is not a multiple of 16"),
        ("decode_sparse_attn_swa", {"T": 12}, "T = 12 is not a multiple of 8 up to 16"),
        ("decode_sparse_attn_csa", {"T": 24}, "T = 24 is not a multiple of 8 up to 16"),
        ("decode_sparse_attn_hca", {"WIN": 256}, "a window of 256 rows is not one page of 128"),
        ("decode_sparse_attn_swa", {"NOPE_DIM": 384}, "NOPE_DIM = 384 and ROPE_DIM = 64 do not fill 512"),
        ("decode_sparse_attn_swa", {"N_HEADS": 60}, "60 heads do not make 8 groups"),
        ("decode_sparse_attn_swa", {"N_HEADS": 72}, "a batch of 24 heads is not a multiple of 16"),
    ],
)
def test_rejects_sizes_that_would_lose_a_tail(op: str, sizes: dict[str, int], reason: str) -> None:
    with pytest.raises(KernelRefused, match=reason):
        get_device("emulator").load(KERNELS / f"{op}.py", op, sizes, None)


@pytest.mark.parametrize("deployment", ["decode", "prefill"])
@pytest.mark.parametrize("op", ["hc_post", "expert_shared", "expert_routed"])
def test_outputs_do_not_depend_on_the_tile_set(op: str, deployment: str) -> None:
    """Rows are independent, INT32 sums exact and a maximum has no order, so the retiling moves no bit."""
    loaded = load_op(op, "tiny", deployment)
    device = get_device("emulator")
    inputs = loaded.inputs()
    valid = loaded.valid(inputs)
    runs = [
        device.run(device.load(loaded.kernel, op, loaded.sizes, tiles), loaded, dict(inputs), 0) for tiles in TILE_SETS
    ]
    for name, first in runs[0].outputs.items():
        mask = valid[name]
        second = runs[1].outputs[name]
        bits = torch.int16
        assert first.dtype == torch.bfloat16
        if mask is not None:
            first, second = first[mask], second[mask]
        assert first.numel() > 0
        assert torch.equal(first.view(bits), second.view(bits))


def ordered(x: torch.Tensor) -> torch.Tensor:
    """Ranks of BF16 values: neighbours differ by one, both zeros are 0."""
    bits = x.view(torch.int16).to(torch.int32)
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)


def test_a_query_head_is_loaded_once_and_moves_by_one_ulp_at_most() -> None:
    """moe_and_layers.md 15.2, 672.7: only the order of the heads' sums of squares differs."""
    loaded = load_op("qkv_proj_rope", "tiny", "prefill")
    device = get_device("emulator")
    inputs = loaded.inputs()
    once, before = (
        device.run(device.load(loaded.kernel, loaded.name, loaded.sizes, tiles), loaded, dict(inputs), 0)
        for tiles in TILE_SETS
    )
    for name in ("kv", "qr", "qr_scale"):
        assert torch.equal(once.outputs[name].view(torch.uint8), before.outputs[name].view(torch.uint8))
    assert (ordered(once.outputs["q"]) - ordered(before.outputs["q"])).abs().max() <= 1
    heads = once.outputs["q"].numel() * 4
    assert before.counters["gm_read_bytes"] - once.counters["gm_read_bytes"] == heads


@pytest.mark.parametrize("tiles", TILE_SETS)
@pytest.mark.parametrize("case", ["default", "hash"])
def test_accepts_gate_of_both_tile_sets(case: str, tiles: str) -> None:
    """Another chunking of the sum of squares may move the last bit, so gate is judged and not compared."""
    verdict = Session(get_device("emulator"), load_tolerances(DEFAULT_PATH)).verify(
        Run("gate", deployment="prefill", case=case, tiles=tiles)
    )
    assert verdict.status == PASS, failure_text(verdict)


@pytest.mark.slow
@pytest.mark.parametrize("tiles", TILE_SETS)
@pytest.mark.parametrize(
    "op",
    ["rms_norm", "hc_pre", "hc_post", "gate", "expert_shared", "hc_head", "mtp_projection", "qkv_proj_rope"],
)
def test_accepts_pro(op: str, tiles: str) -> None:
    """PRO has no power of two anywhere: 7168 columns, 384 experts, slices of 1792."""
    verdict = Session(get_device("emulator"), load_tolerances(DEFAULT_PATH)).verify(Run(op, "pro", tiles=tiles))
    assert verdict.status == PASS, failure_text(verdict)


def logits_of(tp_size: int, *, tokens: int, dispatches: int = 1, schedule: int = 0) -> torch.Tensor:
    """Logits [owners, T, VOCAB] of the shipped program, for rows and weights that do not depend on the sharding."""
    loaded = load_op("lm_head", "tiny", tp_size=tp_size, tokens=tokens)
    kernel = EmulatorDevice().load(loaded.kernel, "lm_head", loaded.sizes, None)
    hidden, vocabulary = loaded.config.hidden_size, loaded.config.vocab_size
    source = torch.Generator().manual_seed(7)
    weight = torch.randn(vocabulary, hidden, generator=source).bfloat16()
    rows = torch.randn(8, tokens, hidden, generator=source).bfloat16()[:tp_size]
    run = execute_host(
        kernel.entry,
        {"hidden_states": rows, "lm_head_weight": weight.view(tp_size, -1, hidden)},
        schedule,
        kernel.files,
        world=tp_size,
        dispatches=dispatches,
    )
    assert run.undefined["logits"] is None
    assert run.findings == []
    return run.outputs["logits"]


@pytest.mark.parametrize("tokens", [8, 16, 32])
def test_logits_do_not_depend_on_the_number_of_shards(tokens: int) -> None:
    """dense.md 10.8: the K order of a dot product is the same for every TP, and every TP leaves a tail."""
    two = logits_of(2, tokens=tokens)
    for tp_size in (4, 8):
        assert torch.equal(logits_of(tp_size, tokens=tokens)[:2], two)


@pytest.mark.parametrize("schedule", range(6))
def test_lm_head_may_be_dispatched_again(schedule: int) -> None:
    """Signals are not reset: they hold for one dispatch, and windows start from zero in the next."""
    assert torch.allclose(
        logits_of(4, tokens=8, dispatches=3, schedule=schedule), logits_of(4, tokens=8), rtol=0, atol=1e-4
    )
