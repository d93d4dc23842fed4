"""`python -m benchmarks emulator`: what the emulator costs over plain torch, and where its time goes.

Per tile op: microseconds of one call on [8, 256] FP32 tiles beside the torch call that computes the same, with the race
detector (`checks on`) and without. Per kernel: seconds at FLASH decode, split into the products of the cube, other
torch and numpy calls, the interpreter, and the race detector. Everything is the minimum of interleaved rounds; one
thread.
"""

from __future__ import annotations

import cProfile
import pstats
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tabulate import tabulate

from harness.devices.emulator import EmulatorDevice
from harness.devices.emulator import dtypes as dt
from harness.devices.emulator.device import EmulatorKernel, execute, one_thread
from harness.devices.emulator.machine import Machine, Region, running
from harness.devices.emulator.ops import namespace
from harness.devices.emulator.order import Order
from harness.devices.emulator.values import Tensor
from harness.devices.emulator.variance import Schedule
from specs.registry import load_op

OP_LIMITS = {"on": 15.0, "off": 5.0}  # microseconds over the torch call: what a tile op may cost
KERNEL_LIMITS = {"gate": 2.0, "expert_shared": 3.0, "expert_routed": 30.0}  # seconds
_CALLS = 200
_PRODUCTS = ("matmul",)  # names of the profile's rows that are products

Pair = tuple[Callable[[], Any], Callable[[], Any]]


def report(repeat: int) -> dict[str, Any]:
    """Measure, print two tables, and return their rows."""
    with one_thread():
        ops = op_costs(repeat)
        print("one op on [8, 256], microseconds; over = above the torch call:")
        print(tabulate(ops, headers="keys", floatfmt=".1f"))
        kernels = [kernel_times(name, repeat) for name in KERNEL_LIMITS]
    print("\nkernels at flash/decode (expert_routed: 32 experts, all rows received), seconds:")
    print(tabulate(kernels, headers="keys", floatfmt=".3f"))
    return {"ops": ops, "kernels": kernels}


def op_costs(repeat: int) -> list[dict[str, Any]]:
    """One row per op."""
    best: dict[str, dict[str, float]] = {}
    for _ in range(repeat):
        for checks in OP_LIMITS:
            with _region(checks == "on"):
                for name, (emulated, plain) in _pairs().items():
                    row = best.setdefault(name, {})
                    for key, call in ((checks, emulated), ("torch", plain)):
                        row[key] = min(row.get(key, 1e9), _microseconds(call))
    return [
        {"op": name, "torch": row["torch"], **{f"over, checks {c}": row[c] - row["torch"] for c in OP_LIMITS}}
        for name, row in best.items()
    ]


@contextmanager
def _region(checks: bool) -> Iterator[None]:
    machine = Machine(
        schedule=Schedule(0), files=set(), region=Region("at"), order=Order() if checks else None, warnings=checks
    )
    machine.unit = machine.new_unit("benchmark", 1, 1)
    with running(machine):
        yield


def _pairs() -> dict[str, Pair]:
    """Op and torch call on the same values, by name."""
    pl: dict[str, Any] = namespace()
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 256, generator=generator), torch.rand(8, 256, generator=generator) + 0.5
    column, row = torch.randn(8, 1, generator=generator), torch.randn(1, 256, generator=generator)
    whole, codes = (9 * x).to(torch.int32), (9 * x).to(torch.float16)
    memory = torch.zeros(64, 4096)
    gm = Tensor.of(memory.clone(), dt.FP32, "memory")

    def tile(data: torch.Tensor) -> Any:
        kind = dt.from_torch(data.dtype)
        assert kind is not None
        return pl["slice"](Tensor.of(data, kind, "operand"), list(data.shape), [0] * data.dim())

    a, b, c, r, i, h = (tile(t) for t in (x, y, column, row, whole, codes))
    return {
        "add": (lambda: pl["add"](a, b), lambda: torch.add(x, y)),
        "mul by a scalar": (lambda: pl["mul"](a, 2.0), lambda: torch.mul(x, 2.0)),
        "abs": (lambda: pl["abs"](a), lambda: torch.abs(x)),
        "maximum": (lambda: pl["maximum"](a, b), lambda: torch.maximum(x, y)),
        "row_expand_mul": (lambda: pl["row_expand_mul"](a, c), lambda: torch.mul(x, column)),
        "col_expand_mul": (lambda: pl["col_expand_mul"](a, r), lambda: torch.mul(x, row)),
        "recip": (lambda: pl["recip"](a), lambda: torch.reciprocal(x)),
        "sqrt": (lambda: pl["sqrt"](b), lambda: torch.sqrt(y)),
        "rsqrt": (lambda: pl["rsqrt"](b), lambda: torch.rsqrt(y)),
        "exp": (lambda: pl["exp"](a), lambda: torch.exp(x)),
        "row_max": (lambda: pl["row_max"](a), lambda: x.amax(-1, keepdim=True)),
        "row_sum": (lambda: pl["row_sum"](a), lambda: x.sum(-1, keepdim=True)),
        "col_sum": (lambda: pl["col_sum"](a), lambda: x.sum(0, keepdim=True)),
        "cast FP32 to BF16": (lambda: pl["cast"](a, dt.BF16, mode="rint"), lambda: x.bfloat16()),
        "cast FP32 to FP16": (lambda: pl["cast"](a, dt.FP16, mode="rint"), lambda: x.half()),
        "cast FP32 to INT32": (lambda: pl["cast"](a, dt.INT32, mode="rint"), lambda: x.int()),
        "cast INT32 to FP32": (lambda: pl["cast"](i, dt.FP32, mode="none"), lambda: whole.float()),
        "cast FP16 to INT8": (lambda: pl["cast"](h, dt.INT8, mode="trunc"), lambda: codes.to(torch.int8)),
        "reshape": (lambda: pl["reshape"](a, [16, 128]), lambda: x.view(16, 128)),
        "full": (lambda: pl["full"]([8, 256], dt.FP32, 0.0), lambda: torch.full((8, 256), 0.0)),
        "view of a tile": (lambda: pl["slice"](a, [8, 64], [0, 64]), lambda: x[:, 64:128]),
        "load": (lambda: pl["slice"](gm, [8, 256], [0, 256]), lambda: memory[0:8, 256:512].clone()),
        "store": (lambda: pl["assemble"](gm, a, [8, 256]), lambda: memory[8:16, 256:512].copy_(x)),
    }


def _microseconds(call: Callable[[], Any]) -> float:
    best = 1e9
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(_CALLS):
            call()
        best = min(best, time.perf_counter() - start)
    return 1e6 * best / _CALLS


def kernel_times(name: str, repeat: int) -> dict[str, Any]:
    """One row: with checks, without, and what the time without them is spent on."""
    op = load_op(name, "flash", "decode")
    inputs = op.inputs()
    if name == "expert_routed":
        counts = inputs["recv_expert_count"]
        assert isinstance(counts, torch.Tensor)
        inputs["recv_expert_count"] = torch.full_like(counts, int(op.sizes["RECV_MAX"]))
    kernel = EmulatorDevice().load(op.kernel, name, op.sizes)
    seconds = {"on": 1e9, "off": 1e9}
    for _ in range(repeat):
        for checks in seconds:
            start = time.perf_counter()
            execute(kernel.entry, inputs, 0, kernel.files, checks=checks == "on")
            seconds[checks] = min(seconds[checks], time.perf_counter() - start)
    products, calls = _in_c(kernel, inputs)
    return {
        "kernel": name,
        "limit": KERNEL_LIMITS[name],
        "seconds": seconds["on"],
        "products": products,
        "other torch and numpy": calls,
        "interpreter": max(0.0, seconds["off"] - products - calls),
        "race detector": seconds["on"] - seconds["off"],
    }


def _in_c(kernel: EmulatorKernel, inputs: dict[str, Any]) -> tuple[float, float]:
    """Seconds inside products and inside other calls of torch and numpy, without checks."""
    profile = cProfile.Profile()
    profile.enable()
    execute(kernel.entry, inputs, 0, kernel.files, checks=False)
    profile.disable()
    products = calls = 0.0
    for (file, _, name), row in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        if file == "~" and ("torch" in name or "numpy" in name):
            if any(f".{word}>" in name or f"'{word}'" in name or f" {word}" in name for word in _PRODUCTS):
                products += row[2]
            else:
                calls += row[2]
    return products, calls
