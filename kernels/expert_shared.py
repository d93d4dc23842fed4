"""expert_shared: SwiGLU network of the shared expert, W8A8. Contract: hc_gate_experts.md, section 4.

For every box of BOX rows, six scopes with intermediates of their own:

    gate, up    INT8 matmul with w1 and w3, exact in INT32  block: UP_COLS channels, by UP_CHUNK of D
    activate    dequantise, clamp, SiLU(gate) * up in FP32  block: ACT_COLS channels
    quantise    INT8 codes and scale over the whole row     one task, by QUANT_CHUNK channels
    down        INT8 matmul with w2, exact in INT32         block: DOWN_COLS columns, by DOWN_CHUNK channels
    dequantise  both scales, BF16 ties to even              block: OUT_COLS columns

T is at most BOX or a multiple of it. With T < BOX the rows from T on are pads: the cube masks them, the
activation fills them with zero, the output leaves them out. Every tile divides its extent, so that no
column is dropped at any size.
"""

import pypto.language as pl

from kernels.sizes import INT8_AMAX_EPS, INT8_SCALE_MAX, MOE_INTER, SWIGLU_LIMIT, D, T, tile

BOX = 16  # rows of a cube tile

if T > BOX and T % BOX:
    raise ValueError(f"expert_shared: T = {T} is more than {BOX} and not a multiple of it")

ROWS = min(T, BOX)
BOXES = (T + BOX - 1) // BOX
UP_COLS = tile(MOE_INTER, multiple=32, pr672=256, before_pr672=64)
UP_CHUNK = tile(D, multiple=32, pr672=512)
ACT_COLS = tile(MOE_INTER, multiple=32, pr672=128, before_pr672=64)
QUANT_CHUNK = tile(MOE_INTER, multiple=32, pr672=256)
DOWN_COLS = tile(D, multiple=32, pr672=256, before_pr672=64)
DOWN_CHUNK = tile(MOE_INTER, multiple=32, pr672=512)
OUT_COLS = tile(D, multiple=32, pr672=512, before_pr672=64)


@pl.jit.inline
def expert_shared_inline(
    x_local_i8: pl.Tensor[[T, D], pl.INT8],
    x_local_scale_dq: pl.Tensor[[T, 1], pl.FP32],
    shared_w1: pl.Tensor[[MOE_INTER, D], pl.INT8],
    shared_w1_scale: pl.Tensor[[MOE_INTER], pl.FP32],
    shared_w3: pl.Tensor[[MOE_INTER, D], pl.INT8],
    shared_w3_scale: pl.Tensor[[MOE_INTER], pl.FP32],
    shared_w2: pl.Tensor[[D, MOE_INTER], pl.INT8],
    shared_w2_scale: pl.Tensor[[D], pl.FP32],
    sh: pl.Out[pl.Tensor[[T, D], pl.BF16]],
):
    w1_scale = pl.reshape(shared_w1_scale, [1, MOE_INTER])
    w3_scale = pl.reshape(shared_w3_scale, [1, MOE_INTER])
    w2_scale = pl.reshape(shared_w2_scale, [1, D])

    for box in pl.parallel(BOXES):
        t0 = box * BOX
        gate_i32 = pl.create_tensor([BOX, MOE_INTER], dtype=pl.INT32)
        up_i32 = pl.create_tensor([BOX, MOE_INTER], dtype=pl.INT32)
        h_fp32 = pl.create_tensor([BOX, MOE_INTER], dtype=pl.FP32)
        h_i8 = pl.create_tensor([BOX, MOE_INTER], dtype=pl.INT8)
        h_scale = pl.create_tensor([BOX, 1], dtype=pl.FP32)
        y_i32 = pl.create_tensor([BOX, D], dtype=pl.INT32)

        for block in pl.spmd(MOE_INTER // UP_COLS, name_hint="shared_gate"):
            n0 = block * UP_COLS
            x_first = pl.slice(x_local_i8, [BOX, UP_CHUNK], [t0, 0], valid_shape=[ROWS, UP_CHUNK])
            w_first = shared_w1[n0 : n0 + UP_COLS, 0:UP_CHUNK]
            acc = pl.matmul(x_first, w_first, out_dtype=pl.INT32, b_trans=True)
            for c in pl.pipeline(1, D // UP_CHUNK, stage=2):
                k0 = c * UP_CHUNK
                x_next = pl.slice(x_local_i8, [BOX, UP_CHUNK], [t0, k0], valid_shape=[ROWS, UP_CHUNK])
                w_next = shared_w1[n0 : n0 + UP_COLS, k0 : k0 + UP_CHUNK]
                acc = pl.matmul_acc(acc, x_next, w_next, b_trans=True)
            gate_i32[0:BOX, n0 : n0 + UP_COLS] = acc

        for block in pl.spmd(MOE_INTER // UP_COLS, name_hint="shared_up"):
            n0 = block * UP_COLS
            x_first = pl.slice(x_local_i8, [BOX, UP_CHUNK], [t0, 0], valid_shape=[ROWS, UP_CHUNK])
            w_first = shared_w3[n0 : n0 + UP_COLS, 0:UP_CHUNK]
            acc = pl.matmul(x_first, w_first, out_dtype=pl.INT32, b_trans=True)
            for c in pl.pipeline(1, D // UP_CHUNK, stage=2):
                k0 = c * UP_CHUNK
                x_next = pl.slice(x_local_i8, [BOX, UP_CHUNK], [t0, k0], valid_shape=[ROWS, UP_CHUNK])
                w_next = shared_w3[n0 : n0 + UP_COLS, k0 : k0 + UP_CHUNK]
                acc = pl.matmul_acc(acc, x_next, w_next, b_trans=True)
            up_i32[0:BOX, n0 : n0 + UP_COLS] = acc

        for block in pl.spmd(MOE_INTER // ACT_COLS, name_hint="shared_activate"):
            n0 = block * ACT_COLS
            x_scale = pl.slice(x_local_scale_dq, [BOX, 1], [t0, 0], valid_shape=[ROWS, 1])
            gate_acc = pl.slice(gate_i32, [BOX, ACT_COLS], [0, n0], valid_shape=[ROWS, ACT_COLS])
            up_acc = pl.slice(up_i32, [BOX, ACT_COLS], [0, n0], valid_shape=[ROWS, ACT_COLS])
            gate_rows = pl.row_expand_mul(pl.cast(gate_acc, pl.FP32, mode="none"), x_scale)
            up_rows = pl.row_expand_mul(pl.cast(up_acc, pl.FP32, mode="none"), x_scale)
            gate = pl.col_expand_mul(gate_rows, w1_scale[0:1, n0 : n0 + ACT_COLS])
            up = pl.col_expand_mul(up_rows, w3_scale[0:1, n0 : n0 + ACT_COLS])
            if SWIGLU_LIMIT > 0.0:
                gate = pl.minimum(gate, SWIGLU_LIMIT)
                up = pl.maximum(pl.minimum(up, SWIGLU_LIMIT), -SWIGLU_LIMIT)
            sigmoid = pl.recip(pl.add(pl.exp(pl.neg(gate)), 1.0))
            h = pl.mul(pl.mul(gate, sigmoid), up)
            h_fp32[0:BOX, n0 : n0 + ACT_COLS] = pl.fillpad(h, pad_value=pl.PadValue.zero)

        with pl.at(level=pl.Level.CORE_GROUP, name_hint="shared_quantise"):
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

        for block in pl.spmd(D // DOWN_COLS, name_hint="shared_down"):
            d0 = block * DOWN_COLS
            h_first = h_i8[0:BOX, 0:DOWN_CHUNK]
            w_first = shared_w2[d0 : d0 + DOWN_COLS, 0:DOWN_CHUNK]
            acc = pl.matmul(h_first, w_first, out_dtype=pl.INT32, b_trans=True)
            for c in pl.pipeline(1, MOE_INTER // DOWN_CHUNK, stage=2):
                k0 = c * DOWN_CHUNK
                h_next = h_i8[0:BOX, k0 : k0 + DOWN_CHUNK]
                w_next = shared_w2[d0 : d0 + DOWN_COLS, k0 : k0 + DOWN_CHUNK]
                acc = pl.matmul_acc(acc, h_next, w_next, b_trans=True)
            y_i32[0:BOX, d0 : d0 + DOWN_COLS] = acc

        for block in pl.spmd(D // OUT_COLS, name_hint="shared_dequantise"):
            d0 = block * OUT_COLS
            y_acc = pl.cast(y_i32[0:BOX, d0 : d0 + OUT_COLS], pl.FP32, mode="none")
            y_rows = pl.row_expand_mul(y_acc, h_scale[0:BOX, 0:1])
            y = pl.col_expand_mul(y_rows, w2_scale[0:1, d0 : d0 + OUT_COLS])
            y_bf16 = pl.cast(y, pl.BF16, mode="rint")
            sh[t0 : t0 + ROWS, d0 : d0 + OUT_COLS] = pl.set_validshape(y_bf16, ROWS, OUT_COLS)

    return sh


@pl.jit
def expert_shared(
    x_local_i8: pl.Tensor[[T, D], pl.INT8],
    x_local_scale_dq: pl.Tensor[[T, 1], pl.FP32],
    shared_w1: pl.Tensor[[MOE_INTER, D], pl.INT8],
    shared_w1_scale: pl.Tensor[[MOE_INTER], pl.FP32],
    shared_w3: pl.Tensor[[MOE_INTER, D], pl.INT8],
    shared_w3_scale: pl.Tensor[[MOE_INTER], pl.FP32],
    shared_w2: pl.Tensor[[D, MOE_INTER], pl.INT8],
    shared_w2_scale: pl.Tensor[[D], pl.FP32],
    sh: pl.Out[pl.Tensor[[T, D], pl.BF16]],
):
    return expert_shared_inline(
        x_local_i8,
        x_local_scale_dq,
        shared_w1,
        shared_w1_scale,
        shared_w3,
        shared_w3_scale,
        shared_w2,
        shared_w2_scale,
        sh,
    )
