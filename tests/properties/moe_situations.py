"""Small situations of the distributed MoE: every number of ranks and every case, few tokens, 8 experts per rank.

What is large costs time and shows nothing more here: routes, lanes and ranks are what these properties are about.
"""

import torch
from hypothesis import strategies as st

from specs import strategies
from specs.registry import load_op
from specs.variations import Situation

LOCAL = 8


def situations(op, *, tags=(), without=(), tokens=(8, 16), ranks=(2, 4, 8)):
    """Situations of `op` of which the case has one of `tags`, if given, and none of `without`."""

    def sized(world, count, case, seed):
        overrides = (("ep_world_size", world), ("n_routed_experts", LOCAL * world), ("tokens", count))
        return Situation(op, "tiny", "decode", overrides, case, seed)

    cases = [c for c in load_op(op).cases if not c.invalid and not set(without) & set(c.tags)]
    names = [c.name for c in cases if not tags or set(tags) & set(c.tags)]
    return st.builds(sized, st.sampled_from(ranks), st.sampled_from(tokens), st.sampled_from(names), strategies.seeds())


def active(num_tokens, tokens):
    """Bool [EP, T]."""
    return torch.arange(tokens) < num_tokens.clamp(0, tokens)


def rank_order(trial):
    """A drawn order of the ranks, and the order of the experts that goes with it."""
    ranks = trial.op.world
    order = trial.permutation(ranks)
    return order, torch.arange(LOCAL * ranks).view(ranks, -1)[order].flatten()


def place_of(order):
    """Where each thing went: the inverse of an order."""
    return order.argsort()
