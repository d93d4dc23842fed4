"""Devices by name. A device is imported when it is asked for, so that listing them costs nothing."""

from importlib import import_module

from harness.devices.base import Device
from harness.errors import UsageError, did_you_mean

_DEVICES = {
    "emulator": ("harness.devices.emulator", "EmulatorDevice"),
    "pypto": ("harness.devices.pypto", "PyPTODevice"),
    "pypto-sim": ("harness.devices.pypto", "PyPTOSimulator"),
}


def device_names() -> list[str]:
    """Names that `get_device` knows."""
    return sorted(_DEVICES)


def get_device(name: str) -> Device:
    """A fresh device called `name`. Raises UsageError, naming the known ones, for any other name, and where what the
    device needs is not installed."""
    if name not in _DEVICES:
        raise UsageError(f"unknown device {name!r}{did_you_mean(name, device_names())}")
    module, attribute = _DEVICES[name]
    device: Device = getattr(import_module(module), attribute)()
    return device
