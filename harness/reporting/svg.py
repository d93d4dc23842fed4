"""Small inline pictures. Each has a title that says in words what it shows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from harness.locate import Axis, describe
from harness.metrics import SWEEP
from harness.reporting import words
from harness.reporting.markup import Markup, join, tag

BINS = (f"up to {SWEEP[0]:g}", *(f"{a:g} to {b:g}" for a, b in itertools.pairwise(SWEEP)), "above 1")
"""The bins of relative error |a - e| / max(|a|, |e|)."""

_WIDTH, _HEIGHT, _EDGE = 124, 32, 4
_DECADES = 7  # of shares that a histogram shows: one element in ten million has no height
_CELLS = 64


def _picture(width: float, height: float, title: str, *children: str, kind: str) -> Markup:
    return tag(
        "svg", tag("title", title), *children,
        class_=kind, viewBox=f"0 0 {width:g} {height:g}", width=f"{width:g}", height=f"{height:g}", role="img",
        aria_label=title,
    )  # fmt: skip


def trend(points: Sequence[tuple[str, float]], title: str, limit: float | None = None) -> Markup:
    """A line through the values of the sessions, oldest first. `limit` is a dashed line where it is in sight."""
    if not points:
        return Markup("")
    finite = [value for _, value in points if math.isfinite(value)]
    top = max([*finite, 1e-12]) * 1.15
    if limit is not None and top > limit / 2:
        top = max(top, 1.15 * limit)
    step = (_WIDTH - 2 * _EDGE) / max(len(points) - 1, 1)

    def place(index: int, value: float) -> tuple[float, float]:
        height = min(value, top) if math.isfinite(value) else top
        return _EDGE + index * step, _HEIGHT - _EDGE - height / top * (_HEIGHT - 2 * _EDGE)

    places = [place(index, value) for index, (_, value) in enumerate(points)]
    parts = []
    if limit is not None and limit <= top:
        y = f"{place(0, limit)[1]:.1f}"
        parts.append(tag("line", class_="limit", x1=0, x2=_WIDTH, y1=y, y2=y))
    if len(places) > 1:
        parts.append(tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in places)))
    x, y_last = places[-1]
    parts.append(tag("circle", cx=f"{x:.1f}", cy=f"{y_last:.1f}", r=2.6))
    return _picture(_WIDTH, _HEIGHT, title, *parts, kind="trend")


def histogram(shares: Sequence[float], title: str) -> Markup:
    """Bars of the share of elements per bin of relative error, their heights logarithmic."""
    if not shares:
        return Markup("")
    width = _WIDTH / len(BINS)
    bars = []
    for index, value in enumerate(shares):
        height = max(1 + math.log10(value) / _DECADES, 0.06) * (_HEIGHT - 3) if value > 0 else 0.0
        bars.append(
            tag(
                "rect", tag("title", f"relative error {BINS[index]}: {words.share(value)} of the elements"),
                x=f"{index * width + 1:.1f}", y=f"{_HEIGHT - 1 - height:.1f}", width=f"{width - 2:.1f}",
                height=f"{height:.1f}", class_="bar" if index < len(BINS) - 3 else "bar large",
            )
        )  # fmt: skip
    base = tag("line", class_="base", x1=0, x2=_WIDTH, y1=_HEIGHT - 0.5, y2=_HEIGHT - 0.5)
    return _picture(_WIDTH, _HEIGHT, f"{title}: {histogram_text(shares)}", base, *bars, kind="histogram")


def histogram_text(shares: Sequence[float]) -> str:
    """The bins that hold anything, in words."""
    filled = [f"{words.share(share)} {name}" for share, name in zip(shares, BINS, strict=True) if share > 0]
    return ", ".join(filled)


def used_bar(used: float | None) -> Markup:
    """How much of a tolerance is taken; a full bar is all of it."""
    if used is None:
        return Markup("")
    filled = 100 * min(used, 1.0) if math.isfinite(used) else 100.0
    kind = "over" if not used <= 1 else "tight" if used > 0.8 else "fine"
    return _picture(
        100, 10, f"{words.share(used)} of its limit is used",
        tag("rect", class_="track", width=100, height=10, rx=2),
        tag("rect", class_=kind, width=f"{filled:.1f}", height=10, rx=2),
        kind="used",
    )  # fmt: skip


def parts_bar(parts: Sequence[tuple[str, float]], longest: float) -> Markup:
    """Named parts of a duration, one after the other, on a scale where `longest` is the full width."""
    total = 2.0 * _WIDTH
    at = 0.0
    pieces = []
    for name, value in parts:
        width = value / longest * total if longest else 0.0
        pieces.append(
            tag("rect", tag("title", f"{name} {words.seconds(value)}"), class_=name, x=f"{at:.1f}", y=0,
                width=f"{width:.1f}", height=12)
        )  # fmt: skip
        at += width
    title = ", ".join(f"{name} {words.seconds(value)}" for name, value in parts)
    return _picture(total, 12, title, *pieces, kind="parts")


def heat(axes: Sequence[Axis]) -> Markup:
    """A strip per axis: where along it the bad elements sit, the darker the more of them."""
    return join(*(_strip(number, axis) for number, axis in enumerate(axes)))


def _strip(number: int, axis: Axis) -> Markup:
    cells = min(axis.extent, _CELLS)
    sums = [0] * cells
    for index, bad in axis.counts:
        sums[index * cells // axis.extent] += bad
    most = max([*sums, 1])
    size = max(6.0, min(18.0, 560 / cells))
    drawn = [
        tag("rect", class_="cell", x=f"{at * size:.1f}", y=0, width=f"{size - 1:.1f}", height=16)
        if not bad
        else tag(
            "rect", tag("title", f"{_span(at, cells, axis.extent)}: {bad:,} bad"), class_="cell bad",
            x=f"{at * size:.1f}", y=0, width=f"{size - 1:.1f}", height=16, opacity=f"{0.25 + 0.75 * bad / most:.2f}",
        )
        for at, bad in enumerate(sums)
    ]  # fmt: skip
    text = describe((axis,)).removeprefix("axis 0: ")
    picture = _picture(cells * size, 16, f"axis {number}: bad elements at {text}", *drawn, kind="heat")
    return tag("div", tag("span", f"axis {number} ({axis.extent})", class_="axis"), picture, class_="strip")


def _span(cell: int, cells: int, extent: int) -> str:
    first, last = -(-cell * extent // cells), -(-(cell + 1) * extent // cells) - 1
    return f"index {first}" if first >= last else f"indices {first} to {last}"
