"""`Op` and `Case`, and the two ways to get one: `load_op(name, ...)` and `all_ops()`.

Ops are found by file name under `specs/ops`; nothing registers itself. The golden of an op is the function of
the same name in the `goldens` module of that name.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from torch import Tensor

import specs.ops
from specs.errors import SpecError, unknown
from specs.model import DEPLOYMENTS, PRESETS, TOKENS_MAX, Deployment, ModelConfig
from specs.paging import BLOCK_SIZE, STATE4_PAGE, STATE128_PAGE, paging
from specs.streams import DrawContext
from specs.tensors import Distribution, Number, ScalarSpec, TensorSpec

Inputs = Mapping[str, Tensor | Number]
Masks = dict[str, Tensor | None]
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Case:
    """A named situation: other distributions for some inputs, other values for some scalars.

    overrides   tensor name -> Distribution
    scalars     scalar name -> value
    tags        words to select by: "default", "edge", "magnitude", "skew" ...; "invalid": must be refused
    """

    name: str
    overrides: Mapping[str, Distribution] = field(default_factory=dict)
    scalars: Mapping[str, Number] = field(default_factory=dict)
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "overrides", MappingProxyType(dict(self.overrides)))
        object.__setattr__(self, "scalars", MappingProxyType(dict(self.scalars)))

    @property
    def invalid(self) -> bool:
        """Whether the contract forbids this input, so that the golden must refuse it."""
        return "invalid" in self.tags


def all_defined(op: Op, inputs: Inputs) -> Masks:
    """The validity of an op whose outputs are defined everywhere."""
    return {spec.name: None for spec in op.outputs}


def no_masks(op: Op, inputs: Inputs, stages: Mapping[str, Tensor]) -> Masks:
    """The stage validity of an op whose masks follow from its inputs."""
    return {}


def no_pools(op: Op, inputs: Inputs) -> Masks:
    """The mapping of an op that has no paged pools."""
    return {}


def nothing_refused(op: Op, inputs: Inputs) -> None:
    """The refusal of an op that leaves values to its golden."""


@dataclass(frozen=True)
class Op:
    """One op for one configuration: its signature, its cases, its inputs, its golden.

    signature    specs in the order of the kernel's parameters
    cases        at least one; the first is "default"
    sizes        names of kernels/sizes.py -> value
    kernel       the shipped kernel file, whose entry function has the op's name
    parameters   keyword-only model parameters of the golden
    validity     (op, inputs) -> masks, for `valid`
    stage_validity   (op, inputs, stages) -> masks of stages that depend on other stages, for `valid`
    mapping      (op, inputs) -> masks, for `mapped`
    refusal      (op, inputs) -> None, called once names, shapes and dtypes fit: raises for values that the op refuses
    world        ranks of a host program; 1 for a kernel of one chip
    """

    name: str
    config: ModelConfig
    deployment: Deployment
    signature: tuple[TensorSpec | ScalarSpec, ...]
    cases: tuple[Case, ...]
    parameters: Mapping[str, Number] = field(default_factory=dict)
    validity: Callable[[Op, Inputs], Masks] = all_defined
    stage_validity: Callable[[Op, Inputs, Mapping[str, Tensor]], Masks] = no_masks
    mapping: Callable[[Op, Inputs], Masks] = no_pools
    refusal: Callable[[Op, Inputs], None] = nothing_refused
    world: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", MappingProxyType(dict(self.parameters)))
        _check_unique(self.name, "parameter", [spec.name for spec in self.signature])
        _check_unique(self.name, "case", [case.name for case in self.cases])
        if not self.cases or self.cases[0].name != "default":
            raise SpecError(f"{self.name}: the first case must be 'default'")
        for case in self.cases:
            self._check_case(case)
        self._check_residency()

    @property
    def inputs_spec(self) -> tuple[TensorSpec | ScalarSpec, ...]:
        """What `inputs` draws: in and inout tensors and scalars, in signature order."""
        return tuple(s for s in self.signature if isinstance(s, ScalarSpec) or s.is_input)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Out and inout tensors, in signature order."""
        return tuple(s for s in self.signature if isinstance(s, TensorSpec) and s.is_output)

    @property
    def sizes(self) -> Mapping[str, int | float]:
        """Values for the model and deployment names of kernels/sizes.py."""
        return kernel_sizes(self.config, self.deployment)

    @property
    def kernel(self) -> Path:
        """The shipped kernel file."""
        return ROOT / "kernels" / f"{self.name}.py"

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the golden's intermediates, in order of computation."""
        stages: tuple[str, ...] = self._golden_module().STAGES
        return stages

    def case(self, name: str) -> Case:
        """The case of that name. Raises SpecError with the known ones."""
        for case in self.cases:
            if case.name == name:
                return case
        raise unknown(f"case of {self.name}", name, [case.name for case in self.cases])

    def inputs(self, case: str = "default", seed: int = 0) -> dict[str, Any]:
        """In and inout tensors and scalars of a case, in signature order; tensors are fresh and contiguous.

        Each tensor has its own stream, keyed by (op, case, tensor, seed). Raises SpecError.
        """
        ctx = self.context(case, seed)
        return {
            spec.name: ctx.scalars[spec.name] if isinstance(spec, ScalarSpec) else ctx.tensor(spec.name)
            for spec in self.inputs_spec
        }

    def input(self, name: str, case: str = "default", seed: int = 0) -> Tensor:
        """One input tensor alone: the same bits as in `inputs`."""
        return self.context(case, seed).tensor(name)

    def context(self, case: str, seed: int) -> DrawContext:
        """The draw context of a case: its distributions and scalars in place. Raises SpecError."""
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise SpecError(f"{self.name}: seed is {seed!r}, expected an int >= 0")
        chosen = self.case(case)
        tensors: dict[str, TensorSpec] = {}
        scalars: dict[str, Number] = {}
        for spec in self.inputs_spec:
            if isinstance(spec, ScalarSpec):
                scalars[spec.name] = spec.replace(value=chosen.scalars.get(spec.name, spec.value)).value
            else:
                tensors[spec.name] = spec.replace(init=chosen.overrides.get(spec.name, spec.init))
        return DrawContext(self.name, chosen.name, seed, self.config, self.deployment, tensors, scalars)

    def golden(
        self, inputs: Inputs, taps: dict[str, Tensor] | None = None, given: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Every out and inout tensor, by name. `taps` receives the named intermediates.

        `given` holds stages of a device that the golden goes on from instead of its own. Raises SpecError if `inputs`
        does not fit the signature or the golden cannot be continued, GoldenInputError for values out of contract.
        """
        self.check_inputs(inputs)
        golden = getattr(self._golden_module(), self.name)
        extra: dict[str, Any] = {"given": given} if given else {}
        if given and "given" not in inspect.signature(golden).parameters:
            raise SpecError(f"the golden of {self.name} cannot be continued from {', '.join(given)}")
        outputs: dict[str, Tensor] = golden(**inputs, **self.parameters, taps=taps, **extra)
        return outputs

    def valid(self, inputs: Inputs, stages: Mapping[str, Tensor] | None = None) -> Masks:
        """Per output a bool mask of its shape, True where the contract defines the element; None: all are. Masks of
        stages may follow.

        `stages`: those of a golden that goes on from a device's own: what is defined may depend on them (which rows
        arrive depends on the ids that the device chose among equals).
        """
        masks = self.validity(self, inputs)
        if stages is not None:
            masks |= self.stage_validity(self, inputs, stages)
        return {name: None if mask is None or bool(mask.all()) else mask for name, mask in masks.items()}

    def mapped(self, inputs: Inputs) -> Masks:
        """Per paged pool or state among the outputs a bool mask of its shape, True where this call may write.

        Every other element must keep its bits.
        """
        return self.mapping(self, inputs)

    def check_inputs(self, inputs: Inputs) -> None:
        """Raise SpecError unless `inputs` has the declared names, each of the declared dtype and shape.

        Values that the op's `refusal` refuses raise what it raises.
        """
        declared = {spec.name: spec for spec in self.inputs_spec}
        for name in inputs:
            if name not in declared:
                raise unknown(f"input of {self.name}", name, declared)
        for name, spec in declared.items():
            if name not in inputs:
                raise SpecError(f"{self.name}: input {name} is missing")
            value = inputs[name]
            if isinstance(spec, ScalarSpec):
                if isinstance(value, Tensor):
                    raise SpecError(f"{self.name}.{name}: got a tensor, expected a {spec.dtype} scalar")
                spec.replace(value=value)
            elif not isinstance(value, Tensor):
                raise SpecError(f"{self.name}.{name}: got {type(value).__name__}, expected a tensor")
            elif value.dtype != spec.dtype or tuple(value.shape) != spec.shape:
                raise SpecError(
                    f"{self.name}.{name}: got {value.dtype} {tuple(value.shape)}, expected {spec.dtype} {spec.shape}"
                )
        self.refusal(self, inputs)

    def _golden_module(self) -> ModuleType:
        return importlib.import_module(f"goldens.{self.name}")

    def _check_residency(self) -> None:
        for spec in self.signature:
            if isinstance(spec, ScalarSpec) or spec.resident is None:
                continue
            if spec.resident == "stacked":
                if spec.shape[0] != self.world:
                    raise SpecError(
                        f"{self.name}.{spec.name}: resident='stacked' gives every rank its slice of axis 0, "
                        f"which has {spec.shape[0]}, expected {self.world}"
                    )
            elif spec.resident >= self.world:
                raise SpecError(f"{self.name}.{spec.name}: resident={spec.resident}, but there are {self.world} ranks")

    def _check_case(self, case: Case) -> None:
        tensors = [s.name for s in self.inputs_spec if isinstance(s, TensorSpec)]
        scalars = {s.name: s for s in self.inputs_spec if isinstance(s, ScalarSpec)}
        for name in case.overrides:
            if name not in tensors:
                raise unknown(f"input tensor of {self.name} in case {case.name!r}", name, tensors)
        for name, value in case.scalars.items():
            if name not in scalars:
                raise unknown(f"scalar of {self.name} in case {case.name!r}", name, scalars)
            scalars[name].replace(value=value)


def all_ops() -> list[str]:
    """Names of all ops, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(specs.ops.__path__))


def load_op(name: str, preset: str = "tiny", deployment: str = "decode", **overrides: Any) -> Op:
    """The op for a preset and a deployment.

    overrides   any ModelConfig field; `tokens` (T); `ep_world_size` and `tp_size` (2, 4 or 8); `recv_depth`
                (receive rows per local expert). A smaller expert-parallel world keeps the number of experts per
                rank and so has fewer experts in all (contracts/dense.md, 1.4), unless `n_routed_experts` is given too.

    Raises SpecError: unknown names (with the known ones), and sizes that the op cannot do, with the reason.
    """
    if name not in all_ops():
        raise unknown("op", name, all_ops())
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    if deployment not in DEPLOYMENTS:
        raise unknown("deployment", deployment, DEPLOYMENTS)
    config, chosen = _configured(PRESETS[preset], DEPLOYMENTS[deployment], dict(overrides))
    op: Op = importlib.import_module(f"specs.ops.{name}").build(config, chosen)
    return op


def kernel_sizes(config: ModelConfig, deployment: Deployment) -> Mapping[str, int | float]:
    """Values for the model and deployment names of kernels/sizes.py."""
    return MappingProxyType(
        {
            "D": config.hidden_size,
            "HC_MULT": config.hc_mult,
            "HC_DIM": config.hc_dim,
            "MIX_HC": config.mix_hc,
            "HC_SINKHORN_ITERS": config.hc_sinkhorn_iters,
            "HC_EPS": config.hc_eps,
            "RMS_EPS": config.rms_norm_eps,
            "MOE_INTER": config.moe_intermediate_size,
            "N_EXPERTS": config.n_routed_experts,
            "TOPK": config.num_experts_per_tok,
            "ROUTED_SCALING": config.routed_scaling_factor,
            "SWIGLU_LIMIT": config.swiglu_limit,
            "N_HASH_LAYERS": config.num_hash_layers,
            "VOCAB": config.vocab_size,
            "N_HEADS": config.num_attention_heads,
            "HEAD_DIM": config.head_dim,
            "ROPE_DIM": config.qk_rope_head_dim,
            "NOPE_DIM": config.nope_head_dim,
            "Q_LORA": config.q_lora_rank,
            "O_LORA": config.o_lora_rank,
            "O_GROUPS": config.o_groups,
            "O_GROUP_IN": config.o_group_in,
            "WIN": config.sliding_window,
            "SOFTMAX_SCALE": config.softmax_scale,
            "IDX_N_HEADS": config.index_n_heads,
            "IDX_HEAD_DIM": config.index_head_dim,
            "IDX_NOPE_DIM": config.index_nope_head_dim,
            "IDX_TOPK": config.index_topk,
            "IDX_WEIGHTS_SCALE": config.index_weights_scale,
            "MAX_SEQ_LEN": config.max_position_embeddings,
            "SCORE_LEN": config.max_position_embeddings // 4,
            "B": deployment.batch,
            "S": deployment.seq,
            "T": deployment.tokens,
            "T_MAX": max(deployment.tokens, TOKENS_MAX),
            "EP_WORLD_SIZE": deployment.ep_world_size,
            "N_LOCAL": deployment.local_experts(config),
            "RECV_MAX": deployment.recv_max,
            "MAX_PER_SRC": deployment.max_per_src,
            "TP_SIZE": deployment.tp_size,
            "VOCAB_PER_TP": config.vocab_size // deployment.tp_size,
            "BLOCK_SIZE": BLOCK_SIZE,
            "STATE4_PAGE": STATE4_PAGE,
            "STATE128_PAGE": STATE128_PAGE,
            **{name.upper(): number for name, number in asdict(paging(config, deployment)).items()},
        }
    )


def _configured(
    config: ModelConfig, deployment: Deployment, overrides: dict[str, Any]
) -> tuple[ModelConfig, Deployment]:
    tokens = overrides.pop("tokens", None)
    ranks = overrides.pop("ep_world_size", None)
    shards = overrides.pop("tp_size", None)
    depth = overrides.pop("recv_depth", None)
    fields = [name for name in config.__dataclass_fields__ if name != "name"]
    known = [*fields, "tokens", "ep_world_size", "tp_size", "recv_depth"]
    for field_name in overrides:
        if field_name not in known:
            raise unknown("override", field_name, known)
    if tokens is not None:
        deployment = deployment.with_tokens(tokens)
    if ranks is not None:
        per_rank = deployment.local_experts(config)
        deployment = replace(deployment, ep_world_size=ranks)
        overrides.setdefault("n_routed_experts", per_rank * ranks)
    if shards is not None:
        deployment = replace(deployment, tp_size=shards)
    if depth is not None:
        deployment = replace(deployment, recv_depth=depth)
    config = config.replace(**overrides)
    deployment.local_experts(config)
    return config, deployment


def _check_unique(op: str, kind: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise SpecError(f"{op}: two of its {kind}s are called {name!r}")
