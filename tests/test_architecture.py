"""The arrows goldens ← specs ← harness, kernels alone; one name, five places; libraries without hidden inputs."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("goldens", "specs", "harness", "kernels")
OURS = set(PACKAGES) | {"tests", "benchmarks"}
STANDARD_AND = {
    "goldens": {"numpy", "torch"},
    "specs": {"numpy", "torch", "goldens"},
    "kernels": {"pypto"},
}
MAY_IMPORT = {
    "goldens": {"goldens"},
    "specs": {"goldens", "specs"},
    "harness": {"goldens", "specs", "harness"},
    "kernels": {"kernels"},
}


def modules(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"{package} has no modules"
    return found


def imports(path: Path) -> set[str]:
    """Dotted names that a module imports, at any depth of nesting."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names.add(node.module or "")
    return names


ALL = [pytest.param(p, path, id=str(path.relative_to(ROOT))) for p in PACKAGES for path in modules(p)]


@pytest.mark.parametrize(("package", "path"), ALL)
def test_imports_follow_the_arrow(package: str, path: Path) -> None:
    ours = {name.split(".")[0] for name in imports(path)} & OURS
    assert ours <= MAY_IMPORT[package]


@pytest.mark.parametrize("path", modules("goldens"), ids=str)
def test_goldens_import_numpy_and_torch_only(path: Path) -> None:
    import sys

    foreign = {n.split(".")[0] for n in imports(path)} - set(sys.stdlib_module_names) - {"goldens"}
    assert foreign <= STANDARD_AND["goldens"]


@pytest.mark.parametrize("path", modules("kernels"), ids=str)
def test_kernels_import_the_language_and_their_sizes_only(path: Path) -> None:
    allowed = {"pypto.language", "pypto.language.distributed", "kernels.sizes", "__future__"}
    sub_kernels = {f"kernels.{p.stem}" for p in modules("kernels")}
    assert imports(path) <= allowed | sub_kernels


@pytest.mark.parametrize("path", sorted((ROOT / "harness/devices/emulator").rglob("*.py")), ids=str)
def test_the_emulator_shares_no_numerics_with_the_goldens(path: Path) -> None:
    used = {n for n in imports(path) if n.split(".")[0] in ("goldens", "specs")}
    # the registry's Op is a type in signatures, behind TYPE_CHECKING
    assert used <= {"specs.registry"}


@pytest.mark.parametrize(("package", "path"), [p for p in ALL if p.values[0] != "kernels"])
def test_libraries_read_no_environment_and_no_command_line(package: str, path: Path) -> None:
    """The command line itself is read in one place, `harness/cli.py`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            assert name not in ("os.environ", "os.getenv"), f"{path}:{node.lineno} reads the environment"
            if path.name != "cli.py":
                assert name != "sys.argv", f"{path}:{node.lineno} reads the command line"


@pytest.mark.parametrize(("package", "path"), [p for p in ALL if p.values[0] != "kernels"])
def test_no_shared_generator_is_used(package: str, path: Path) -> None:
    """Random draws come from keyed counter-based streams."""
    shared = {"torch.manual_seed", "torch.randn", "torch.rand", "torch.randint", "torch.randperm", "np.random.seed",
              "np.random.rand", "np.random.randn", "np.random.default_rng", "random.random", "random.seed"}  # fmt: skip
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            assert name not in shared, f"{path}:{node.lineno} uses {name}"


def op_names(folder: str, pattern: str = "*.py") -> set[str]:
    return {p.stem for p in (ROOT / folder).glob(pattern) if p.stem not in ("__init__", "sizes", "checks", "errors")}


def test_one_name_is_golden_spec_kernel_test_and_tolerance() -> None:
    from ruamel.yaml import YAML

    specs = op_names("specs/ops")
    assert specs, "no ops"
    assert op_names("goldens") == specs
    assert op_names("kernels") == specs
    assert {n.removeprefix("test_") for n in op_names("tests/ops", "test_*.py")} == specs
    assert set(YAML(typ="safe").load((ROOT / "tolerances.yaml").read_text())) == specs
