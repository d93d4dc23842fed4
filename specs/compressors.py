"""The three KV compressors of decode as data, and the parameters that every op which runs one shares.

contracts/decode_compressor_indexer.md 2.2, 3.2, 4.2. Standard deviations are those measured on the published weights,
for D = 4096; for another D they are scaled so that projections keep their magnitude (kv about 1.6, scores about 2.5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from goldens.numerics.paging import closes_group
from specs.distributions import (
    CompressedRows,
    CompressedSlots,
    Constant,
    Hidden,
    IdentityTable,
    KvTable,
    Normal,
    Positions,
    RopeAt,
    StateRows,
    StateSlots,
    StateTable,
    Uniform,
)
from specs.distributions.paged import Table
from specs.distributions.positions import Starts, csa_starts, hca_starts, legal, mixed_starts
from specs.model import Deployment, ModelConfig
from specs.paging import BLOCK_SIZE, STATE4_PAGE, STATE4_PAGES, STATE128_PAGE, STATE128_PAGES, paging
from specs.registry import Case, Inputs, Masks, Op
from specs.requirements import require_boxes, require_decode, require_multiple
from specs.tensors import Distribution, TensorSpec

MEASURED_AT = 4096
FP32, BF16, INT32, INT64 = torch.float32, torch.bfloat16, torch.int32, torch.int64


@dataclass(frozen=True)
class Compressor:
    """One of the three kinds. `norm` is mean and deviation of norm_w, `state_table` the name of its block table."""

    ratio: int
    page: int
    pages: int
    wkv: float
    wgate: float
    ape: float
    norm: tuple[float, float]

    @property
    def overlap(self) -> int:
        """Halves of the projections: 2 where a group is pooled with the one before."""
        return 2 if self.ratio == 4 else 1


CSA_MAIN = Compressor(4, STATE4_PAGE, STATE4_PAGES, 0.0245, 0.0388, 0.1243, (0.9666, 0.1929))
HCA_MAIN = Compressor(128, STATE128_PAGE, STATE128_PAGES, 0.0246, 0.0316, 0.0340, (0.1001, 0.0549))
CSA_INNER = Compressor(4, STATE4_PAGE, STATE4_PAGES, 0.0293, 0.0512, 0.1528, (0.6850, 0.2610))


def weight_specs(kind: Compressor, config: ModelConfig, width: int, prefix: str = "") -> tuple[TensorSpec, ...]:
    """wkv, wgate [OUT, D] BF16 stored [out, in], ape [R, OUT] FP32, norm_w [width] BF16. OUT: both halves."""
    out, hidden = kind.overlap * width, config.hidden_size
    gain = math.sqrt(MEASURED_AT / hidden)
    mean, std = kind.norm
    return (
        TensorSpec(f"{prefix}wkv", (out, hidden), BF16, Normal(std=kind.wkv * gain), "in"),
        TensorSpec(f"{prefix}wgate", (out, hidden), BF16, Normal(std=kind.wgate * gain), "in"),
        TensorSpec(f"{prefix}ape", (kind.ratio, out), FP32, Normal(std=kind.ape), "in"),
        TensorSpec(f"{prefix}norm_w", (width,), BF16, Normal(mean=mean, std=std), "in"),
    )


def state_specs(
    kind: Compressor, config: ModelConfig, deployment: Deployment, width: int, prefix: str = ""
) -> tuple[TensorSpec, TensorSpec]:
    """compress_state [pages, page, 2*OUT] FP32 (kv, then scores; front half, then back half) and its block table."""
    pages = paging(config, deployment)
    columns = pages.state4_max_blocks if kind.ratio == 4 else pages.state128_max_blocks
    table = f"{prefix}compress_state_block_table"
    shape = (deployment.batch * kind.pages, kind.page, 2 * kind.overlap * width)
    return (
        TensorSpec(f"{prefix}compress_state", shape, FP32, StateRows(table, kind.ratio), "inout"),
        TensorSpec(table, (deployment.batch, columns), INT32, StateTable(kind.ratio, kind.page, kind.pages), "in"),
    )


def rope_specs(config: ModelConfig, deployment: Deployment, ratio: int, prefix: str = "") -> tuple[TensorSpec, ...]:
    """cos, sin [B, ROPE_DIM/2] FP32: values of the BF16 table at the first position of the group being closed."""
    shape = (deployment.batch, config.rope_half)
    return (
        TensorSpec(f"{prefix}cos", shape, FP32, RopeAt("cos", ratio), "in"),
        TensorSpec(f"{prefix}sin", shape, FP32, RopeAt("sin", ratio), "in"),
    )


def cache_spec(name: str, pool_pages: int, width: int, table: Table, ratio: int) -> TensorSpec:
    """A compressed pool [pages, 128, 1, width] BF16."""
    return TensorSpec(name, (pool_pages, BLOCK_SIZE, 1, width), BF16, CompressedRows(table, ratio), "inout")


def slot_specs(
    deployment: Deployment, kind: Compressor, cache: str, cache_table: Table, state: str, state_table: str
) -> tuple[TensorSpec, TensorSpec]:
    """The slot mappings `cache` and `state` [B, S] INT64."""
    shape = (deployment.batch, deployment.seq)
    return (
        TensorSpec(cache, shape, INT64, CompressedSlots(cache_table, kind.ratio), "in"),
        TensorSpec(state, shape, INT64, StateSlots(state_table, kind.page), "in"),
    )


def position_spec(starts: Starts, deployment: Deployment) -> TensorSpec:
    """position_ids [B, S] INT32."""
    return TensorSpec("position_ids", (deployment.batch, deployment.seq), INT32, Positions(starts), "in")


def cache_table(name: str, columns: int, ratio: int) -> Hidden:
    """The block table of a compressed pool where it is no input."""
    return Hidden(name, columns, KvTable(ratio))


def start_cases(config: ModelConfig, deployment: Deployment, ratio: int) -> tuple[Case, ...]:
    """Positions around groups, pages, rings and the ends, as overrides of position_ids alone."""
    last = config.max_position_embeddings - deployment.seq
    ring = (259, 260, 262, 263, 519, 523, 511, 512) if ratio == 4 else (511, 510, 512, 639, 513, 640, 767, 500)
    sets: dict[str, Starts] = {
        # Groups that have no group before, and the first that has.
        "first_tokens": (0, 1, 2, 3, 4, 5, 6, 7),
        "window_edges": (127, 126, 128, 129, 254, 255, 256, 383),
        # The ring of a ratio-4 state has 260 rows, that of ratio 128 has 512.
        "ring_edges": ring,
        "last_positions": (last, last - 1, last - 2, last - 3, last - 4, last - 127, last - 128, last - 7),
        "all_close": ((last // 2 // ratio) * ratio - 1,),
        "none_closes": ((last // 2 // ratio) * ratio,),
    }
    return tuple(
        Case(name, {"position_ids": Positions(legal(starts, config, deployment))}, tags=("positions", "edge"))
        for name, starts in sets.items()
    )


def reference_starts(config: ModelConfig, deployment: Deployment, ratio: int) -> Starts:
    """The start set of the reference fixtures."""
    return csa_starts(config, deployment) if ratio == 4 else hca_starts(config, deployment)


def reference_state(kind: Compressor, state: str) -> dict[str, Distribution]:
    """The state and table of the reference fixtures: nothing was ever written; ratio 128 starts from zeros."""
    table = f"{state}_block_table"
    empty = StateRows(table, kind.ratio, kv_std=0.0, score_std=0.0, dead="empty", score_mean=EMPTY_SCORE)
    zero = StateRows(table, kind.ratio, kv_std=0.0, score_std=0.0, dead="zero")
    return {
        state: empty if kind.ratio == 4 else zero,
        table: IdentityTable(kind.pages, permuted=kind.ratio == 128),
    }


EMPTY_SCORE = -3.4028234663852886e38


def compressor_cases(
    kind: Compressor,
    config: ModelConfig,
    deployment: Deployment,
    cache: str,
    slots: str,
    table: Hidden,
    state_slots: str,
) -> tuple[Case, ...]:
    """The cases of a compressor on its own."""
    state, state_table = "compress_state", "compress_state_block_table"
    width = table.columns

    def scored(name: str, mean: float, std: float) -> Case:
        rows = StateRows(state_table, kind.ratio, score_mean=mean, score_std=std)
        return Case(name, {state: rows}, tags=("magnitude",))

    identity = Hidden(table.name, width, IdentityTable(permuted=kind.ratio == 128))
    reference: dict[str, Distribution] = {
        "x": Uniform(0.0, 1.0),
        cache: Constant(0.0),
        slots: CompressedSlots(identity, kind.ratio),
        "position_ids": Positions(reference_starts(config, deployment, kind.ratio)),
        **reference_state(kind, state),
    }
    committed = CompressedSlots(table, kind.ratio, commit_tokens=deployment.seq - 1)
    dropped: dict[str, Distribution] = {
        state: StateRows(state_table, kind.ratio, dead="empty"),
        state_slots: StateSlots(state_table, kind.page, drop_first=(1,)),
    }
    hole: dict[str, Distribution] = {
        state_table: StateTable(kind.ratio, kind.page, kind.pages, hole_at=kind.ratio // 2),
        "position_ids": Positions(legal((255, 511, 383, 1023 - deployment.seq + 1), config, deployment)),
    }
    first = legal((0, 1, 2, 3, 4, 5, 6, 7), config, deployment)
    return (
        Case("default", tags=("default",)),
        *start_cases(config, deployment, kind.ratio),
        # What the reference repository tests: no history, all inputs positive, tables in order.
        Case("reference_fixture", reference, tags=("reference",)),
        # A speculative token must not write a compressed row; its state row stays and is overwritten later.
        Case("uncommitted", {slots: committed}, tags=("edge",)),
        # The second request's first token has no state slot. It closes no group (mixed_starts).
        Case("dropped_state", dropped, tags=("edge",)),
        # The state that attention hands in: rows of small numbers, empty elsewhere.
        Case(
            "attention_state",
            {state: StateRows(state_table, kind.ratio, kv_std=0.05, score_std=0.05, dead="empty")},
            tags=("real",),
        ),
        scored("sharp_scores", 0.0, 40.0),
        scored("low_scores", -80.0, 2.5),
        scored("high_scores", 80.0, 2.5),
        # All weights equal: the pooled row is the mean.
        Case(
            "equal_scores",
            {
                state: StateRows(state_table, kind.ratio, score_std=0.0),
                "wgate": Constant(0.0),
                "ape": Constant(0.0),
            },
            tags=("exact",),
        ),
        # Mean squares of the pooled row around RMS_EPS.
        Case(
            "tiny_kv",
            {state: StateRows(state_table, kind.ratio, kv_std=1e-3), "wkv": Normal(std=1e-5)},
            tags=("eps", "magnitude"),
        ),
        Case("zero_tokens", {"x": Constant(0.0)}, tags=("edge",)),
        # The first token of the first request has slot 0 of the state: the smallest that is written.
        Case("slot_zero", {state_table: IdentityTable(kind.pages), "position_ids": Positions(first)}, tags=("edge",)),
        *((Case("state_hole", hole, tags=("edge",)),) if kind.ratio == 128 else ()),
    )


@dataclass(frozen=True)
class Memory:
    """Names of a compressor's pool, of the block table behind it, and of its slot mappings; pages of that pool.

    columns, pages   logical pages of a request; pages of the pool
    """

    cache: str
    table: str
    slots: str
    state_slots: str
    columns: int
    pages: int


def compressor_op(
    name: str,
    kind: Compressor,
    config: ModelConfig,
    deployment: Deployment,
    width: int,
    memory: Memory,
    *,
    rotation: tuple[TensorSpec, ...] = (),
    more_cases: tuple[Case, ...] = (),
) -> Op:
    """A compressor on its own, with rows of `width`; `rotation` stands between the rotary rows and the pool.

    Raises SpecError unless B is a multiple of 4, B*S at most 16 or a multiple of 16, D of 128, `width` of 64.
    """
    require_decode(name, config, deployment)
    require_multiple(name, "B", deployment.batch, 4)
    require_boxes(name, deployment.tokens)
    require_multiple(name, "D", config.hidden_size, 128)
    require_multiple(name, "IDX_HEAD_DIM" if kind is CSA_INNER else "HEAD_DIM", width, 64)
    table = cache_table(memory.table, memory.columns, kind.ratio)
    rows = (deployment.batch, deployment.seq)
    state_table = "compress_state_block_table"

    def validity(op: Op, inputs: Inputs) -> Masks:
        return kv_validity(op, inputs, kind.ratio, memory.slots)

    def mapping(op: Op, inputs: Inputs) -> Masks:
        return compressor_mapping(
            op, inputs, kind.ratio, "compress_state", memory.state_slots, memory.cache, memory.slots
        )

    return Op(
        name=name,
        config=config,
        deployment=deployment,
        signature=(
            TensorSpec("x", (*rows, config.hidden_size), BF16, Normal(), "in"),
            TensorSpec("kv", (*rows, width), FP32, None, "out"),
            *state_specs(kind, config, deployment, width),
            *weight_specs(kind, config, width),
            *rope_specs(config, deployment, kind.ratio),
            *rotation,
            cache_spec(memory.cache, memory.pages, width, table, kind.ratio),
            position_spec(mixed_starts(config, deployment, kind.ratio), deployment),
            *slot_specs(deployment, kind, memory.slots, table, memory.state_slots, state_table),
        ),
        cases=(
            *compressor_cases(kind, config, deployment, memory.cache, memory.slots, table, memory.state_slots),
            *more_cases,
        ),
        parameters={"rms_eps": config.rms_norm_eps},
        validity=validity,
        mapping=mapping,
    )


def emits(inputs: Inputs, ratio: int, slots: str) -> tuple[Tensor, Tensor]:
    """Which requests write a compressed row in this step, bool [B], and to which flat row, INT64 [B]."""
    positions, mapping = inputs["position_ids"], inputs[slots]
    assert isinstance(positions, Tensor)
    assert isinstance(mapping, Tensor)
    closes = closes_group(positions, ratio)
    slot = torch.where(closes, mapping, -1).amax(dim=1)
    return slot >= 0, slot


def kv_validity(op: Op, inputs: Inputs, ratio: int, slots: str, kv: str = "kv") -> Masks:
    """kv is defined in row 0 of every request that writes a compressed row, and nowhere else (None: everywhere)."""
    masks: Masks = {spec.name: None for spec in op.outputs}
    shape = next(spec.shape for spec in op.outputs if spec.name == kv)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[:, 0] = emits(inputs, ratio, slots)[0].unsqueeze(1)
    masks[kv] = None if mask.all() else mask
    return masks


def rows_mask(shape: tuple[int, ...], rows: Tensor) -> Tensor:
    """Bool mask of a pool [pages, page, ...]: True in the flat rows listed, those >= 0."""
    mask = torch.zeros(shape, dtype=torch.bool)
    mask.view(shape[0] * shape[1], -1)[rows[rows >= 0]] = True
    return mask


def compressor_mapping(
    op: Op, inputs: Inputs, ratio: int, state: str, state_slots: str, cache: str, slots: str
) -> Masks:
    """What a compressor may write: the state rows of this step's tokens, and the cache rows of closed groups."""
    shapes = {spec.name: spec.shape for spec in op.outputs}
    tokens = inputs[state_slots]
    assert isinstance(tokens, Tensor)
    return {
        state: rows_mask(shapes[state], tokens),
        cache: rows_mask(shapes[cache], emits(inputs, ratio, slots)[1]),
    }


__all__ = [
    "CSA_INNER",
    "CSA_MAIN",
    "HCA_MAIN",
    "Compressor",
    "Memory",
    "cache_spec",
    "cache_table",
    "compressor_cases",
    "compressor_mapping",
    "compressor_op",
    "emits",
    "kv_validity",
    "mixed_starts",
    "position_spec",
    "reference_state",
    "rope_specs",
    "rows_mask",
    "slot_specs",
    "start_cases",
    "state_specs",
    "weight_specs",
]
