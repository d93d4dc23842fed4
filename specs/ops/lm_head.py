"""lm_head: logits over a vocabulary that is sharded over the ranks, a host program (contracts/dense.md, 10)."""

from __future__ import annotations

import torch

from specs.distributions import Constant, Normal, OneHot, PerToken, PooledNormal, Rows
from specs.model import Deployment, ModelConfig
from specs.registry import Case, Op
from specs.requirements import require_boxes, require_multiple
from specs.tensors import TensorSpec

HIDDEN = Normal(std=0.1)
ZERO = Constant(0.0)
CASES = (
    Case("default", tags=("default",)),
    Case("zero_rows", {"hidden_states": PerToken(Rows(HIDDEN, (None, ZERO)))}, tags=("edge",)),
    # The rows of every other rank vanish, and so must its logits and no others.
    Case("silent_ranks", {"hidden_states": Rows(HIDDEN, (None, ZERO))}, tags=("edge",)),
    # Each token reads one column of the weight: the logits are its bits.
    Case("one_hot", {"hidden_states": OneHot()}, tags=("exact",)),
    # All logits of a shard are zero but those of the other ranks.
    Case("silent_shards", {"lm_head_weight": Rows(ZERO, (None, Normal(std=2.0**-6)))}, tags=("edge",)),
)


def build(config: ModelConfig, deployment: Deployment) -> Op:
    """hidden_states [TP, T, D], lm_head_weight [TP, VOCAB/TP, D] BF16 -> logits [TP, T, VOCAB] FP32.

    TP is the deployment's `tp_size`. T must be a multiple of 8 and, beyond 16, of 16; D of 128; VOCAB of 16 * TP.
    """
    world, tokens, hidden = deployment.tp_size, deployment.tokens, config.hidden_size
    require_multiple("lm_head", "T", tokens, 8)
    require_boxes("lm_head", tokens)
    require_multiple("lm_head", "D", hidden, 128)
    require_multiple("lm_head", "VOCAB", config.vocab_size, 16 * world)
    shard = (world, config.vocab_size // world, hidden)
    weight = PooledNormal(std=hidden**-0.5)
    return Op(
        name="lm_head",
        config=config,
        deployment=deployment,
        signature=(
            TensorSpec("hidden_states", (world, tokens, hidden), torch.bfloat16, HIDDEN, "in"),
            TensorSpec("lm_head_weight", shard, torch.bfloat16, weight, "in", resident="stacked"),
            TensorSpec("logits", (world, tokens, config.vocab_size), torch.float32, None, "out"),
        ),
        cases=CASES,
        world=world,
    )
