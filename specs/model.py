"""Model presets and deployments: frozen values, the facts of contracts/dense.md 1.1 to 1.4.

FLASH, DEMO and PRO are the contract's. TINY is ours (design.md, section 10): the smallest sizes that keep
every structure alive and satisfy the DSL's alignment rules.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from specs.errors import SpecError, unknown

EP_WORLD_SIZES = (2, 4, 8)
"""Expert-parallel worlds that the kernels are built for (contracts/dense.md, 1.4)."""

TP_SIZES = (2, 4, 8)
"""Worlds that the vocabulary of the LM head is sharded over (contracts/dense.md, 1.4)."""

RECV_TILE = 16
"""Receive rows that the routed experts compute at a time; every expert-parallel world divides it."""

MAY_BE_ZERO = (
    "num_hash_layers",
    "num_nextn_predict_layers",
    "swiglu_limit",
    "original_max_position_embeddings",
)
"""Fields for which 0 means "off"."""


def _check_field(preset: str, field: str, kind: str, value: object) -> None:
    if kind not in ("int", "float"):
        return
    right_type = isinstance(value, int) if kind == "int" else isinstance(value, (int, float))
    if isinstance(value, bool) or not right_type:
        raise SpecError(f"preset {preset}: {field} is {value!r}, expected {'an int' if kind == 'int' else 'a number'}")
    assert isinstance(value, (int, float))
    if not math.isfinite(value) or value < 0 or (value == 0 and field not in MAY_BE_ZERO):
        bound = ">= 0" if field in MAY_BE_ZERO else "> 0"
        raise SpecError(f"preset {preset}: {field} is {value!r}, expected a finite number {bound}")


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and constants of one model; field names follow the published configuration. Raises SpecError."""

    name: str
    hidden_size: int
    num_attention_heads: int
    head_dim: int
    qk_rope_head_dim: int
    q_lora_rank: int
    o_lora_rank: int
    o_groups: int
    sliding_window: int
    rms_norm_eps: float
    vocab_size: int
    moe_intermediate_size: int
    n_routed_experts: int
    n_shared_experts: int
    num_experts_per_tok: int
    scoring_func: str
    routed_scaling_factor: float
    swiglu_limit: float
    num_hidden_layers: int
    num_hash_layers: int
    num_nextn_predict_layers: int
    index_n_heads: int
    index_head_dim: int
    index_topk: int
    hc_mult: int
    hc_sinkhorn_iters: int
    hc_eps: float
    max_position_embeddings: int
    rope_theta: float
    compress_rope_theta: float
    rope_factor: float
    beta_fast: float
    beta_slow: float
    original_max_position_embeddings: int
    max_batch_size: int
    compress_ratios: tuple[int, ...]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_field(self.name, field.name, str(field.type), getattr(self, field.name))
        if self.num_experts_per_tok > self.n_routed_experts:
            raise SpecError(
                f"preset {self.name}: num_experts_per_tok {self.num_experts_per_tok} exceeds "
                f"n_routed_experts {self.n_routed_experts}"
            )
        if self.qk_rope_head_dim > min(self.head_dim, self.index_head_dim):
            raise SpecError(f"preset {self.name}: qk_rope_head_dim {self.qk_rope_head_dim} exceeds a head's width")
        if any(ratio not in (0, 4, 128) for ratio in self.compress_ratios):
            raise SpecError(f"preset {self.name}: compress_ratios must be 0, 4 or 128, got {self.compress_ratios}")

    def replace(self, **changes: Any) -> ModelConfig:
        """A copy with some fields changed, checked again. Unknown fields raise SpecError."""
        known = [f.name for f in dataclasses.fields(self)]
        for field in changes:
            if field not in known:
                raise unknown("field of ModelConfig", field, known)
        return dataclasses.replace(self, **changes)

    @property
    def hc_dim(self) -> int:
        """Width of the flattened hyper-connection streams."""
        return self.hc_mult * self.hidden_size

    @property
    def mix_hc(self) -> int:
        """Rows of the hyper-connection projection: pre, post, comb."""
        return (2 + self.hc_mult) * self.hc_mult

    @property
    def nope_head_dim(self) -> int:
        """Columns of a head without rotary embedding."""
        return self.head_dim - self.qk_rope_head_dim

    @property
    def rope_half(self) -> int:
        """Rotary pairs per head."""
        return self.qk_rope_head_dim // 2

    @property
    def index_nope_head_dim(self) -> int:
        """Columns of an index head without rotary embedding."""
        return self.index_head_dim - self.qk_rope_head_dim

    @property
    def o_group_in(self) -> int:
        """Input columns of one group of the output projection."""
        return self.num_attention_heads * self.head_dim // self.o_groups

    @property
    def softmax_scale(self) -> float:
        """1/sqrt(head_dim)."""
        return float(self.head_dim**-0.5)

    @property
    def index_weights_scale(self) -> float:
        """1/sqrt(index_head_dim * index_n_heads)."""
        return float(self.index_head_dim**-0.5 * self.index_n_heads**-0.5)

    @property
    def sparse_topk(self) -> int:
        """Keys that sparse attention reads per query: the window and the selected ones."""
        return self.sliding_window + self.index_topk


@dataclass(frozen=True)
class Deployment:
    """How many tokens a rank handles at once, and how many ranks share the experts and the vocabulary.

    recv_depth   rows that one local expert has room for, shared out evenly over the sources; None: EP*T, which no
                 routing with distinct ids can overflow (contracts/moe_and_layers.md, 8)

    Raises SpecError.
    """

    name: str
    batch: int
    seq: int
    ep_world_size: int = 8
    tp_size: int = 2
    recv_depth: int | None = None

    def __post_init__(self) -> None:
        for field in ("batch", "seq", "ep_world_size", "tp_size"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SpecError(f"deployment {self.name}: {field} is {value!r}, expected an int >= 1")
        for field, sizes in (("ep_world_size", EP_WORLD_SIZES), ("tp_size", TP_SIZES)):
            if getattr(self, field) not in sizes:
                raise SpecError(f"deployment {self.name}: {field} is {getattr(self, field)}, expected 2, 4 or 8")
        if self.recv_depth is not None:
            self._check_depth(self.recv_depth)

    def _check_depth(self, depth: int) -> None:
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1 or depth % RECV_TILE:
            raise SpecError(
                f"deployment {self.name}: recv_depth is {depth!r}, expected a multiple of {RECV_TILE} "
                f"(which {self.ep_world_size} sources share evenly)"
            )

    @property
    def tokens(self) -> int:
        """T, token rows per rank."""
        return self.batch * self.seq

    @property
    def recv_max(self) -> int:
        """Receive rows per local expert: `recv_depth`, or such that every rank can send each of its tokens once."""
        return self.ep_world_size * self.tokens if self.recv_depth is None else self.recv_depth

    @property
    def max_per_src(self) -> int:
        """Rows of one lane: what one source rank may send to one local expert."""
        return self.recv_max // self.ep_world_size

    def local_experts(self, config: ModelConfig) -> int:
        """Experts on one rank. Raises SpecError if they do not divide evenly."""
        if config.n_routed_experts % self.ep_world_size:
            raise SpecError(
                f"preset {config.name}: n_routed_experts {config.n_routed_experts} "
                f"does not divide over ep_world_size {self.ep_world_size}"
            )
        return config.n_routed_experts // self.ep_world_size

    def with_tokens(self, tokens: int) -> Deployment:
        """The same with another token count: more requests in decode, a longer sequence in prefill."""
        if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
            raise SpecError(f"tokens is {tokens!r}, expected an int >= 1")
        if self.batch == 1:
            return dataclasses.replace(self, seq=tokens)
        if tokens % self.seq:
            raise SpecError(f"deployment {self.name}: tokens {tokens} is no multiple of {self.seq} tokens per request")
        return dataclasses.replace(self, batch=tokens // self.seq)


FLASH = ModelConfig(
    name="flash",
    hidden_size=4096,
    num_attention_heads=64,
    head_dim=512,
    qk_rope_head_dim=64,
    q_lora_rank=1024,
    o_lora_rank=1024,
    o_groups=8,
    sliding_window=128,
    rms_norm_eps=1e-6,
    vocab_size=129280,
    moe_intermediate_size=2048,
    n_routed_experts=256,
    n_shared_experts=1,
    num_experts_per_tok=6,
    scoring_func="sqrtsoftplus",
    routed_scaling_factor=1.5,
    swiglu_limit=10.0,
    num_hidden_layers=43,
    num_hash_layers=3,
    num_nextn_predict_layers=1,
    index_n_heads=64,
    index_head_dim=128,
    index_topk=512,
    hc_mult=4,
    hc_sinkhorn_iters=20,
    hc_eps=1e-6,
    max_position_embeddings=16384,
    rope_theta=10000.0,
    compress_rope_theta=160000.0,
    rope_factor=16.0,
    beta_fast=32.0,
    beta_slow=1.0,
    original_max_position_embeddings=65536,
    max_batch_size=4,
    compress_ratios=(0, 0, *(4, 128) * 20, 4, 0),
)

DEMO = FLASH.replace(
    name="demo",
    moe_intermediate_size=4096,
    n_routed_experts=16,
    num_experts_per_tok=2,
    routed_scaling_factor=1.0,
    swiglu_limit=0.0,
    num_hidden_layers=8,
    num_hash_layers=0,
    max_position_embeddings=4096,
    compress_rope_theta=40000.0,
    rope_factor=40.0,
    original_max_position_embeddings=0,
    compress_ratios=(0, 0, 4, 128, 4, 128, 4, 0),
)

PRO = FLASH.replace(
    name="pro",
    hidden_size=7168,
    num_attention_heads=128,
    q_lora_rank=1536,
    o_groups=16,
    moe_intermediate_size=3072,
    n_routed_experts=384,
    routed_scaling_factor=2.5,
    num_hidden_layers=61,
    index_topk=1024,
    max_position_embeddings=1048576,
    compress_ratios=(128, 128, *(4, 128) * 29, 4, 0),
)

# YaRN needs a correction range inside the rotary pairs and positions beyond the original length: with 512
# original positions the range is pairs 2 to 12 of 32, and positions 512 to 1023 lie beyond.
TINY = FLASH.replace(
    name="tiny",
    hidden_size=256,
    num_attention_heads=8,
    head_dim=128,
    q_lora_rank=128,
    o_lora_rank=64,
    o_groups=2,
    vocab_size=1024,
    moe_intermediate_size=128,
    n_routed_experts=64,
    num_hidden_layers=6,
    index_n_heads=4,
    index_topk=64,
    max_position_embeddings=1024,
    original_max_position_embeddings=512,
    compress_ratios=(0, 0, 4, 128, 4, 128, 0),
)

PRESETS: dict[str, ModelConfig] = {config.name: config for config in (TINY, DEMO, FLASH, PRO)}

DEPLOYMENTS: dict[str, Deployment] = {
    deployment.name: deployment
    for deployment in (
        Deployment("decode", 8, 1),
        Deployment("decode_mtp", 4, 2),
        Deployment("prefill", 1, 128),
    )
}

TOKENS_MAX = max(deployment.tokens for deployment in DEPLOYMENTS.values())
"""Rows that scratch and windows of any deployment have room for (contracts/dense.md, 1.3)."""
