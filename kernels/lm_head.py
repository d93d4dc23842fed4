"""lm_head: logits of a vocabulary that is sharded over the ranks. Contract: dense.md, section 10.

Every rank owns hidden rows of its own and one shard of the vocabulary; every owner gets the logits of its rows
over the whole vocabulary. Per rank:

    publish   own rows to every peer, then a signal             one task
    collect   rows of one owner, after its signal               one task per owner
    shard     rows times the shard, FP32, never rounded         block: BOX rows x COLS ids, by K_CHUNK
    tail      the ids beyond the last whole COLS                block: BOX rows
    route     own shard of an owner's logits to that owner      one task per owner, then a signal
    receive   columns of one peer, after its signal             one task per peer

A task copies what it waited for into memory of its own rank, so that later tasks are ordered by the data. Copies
to peers are puts, which are complete when they return, never plain stores that a signal may overtake. Signals
are set to 1 and never reset: every cell has one writer and is waited for once per dispatch, and windows start
from zero. A rank's own slot of the windows is neither written nor read. T is a multiple of TOKENS, at most T_MAX.
"""

import pypto.language as pl
import pypto.language.distributed as pld

from kernels.sizes import T_MAX, TP_SIZE, VOCAB, VOCAB_PER_TP, D, T, tile

TOKENS = 8
BOX = 16  # rows of a cube tile

if T % TOKENS or T > T_MAX:
    raise ValueError(f"lm_head: T = {T} is not a multiple of {TOKENS} up to {T_MAX}")
if T_MAX % BOX:
    raise ValueError(f"lm_head: T_MAX = {T_MAX} is not a multiple of {BOX}")
if VOCAB_PER_TP * TP_SIZE != VOCAB:
    raise ValueError(f"lm_head: {TP_SIZE} shards of {VOCAB_PER_TP} do not make VOCAB = {VOCAB}")
if VOCAB_PER_TP % BOX:
    raise ValueError(f"lm_head: VOCAB_PER_TP = {VOCAB_PER_TP} is not a multiple of {BOX}")

TILES = T // TOKENS
BOXES = (T + BOX - 1) // BOX
COLS = min(256 if VOCAB_PER_TP >= 4096 else 96, VOCAB_PER_TP)  # a tail in FLASH and in most small vocabularies
COL_BLOCKS = VOCAB_PER_TP // COLS
TAIL_START = COL_BLOCKS * COLS
TAIL_COLS = VOCAB_PER_TP - TAIL_START
TAIL_TILE = max(TAIL_COLS, BOX)  # extent of the tail scope, also where there is none
K_CHUNK = tile(D, multiple=16, pr672=512)
COPY_COLS = tile(D, multiple=16, pr672=512)
WINDOW_ROWS = TP_SIZE * T_MAX

WIDTH_DYN = pl.dynamic("WIDTH_DYN")


@pl.jit.inline
def lm_head_shard_inline(
    hidden_states: pl.Tensor[[T, D], pl.BF16],
    lm_head_weight: pl.Tensor[[VOCAB_PER_TP, D], pl.BF16],
    logits_shard: pl.Out[pl.Tensor[[T_MAX, VOCAB_PER_TP], pl.FP32]],
):
    """Logits of one owner's rows over the own shard; rows of `logits_shard` from T on stay undefined."""
    for block in pl.spmd(BOXES * COL_BLOCKS, name_hint="lm_head_shard"):
        t0 = block // COL_BLOCKS * BOX
        n0 = block % COL_BLOCKS * COLS
        rows = pl.min(BOX, T - t0)
        x_first = pl.slice(hidden_states, [BOX, K_CHUNK], [t0, 0], valid_shape=[rows, K_CHUNK])
        w_first = lm_head_weight[n0 : n0 + COLS, 0:K_CHUNK]
        logits = pl.matmul(x_first, w_first, out_dtype=pl.FP32, b_trans=True)
        for c in pl.range(1, D // K_CHUNK):
            k0 = c * K_CHUNK
            x_next = pl.slice(hidden_states, [BOX, K_CHUNK], [t0, k0], valid_shape=[rows, K_CHUNK])
            w_next = lm_head_weight[n0 : n0 + COLS, k0 : k0 + K_CHUNK]
            logits = pl.matmul_acc(logits, x_next, w_next, b_trans=True)
        logits_shard[t0 : t0 + BOX, n0 : n0 + COLS] = logits

    if TAIL_COLS > 0:
        for block in pl.spmd(BOXES, name_hint="lm_head_tail"):
            t0 = block * BOX
            rows = pl.min(BOX, T - t0)
            x_tail = pl.slice(hidden_states, [BOX, K_CHUNK], [t0, 0], valid_shape=[rows, K_CHUNK])
            w_tail = lm_head_weight[TAIL_START : TAIL_START + TAIL_TILE, 0:K_CHUNK]
            tail = pl.matmul(x_tail, w_tail, out_dtype=pl.FP32, b_trans=True)
            for c in pl.range(1, D // K_CHUNK):
                k0 = c * K_CHUNK
                x_tail_next = pl.slice(hidden_states, [BOX, K_CHUNK], [t0, k0], valid_shape=[rows, K_CHUNK])
                w_tail_next = lm_head_weight[TAIL_START : TAIL_START + TAIL_TILE, k0 : k0 + K_CHUNK]
                tail = pl.matmul_acc(tail, x_tail_next, w_tail_next, b_trans=True)
            logits_shard[t0 : t0 + BOX, TAIL_START : TAIL_START + TAIL_TILE] = tail

    return logits_shard


@pl.jit.inline
def copy_columns(
    source: pl.Tensor[[T_MAX, WIDTH_DYN], pl.FP32],
    target: pl.Tensor[[T, VOCAB], pl.FP32],
    from_column: pl.Scalar[pl.INDEX],
    to_column: pl.Scalar[pl.INDEX],
):
    """T rows of one shard's VOCAB_PER_TP columns."""
    for i in pl.range(TILES):
        t0 = i * TOKENS
        for c in pl.pipeline(COL_BLOCKS, stage=2):
            n0 = from_column + c * COLS
            m0 = to_column + c * COLS
            target[t0 : t0 + TOKENS, m0 : m0 + COLS] = source[t0 : t0 + TOKENS, n0 : n0 + COLS]
        if TAIL_COLS > 0:
            n1 = from_column + TAIL_START
            m1 = to_column + TAIL_START
            target[t0 : t0 + TOKENS, m1 : m1 + TAIL_TILE] = source[t0 : t0 + TOKENS, n1 : n1 + TAIL_TILE]


@pl.jit
def lm_head_rank(
    hidden_states: pl.Tensor[[T, D], pl.BF16],
    lm_head_weight: pl.Tensor[[VOCAB_PER_TP, D], pl.BF16],
    logits: pl.Out[pl.Tensor[[T, VOCAB], pl.FP32]],
    hidden_window: pld.DistributedTensor[[WINDOW_ROWS, D], pl.BF16],
    hidden_done: pld.DistributedTensor[[TP_SIZE, 1], pl.INT32],
    logits_window: pld.DistributedTensor[[T_MAX, VOCAB], pl.FP32],
    logits_done: pld.DistributedTensor[[TP_SIZE, 1], pl.INT32],
    my_rank: pl.Scalar[pl.INT32],
):
    own_column = my_rank * VOCAB_PER_TP

    with pl.at(level=pl.Level.CORE_GROUP, name_hint="lm_head_publish"):
        for peer in pl.range(TP_SIZE):
            if peer != my_rank:
                pld.tensor.put(
                    hidden_window,
                    peer,
                    hidden_states,
                    [my_rank * T_MAX, 0],
                    [0, 0],
                    [T, D],
                    chunk_rows=TOKENS,
                    chunk_cols=COPY_COLS,
                )
                pld.system.notify(hidden_done, peer, [my_rank, 0], 1, op=pld.NotifyOp.Set)

    for owner in pl.range(TP_SIZE):
        rows = pl.create_tensor([T, D], dtype=pl.BF16)
        shard = pl.create_tensor([T_MAX, VOCAB_PER_TP], dtype=pl.FP32)
        with pl.at(level=pl.Level.CORE_GROUP, name_hint="lm_head_collect"):
            if owner == my_rank:
                for i in pl.range(TILES):
                    t0 = i * TOKENS
                    for c in pl.pipeline(D // COPY_COLS, stage=2):
                        d0 = c * COPY_COLS
                        own = hidden_states[t0 : t0 + TOKENS, d0 : d0 + COPY_COLS]
                        rows[t0 : t0 + TOKENS, d0 : d0 + COPY_COLS] = own
            else:
                pld.system.wait(hidden_done, [owner, 0], 1, cmp=pld.WaitCmp.Ge)
                for i in pl.range(TILES):
                    t0 = i * TOKENS
                    u0 = owner * T_MAX + t0
                    for c in pl.pipeline(D // COPY_COLS, stage=2):
                        d0 = c * COPY_COLS
                        received = hidden_window[u0 : u0 + TOKENS, d0 : d0 + COPY_COLS]
                        rows[t0 : t0 + TOKENS, d0 : d0 + COPY_COLS] = received

        shard = lm_head_shard_inline(rows, lm_head_weight, shard)

        with pl.at(level=pl.Level.CORE_GROUP, name_hint="lm_head_route"):
            if owner == my_rank:
                copy_columns(shard, logits, 0, own_column)
            else:
                pld.tensor.put(
                    logits_window,
                    owner,
                    shard,
                    [0, own_column],
                    [0, 0],
                    [T, VOCAB_PER_TP],
                    chunk_rows=TOKENS,
                    chunk_cols=COLS,
                )
                pld.system.notify(logits_done, owner, [my_rank, 0], 1, op=pld.NotifyOp.Set)

    for source in pl.range(TP_SIZE):
        if source != my_rank:
            with pl.at(level=pl.Level.CORE_GROUP, name_hint="lm_head_receive"):
                pld.system.wait(logits_done, [source, 0], 1, cmp=pld.WaitCmp.Ge)
                column = source * VOCAB_PER_TP
                copy_columns(logits_window, logits, column, column)

    return logits


@pl.jit.host
def lm_head(
    hidden_states: pl.Tensor[[TP_SIZE, T, D], pl.BF16],
    lm_head_weight: pl.Tensor[[TP_SIZE, VOCAB_PER_TP, D], pl.BF16],
    logits: pl.Out[pl.Tensor[[TP_SIZE, T, VOCAB], pl.FP32]],
):
    hidden_buffer = pld.alloc_window_buffer(WINDOW_ROWS * D * 2)
    hidden_done_buffer = pld.alloc_window_buffer(TP_SIZE * 4)
    logits_buffer = pld.alloc_window_buffer(T_MAX * VOCAB * 4)
    logits_done_buffer = pld.alloc_window_buffer(TP_SIZE * 4)
    hidden_window = pld.window(hidden_buffer, [WINDOW_ROWS, D], dtype=pl.BF16)
    hidden_done = pld.window(hidden_done_buffer, [TP_SIZE, 1], dtype=pl.INT32)
    logits_window = pld.window(logits_buffer, [T_MAX, VOCAB], dtype=pl.FP32)
    logits_done = pld.window(logits_done_buffer, [TP_SIZE, 1], dtype=pl.INT32)

    for rank in pl.range(pld.world_size()):
        lm_head_rank(
            hidden_states[rank],
            lm_head_weight[rank],
            logits[rank],
            hidden_window,
            hidden_done,
            logits_window,
            logits_done,
            rank,
            device=rank,
        )
    return logits
