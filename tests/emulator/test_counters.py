"""What a run costs: transfers, tasks, blocks, bytes moved, peaks of memory."""

from __future__ import annotations

import torch

KERNEL = """
    @pl.jit(auto_scope=False)
    def kernel(x: pl.Tensor[[16, 64], pl.FP32], y: pl.InOut[pl.Tensor[[8, 8], pl.FP32]],
               out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
        for half in pl.range(2):
            with pl.scope():
                scratch = pl.create_tensor([8, 64], dtype=pl.FP32)
                with pl.at(level=pl.Level.CORE_GROUP):
                    scratch[:, :] = x[half * 8 : half * 8 + 8, :]
                for i in pl.spmd(4):
                    a = pl.mul(scratch[:, i * 16 : i * 16 + 16], 2.0)
                    b = pl.add(a, 1.0)
                    c = pl.add(b, 1.0)
                    out[half * 8 : half * 8 + 8, i * 16 : i * 16 + 16] = c
        return out
    """


def test_counts_of_a_single_chip_run(kernel) -> None:
    run = kernel(KERNEL).run(x=torch.ones(16, 64), y=torch.ones(8, 8))
    counters = run.counters
    assert {n: counters.get(n) for n in ("uploads.x", "uploads.y", "uploads.out")} == {
        "uploads.x": 1, "uploads.y": 1, "uploads.out": None,
    }  # fmt: skip
    assert {n: counters.get(n) for n in ("downloads.x", "downloads.y", "downloads.out")} == {
        "downloads.x": None, "downloads.y": 1, "downloads.out": 1,
    }  # fmt: skip
    assert counters["upload_bytes"] == 4096 + 256
    assert counters["download_bytes"] == 256 + 4096
    assert counters["tasks"] == 4
    assert counters["blocks"] == 8
    assert counters["gm_read_bytes"] == counters["gm_write_bytes"] == 2 * 4096
    assert counters["peak_scratch_bytes"] == 2048, "the scratch of one scope is gone before the next one's"


def test_a_tile_is_gone_after_its_last_use(kernel) -> None:
    """The copy holds one [8, 64] tile, a block an operand and its result: names that nobody reads do not add up."""
    run = kernel(KERNEL).run(x=torch.ones(16, 64), y=torch.ones(8, 8))
    assert run.counters["peak_vec_bytes"] == 2048
    long = "\n".join(f"                    t{n} = pl.mul(x[0:8, :], {n}.0)" for n in range(4))
    sums = "                    out[0:8, :] = pl.add(pl.add(t0, t1), pl.add(t2, t3))"
    copy = "                    scratch[:, :] = x[half"
    keeps = KERNEL.replace(copy, f"{long}\n{sums}\n{copy}")
    run = kernel(keeps).run(x=torch.ones(16, 64), y=torch.ones(8, 8))
    assert run.counters["peak_vec_bytes"] == 7 * 2048, "four operands and three sums"
