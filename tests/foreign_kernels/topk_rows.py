"""The largest K entries of each row, with their columns: sort32, four-way merges, one two-way merge, mask gathers."""

import pypto.language as pl
import torch
from golden import TensorSpec, ratio_allclose, run_jit, topk_pair_compare

ROWS = 24
COLS = 1000
SORT_LEN = 1024
HALF = SORT_LEN  # positions of one of two runs; a pair takes two
K = 64


@pl.jit
def topk_rows(
    score: pl.Tensor[[ROWS, COLS], pl.FP32],
    vals: pl.Out[pl.Tensor[[ROWS, K], pl.FP32]],
    idxs: pl.Out[pl.Tensor[[ROWS, K], pl.INT32]],
):
    for row in pl.spmd(ROWS, name_hint="topk"):
        part = pl.slice(score, [1, SORT_LEN], [row, 0], valid_shape=[1, COLS])
        padded = pl.fillpad(part, pad_value=pl.PadValue.min)
        labels = pl.arange(0, [1, SORT_LEN], dtype=pl.UINT32)
        runs32 = pl.sort32(padded, labels)
        runs128 = pl.mrgsort(runs32, block_len=64)
        runs512 = pl.mrgsort(runs128, block_len=256)
        lower = pl.slice(runs512, [1, HALF], [0, 0])
        upper = pl.slice(runs512, [1, HALF], [0, HALF])
        merged = pl.mrgsort(lower, upper)
        top = pl.slice(merged, [1, 2 * K], [0, 0])
        top_vals = pl.gather(top, mask_pattern=pl.tile.MaskPattern.P0101)
        top_idxs = pl.gather(top, mask_pattern=pl.tile.MaskPattern.P1010, output_dtype=pl.INT32)
        vals = pl.assemble(vals, top_vals, [row, 0])
        idxs = pl.assemble(idxs, top_idxs, [row, 0])
    return vals, idxs


def golden_fn(tensors):
    vals, idxs = torch.topk(tensors["score"], K, dim=-1)
    tensors["vals"][:] = vals
    tensors["idxs"][:] = idxs.to(torch.int32)


def build_tensor_specs():
    def distinct_scores():
        return torch.stack([torch.randperm(COLS) for _ in range(ROWS)]).float() - 500.5

    return [
        TensorSpec("score", [ROWS, COLS], torch.float32, init_value=distinct_scores),
        TensorSpec("vals", [ROWS, K], torch.float32, is_output=True),
        TensorSpec("idxs", [ROWS, K], torch.int32, is_output=True),
    ]


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser()
    parser.add_argument("-p", "--platform", default="a2a3sim", choices=["a2a3", "a2a3sim", "a5", "a5sim"])
    parser.add_argument("-d", "--device", type=int, default=0)
    args = parser.parse_args()

    result = run_jit(
        fn=topk_rows,
        specs=build_tensor_specs(),
        golden_fn=golden_fn,
        runtime_cfg={"platform": args.platform, "device_id": args.device},
        rtol=1e-6,
        atol=1e-6,
        compare_fn={
            "vals": ratio_allclose(atol=0.0, rtol=0.0, max_error_ratio=0.0),
            "idxs": topk_pair_compare("vals"),
        },
    )
    if not result.passed:
        if result.error:
            print(result.error)
        raise SystemExit(1)
