"""What the front end refuses: contracts/pypto_dsl.md 1.6 and appendix C, each with the file, the line and a reason."""

from __future__ import annotations

import pytest

from harness.devices.base import KernelFault, KernelRefused

BODY = """
N = 4
D = {{"k": 16}}
FLAG: bool = True

class Sizes:
    dim = 16

obj = Sizes()

def helper(a):
    return a

@pl.jit.inline
def copied(x: pl.Tensor[[16, 64], pl.FP32]):
    y = pl.add(x, 1.0)
    return y

@pl.jit
def kernel(x: pl.Tensor[[16, 64], pl.FP32], n: pl.Scalar[pl.INT32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        t = pl.slice(x, [16, 64], [0, 0])
        i = 1
{statement}
        out = pl.assemble(out, t, [0, 0])
    return out
"""

INSIDE = {
    "augmented assignment": ("i += 1", "augmented assignment"),
    "conditional expression": ("j = 1 if i > 0 else 2", "conditional expression"),
    "list comprehension": ("j = [k for k in [1, 2]]", "list comprehension"),
    "nested def": ("def f(): pass", "nested def"),
    "lambda": ("j = lambda: 1", "lambda"),
    "walrus": ("j = (k := 2)", "walrus"),
    "assert": ("assert i > 0", "assert"),
    "try": ("try: pass\n        except Exception: pass", "try"),
    "print": ("print(i)", "pl.static_print"),
    "python range": ("for j in range(4): pass", "pl.range"),
    "loop over a list": ("for c in [64, 128]: pass", "a loop runs over pl.range"),
    "chained comparison": ("if 0 < i < 3: pass", "chained comparison"),
    "python helper": ("j = helper(N)", "Python function helper"),
    "unknown operation": ("j = pl.softmax(t)", "pl.softmax is not part of the language"),
    "dictionary": ('j = D["k"]', "D is a dict"),
    "attribute of an object": ("j = obj.dim", "cannot look into obj"),
    "power": ("j = i ** 2", "operator"),
    "matrix operator": ("j = t @ t", "operator"),
    "bit operator": ("j = i & 1", "operator"),
    "f-string": ('j = f"{i}"', "f-string"),
    "text value": ('j = "text"', "str literal"),
    "del": ("del i", "del"),
    "import": ("import math", "import"),
    "global": ("global N", "global"),
    "dict literal": ("j = {}", "a dict"),
    "starred": ("j = pl.add(*[t, t])", "starred"),
    "negative bound": ("j = t[-1:]", "negative bound"),
    "step": ("j = t[::2]", "step"),
    "none subscript": ("j = t[None]", "None and ..."),
    "unbound name": ("j = missing + 1", "undefined variable missing"),
    "used before assignment": ("j = later + 1\n        later = 1", "used before it is assigned"),
    "one branch only": ("if i > 0:\n            j = 1\n        k = j + 1", "one branch only"),
    "two targets": ("j = k = 1", "one name at a time"),
    "attribute target": ("t.valid = 1", "cannot assign"),
    "for else": ("for j in pl.range(2): pass\n        else: pass", "for … else"),
    "nested inline call": ("j = pl.add(copied(x), 1.0)", "whole statement or the whole right-hand side"),
    "break in pl.parallel": ("for j in pl.parallel(2):\n            break", "break belongs to"),
    "return in a region": ("return out", "return inside"),
    "method of a value": ("j = t.sum()", "has no methods"),
    "expression without effect": ("i + 1", "no effect"),
    "constant division by zero": ("j = N // 0", "constant expression"),
    "init_values without names": ("for j in pl.range(2, init_values=(i,)): pass", "init_values= needs"),
}


@pytest.mark.parametrize("probe", INSIDE, ids=str)
def test_refuses_in_a_region(kernel, probe: str) -> None:
    statement, reason = INSIDE[probe]
    file = kernel(BODY.format(statement="        " + statement))
    with pytest.raises(KernelRefused, match=_literal(reason)) as refusal:
        file.load()
    first = statement.splitlines()[0]
    expected = file.line(first) if file.source.count(first) == 1 else None
    if probe in ("used before assignment", "python helper", "unbound name") or expected is not None:
        assert refusal.value.file == str(file.path)
        assert abs(refusal.value.line - (expected or refusal.value.line)) <= statement.count("\n")


def test_accepts_the_same_kernel_without_a_probe(kernel) -> None:
    file = kernel(BODY.format(statement="        pass"))
    assert set(file.load()) == {"copied", "kernel"}


WHOLE = {
    "no annotation": ("@pl.jit\ndef kernel(x): pass\n", "no annotation"),
    "default value": ("@pl.jit\ndef kernel(x: pl.Scalar[pl.INT32] = 1): pass\n", "default values"),
    "varargs": ("@pl.jit\ndef kernel(*x): pass\n", "*args"),
    "recursion": (
        "@pl.jit.inline\ndef f(x: pl.Scalar[pl.INT32]):\n    y = f(x)\n    return y\n",
        "calls itself",
    ),
    "two returns in an inline": (
        "@pl.jit.inline\ndef f(x: pl.Scalar[pl.INT32]):\n    if x > 0:\n        return x\n    return x\n",
        "one return",
    ),
    "value of an inline without return": (
        "@pl.jit.inline\ndef f(x: pl.Scalar[pl.INT32]):\n    y = x + 1\n\n"
        "@pl.jit\ndef kernel(x: pl.Scalar[pl.INT32]):\n    z = f(x)\n",
        "returns nothing",
    ),
    "closure variable": (
        "def make(size):\n    @pl.jit\n    def kernel(x: pl.Scalar[pl.INT32]):\n        y = size + 1\n"
        "    return kernel\nkernel = make(4)\n",
        "undefined variable size",
    ),
    "syntax error": ("@pl.jit\ndef kernel(x:\n", "syntax error"),
    "error at import": ("raise ValueError('no such tile')\n", "no such tile"),
    "dtype that does not exist": ("@pl.jit\ndef kernel(x: pl.Tensor[[4], pl.FP64]): pass\n", "FP64"),
    "f-string name_hint": (
        "@pl.jit\ndef kernel(x: pl.Scalar[pl.INT32]):\n"
        "    with pl.at(level=pl.Level.CORE_GROUP, name_hint=f'a{1}'):\n        pass\n",
        "literal identifier",
    ),
}


@pytest.mark.parametrize("probe", WHOLE, ids=str)
def test_refuses_the_file(kernel, probe: str) -> None:
    source, reason = WHOLE[probe]
    with pytest.raises(KernelRefused, match=_literal(reason)):
        kernel(source).load()


def test_refuses_a_compute_op_in_orchestration_when_it_runs(kernel) -> None:
    file = kernel("""
        @pl.jit
        def kernel(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
            t = pl.add(x, 1.0)
            return out
        """)
    import torch

    with pytest.raises(KernelFault, match="misplaced operation") as error:
        file.run(x=torch.zeros(16, 64))
    assert error.value.line == file.line("pl.add")


def _literal(text: str) -> str:
    import re

    return re.escape(text)
