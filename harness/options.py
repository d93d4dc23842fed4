"""What sub-commands share of their options: those that select runs, and the types of values.

A type raises `argparse.ArgumentTypeError`, which says in one line what is wrong with a value.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from harness.errors import UsageError
from harness.selection import Selection, numbers, override


def add_configuration(parser: argparse.ArgumentParser, *, many: bool) -> None:
    """The options that select runs, for `selection_of`; `many` where `--case` may be all of them."""
    cases = "cases, or all" if many else "cases"
    parser.add_argument("--preset", action="append", type=name_list, help="model sizes (default: tiny)")
    parser.add_argument("--deployment", action="append", type=name_list, help="token counts (default: decode)")
    parser.add_argument("--case", action="append", type=name_list, help=f"{cases} (default: all at tiny)")
    parser.add_argument("--seed", type=number_list, default=[0], metavar="N", help="seeds of the inputs, like 0..4")
    parser.add_argument(
        "--set",
        action="append",
        type=override_pair,
        default=[],
        metavar="NAME=VALUE",
        help="another size, like tokens=16",
    )
    parser.add_argument("--ep", type=positive, metavar="N", help="ranks: short for --set ep_world_size=N")


def selection_of(arguments: argparse.Namespace, schedules: Sequence[int] = (0,)) -> Selection:
    """The runs that the options of `add_configuration` and the ops select, under `schedules`."""

    def flat(lists: list[list[str]] | None, default: list[str]) -> list[str]:
        return [name for names in lists for name in names] if lists else default

    return Selection(
        ops=arguments.ops,
        presets=flat(arguments.preset, ["tiny"]),
        deployments=flat(arguments.deployment, ["decode"]),
        cases=flat(arguments.case, []),
        seeds=arguments.seed,
        schedules=schedules,
        overrides=[*arguments.set, *([("ep_world_size", arguments.ep)] if arguments.ep else [])],
    )


def number_list(text: str) -> list[int]:
    """Numbers >= 0, like 3 or 1,2 or 0..49."""
    try:
        return numbers(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def override_pair(text: str) -> tuple[str, int | float]:
    """NAME=VALUE."""
    try:
        return override(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def name_list(text: str) -> list[str]:
    """Names with commas between them."""
    return [name.strip() for name in text.split(",")]


def natural(text: str) -> int:
    """A number >= 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number >= 0")
    return int(text)


def positive(text: str) -> int:
    """A number >= 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number >= 1")
    return int(text)
