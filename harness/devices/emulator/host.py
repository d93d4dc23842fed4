"""Runs a host program (`@pl.jit.host`) over a world of ranks (contracts/pypto_dsl.md 4.5, 5.4)."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from harness.devices.base import DeviceRun
from harness.devices.emulator.device import bind, faults_at_their_line, one_thread, outcome
from harness.devices.emulator.functions import KernelFunction
from harness.devices.emulator.machine import running
from harness.devices.emulator.world import World


def execute_host(
    entry: KernelFunction,
    inputs: Mapping[str, torch.Tensor | int | float],
    schedule: int,
    files: frozenset[str],
    *,
    world: int,
    residency: Mapping[str, int | str] | None = None,
    dispatches: int = 1,
    checks: bool = True,
    wanted: frozenset[str] = frozenset(),
) -> DeviceRun:
    """Run a host entry `dispatches` times over `world` ranks; windows start from zeros each time.

    `residency` names tensors that are uploaded once and stay on their rank: a rank number, or "stacked" for one slice
    per rank. The counters tell every upload and download. `checks` and `wanted`: as in `execute`. Raises
    KernelRefused for a wrong binding, KernelFault when a rank fails or all ranks wait (GG405).
    """
    if entry.kind != "host":
        raise entry.refuse(f"{entry.name} is no host program (@pl.jit.host)")
    if world < 1:
        raise entry.refuse(f"a world of {world} ranks")
    ranks = World(world, schedule, set(files), dict(residency or {}), checks=checks)
    for machine in ranks.machines:
        machine.wanted = wanted
    start = time.perf_counter()
    with running(ranks.host), one_thread(), faults_at_their_line(ranks.host):
        arguments = bind(entry, inputs)
        for _ in range(dispatches):
            entry.compiled.run(*arguments.values())
            ranks.run()
        return outcome(entry, arguments, ranks.machines, ranks.host, time.perf_counter() - start)
