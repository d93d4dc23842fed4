"""Layer norm of BF16 rows with gain and bias, in FP32; the features are walked in chunks."""

import argparse

import pypto.language as pl
import torch
from golden import TensorSpec, ratio_allclose, run_jit

ROWS = 32
FEATURES = 512
TILE = 16
CHUNK = 128
EPS = 1e-5
INV = 1.0 / FEATURES


@pl.jit.inline
def chunk_of(x: pl.Tensor[[ROWS, FEATURES], pl.BF16], row: pl.Scalar[pl.INDEX], col: pl.Scalar[pl.INDEX]):
    return pl.cast(x[row : row + TILE, col : col + CHUNK], pl.FP32)


@pl.jit
def layer_norm(
    x: pl.Tensor[[ROWS, FEATURES], pl.BF16],
    gain: pl.Tensor[[1, FEATURES], pl.FP32],
    bias: pl.Tensor[[1, FEATURES], pl.FP32],
    y: pl.Out[pl.Tensor[[ROWS, FEATURES], pl.BF16]],
):
    for block in pl.spmd(ROWS // TILE):
        row = block * TILE
        total = pl.full([TILE, 1], dtype=pl.FP32, value=0.0)
        for c in pl.range(FEATURES // CHUNK):
            values = chunk_of(x, row, c * CHUNK)
            total = pl.add(total, pl.row_sum(values))
        mean = pl.mul(total, INV)
        squares = pl.full([TILE, 1], dtype=pl.FP32, value=0.0)
        for c in pl.range(FEATURES // CHUNK):
            values = chunk_of(x, row, c * CHUNK)
            centred = pl.row_expand_sub(values, mean)
            squares = pl.add(squares, pl.row_sum(pl.mul(centred, centred)))
        scale = pl.recip(pl.sqrt(pl.add(pl.mul(squares, INV), EPS)))
        for c in pl.pipeline(FEATURES // CHUNK, stage=2):
            col = c * CHUNK
            values = chunk_of(x, row, col)
            normed = pl.row_expand_mul(pl.row_expand_sub(values, mean), scale)
            scaled = pl.col_expand_mul(normed, gain[0:1, col : col + CHUNK])
            shifted = pl.col_expand_add(scaled, bias[0:1, col : col + CHUNK])
            y[row : row + TILE, col : col + CHUNK] = pl.cast(shifted, pl.BF16, mode="rint")
    return y


def golden_layer_norm(tensors):
    x = tensors["x"].double()
    y = torch.nn.functional.layer_norm(
        x, [FEATURES], tensors["gain"][0].double(), tensors["bias"][0].double(), eps=EPS
    )
    tensors["y"][:] = y.to(torch.bfloat16)


def specs():
    return [
        TensorSpec(
            "x", [ROWS, FEATURES], torch.bfloat16, init_value=lambda: 3 * torch.randn(ROWS, FEATURES) + 1
        ),
        TensorSpec(
            "gain", [1, FEATURES], torch.float32, init_value=lambda: 1 + 0.1 * torch.randn(1, FEATURES)
        ),
        TensorSpec("bias", [1, FEATURES], torch.float32, init_value=torch.randn),
        TensorSpec("y", [ROWS, FEATURES], torch.bfloat16, is_output=True),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("-p", "--platform", default="a2a3")
    parser.add_argument("-d", "--device", type=int, default=0)
    args = parser.parse_args()
    result = run_jit(
        layer_norm,
        specs(),
        golden_fn=golden_layer_norm,
        runtime_cfg={"platform": args.platform, "device_id": args.device},
        compare_fn={"y": ratio_allclose(atol=1e-4, rtol=1 / 128, max_error_ratio=0.0)},
        save_data=False,
    )
    if not result.passed:
        print(result.error)
        raise SystemExit(1)
