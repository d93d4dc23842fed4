"""Runs of programs/moe_calls.py, and what they must come to, said without lanes, windows or slots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from fault import Fault
from torch import Tensor

from harness.devices.base import DeviceRun
from harness.devices.emulator.device import EmulatorDevice, EmulatorKernel
from harness.devices.emulator.host import execute_host
from specs.model import DEPLOYMENTS, TINY
from specs.registry import kernel_sizes

PROGRAM = Path(__file__).parent / "programs" / "moe_calls.py"
CALLS = 3
OUTPUTS = ("ffn_out", "recv_meta", "recv_r_route_out", "overflow", "signals")


@dataclass(frozen=True)
class World:
    """Sizes of one configuration: TINY, decode, `ranks` ranks; `sizes` are those of kernels/sizes.py."""

    ranks: int
    sizes: Mapping[str, int | float]

    @classmethod
    def of(cls, ranks: int) -> World:
        return cls(ranks, kernel_sizes(TINY, replace(DEPLOYMENTS["decode"], ep_world_size=ranks)))

    def size(self, name: str) -> int:
        return int(self.sizes[name])


def load(world: World, folder: Path | None = None, fault: Fault | None = None) -> EmulatorKernel:
    """The program, or a copy in `folder` that splices in a faulty part."""
    path = PROGRAM if fault is None or folder is None else fault.write(folder, PROGRAM)[0]
    return EmulatorDevice().load(path, "moe_calls", world.sizes)


def run(kernel: EmulatorKernel, world: World, inputs: Mapping[str, Tensor], schedule: int) -> DeviceRun:
    """One run of all ranks. Raises KernelFault."""
    return execute_host(kernel.entry, inputs, schedule, kernel.files, world=world.ranks)


def draw(world: World, seed: int, tokens: Tensor | None = None) -> dict[str, Tensor]:
    """Inputs of every rank and call: distinct experts per token, of which some are liked by all; `tokens` [EP, CALLS]
    active tokens, drawn from 0..T where not given."""
    source = torch.Generator().manual_seed(seed)
    lead = (world.ranks, CALLS, world.size("T"))
    experts = torch.arange(world.size("N_EXPERTS"))
    liking = torch.rand((*lead, len(experts)), generator=source) - (experts % 7 == seed % 7) * 0.5
    counts = torch.randint(0, world.size("T") + 1, lead[:2], generator=source)
    return {
        "indices": liking.argsort(-1)[..., : world.size("TOPK")].to(torch.int32),
        "x_norm_i8": torch.randint(-127, 128, (*lead, world.size("D")), generator=source).to(torch.int8),
        "x_norm_scale": torch.rand((*lead, 1), generator=source) + 0.5,
        "weights": torch.rand((*lead, world.size("TOPK")), generator=source),
        "sh": torch.randn((*lead, world.size("D")), generator=source).bfloat16(),
        "num_tokens": (counts if tokens is None else tokens).to(torch.int32),
    }


def expected(world: World, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The outputs of the program: sums over a token's own choices, and a count per source and expert.

    Every cell of `arrived` and `combine_arrived` has counted the calls, but for the own one of `arrived`.
    """
    ids, local = inputs["indices"].long(), world.size("N_LOCAL")
    active = torch.arange(world.size("T")) < inputs["num_tokens"].unsqueeze(2)
    scaled = inputs["x_norm_i8"].float() * inputs["x_norm_scale"]
    total = inputs["sh"].float()
    for k in range(ids.shape[-1]):
        routed = scaled * inputs["weights"][..., k : k + 1] * (ids[..., k : k + 1] + 1).float()
        total = total + routed.bfloat16().float()
    ffn_out = torch.where(active.unsqueeze(3), total.bfloat16(), inputs["sh"])
    chosen = torch.nn.functional.one_hot(ids, world.size("N_EXPERTS")).sum(3) * active.unsqueeze(3)
    loads = chosen.sum(2).reshape(world.ranks, CALLS, world.ranks, local)  # source, call, owner, local expert
    others = 1 - torch.eye(world.ranks, dtype=torch.int64)
    return {
        "ffn_out": ffn_out,
        "recv_meta": loads.permute(2, 1, 0, 3).to(torch.int32),
        "overflow": torch.zeros(world.ranks, CALLS, 4, dtype=torch.int32),
        "signals": torch.stack((others, torch.ones_like(others)), 1).to(torch.int32) * CALLS,
    }


def expected_keys(world: World, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """The keys that every (owner, call, local expert) receives, in order of source and key."""
    slots = torch.arange(world.size("T") * world.size("TOPK"))
    found = []
    for owner in range(world.ranks):
        for call in range(CALLS):
            for e in range(world.size("N_LOCAL")):
                sources = []
                for source in range(world.ranks):
                    hit = inputs["indices"][source, call].flatten() == owner * world.size("N_LOCAL") + e
                    hit &= slots < inputs["num_tokens"][source, call] * world.size("TOPK")
                    sources.append(slots[hit])
                found.append(torch.cat(sources))
    return found


def differences(world: World, inputs: Mapping[str, Tensor], result: DeviceRun) -> list[str]:
    """What is not as it must be, in words; empty when all is well."""
    wanted = expected(world, inputs)
    found = [str(finding) for finding in result.findings]
    found += [name for name, value in wanted.items() if not torch.equal(result.outputs[name], value)]
    found += [f"{name} is undefined" for name in wanted if result.undefined[name] is not None]
    keys = result.outputs["recv_r_route_out"].flatten(0, 2)
    for row, want in zip(keys, expected_keys(world, inputs), strict=True):
        if not torch.equal(row[: len(want)].long(), want):
            found.append("recv_r_route_out")
            break
    return found
