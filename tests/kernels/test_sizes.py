"""The rule for tile sizes: they divide, a loop runs at least twice where it can, and nothing is dropped."""

from __future__ import annotations

import pytest

from kernels import sizes


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "TILE_SET", "before_pr672")


def test_flash_gets_the_named_sizes() -> None:
    assert sizes.tile(4096, multiple=32, pr672=512) == 512
    assert sizes.tile(2048, multiple=32, pr672=256, before_pr672=64) == 256


@pytest.mark.usefixtures("before")
def test_the_tile_set_in_force_chooses() -> None:
    assert sizes.tile(2048, multiple=32, pr672=256, before_pr672=64) == 64
    assert sizes.tile(2048, multiple=32, pr672=256) == 256  # one size for both sets
    assert sizes.choose(pr672=4, before_pr672=8) == 8


@pytest.mark.parametrize("extent", [64, 96, 128, 256, 1024, 1792, 2048, 3072, 4096, 7168, 16384, 28672])
@pytest.mark.parametrize("wanted", [32, 64, 128, 256, 512, 4096])
def test_a_tile_divides_and_leaves_two(extent: int, wanted: int) -> None:
    size = sizes.tile(extent, multiple=32, pr672=wanted)
    assert extent % size == 0
    assert size % 32 == 0
    assert size <= wanted
    assert extent // size >= 2


def test_an_axis_of_one_multiple_is_one_tile() -> None:
    assert sizes.tile(32, multiple=32, pr672=256) == 32
    assert sizes.tile(16, multiple=16, pr672=16) == 16


@pytest.mark.parametrize(("extent", "multiple"), [(100, 32), (48, 32), (0, 16), (17, 16)])
def test_rejects_an_extent_that_would_lose_a_tail(extent: int, multiple: int) -> None:
    with pytest.raises(ValueError, match=f"divides the extent {extent}"):
        sizes.tile(extent, multiple=multiple, pr672=256)


def test_rejects_an_unknown_tile_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "TILE_SET", "pr999")
    with pytest.raises(ValueError, match=r"pr999.*known are pr672, before_pr672"):
        sizes.choose(pr672=4, before_pr672=8)
