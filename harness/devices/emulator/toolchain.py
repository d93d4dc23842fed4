"""What a kernel script imports from PyPTO beside the language: configurations and backends (pypto_dsl.md 5.1, 5.2).

The classes carry the fields of both versions of the toolchain. The emulator reads `platform` and `device_ids`; the
rest is accepted, because it chooses how code is generated and not what it computes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from types import ModuleType
from typing import Any


class BackendType(Enum):
    """The two hardware generations."""

    Ascend910B = "Ascend910B"
    Ascend950 = "Ascend950"


PLATFORMS = {
    "a2a3": BackendType.Ascend910B,
    "a2a3sim": BackendType.Ascend910B,
    "a5": BackendType.Ascend950,
    "a5sim": BackendType.Ascend950,
}


def backend_of(platform: str) -> BackendType:
    """The backend of a platform name. Raises ValueError, listing the four, for any other."""
    if platform not in PLATFORMS:
        raise ValueError(f"unknown platform {platform!r}; expected one of {', '.join(PLATFORMS)}")
    return PLATFORMS[platform]


@dataclass
class DistributedConfig:
    """Where a host entry runs: one rank per entry of `device_ids`."""

    device_ids: list[int] = field(default_factory=lambda: [0])
    num_sub_workers: int = 0
    runtime: str = "tensormap_and_ringbuffer"
    aicpu_thread_num: int = 4
    block_dim: int | None = None

    @property
    def world_size(self) -> int:
        return len(self.device_ids)


@dataclass
class RunConfig:
    """Options of a compile and of a run; an unknown one is a TypeError."""

    platform: str = "a2a3sim"
    device_id: int = 0
    rtol: float = 1e-5
    atol: float = 1e-5
    strategy: Any = None
    backend_type: BackendType = BackendType.Ascend910B
    dump_passes: Any = False
    save_kernels: bool = False
    save_kernels_dir: str | None = None
    codegen_only: bool = False
    compile_profiling: bool = False
    diagnostic_phase: Any = None
    disabled_diagnostics: Any = None
    golden_data_dir: str | None = None
    aicpu_thread_num: int | None = None
    ring_task_window: int | None = None
    ring_heap: int | None = None
    ring_dep_pool: int | None = None
    distributed_config: DistributedConfig | None = None
    analyze_auto_scopes_for_deps: bool = False
    enable_pmu: int = 0
    enable_dep_gen: bool = False
    enable_scope_stats: bool = False
    pto_isa_commit: str | None = None
    block_dim: int | None = None
    enable_l2_swimlane: Any = False
    enable_chip_swimlane: int = 0
    enable_dump_tensor: int = 0
    enable_dump_args: int = 0
    memory_planner: Any = None
    dump_ptoas_passes: bool = False


def build() -> dict[str, ModuleType]:
    """Fresh modules `pypto.runtime`, `pypto.backend`, `pypto.ir` and its `distributed_compiled_program`, by name."""
    from harness.devices.emulator.program import CompiledProgram

    members: dict[str, dict[str, Any]] = {
        "pypto.runtime": {"RunConfig": RunConfig},
        "pypto.backend": {"BackendType": BackendType},
        "pypto.ir": {"CompiledProgram": CompiledProgram},
        "pypto.ir.distributed_compiled_program": {"DistributedConfig": DistributedConfig},
    }
    modules = {}
    for name, contents in members.items():
        module = ModuleType(name, "Part of PyPTO, answered by the Goldengate emulator.")
        module.__dict__.update(contents)
        modules[name] = module
    modules["pypto.ir"].__path__ = []
    modules["pypto.ir"].__dict__["distributed_compiled_program"] = modules["pypto.ir.distributed_compiled_program"]
    return modules
