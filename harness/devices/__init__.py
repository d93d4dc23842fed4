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


def get_device(name: str, *, checks: bool = True) -> Device:
    """A fresh device called `name`; without `checks`, the emulator leaves out its race detector and its warnings.

    Raises UsageError, naming the known ones, for any other name, where what the device needs is not installed, and for
    a device other than the emulator without checks.
    """
    if name not in _DEVICES:
        raise UsageError(f"unknown device {name!r}{did_you_mean(name, device_names())}")
    module, attribute = _DEVICES[name]
    if not checks and name != "emulator":
        raise UsageError(f"--checks=off is an option of the emulator; the device {name} has no checks to leave out")
    options = {} if checks else {"checks": False}
    device: Device = getattr(import_module(module), attribute)(**options)
    return device
