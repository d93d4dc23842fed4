"""Changes of the shipped kernels that the contract leaves free: other chunks, sums in another order, other peers first.

Every one must pass everywhere. What fails here is a false alarm on a colleague who tuned a kernel.
"""

from __future__ import annotations

import re
from typing import Any

from change import KERNELS, Change


def chunk(op: str, size: str, part: str = "") -> Change:
    """Chunks an eighth of their axis, in place of the half that TINY has, or the fewest that the kernel takes."""
    source = (KERNELS / f"{part or op}.py").read_text(encoding="utf-8")
    found = re.search(rf"^{size} = tile\((\w+), multiple=(\d+), [^)]*\)", source, re.MULTILINE)
    if found is None:
        raise ValueError(f"{part or op} has no {size}")
    extent, least = found.groups()
    after = f"\n{size} = max({least}, {extent} // 8)"
    return Change(op, f"{size.lower()}_of_an_eighth", f"\n{found[0]}", after, part=part)


def falling(op: str, name: str, before: str, start: str, extent: str, step: str, **where: Any) -> Change:
    """A sum over chunks, the last one first: `before` sets `start` to `c * step`; `where`: as of Change."""
    return Change(op, name, before, before.replace(start, f"({extent} // {step} - 1 - c) * {step}"), **where)


LAST_SLICE_FIRST = (
    "for k in pl.range(K_SLICES):\n            row = k * padded + t0\n",
    "for i in pl.range(K_SLICES):\n            k = K_SLICES - 1 - i\n            row = k * padded + t0\n",
)
SWA, COMPRESSOR, ATTENTION = "decode_sparse_attn_swa", "decode_compressor_ratio4", "decode_attention_"
PEERS = "for peer in pl.range(EP_WORLD_SIZE):\n"
PEERS_FALLING = "for i in pl.range(EP_WORLD_SIZE):\n            peer = EP_WORLD_SIZE - 1 - i\n"

CHANGES = [
    chunk("rms_norm", "CHUNK"),
    falling("rms_norm", "last_chunk_first", "d0 = c * CHUNK", "c * CHUNK", "D", "CHUNK", occurs=2, nth=1),
    Change(
        "rms_norm",
        "mean_of_scaled_squares",
        "pl.row_sum(pl.mul(chunk, chunk))",
        "pl.row_sum(pl.mul(pl.mul(chunk, chunk), D_INV))",
        more=(("pl.mul(square_sum, D_INV)", "square_sum"),),
    ),
    chunk("hc_pre", "PROJECT_CHUNK"),
    chunk("hc_pre", "WIDEN_CHUNK"),
    Change("hc_pre", "last_slice_first", *LAST_SLICE_FIRST),
    chunk("hc_head", "PROJECT_CHUNK"),
    chunk("hc_head", "WIDEN_CHUNK"),
    Change("hc_head", "last_slice_first", *LAST_SLICE_FIRST),
    Change(
        "hc_post",
        "stream_by_stream",
        "t0 = block // HC_MULT * TOKENS\n        new = block % HC_MULT",
        "t0 = block % (tokens // TOKENS) * TOKENS\n        new = block // (tokens // TOKENS)",
    ),
    chunk("gate", "NORM_CHUNK"),
    chunk("gate", "SCORE_CHUNK"),
    falling("gate", "last_chunk_first", "d0 = c * NORM_CHUNK", "c * NORM_CHUNK", "D", "NORM_CHUNK", occurs=2, nth=1),
    chunk("expert_shared", "UP_CHUNK"),
    chunk("expert_shared", "DOWN_CHUNK"),
    chunk("expert_shared", "QUANT_CHUNK"),
    chunk("expert_routed", "UP_CHUNK"),
    chunk("expert_routed", "DOWN_CHUNK"),
    chunk("expert_routed", "QUANT_CHUNK"),
    chunk("lm_head", "K_CHUNK"),
    chunk("mtp_projection", "NORM_CHUNK"),
    chunk("mtp_projection", "K_CHUNK"),
    falling(
        "mtp_projection",
        "last_chunk_first",
        "d0 = c * NORM_CHUNK",
        "c * NORM_CHUNK",
        "D",
        "NORM_CHUNK",
        occurs=2,
        nth=1,
    ),
    chunk("qkv_proj_rope", "Q_DOWN_CHUNK"),
    chunk("qkv_proj_rope", "Q_NORM_CHUNK"),
    chunk("qkv_proj_rope", "Q_UP_CHUNK"),
    chunk("qkv_proj_rope", "KV_DOWN_CHUNK"),
    falling(
        "qkv_proj_rope",
        "last_query_chunk_first",
        "chunk = query_chunk(q_products, t0, c * Q_NORM_CHUNK)\n            chunk_sum",
        "c * Q_NORM_CHUNK",
        "Q_LORA",
        "Q_NORM_CHUNK",
    ),
    falling(
        "qkv_proj_rope",
        "last_kv_chunk_first",
        "chunk = kv_chunk(kv_products, t0, c * KV_CHUNK)\n            chunk_sum",
        "c * KV_CHUNK",
        "HEAD_DIM",
        "KV_CHUNK",
    ),
    chunk(COMPRESSOR, "PROJECT_CHUNK"),
    falling(
        COMPRESSOR,
        "last_chunk_first",
        "n0 = c * COLS\n            chunk = ",
        "c * COLS",
        "WIDTH",
        "COLS",
    ),
    chunk("decode_compressor_ratio128", "PROJECT_CHUNK", part=COMPRESSOR),
    chunk("decode_indexer_compressor", "PROJECT_CHUNK", part=COMPRESSOR),
    chunk("decode_indexer_compressor", "HADAMARD_COLS"),
    chunk("decode_indexer", "QUERY_CHUNK"),
    chunk("decode_indexer", "WEIGHTS_CHUNK"),
    chunk("decode_indexer", "REDUCE_ROWS"),
    chunk("decode_indexer", "KEY_ROWS"),
    Change("decode_indexer", "two_lanes", "\nLANES = 4", "\nLANES = 2"),
    chunk(SWA, "PROJECT_CHUNK"),
    chunk(SWA, "EXPAND_CHUNK"),
    chunk(SWA, "QUANT_CHUNK"),
    chunk("decode_sparse_attn_csa", "PROJECT_CHUNK", part=SWA),
    chunk("decode_sparse_attn_hca", "PROJECT_CHUNK", part=SWA),
    *(
        change
        for kind in ("swa", "csa", "hca")
        for change in (
            chunk(f"{ATTENTION}{kind}", "CHUNK", part="rms_norm"),
            chunk(f"{ATTENTION}{kind}", "PROJECT_CHUNK", part="hc_pre"),
            chunk(f"{ATTENTION}{kind}", "KV_DOWN_CHUNK", part="qkv_proj_rope"),
        )
    ),
    Change(
        "moe_dispatch",
        "last_peer_first",
        f"        {PEERS}            pld.tensor.put(meta_window",
        f"        {PEERS_FALLING}            pld.tensor.put(meta_window",
    ),
    Change(
        "moe_combine",
        "last_peer_first",
        f"{PEERS}            if peer != my_rank:\n                pld.system.notify",
        f"{PEERS_FALLING}            if peer != my_rank:\n                pld.system.notify",
    ),
    chunk("moe", "PROJECT_CHUNK", part="hc_pre"),
    chunk("moe", "SCORE_CHUNK", part="gate"),
    Change(
        "decode_metadata",
        "page_by_subtraction",
        "page * page_rows + row % page_rows",
        "page * page_rows + (row - column * page_rows)",
    ),
]
