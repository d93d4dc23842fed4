"""The adapter to the real toolchain, against a stand-in that records exactly the calls of pypto_dsl.md section 5."""

from __future__ import annotations

import ctypes
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from harness.devices import get_device
from harness.devices.base import KernelFault, KernelRefused
from harness.devices.pypto import PyPTODevice
from harness.errors import UsageError
from specs.tensors import ScalarSpec, TensorSpec


class Ones:
    """A distribution, because specs of inputs need one."""

    def draw(self, ctx: Any, spec: TensorSpec) -> torch.Tensor:
        return torch.ones(spec.shape, dtype=spec.dtype)


def tensor(name: str, role: str = "in", resident: int | str | None = None, shape=(2, 8)) -> TensorSpec:
    return TensorSpec(name, shape, torch.float32, None if role == "out" else Ones(), role, resident)


def make_op(*signature: TensorSpec | ScalarSpec, ranks: int = 1) -> Any:
    return SimpleNamespace(
        name="op",
        signature=signature,
        outputs=tuple(s for s in signature if isinstance(s, TensorSpec) and s.role != "in"),
        deployment=SimpleNamespace(ep_world_size=ranks),
    )


@dataclass
class Toolchain:
    """The recorded calls, by name, and what the programs do."""

    calls: list[tuple[str, Any]] = field(default_factory=list)
    distributed: bool = False
    names: list[str] = field(default_factory=list)
    effect: Any = lambda arguments: None

    def named(self, name: str) -> list[Any]:
        return [arguments for call, arguments in self.calls if call == name]


@pytest.fixture
def toolchain(monkeypatch: pytest.MonkeyPatch) -> Toolchain:
    recorder = Toolchain()

    @dataclass
    class RunConfig:
        platform: str = "a2a3sim"
        device_id: int = 0
        backend_type: Any = None
        distributed_config: Any = None

    @dataclass
    class DistributedConfig:
        device_ids: list[int]

    class CompiledProgram:
        output_dir = "/build/op"

        @property
        def param_names(self) -> list[str]:
            return recorder.names

    class Worker:
        def __getattr__(self, name: str) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                recorder.calls.append((name, (args, kwargs)))
                return SimpleNamespace(data_ptr=4096, nbytes=64)

            return call

        def __call__(self, *args: Any, config: Any) -> None:
            recorder.calls.append(("dispatch", (args, config)))
            recorder.effect(args)

    class DistributedCompiledProgram:
        def _get_metadata(self) -> Any:
            return ([SimpleNamespace(name=f"{n}__ssa_v0") for n in recorder.names],)

        def __call__(self, *args: Any, config: Any) -> None:
            recorder.calls.append(("call", (args, config)))
            recorder.effect(args)

        @contextmanager
        def prepare(self) -> Any:
            recorder.calls.append(("prepare", None))
            yield Worker()

    class Jit:
        def __init__(self, python: Any) -> None:
            self.python = python

        def compile(self, *args: Any, config: Any) -> Any:
            recorder.calls.append(("compile", (args, config)))
            if "broken" in self.python.__name__:
                raise TypeError("no such op")
            return DistributedCompiledProgram() if recorder.distributed else CompiledProgram()

    def execute_compiled(work_dir: str, args: list[Any], *, platform: str, device_id: int) -> None:
        recorder.calls.append(("execute_compiled", (work_dir, args, platform, device_id)))
        recorder.effect(args)

    members = {
        "pypto": {},
        "pypto.language": {"jit": Jit},
        "pypto.runtime": {"RunConfig": RunConfig, "execute_compiled": execute_compiled},
        "pypto.backend": {"BackendType": SimpleNamespace(Ascend910B="910B")},
        "pypto.ir": {},
        "pypto.ir.distributed_compiled_program": {
            "DistributedConfig": DistributedConfig,
            "DistributedCompiledProgram": DistributedCompiledProgram,
        },
    }
    for name, contents in members.items():
        module = ModuleType(name)
        module.__path__ = []
        module.__dict__.update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["pypto"].language = sys.modules["pypto.language"]  # type: ignore[attr-defined]
    return recorder


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "op.py"
    path.write_text(
        "import pypto.language as pl\nfrom kernels.sizes import D\n"
        "@pl.jit\ndef op(): pass\n@pl.jit\ndef broken(): pass\nSIZE = D\n"
    )
    return path


def run(
    toolchain: Toolchain, file: Path, op: Any, inputs: dict[str, Any], function: str = "op", schedule: int = 0
) -> Any:
    toolchain.names = toolchain.names or [s.name for s in op.signature]
    device = PyPTODevice()
    return device.run(device.load(file, function, {}, None), op, inputs, schedule)


def test_without_the_toolchain_the_device_says_so() -> None:
    with pytest.raises(UsageError, match="the PyPTO toolchain is not importable here"):
        get_device("pypto")


def test_devices_are_found_by_name(toolchain: Toolchain) -> None:
    assert get_device("pypto").platform == "a2a3"  # type: ignore[attr-defined]
    assert get_device("pypto-sim").platform == "a2a3sim"  # type: ignore[attr-defined]


def test_a_chip_program_gets_positional_tensors_and_ctypes_scalars(toolchain: Toolchain, file: Path) -> None:
    op = make_op(tensor("x"), ScalarSpec("n", torch.int32, 3), ScalarSpec("s", torch.bfloat16, 1.5), tensor("y", "out"))
    toolchain.effect = lambda arguments: arguments[3].copy_(arguments[0] * 2)
    x = torch.ones(2, 8)
    result = run(toolchain, file, op, {"x": x, "n": 3, "s": 1.5})
    ((arguments, config),) = toolchain.named("compile")
    assert [type(a).__name__ for a in arguments] == ["Tensor", "int", "float", "Tensor"]
    assert (config.platform, config.device_id, config.backend_type) == ("a2a3", 0, "910B")
    assert config.distributed_config is None
    ((work_dir, given, platform, device_id),) = toolchain.named("execute_compiled")
    assert (work_dir, platform, device_id) == ("/build/op", "a2a3", 0)
    assert isinstance(given[1], ctypes.c_int32)
    assert given[1].value == 3
    assert isinstance(given[2], ctypes.c_uint16)
    assert given[2].value == 0x3FC0  # the BF16 bits of 1.5
    assert torch.equal(result.outputs["y"], torch.full((2, 8), 2.0))
    assert result.undefined == {"y": None}


def test_outputs_start_as_poison_and_inputs_stay(toolchain: Toolchain, file: Path) -> None:
    op = make_op(tensor("x", "inout"), tensor("y", "out"))

    def half(arguments: list[Any]) -> None:
        arguments[0].add_(1)
        arguments[1][0].copy_(arguments[0][0])

    toolchain.effect = half
    x = torch.ones(2, 8)
    result = run(toolchain, file, op, {"x": x})
    assert torch.equal(x, torch.ones(2, 8))
    assert torch.equal(result.outputs["x"], torch.full((2, 8), 2.0))
    assert result.undefined["y"] is not None
    assert result.undefined["y"].tolist() == [[False] * 8, [True] * 8]


def test_a_host_program_is_called_by_name_with_shared_tensors(toolchain: Toolchain, file: Path) -> None:
    op = make_op(tensor("x"), tensor("y", "out"), ranks=2)
    toolchain.distributed, toolchain.names = True, ["y", "x"]
    toolchain.effect = lambda arguments: arguments[0].copy_(arguments[1])
    result = run(toolchain, file, op, {"x": torch.ones(2, 8)})
    ((_, config),) = toolchain.named("compile")
    assert config.distributed_config.device_ids == [0, 1]
    ((given, _),) = toolchain.named("call")
    assert all(t.is_shared() and t.is_contiguous() for t in given)
    assert not toolchain.named("prepare")
    assert torch.equal(result.outputs["y"], torch.ones(2, 8))


def test_resident_tensors_go_through_a_prepared_worker(toolchain: Toolchain, file: Path) -> None:
    op = make_op(tensor("w", resident="stacked"), tensor("x", resident=1), tensor("state", "inout", "stacked"),
                 tensor("last", "inout", 1), tensor("y", "out"), ranks=2)  # fmt: skip
    toolchain.distributed = True
    run(toolchain, file, op, {n: torch.ones(2, 8) for n in ("w", "x", "state", "last")})
    order = [name for name, _ in toolchain.calls]
    assert order == [
        *("compile", "prepare"),
        *("alloc_stacked_tensor", "alloc_tensor") * 2,
        *("dispatch", "copy_stacked_from", "copy_from"),
        *("free_stacked_tensor", "free_tensor") * 2,
    ]
    _, keywords = toolchain.named("alloc_tensor")[0]
    assert keywords["worker_id"] == 1
    assert torch.equal(keywords["init"], torch.ones(2, 8))
    arguments, keywords = toolchain.named("copy_from")[0]
    assert arguments[1:] == (4096, 64)
    assert keywords == {"worker_id": 1}
    given, _ = toolchain.named("dispatch")[0]
    assert [isinstance(a, torch.Tensor) for a in given] == [False, False, False, False, True]


def test_handles_are_freed_when_the_dispatch_fails(toolchain: Toolchain, file: Path) -> None:
    op = make_op(tensor("w", resident=0), tensor("y", "out"), ranks=2)
    toolchain.distributed = True

    def fail(_: Any) -> None:
        raise RuntimeError("507018")

    toolchain.effect = fail
    with pytest.raises(KernelFault, match="RuntimeError: 507018"):
        run(toolchain, file, op, {"w": torch.ones(2, 8)})
    assert len(toolchain.named("free_tensor")) == 1


def test_a_compile_error_is_a_refusal(toolchain: Toolchain, file: Path) -> None:
    with pytest.raises(KernelRefused, match="TypeError: no such op"):
        run(toolchain, file, make_op(tensor("y", "out")), {}, function="broken")
    assert not toolchain.named("execute_compiled")


def test_a_missing_function_is_a_refusal(toolchain: Toolchain, file: Path) -> None:
    with pytest.raises(KernelRefused, match="no function 'other'"):
        run(toolchain, file, make_op(tensor("y", "out")), {}, function="other")


def test_parameters_in_another_order_are_a_fault(toolchain: Toolchain, file: Path) -> None:
    toolchain.names = ["y", "x"]
    with pytest.raises(KernelFault, match="takes y, x; the op gives x, y"):
        run(toolchain, file, make_op(tensor("x"), tensor("y", "out")), {"x": torch.ones(2, 8)})


def test_a_schedule_cannot_be_chosen(toolchain: Toolchain, file: Path) -> None:
    with pytest.raises(UsageError, match="schedule must be 0, not 3"):
        run(toolchain, file, make_op(tensor("y", "out")), {}, schedule=3)


def test_the_kernel_sees_the_sizes_of_its_configuration(toolchain: Toolchain, file: Path) -> None:
    kernel = PyPTODevice().load(file, "op", {"D": 4096}, None)
    assert kernel.entry.python.__globals__["SIZE"] == 4096
