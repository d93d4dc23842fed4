"""What the tests of the language share: inputs, and the output that every schedule agrees on."""

from __future__ import annotations

import torch

SCHEDULES = range(8)
X = torch.arange(128.0).reshape(8, 16)

NAMES = """
    @pl.jit
    def kernel(x: pl.Tensor[[8, 16], pl.FP32], out: pl.Out[pl.Tensor[[8, 16], pl.FP32]]):
        with pl.at(level=pl.Level.CORE_GROUP):
            t = x[:, :]
            {body}
            out[:, :] = t
        return out
    """
IN = " " * 12


def outputs(file, entry: str = "kernel", name: str = "out", **inputs) -> torch.Tensor:
    """The output that every schedule agrees on, without findings."""
    seen = []
    for schedule in SCHEDULES:
        run = file.run(schedule=schedule, entry=entry, **inputs)
        assert run.findings == []
        seen.append(run.outputs[name])
    assert all(torch.equal(s, seen[0]) for s in seen)
    return seen[0]
