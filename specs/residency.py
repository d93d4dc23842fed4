"""What a tensor of a multi-rank program is: static weight, cache, metadata, activation or output.

contracts/moe_and_layers.md, 6.6 and 15.1. Only static weights stay on the devices over many dispatches. The classes
follow from the specification of a tensor, so that they are disjoint and cover all of them; what a program must keep
resident is compared with the contract's own list of names in the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from specs.errors import SpecError
from specs.registry import Op
from specs.tensors import TensorSpec

Class = Literal["resident", "cache", "metadata", "activation", "output"]
CLASSES: tuple[Class, ...] = ("resident", "cache", "metadata", "activation", "output")


def class_of(spec: TensorSpec) -> Class:
    """The class of one tensor of a multi-rank program.

    resident     marked as resident: a static weight
    output       written only
    cache        read and written in place: KV pools and states
    metadata     integers that say where things are: ids, positions, slots, block tables, counts
    activation   any other input: values, INT8 codes included
    """
    if spec.resident is not None:
        return "resident"
    if spec.role != "in":
        return "output" if spec.role == "out" else "cache"
    is_index = not spec.dtype.is_floating_point and spec.dtype.itemsize > 1
    return "metadata" if is_index else "activation"


def classes(op: Op) -> Mapping[Class, tuple[str, ...]]:
    """Names of the tensors of a multi-rank program by class, in signature order.

    Raises SpecError for a kernel of one chip, whose weights carry no mark.
    """
    if op.world == 1:
        raise SpecError(f"{op.name} runs on one chip: only tensors of multi-rank programs fall into classes")
    tensors = [spec for spec in op.signature if isinstance(spec, TensorSpec)]
    return MappingProxyType({kind: tuple(spec.name for spec in tensors if class_of(spec) == kind) for kind in CLASSES})
