"""What may vary around a preset: sizes and constants, as plain data, and one point of that space as a value.

Every axis lists values from the plainest to the least plain; the first is that of TINY. Fuzzing and the strategies of
`specs.strategies` draw from these axes, so that both mean the same by "all sizes".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeVar

from specs.errors import SpecError
from specs.model import TINY, ModelConfig
from specs.registry import Case, Op, load_op

Override = tuple[str, int | float]
Value = TypeVar("Value")
Choose = Callable[[Sequence[Any]], Any]
"""Picks one of a sequence: a strategy's draw, or a seeded generator's."""

AXES: Mapping[str, tuple[int | float, ...]] = MappingProxyType(
    {
        "hidden_size": (256, 512, 768),
        "moe_intermediate_size": (128, 256, 384),
        "n_routed_experts": (64, 32, 96),
        "num_experts_per_tok": (6, 8, 2, 1),
        "num_attention_heads": (8, 4, 12),
        "head_dim": (128, 192, 256),
        "qk_rope_head_dim": (64, 32),
        "q_lora_rank": (128, 96, 256),
        "vocab_size": (1024, 512, 768),
        "num_hash_layers": (3, 1, 0),
        "hc_sinkhorn_iters": (20, 5, 1),
        "rms_norm_eps": (1e-6, 1e-5, 1e-3),
        "hc_eps": (1e-6, 1e-5, 1e-3),
        "routed_scaling_factor": (1.5, 1.0, 2.5),
        "swiglu_limit": (10.0, 7.0, 0.0),
        "ep_world_size": (8, 4, 2),
        "tp_size": (2, 4, 8),
    }
)
"""Fields of ModelConfig, and `ep_world_size` and `tp_size` of Deployment. Widths are multiples of 128, as tiles and
weight grids demand, those of heads and of the low rank of 32; 768, 384, 192 and 96 are no powers of two, so that a
constant like 1/D is rounded and tiles do not divide evenly. Shards of the vocabulary are 64 to 512 ids wide: less than
a column block, whole ones, and with a tail."""

TOKENS = (8, 16, 24, 32, 40, 64, 128)
"""Token counts of kernels: one row tile of 8, one box of 16, both sides of it, and the prefill size."""

DEPLOYMENTS = ("decode", "decode_mtp", "prefill")


@dataclass(frozen=True)
class Situation:
    """One op in one configuration on one input: what `load_op` and `Op.inputs` need.

    overrides   (name, value) pairs for `load_op`, in order of name, without those that the preset has anyway
    """

    op: str
    preset: str = "tiny"
    deployment: str = "decode"
    overrides: tuple[Override, ...] = ()
    case: str = "default"
    seed: int = 0

    def load(self) -> Op:
        """The op. Raises SpecError for sizes that it cannot do."""
        return load_op(self.op, self.preset, self.deployment, **dict(self.overrides))

    def inputs(self) -> dict[str, Any]:
        """The inputs of case and seed, fresh tensors. Raises SpecError."""
        return self.load().inputs(self.case, self.seed)


def config_overrides(choose: Choose, names: Sequence[str] = tuple(AXES)) -> dict[str, int | float]:
    """A value of each named axis; half of the axes, on average, keep the plainest."""
    return {name: choose(AXES[name]) if choose((False, True)) else AXES[name][0] for name in names}


def model_config(choose: Choose) -> ModelConfig:
    """TINY with other sizes and constants."""
    fields = [name for name in AXES if name in ModelConfig.__dataclass_fields__]
    return TINY.replace(**config_overrides(choose, fields))


def situation(
    choose: Choose,
    op: str,
    *,
    seeds: Callable[[], int],
    case: Callable[[Op], Sequence[Case]],
    vary: Sequence[str] = tuple(AXES),
) -> Situation:
    """One point: deployment, token count, sizes, case, seed. Sizes that the op cannot do are given up one by one.

    `case`: the cases to choose from, once the sizes are known; if they leave none, the preset's sizes are taken.
    `vary`: the axes that may differ from the preset.
    """
    deployment = choose(deployments_of(op))
    overrides = {"tokens": choose(TOKENS), **config_overrides(choose, vary)} if choose((False, True, True)) else {}
    chosen = Situation(op, deployment=deployment, overrides=_changed(overrides))
    loaded, chosen = _possible(chosen)
    cases = case(loaded)
    if not cases:
        chosen = replace(chosen, overrides=())
        cases = case(chosen.load())
    return replace(chosen, case=choose(cases).name, seed=seeds())


def deployments_of(op: str) -> tuple[str, ...]:
    """The deployments that the op takes: decode and prefill have attention ops of their own."""
    return tuple(deployment for deployment in DEPLOYMENTS if _loads(op, deployment))


def _loads(op: str, deployment: str) -> bool:
    try:
        load_op(op, deployment=deployment)
    except SpecError:
        return False
    return True


def _changed(overrides: Mapping[str, int | float]) -> tuple[Override, ...]:
    return tuple(sorted((n, value) for n, value in overrides.items() if n not in AXES or value != AXES[n][0]))


def _possible(wanted: Situation) -> tuple[Op, Situation]:
    """The situation with as few overrides left out as make the op possible: the last first, the token count at last."""
    for dropped in _leavings(wanted.overrides):
        smaller = replace(wanted, overrides=dropped)
        try:
            return smaller.load(), smaller
        except SpecError:
            continue
    plain = replace(wanted, overrides=())
    return plain.load(), plain


def _leavings(overrides: tuple[Override, ...]) -> Iterator[tuple[Override, ...]]:
    """All of them, then all but one, then the token count alone."""
    yield overrides
    for left_out in reversed(range(len(overrides))):
        yield overrides[:left_out] + overrides[left_out + 1 :]
    yield tuple(pair for pair in overrides if pair[0] == "tokens")


def simpler(found: Situation) -> Iterator[Situation]:
    """Smaller or plainer neighbours, the boldest first: no overrides, one override fewer or closer to plain, fewer
    tokens, decode, the default case, seed 0. Some may be impossible for the op (SpecError when loaded)."""
    if found.case != "default":
        yield replace(found, case="default")
    if found.deployment != "decode":
        yield replace(found, deployment="decode")
    if found.overrides:
        yield replace(found, overrides=())
    for index, (name, value) in enumerate(found.overrides):
        rest = found.overrides[:index] + found.overrides[index + 1 :]
        yield replace(found, overrides=rest)
        values = TOKENS if name == "tokens" else AXES[name]
        for plainer in values[: values.index(value)] if value in values else ():
            yield replace(found, overrides=_changed({**dict(rest), name: plainer}))
    if found.deployment != "decode" and "tokens" not in dict(found.overrides):
        for tokens in TOKENS:
            yield replace(found, overrides=_changed({**dict(found.overrides), "tokens": tokens}))
    if found.seed:
        yield replace(found, seed=0)
