"""What an op's verdict depends on, as one hash: golden, spec, kernel, tolerance, and everything they import.

The judge and the emulator are part of every op, so a change of either affects all of them.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from functools import lru_cache

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from harness.gate.trees import Tree

PACKAGES = ("goldens", "specs", "harness", "kernels")
_JUDGE = ("harness/verify.py", "harness/tolerances.py", "specs/registry.py")
_FOLDERS = ("harness/compare", "harness/devices")  # of the comparators and of the emulator: every file counts


def op_fingerprint(tree: Tree, op: str, without: Iterable[str] = ()) -> str:
    """The hash of everything that a verdict on `op` depends on in a checkout of goldengate, files `without` aside."""
    own = [f"goldens/{op}.py", f"specs/ops/{op}.py", f"kernels/{op}.py"]
    whole = [path for folder in _FOLDERS for path in tree.list(folder, ".py")]
    left_out = set(without) - set(own)
    files = [path for path in closure(tree, [*own, *_JUDGE, *whole]) if path not in left_out]
    return _hash(tree, files, repr(_tolerances(tree, op)))


def kernel_fingerprint(tree: Tree, path: str) -> str:
    """The hash of a kernel file and of the files beside it, or below the root, that it imports."""
    return _hash(tree, closure(tree, [path]), "")


def closure(tree: Tree, paths: Iterable[str]) -> list[str]:
    """The files named and all that they import from the tree, anywhere in their text; sorted."""
    found: set[str] = set()
    waiting = list(paths)
    while waiting:
        path = waiting.pop()
        source = tree.read(path)
        if path in found or source is None:
            continue
        found.add(path)
        waiting += [known for name in _imports(source) for known in _files_of(tree, name, path)]
    return sorted(found)


@lru_cache(maxsize=1024)
def _imports(source: bytes) -> frozenset[str]:
    """Dotted names that a module imports; of `from a import b` both a and a.b."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError):
        return frozenset()
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


def _files_of(tree: Tree, name: str, importer: str) -> list[str]:
    """The files that a dotted name may stand for: below the root, or beside the file that imports it."""
    path = name.replace(".", "/")
    folder = importer.rpartition("/")[0]
    roots = [""] if name.split(".")[0] in PACKAGES or not folder else ["", f"{folder}/"]
    candidates = [f"{root}{path}{suffix}" for root in roots for suffix in (".py", "/__init__.py")]
    return [candidate for candidate in candidates if tree.read(candidate) is not None]


def _tolerances(tree: Tree, op: str) -> object:
    """The entry of an op as plain data, so that comments and other ops do not count."""
    return _document(tree.read("tolerances.yaml") or b"").get(op)


@lru_cache(maxsize=4)
def _document(source: bytes) -> dict[str, object]:
    try:
        document = YAML(typ="safe").load(source)
    except YAMLError:
        return {}
    return document if isinstance(document, dict) else {}


def _hash(tree: Tree, files: Iterable[str], more: str) -> str:
    digest = hashlib.sha256(more.encode())
    for path in files:
        content = tree.read(path) or b""
        digest.update(f"\0{path}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()
