"""Histogram of labels by block-private counts and atomic adds; then each label's frequency by an index gather."""

import pypto.language as pl
import torch
from golden import TensorSpec, run_jit

N = 1000
BINS = 64
CHUNK = 256
BLOCKS = (N + CHUNK - 1) // CHUNK


@pl.jit
def histogram(
    labels: pl.Tensor[[N], pl.INT32],
    counts: pl.Out[pl.Tensor[[1, BINS], pl.INT32]],
    freq: pl.Out[pl.Tensor[[1, N], pl.FP32]],
):
    label_row = pl.reshape(labels, [1, N])

    with pl.at(level=pl.Level.CORE_GROUP, name_hint="clear"):
        counts = pl.assemble(counts, pl.full([1, BINS], dtype=pl.INT32, value=0), [0, 0])

    for blk in pl.spmd(BLOCKS, name_hint="count"):
        c0 = blk * CHUNK
        local = pl.full([1, BINS], dtype=pl.INT32, value=0)
        for i in pl.range(c0, pl.min(c0 + CHUNK, N)):
            label = pl.read(labels, [i])
            seen = pl.read(local, [0, label])
            pl.write(local, [0, label], seen + pl.const(1, pl.INT32))
        counts = pl.assemble(counts, local, [0, 0], atomic=pl.AtomicType.Add)

    for blk in pl.spmd(BLOCKS, name_hint="look_up"):
        c0 = blk * CHUNK
        cols = pl.min(CHUNK, N - c0)
        part = pl.slice(label_row, [1, CHUNK], [0, c0], valid_shape=[1, cols])
        index = pl.fillpad(part, pad_value=pl.PadValue.zero)
        table = pl.slice(counts, [1, BINS], [0, 0])
        hits = pl.gather(table, dim=-1, index=index)
        share = pl.mul(pl.cast(hits, target_type=pl.FP32, mode="rint"), 1.0 / N)
        freq = pl.assemble(freq, pl.set_validshape(share, 1, cols), [0, c0])
    return counts, freq


def golden_fn(tensors):
    labels = tensors["labels"].long()
    counts = torch.bincount(labels, minlength=BINS)
    tensors["counts"][0] = counts.to(torch.int32)
    tensors["freq"][0] = counts[labels].float() / N


def build_tensor_specs():
    return [
        TensorSpec("labels", [N], torch.int32, init_value=lambda: (torch.rand(N) ** 2 * BINS).to(torch.int32)),
        TensorSpec("counts", [1, BINS], torch.int32, is_output=True),
        TensorSpec("freq", [1, N], torch.float32, is_output=True),
    ]


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser()
    parser.add_argument("-p", "--platform", default="a2a3sim", choices=["a2a3", "a2a3sim", "a5", "a5sim"])
    parser.add_argument("-d", "--device", type=int, default=0)
    args = parser.parse_args()

    result = run_jit(
        fn=histogram,
        specs=build_tensor_specs(),
        golden_fn=golden_fn,
        runtime_cfg={"platform": args.platform, "device_id": args.device},
        rtol=1e-6,
        atol=1e-6,
    )
    if not result.passed:
        if result.error:
            print(result.error)
        raise SystemExit(1)
