"""Golden of lm_head: logits over a vocabulary that is sharded over the ranks, for the rows of every rank.

contracts/dense.md, section 10. Rank r holds the vocabulary ids r * V .. (r + 1) * V - 1, V = VOCAB / TP.
"""

import torch
from torch import Tensor

from goldens.checks import expect
from goldens.numerics.matmul import fp32_matmul

STAGES = ("logits",)


def lm_head(
    hidden_states: Tensor, lm_head_weight: Tensor, *, taps: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """hidden * weight^T for the rows of every owner and all shards: no scale, no bias, no soft cap.

    hidden_states [TP, T, D] BF16, rows of the final norm by owner; lm_head_weight [TP, V, D] BF16, shards of the
    vocabulary. Returns logits [TP, T, TP*V] FP32: column r*V + o is row o of shard r. Every logit is the exact
    sum rounded once to FP32, never to BF16; the bits depend neither on the machine nor on how the vocabulary is
    sharded. Raises GoldenInputError for a wrong shape or dtype.
    """
    tp, t, d = expect("lm_head: hidden_states", hidden_states, (None, None, None), torch.bfloat16)
    _, v, _ = expect("lm_head: lm_head_weight", lm_head_weight, (tp, None, d), torch.bfloat16)

    logits = fp32_matmul(hidden_states.reshape(tp * t, d), lm_head_weight.reshape(tp * v, d)).view(tp, t, tp * v)

    if taps is not None:
        taps.update(logits=logits)
    return {"logits": logits}
