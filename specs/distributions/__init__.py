"""Named generators for input tensors: frozen values with `draw(ctx, spec) -> Tensor`."""

from specs.distributions.basic import Constant, Integers, Normal, Rows, Uniform, Values
from specs.distributions.hyper import IdentityComb, OneSidedComb, RowStochasticComb, SigmoidGate

__all__ = [
    "Constant",
    "IdentityComb",
    "Integers",
    "Normal",
    "OneSidedComb",
    "RowStochasticComb",
    "Rows",
    "SigmoidGate",
    "Uniform",
    "Values",
]
