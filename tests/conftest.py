"""Selection of slow tests: `-m slow --rotate N` runs one N-th of them, another one each day."""

from __future__ import annotations

import datetime
import zlib

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rotate",
        type=int,
        default=1,
        metavar="N",
        help="run one N-th of the collected tests; which one depends on the date",
    )


def pytest_report_header(config: pytest.Config) -> str | None:
    parts = config.getoption("rotate")
    return None if parts == 1 else f"rotation: part {_part(parts) + 1} of {parts}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    parts = config.getoption("rotate")
    if parts < 1:
        raise pytest.UsageError(f"--rotate must be at least 1, got {parts}")
    if parts == 1:
        return
    today = _part(parts)
    parted: tuple[list[pytest.Item], list[pytest.Item]] = ([], [])
    for item in items:
        parted[zlib.crc32(item.nodeid.encode()) % parts == today].append(item)
    others, items[:] = parted
    config.hook.pytest_deselected(items=others)


def _part(parts: int) -> int:
    return datetime.date.today().toordinal() % parts
