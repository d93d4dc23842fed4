"""expert_routed: the routed experts of one rank, weighted. Contract: hc_gate_experts.md, section 5.

The network of `expert_shared` for every local expert and every box of BOX received rows; the number of
boxes follows the expert's row count at run time, and an expert without rows launches nothing. The tasks of
a box are chained by hand, because automatic tracking would serialise the experts:

    gate, up    INT8 matmul with w1 and w3, exact in INT32  block: UP_COLS channels, by UP_CHUNK of D
    activate    dequantise, clamp, SiLU(gate) * up in FP32  block: ACT_COLS channels
    quantise    INT8 codes and scale over the whole row     one task, by QUANT_CHUNK channels
    down        INT8 matmul with w2, exact in INT32         block: DOWN_COLS columns, by DOWN_CHUNK channels
    dequantise  scale times routing weight, channel scale   block: OUT_COLS columns

The last stands outside the manual scope, so that the consumers of recv_y are ordered after it. Rows from
the count on are set to zero after the activation: what the receive buffer holds there reaches no amax and
no output. Row r of expert e is row e * RECV_MAX + r of the flat views.
"""

import pypto.language as pl

from kernels.sizes import (
    INT8_AMAX_EPS,
    INT8_SCALE_MAX,
    MOE_INTER,
    N_LOCAL,
    RECV_MAX,
    SWIGLU_LIMIT,
    D,
    tile,
)

BOX = 16  # rows of a cube tile

if RECV_MAX % BOX:
    raise ValueError(f"expert_routed: RECV_MAX = {RECV_MAX} is not a multiple of {BOX}")

UP_COLS = tile(MOE_INTER, multiple=32, pr672=256, before_pr672=64)
UP_CHUNK = tile(D, multiple=32, pr672=512)
ACT_COLS = tile(MOE_INTER, multiple=32, pr672=128, before_pr672=64)
QUANT_CHUNK = tile(MOE_INTER, multiple=32, pr672=256)
DOWN_COLS = tile(D, multiple=32, pr672=256, before_pr672=64)
DOWN_CHUNK = tile(MOE_INTER, multiple=32, pr672=512)
OUT_COLS = tile(D, multiple=32, pr672=512, before_pr672=64)


@pl.jit.inline
def expert_routed_inline(
    recv_x: pl.Tensor[[N_LOCAL, RECV_MAX, D], pl.INT8],
    recv_scale_dq: pl.Tensor[[N_LOCAL, RECV_MAX], pl.FP32],
    recv_weights: pl.Tensor[[N_LOCAL, RECV_MAX], pl.FP32],
    recv_expert_count: pl.Tensor[[N_LOCAL, 1], pl.INT32],
    routed_w1: pl.Tensor[[N_LOCAL, MOE_INTER, D], pl.INT8],
    routed_w1_scale: pl.Tensor[[N_LOCAL, MOE_INTER], pl.FP32],
    routed_w3: pl.Tensor[[N_LOCAL, MOE_INTER, D], pl.INT8],
    routed_w3_scale: pl.Tensor[[N_LOCAL, MOE_INTER], pl.FP32],
    routed_w2: pl.Tensor[[N_LOCAL, D, MOE_INTER], pl.INT8],
    routed_w2_scale: pl.Tensor[[N_LOCAL, D], pl.FP32],
    recv_y: pl.Out[pl.Tensor[[N_LOCAL, RECV_MAX, D], pl.BF16]],
):
    x_rows = pl.reshape(recv_x, [N_LOCAL * RECV_MAX, D])
    scale_rows = pl.reshape(recv_scale_dq, [N_LOCAL * RECV_MAX, 1])
    weight_rows = pl.reshape(recv_weights, [N_LOCAL * RECV_MAX, 1])
    y_rows = pl.reshape(recv_y, [N_LOCAL * RECV_MAX, D])
    w1 = pl.reshape(routed_w1, [N_LOCAL * MOE_INTER, D])
    w3 = pl.reshape(routed_w3, [N_LOCAL * MOE_INTER, D])
    w2 = pl.reshape(routed_w2, [N_LOCAL * D, MOE_INTER])

    for e in pl.parallel(N_LOCAL):
        count = pl.read(recv_expert_count, [e, 0])
        for box in pl.parallel((count + BOX - 1) // BOX):
            row0 = e * RECV_MAX + box * BOX
            rows = pl.min(BOX, count - box * BOX)
            gate_i32 = pl.create_tensor([BOX, MOE_INTER], dtype=pl.INT32)
            up_i32 = pl.create_tensor([BOX, MOE_INTER], dtype=pl.INT32)
            h_fp32 = pl.create_tensor([BOX, MOE_INTER], dtype=pl.FP32)
            h_i8 = pl.create_tensor([BOX, MOE_INTER], dtype=pl.INT8)
            h_scale = pl.create_tensor([BOX, 1], dtype=pl.FP32)
            y_i32 = pl.create_tensor([BOX, D], dtype=pl.INT32)

            with pl.manual_scope():
                with pl.spmd(MOE_INTER // UP_COLS, name_hint="routed_gate") as gate_task:
                    n0 = pl.tile.get_block_idx() * UP_COLS
                    w_row = e * MOE_INTER + n0
                    x_first = x_rows[row0 : row0 + BOX, 0:UP_CHUNK]
                    w_first = w1[w_row : w_row + UP_COLS, 0:UP_CHUNK]
                    acc = pl.matmul(x_first, w_first, out_dtype=pl.INT32, b_trans=True)
                    for c in pl.pipeline(1, D // UP_CHUNK, stage=2):
                        k0 = c * UP_CHUNK
                        x_next = x_rows[row0 : row0 + BOX, k0 : k0 + UP_CHUNK]
                        w_next = w1[w_row : w_row + UP_COLS, k0 : k0 + UP_CHUNK]
                        acc = pl.matmul_acc(acc, x_next, w_next, b_trans=True)
                    gate_i32[0:BOX, n0 : n0 + UP_COLS] = acc

                with pl.spmd(MOE_INTER // UP_COLS, name_hint="routed_up") as up_task:
                    n0 = pl.tile.get_block_idx() * UP_COLS
                    w_row = e * MOE_INTER + n0
                    x_first = x_rows[row0 : row0 + BOX, 0:UP_CHUNK]
                    w_first = w3[w_row : w_row + UP_COLS, 0:UP_CHUNK]
                    acc = pl.matmul(x_first, w_first, out_dtype=pl.INT32, b_trans=True)
                    for c in pl.pipeline(1, D // UP_CHUNK, stage=2):
                        k0 = c * UP_CHUNK
                        x_next = x_rows[row0 : row0 + BOX, k0 : k0 + UP_CHUNK]
                        w_next = w3[w_row : w_row + UP_COLS, k0 : k0 + UP_CHUNK]
                        acc = pl.matmul_acc(acc, x_next, w_next, b_trans=True)
                    up_i32[0:BOX, n0 : n0 + UP_COLS] = acc

                with pl.spmd(MOE_INTER // ACT_COLS, name_hint="routed_activate", deps=[gate_task, up_task]) as act_task:
                    n0 = pl.tile.get_block_idx() * ACT_COLS
                    x_scale = scale_rows[row0 : row0 + BOX, 0:1]
                    w1_scale = routed_w1_scale[e : e + 1, n0 : n0 + ACT_COLS]
                    w3_scale = routed_w3_scale[e : e + 1, n0 : n0 + ACT_COLS]
                    gate_acc = pl.cast(gate_i32[0:BOX, n0 : n0 + ACT_COLS], pl.FP32, mode="none")
                    up_acc = pl.cast(up_i32[0:BOX, n0 : n0 + ACT_COLS], pl.FP32, mode="none")
                    gate = pl.col_expand_mul(pl.row_expand_mul(gate_acc, x_scale), w1_scale)
                    up = pl.col_expand_mul(pl.row_expand_mul(up_acc, x_scale), w3_scale)
                    if SWIGLU_LIMIT > 0.0:
                        gate = pl.minimum(gate, SWIGLU_LIMIT)
                        up = pl.maximum(pl.minimum(up, SWIGLU_LIMIT), -SWIGLU_LIMIT)
                    sigmoid = pl.recip(pl.add(pl.exp(pl.neg(gate)), 1.0))
                    h = pl.mul(pl.mul(gate, sigmoid), up)
                    received = pl.set_validshape(h, rows, ACT_COLS)
                    h_fp32[0:BOX, n0 : n0 + ACT_COLS] = pl.fillpad(received, pad_value=pl.PadValue.zero)

                with pl.at(level=pl.Level.CORE_GROUP, name_hint="routed_quantise", deps=[act_task]) as quant_task:
                    amax = pl.full([1, BOX], dtype=pl.FP32, value=INT8_AMAX_EPS)
                    for c in pl.pipeline(MOE_INTER // QUANT_CHUNK, stage=2):
                        n0 = c * QUANT_CHUNK
                        chunk_max = pl.row_max(pl.abs(h_fp32[0:BOX, n0 : n0 + QUANT_CHUNK]))
                        amax = pl.maximum(amax, pl.reshape(chunk_max, [1, BOX]))
                    gain = pl.div(pl.full([1, BOX], dtype=pl.FP32, value=INT8_SCALE_MAX), amax)
                    gain_column = pl.reshape(gain, [BOX, 1])
                    for c in pl.pipeline(MOE_INTER // QUANT_CHUNK, stage=2):
                        n0 = c * QUANT_CHUNK
                        scaled = pl.row_expand_mul(h_fp32[0:BOX, n0 : n0 + QUANT_CHUNK], gain_column)
                        code = pl.cast(pl.cast(scaled, pl.INT32, mode="rint"), pl.FP16, mode="round")
                        h_i8[0:BOX, n0 : n0 + QUANT_CHUNK] = pl.cast(code, pl.INT8, mode="trunc")
                    h_scale[0:BOX, 0:1] = pl.reshape(pl.recip(gain), [BOX, 1])

                with pl.spmd(D // DOWN_COLS, name_hint="routed_down", deps=[quant_task]) as down_task:
                    d0 = pl.tile.get_block_idx() * DOWN_COLS
                    w_row = e * D + d0
                    h_first = h_i8[0:BOX, 0:DOWN_CHUNK]
                    w_first = w2[w_row : w_row + DOWN_COLS, 0:DOWN_CHUNK]
                    acc = pl.matmul(h_first, w_first, out_dtype=pl.INT32, b_trans=True)
                    for c in pl.pipeline(1, MOE_INTER // DOWN_CHUNK, stage=2):
                        k0 = c * DOWN_CHUNK
                        h_next = h_i8[0:BOX, k0 : k0 + DOWN_CHUNK]
                        w_next = w2[w_row : w_row + DOWN_COLS, k0 : k0 + DOWN_CHUNK]
                        acc = pl.matmul_acc(acc, h_next, w_next, b_trans=True)
                    y_i32[0:BOX, d0 : d0 + DOWN_COLS] = acc

            for block in pl.spmd(D // OUT_COLS, name_hint="routed_dequantise", deps=[down_task]):
                d0 = block * OUT_COLS
                row_scale = pl.mul(h_scale[0:BOX, 0:1], weight_rows[row0 : row0 + BOX, 0:1])
                y_acc = pl.cast(y_i32[0:BOX, d0 : d0 + OUT_COLS], pl.FP32, mode="none")
                y = pl.col_expand_mul(
                    pl.row_expand_mul(y_acc, row_scale), routed_w2_scale[e : e + 1, d0 : d0 + OUT_COLS]
                )
                y_rows[row0 : row0 + BOX, d0 : d0 + OUT_COLS] = pl.cast(y, pl.BF16, mode="rint")

    return recv_y


@pl.jit
def expert_routed(
    recv_x: pl.Tensor[[N_LOCAL, RECV_MAX, D], pl.INT8],
    recv_scale_dq: pl.Tensor[[N_LOCAL, RECV_MAX], pl.FP32],
    recv_weights: pl.Tensor[[N_LOCAL, RECV_MAX], pl.FP32],
    recv_expert_count: pl.Tensor[[N_LOCAL, 1], pl.INT32],
    routed_w1: pl.Tensor[[N_LOCAL, MOE_INTER, D], pl.INT8],
    routed_w1_scale: pl.Tensor[[N_LOCAL, MOE_INTER], pl.FP32],
    routed_w3: pl.Tensor[[N_LOCAL, MOE_INTER, D], pl.INT8],
    routed_w3_scale: pl.Tensor[[N_LOCAL, MOE_INTER], pl.FP32],
    routed_w2: pl.Tensor[[N_LOCAL, D, MOE_INTER], pl.INT8],
    routed_w2_scale: pl.Tensor[[N_LOCAL, D], pl.FP32],
    recv_y: pl.Out[pl.Tensor[[N_LOCAL, RECV_MAX, D], pl.BF16]],
):
    return expert_routed_inline(
        recv_x,
        recv_scale_dq,
        recv_weights,
        recv_expert_count,
        routed_w1,
        routed_w1_scale,
        routed_w3,
        routed_w3_scale,
        routed_w2,
        routed_w2_scale,
        recv_y,
    )
