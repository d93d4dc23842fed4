"""Inputs of the decode ops for the tests that every golden must pass: those of their specs, at TINY with two tokens per
request."""

import functools

from torch import Tensor

from specs.registry import all_ops, load_op
from specs.tensors import TensorSpec

OPS = tuple(op for op in all_ops() if op.startswith("decode_"))


@functools.cache
def _op(name):
    return load_op(name, "tiny", "decode_mtp")


@functools.cache
def _drawn(name, seed):
    return _op(name).inputs(seed=seed)


def decode_inputs(name, seed=0):
    """(tensors and scalars, parameters): new tensors on every call."""
    copies = {key: value.clone() if isinstance(value, Tensor) else value for key, value in _drawn(name, seed).items()}
    return copies, dict(_op(name).parameters)


def tensor_names(name):
    """The op's input tensors, without drawing them."""
    return [spec.name for spec in _op(name).inputs_spec if isinstance(spec, TensorSpec)]


INPUTS = {name: functools.partial(decode_inputs, name) for name in OPS}
