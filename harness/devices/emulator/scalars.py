"""Scalar arithmetic of kernels and orchestration: C division, width wrap, no mixed categories (pypto_dsl.md 1.6).

A Python int is an INDEX, a float an FP32 value (a literal is rounded when it is first used), a bool a Bool; other types
are `Scalar`s. INT32 ∘ INDEX is INDEX: the wider type wins, at equal width the left operand's.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from harness.devices.emulator.dtypes import FP16, INDEX, DType
from harness.devices.emulator.machine import fault, machine
from harness.devices.emulator.values import Scalar, describe, scalar_dtype

Number = int | float | Scalar


def wrap(value: int, dtype: DType) -> int:
    """An integer reduced to the width of `dtype`, two's complement for signed types."""
    span = 1 << dtype.bits
    value &= span - 1
    return value - span if dtype.kind == "int" and value >= span >> 1 else value


def make(value: int | float, dtype: DType) -> Number:
    """A scalar of `dtype`: a plain int for INDEX, a Scalar otherwise; the value is wrapped or rounded."""
    if dtype.is_float:
        kind = np.float16 if dtype is FP16 else np.float32
        with np.errstate(over="ignore"):
            return Scalar(float(kind(value)), dtype)
    wrapped = wrap(int(value), dtype)
    return wrapped if dtype is INDEX else Scalar(wrapped, dtype)


def _value(operand: Number) -> int | float:
    return operand.value if isinstance(operand, Scalar) else operand


def _common(symbol: str, a: Any, b: Any) -> DType:
    """The result type of `a symbol b`; faults for tensors, Bools and mixed categories."""
    for operand in (a, b):
        if not isinstance(operand, (int, float, Scalar)):
            raise fault(f"infix {symbol} is for scalars only, got {describe(operand)}: use the pl operation")
        if isinstance(operand, bool):
            raise fault(f"infix {symbol} does not take a Bool operand", "GG307")
    left, right = scalar_dtype(a), scalar_dtype(b)
    if left.is_float != right.is_float:
        raise fault(f"infix {symbol} mixes {left} and {right}: cast one operand", "GG307")
    return right if right.bits > left.bits else left


def _ints_or_floats(symbol: str, function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def run(a: Any, b: Any) -> Any:
        if type(a) is int and type(b) is int:
            return wrap(function(a, b), INDEX)
        dtype = _common(symbol, a, b)
        if dtype.is_float:
            with np.errstate(all="ignore"):
                return make(function(np.float32(_value(a)), np.float32(_value(b))), dtype)
        return make(function(_value(a), _value(b)), dtype)

    return run


add = _ints_or_floats("+", operator.add)
sub = _ints_or_floats("-", operator.sub)
mul = _ints_or_floats("*", operator.mul)


def _quotient(a: int, b: int) -> int:
    """Integer division toward zero."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _integers(symbol: str, a: Any, b: Any, *, host: bool = False) -> tuple[int, int, DType]:
    dtype = _common(symbol, a, b)
    if dtype.is_float:
        raise fault(f"infix {symbol} is for integers")
    x, y = int(_value(a)), int(_value(b))
    if symbol in ("//", "%", "/"):
        if y == 0:
            raise fault(f"integer division by zero: {x} {symbol} 0", "GG308")
        if (x < 0 or y < 0) and not host:
            machine().lint("GG301", f"{x} {symbol} {y} truncates toward zero on the device")
    return x, y, dtype


def floordiv(a: Any, b: Any) -> Any:
    if type(a) is int and type(b) is int and a >= 0 and b > 0:
        return a // b
    x, y, dtype = _integers("//", a, b)
    return make(_quotient(x, y), dtype)


def mod(a: Any, b: Any) -> Any:
    if type(a) is int and type(b) is int and a >= 0 and b > 0:
        return a % b
    x, y, dtype = _integers("%", a, b)
    return make(x - _quotient(x, y) * y, dtype)


def host_floordiv(a: Any, b: Any) -> Any:
    """`//` in a host program, which is emitted as Python: it floors (1.6)."""
    x, y, dtype = _integers("//", a, b, host=True)
    return make(x // y, dtype)


def host_mod(a: Any, b: Any) -> Any:
    """`%` in a host program (1.6)."""
    x, y, dtype = _integers("%", a, b, host=True)
    return make(x % y, dtype)


def truediv(a: Any, b: Any) -> Any:
    dtype = _common("/", a, b)
    if dtype.is_float:
        with np.errstate(all="ignore"):
            return make(np.float32(_value(a)) / np.float32(_value(b)), dtype)
    x, y, dtype = _integers("/", a, b)
    return make(_quotient(x, y), dtype)


def _folded(constants: Callable[[Any, Any], Any], device: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """An operator on entry scalars and literals: Python arithmetic where both are constants of this compile (1.2)."""

    def run(a: Any, b: Any) -> Any:
        if type(a) in (int, float) and type(b) in (int, float) and type(a) is type(b):
            try:
                return constants(a, b)
            except ArithmeticError as error:
                raise fault(f"constant expression: {error}") from error
        return device(a, b)

    return run


fold_add = _folded(operator.add, add)
fold_sub = _folded(operator.sub, sub)
fold_mul = _folded(operator.mul, mul)
fold_truediv = _folded(operator.truediv, truediv)
fold_floordiv = _folded(operator.floordiv, floordiv)
fold_mod = _folded(operator.mod, mod)


def lshift(a: Any, b: Any) -> Any:
    x, y, dtype = _integers("<<", a, b)
    return make(x << _shift(y, dtype), dtype)


def rshift(a: Any, b: Any) -> Any:
    x, y, dtype = _integers(">>", a, b)
    return make(x >> _shift(y, dtype), dtype)


def _shift(count: int, dtype: DType) -> int:
    if not 0 <= count < dtype.bits:
        raise fault(f"shift by {count} of a {dtype.bits}-bit integer")
    return count


def neg(a: Any) -> Any:
    dtype = _common("-", a, a)
    return make(-_value(a), dtype)


def invert(a: Any) -> Any:
    x, _, dtype = _integers("~", a, a)
    return make(~x, dtype)


def _compared(symbol: str, function: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def run(a: Any, b: Any) -> bool:
        if type(a) is int and type(b) is int:
            return function(a, b)
        if isinstance(a, bool) and isinstance(b, bool) and symbol in ("==", "!="):
            return function(a, b)
        dtype = _common(symbol, a, b)
        x, y = _value(a), _value(b)
        if dtype.is_float:
            x, y = np.float32(x), np.float32(y)
        return bool(function(x, y))

    return run


eq = _compared("==", operator.eq)
ne = _compared("!=", operator.ne)
lt = _compared("<", operator.lt)
le = _compared("<=", operator.le)
gt = _compared(">", operator.gt)
ge = _compared(">=", operator.ge)


def truth(value: Any) -> bool:
    """The value of an `if` or `while` condition, which must be Bool."""
    if type(value) is not bool:
        raise fault(f"a condition must be Bool, not {describe(value)}: compare it with something")
    return value


def not_(value: Any) -> bool:
    return not truth(value)


def and_(*values: Any) -> bool:
    """Both sides have been evaluated: there is no short circuit."""
    _no_logic_in_orchestration("and")
    return all(tuple(truth(v) for v in values))


def or_(*values: Any) -> bool:
    _no_logic_in_orchestration("or")
    return any(tuple(truth(v) for v in values))


def _no_logic_in_orchestration(word: str) -> None:
    if machine().region is None:
        raise fault(f"`{word}` at orchestration level is refused by the code generator: nest two ifs")


__all__ = [
    "Number", "add", "and_", "eq", "floordiv", "fold_add", "fold_floordiv", "fold_mod", "fold_mul", "fold_sub",
    "fold_truediv", "ge", "gt", "host_floordiv", "host_mod", "invert", "le", "lshift", "lt", "make", "mod",
    "mul", "ne", "neg", "not_", "or_", "rshift", "sub", "truediv", "truth", "wrap",
]  # fmt: skip
