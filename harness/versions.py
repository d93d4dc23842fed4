"""What produced a result: versions of this package and of everything that could change a bit of it."""

import platform
from importlib import metadata

_PACKAGES = ("goldengate", "torch", "numpy")


def versions() -> dict[str, str]:
    """Versions of goldengate, torch, numpy and Python, and the machine's architecture."""
    found = {name: _version(name) for name in _PACKAGES}
    return {**found, "python": platform.python_version(), "machine": platform.machine()}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
