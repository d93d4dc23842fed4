"""Names of the decode attention ops, and a short form of their faults: the output is attn_out where none is named."""

from __future__ import annotations

from typing import Any

from fault import Fault

SWA, HCA, CSA = "decode_sparse_attn_swa", "decode_sparse_attn_hca", "decode_sparse_attn_csa"
LAYER_SWA, LAYER_HCA, LAYER_CSA = "decode_attention_swa", "decode_attention_hca", "decode_attention_csa"
MTP = "decode_mtp"


def fault(op: str, name: str, before: str, after: str, why: str, output: str = "attn_out", **more: Any) -> Fault:
    return Fault(op, name, before, after, output, why, **more)
