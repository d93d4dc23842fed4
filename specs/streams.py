"""Random streams: one counter-based generator per label, so that any tensor can be drawn alone, in any order.

A stream is NumPy's Philox, keyed by the SHA-256 of (op, case, label, seed). Its bits depend on nothing else:
not on which other tensors were drawn, nor on threads, nor on global state.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from specs.errors import SpecError, unknown
from specs.model import Deployment, ModelConfig
from specs.tensors import Number, TensorSpec

Drawn = TypeVar("Drawn")


def philox_key(op: str, case: str, label: str, seed: int) -> int:
    """The 128-bit Philox key of a stream: the first half of the SHA-256 of its four names, as JSON."""
    digest = hashlib.sha256(json.dumps([op, case, label, seed]).encode()).digest()
    return int.from_bytes(digest[:16], "little")


class DrawContext:
    """Everything that a distribution may look at while it draws the tensors of one case.

    One context serves one call of `Op.inputs`: tensors and joint draws are kept, so that each is drawn once.
    Raises SpecError for unknown tensors and for tensors that need each other.
    """

    def __init__(
        self,
        op: str,
        case: str,
        seed: int,
        config: ModelConfig,
        deployment: Deployment,
        tensors: Mapping[str, TensorSpec],
        scalars: Mapping[str, Number],
    ) -> None:
        self.op = op
        self.case = case
        self.seed = seed
        self.config = config
        self.deployment = deployment
        self.scalars = scalars
        self._specs = tensors
        self._tensors: dict[str, Tensor] = {}
        self._joint: dict[str, Any] = {}
        self._drawing: list[str] = []

    def rng(self, label: str) -> np.random.Generator:
        """The generator of `label`, at its start: two calls with one label give the same numbers."""
        return np.random.Generator(np.random.Philox(key=philox_key(self.op, self.case, label, self.seed)))

    def spec(self, name: str) -> TensorSpec:
        """The specification of another input of the same case."""
        if name not in self._specs:
            raise unknown(f"input of {self.op}", name, self._specs)
        return self._specs[name]

    def has(self, name: str) -> bool:
        """Whether the op has an input tensor of that name."""
        return name in self._specs

    def tensor(self, name: str) -> Tensor:
        """Another input of the same case. It is shared: read it, never write to it."""
        if name not in self._tensors:
            if name in self._drawing:
                raise SpecError(f"{self.op}: {' -> '.join([*self._drawing, name])} need each other to be drawn")
            spec = self.spec(name)
            assert spec.init is not None
            self._drawing.append(name)
            try:
                self._tensors[name] = _checked(self.op, spec, spec.init.draw(self, spec))
            finally:
                self._drawing.pop()
        return self._tensors[name]

    def shared(self, label: str, fn: Callable[[], Drawn]) -> Drawn:
        """The result of `fn`, computed once per label: a draw that several tensors take their parts from."""
        if label not in self._joint:
            self._joint[label] = fn()
        result: Drawn = self._joint[label]
        return result


def _checked(op: str, spec: TensorSpec, drawn: Tensor) -> Tensor:
    if tuple(drawn.shape) != spec.shape or drawn.dtype != spec.dtype or not drawn.is_contiguous():
        raise SpecError(
            f"{op}.{spec.name}: {type(spec.init).__name__} drew {drawn.dtype} {tuple(drawn.shape)}, "
            f"expected contiguous {spec.dtype} {spec.shape}"
        )
    return drawn
