"""The modules that a kernel script imports and Goldengate answers: `golden`, `pypto.runtime` and their relatives."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from harness.devices.emulator import language, toolchain
from harness.foreign import golden_compare, golden_run, golden_specs, golden_validate, session

_GOLDEN: dict[str, Any] = {
    "TensorSpec": golden_specs.TensorSpec,
    "ScalarSpec": golden_specs.ScalarSpec,
    "RunResult": session.RunResult,
    "run": golden_run.run,
    "run_jit": golden_run.run_jit,
    "validate_golden": golden_validate.validate_golden,
    "ratio_allclose": golden_compare.ratio_allclose,
    "ratio_reldiff": golden_compare.ratio_reldiff,
    "error_distribution": golden_compare.error_distribution,
    "topk_pair_compare": golden_compare.topk_pair_compare,
    "mapped_pool_ratio_allclose": golden_compare.mapped_pool_ratio_allclose,
}


def build() -> dict[str, ModuleType]:
    """Fresh modules by name: the language, the toolchain's Python side, and the package `golden` with its parts."""
    modules = {**language.build(), **toolchain.build()}
    for name in ("golden", "golden.spec", "golden.runner", "golden.validation"):
        modules[name] = ModuleType(name, "The reference's harness, answered by Goldengate.")
        modules[name].__dict__.update(_GOLDEN)
    modules["golden"].__path__ = []
    for name, module in modules.items():  # a submodule is an attribute of its package
        parent, _, child = name.rpartition(".")
        if parent:
            modules[parent].__dict__.setdefault(child, module)
    return modules
