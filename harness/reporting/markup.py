"""HTML and SVG that is escaped by construction: whatever is not `Markup` already is text."""

from __future__ import annotations

import html

_VOID = ("meta", "br")


class Markup(str):
    """Text that is markup, made by `tag`, `join` or as a constant of this package."""

    __slots__ = ()


def tag(name: str, /, *children: str, **attributes: str | float) -> Markup:
    """`<name attributes>children</name>`. Children and values are escaped. A trailing "_" of an attribute is dropped,
    another becomes "-"."""
    words = "".join(f' {_attribute(key)}="{html.escape(str(value))}"' for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{words}>")
    return Markup(f"<{name}{words}>{join(*children)}</{name}>")


def join(*children: str) -> Markup:
    """The children one after the other, text escaped."""
    return Markup("".join(c if isinstance(c, Markup) else html.escape(c) for c in children))


def _attribute(name: str) -> str:
    return name.rstrip("_").replace("_", "-")
