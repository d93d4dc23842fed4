"""Hypothesis strategies for properties of goldens and kernels: sizes, inputs, seeds, distributions, routing skews.

    from hypothesis import given
    from specs import strategies

    @given(strategies.situations("gate"))
    def test_rows_of_weights_sum_to_the_factor(situation):
        op, inputs = situation.load(), situation.inputs()
        ...

A situation is a small frozen value that names its inputs; tensors are drawn when the test asks for them, by the
library's own keyed streams. So examples are cheap, print in one line, shrink (to the default case and seed 0 of the
preset) and are what `goldengate verify --set ... --case ... --seed ...` runs.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from hypothesis import strategies as st

from specs import distributions as d
from specs import variations
from specs.model import DEPLOYMENTS, Deployment, ModelConfig
from specs.registry import Case, Op, load_op
from specs.tensors import Distribution
from specs.variations import AXES, Situation

LARGEST_SEED = 2**31 - 1


def seeds() -> st.SearchStrategy[int]:
    """Seeds of inputs, 0 to 2^31 - 1; shrink to 0."""
    return st.integers(0, LARGEST_SEED)


def schedules() -> st.SearchStrategy[int]:
    """Schedules of a device: 0, plain program order, to which they shrink, and seeds of legal orders."""
    return st.integers(0, LARGEST_SEED)


def token_counts(multiple: int = 1, most: int = 128) -> st.SearchStrategy[int]:
    """Token counts T from `multiple` to `most`: multiples of 8 for kernels, any T >= 1 for goldens. Never 0, which no
    op defines. Raises ValueError where there is no such count."""
    if not 1 <= multiple <= most:
        raise ValueError(f"no multiple of {multiple} lies in 1..{most}")
    return st.integers(1, most // multiple).map(lambda tiles: tiles * multiple)


def deployments(multiple: int = 8, most: int = 128) -> st.SearchStrategy[Deployment]:
    """Decode, decode_mtp (two tokens per request, so an even T) and prefill, with any token count and 2, 4 or 8 expert
    ranks."""

    def sized(deployment: Deployment, tokens: int, ranks: int) -> Deployment:
        if deployment.batch > 1:
            tokens = max(tokens - tokens % deployment.seq, deployment.seq)
        return replace(deployment.with_tokens(tokens), ep_world_size=ranks)

    return st.builds(
        sized,
        st.sampled_from(list(DEPLOYMENTS.values())),
        token_counts(multiple, most),
        st.sampled_from(AXES["ep_world_size"]),
    )


@st.composite
def model_configs(draw: st.DrawFn) -> ModelConfig:
    """Small models: TINY with other sizes and constants. Every field of `specs.variations.AXES` varies, every one of
    them satisfies the alignment of the DSL (widths in multiples of 128, experts of 16)."""
    return variations.model_config(lambda values: draw(st.sampled_from(values)))


def cases(op: Op, *, tags: Collection[str] = (), without: Collection[str] = ()) -> st.SearchStrategy[Case]:
    """Valid cases of an op; with any of `tags`, if given, and none of `without`. Shrinks to the default case.

    Raises ValueError if there is none.
    """
    return st.sampled_from(_some(op, _cases(op, tags, without)))


@st.composite
def situations(
    draw: st.DrawFn,
    op: str,
    *,
    tags: Collection[str] = (),
    without: Collection[str] = (),
    names: Collection[str] = (),
    keep: Collection[str] = (),
) -> Situation:
    """Deployment, token count, sizes, constants, case and seed of an op, all of them possible: they load and draw.

    `tags` and `without` as in `cases`; `names`, if given, are the only cases. Raises ValueError if there is none.
    `keep`: names of `specs.variations.AXES` that stay as in TINY, for a property that holds or is fast only there.
    """
    plain = load_op(op)
    _some(plain, _cases(plain, tags, without, names))
    return variations.situation(
        lambda values: draw(st.sampled_from(values)),
        op,
        seeds=lambda: draw(seeds()),
        case=lambda sized: _cases(sized, tags, without, names),
        vary=[name for name in AXES if name not in keep],
    )


def float_distributions() -> st.SearchStrategy[Distribution]:
    """Distributions of a floating tensor: normal and uniform over six orders of magnitude, constants of either sign,
    zero, and rows of different kinds (two at most, so that two rows are enough)."""
    std = st.sampled_from((1.0, 0.05, 30.0, 1e-3, 1e3))
    single: st.SearchStrategy[Distribution] = st.one_of(
        st.builds(d.Normal, std=std, mean=st.sampled_from((0.0, -0.5))),
        st.sampled_from((d.Uniform(), d.Uniform(-1.0, 1.0), d.Uniform(-2.0, -1.0))),
        st.builds(d.Constant, st.sampled_from((0.0, 1.0, -1.5))),
    )
    return st.one_of(single, st.builds(lambda base, other: d.Rows(base, (None, other)), single, single))


def routing_tables() -> st.SearchStrategy[Distribution]:
    """Tables of hash layers [VOCAB, K]: uniform, in turn, Zipf, one hot expert, one rank. Ids of a row are distinct."""
    return st.one_of(
        st.just(d.DistinctTable()),
        st.just(d.RoundRobinTable()),
        st.builds(d.ZipfTable, st.sampled_from((0.5, 1.0, 2.0))),
        st.builds(d.HotTable, st.sampled_from((0.25, 0.75, 1.0))),
        st.builds(d.OneRankTable, st.integers(0, 1)),
    )


def routing_biases() -> st.SearchStrategy[Distribution]:
    """Selection biases of score layers [N]: none, normal, Zipf, one hot expert, one rank."""
    return st.one_of(
        st.just(d.Constant(0.0)),
        st.builds(d.Normal, std=st.sampled_from((0.1, 4.0))),
        st.builds(d.ZipfBias, st.sampled_from((0.5, 1.0, 2.0))),
        st.builds(d.HotBias, st.sampled_from((0.0, 0.5, 1.0))),
        st.builds(d.OneRankBias, st.integers(0, 1)),
    )


def receive_counts() -> st.SearchStrategy[Distribution]:
    """Rows per local expert [E, 1]: histograms of uniform, skewed and hot routing, and counts on both sides of the row
    tile of 16, none and all (for four local experts or more)."""
    edge = st.sampled_from((0, 1, 15, 16, 17, 31, 32, 33, -1, d.FULL))
    return st.one_of(
        st.builds(d.HistogramCounts, st.sampled_from((0.0, 1.2))),
        st.builds(d.HotCounts, st.sampled_from((0.75, 1.0))),
        st.builds(d.ListedCounts, st.tuples(edge, edge, edge, edge)),
    )


def _cases(op: Op, tags: Collection[str], without: Collection[str], names: Collection[str] = ()) -> list[Case]:
    return [
        case
        for case in op.cases
        if not case.invalid
        and (not tags or set(tags) & set(case.tags))
        and not set(without) & set(case.tags)
        and (not names or case.name in names)
    ]


def _some(op: Op, found: list[Case]) -> list[Case]:
    if not found:
        raise ValueError(f"{op.name} has no such case; it has {', '.join(case.name for case in op.cases)}")
    return found
