"""Page counts of the decode pools, from the model and the deployment (decode_attention.md 0.3, moe_and_layers.md 1.2).

A pool is a flat list of pages; a block table [B, logical pages] maps a request's page to one of them. KV pools have a
physical page for every logical one; the compressor states are rings of fewer pages than the table has columns.
"""

from __future__ import annotations

from dataclasses import dataclass

from specs.model import Deployment, ModelConfig

BLOCK_SIZE = 128
"""Rows of a page of every KV pool."""

STATE4_PAGE, STATE4_PAGES = 4, 65
"""Rows of a ratio-4 state page, and such pages per request: a ring of 260 positions."""

STATE128_PAGE, STATE128_PAGES = 8, 64
"""Rows of a ratio-128 state page, and such pages per request: a ring of 512 positions."""


@dataclass(frozen=True)
class Paging:
    """Pages per request and per pool.

    ori_max_blocks    window pages of a request (the window is a ring)
    cmp_max_blocks    logical pages of compressed KV: all MAX_SEQ_LEN/4 rows of ratio 4
    idx_max_blocks    logical pages of index keys: twice as many as are needed, as deployed
    state4_max_blocks, state128_max_blocks   columns of the state block tables
    *_block_num       pages of the pool, over all requests
    """

    ori_max_blocks: int
    ori_block_num: int
    cmp_max_blocks: int
    cmp_block_num: int
    idx_max_blocks: int
    idx_block_num: int
    state4_max_blocks: int
    state4_block_num: int
    state128_max_blocks: int
    state128_block_num: int


def paging(config: ModelConfig, deployment: Deployment) -> Paging:
    """The pages of a decode deployment."""
    batch, positions = deployment.batch, config.max_position_embeddings
    ori = -(-config.sliding_window // BLOCK_SIZE)
    cmp = -(-positions // (4 * BLOCK_SIZE))
    return Paging(
        ori_max_blocks=ori,
        ori_block_num=batch * ori,
        cmp_max_blocks=cmp,
        cmp_block_num=batch * cmp,
        idx_max_blocks=2 * cmp,
        idx_block_num=batch * 2 * cmp,
        state4_max_blocks=-(-positions // STATE4_PAGE),
        state4_block_num=batch * STATE4_PAGES,
        state128_max_blocks=-(-positions // STATE128_PAGE),
        state128_block_num=batch * STATE128_PAGES,
    )
