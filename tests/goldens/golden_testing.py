"""What the golden tests share: seeded inputs for every op at a small size, and FP32 scalar arithmetic in
NumPy.
"""

import importlib
import math

import numpy as np
import torch
from golden_rounding_reference import to_bf16

from goldens.numerics.quant import quantize_rows
from harness.compare import Output
from harness.tolerances import load_tolerances

D, INTER, N, K, HC, VOCAB = 96, 80, 32, 6, 4, 40  # no powers of two where the contract has a constant 1/D
E, RECV_MAX = 5, 32
RMS_EPS, HC_EPS = 1e-6, 3e-5  # equal in every preset: only different values tell them apart
F32 = np.float32


def golden(op):
    return getattr(importlib.import_module(f"goldens.{op}"), op)


def stages(op):
    return importlib.import_module(f"goldens.{op}").STAGES


class Draw:
    """Seeded draws, one after another."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape, std=1.0, dtype=torch.float32):
        return (torch.randn(shape, generator=self.generator) * std).to(dtype)

    def uniform(self, *shape, low=0.0, high=1.0):
        return torch.rand(shape, generator=self.generator) * (high - low) + low

    def integers(self, low, high, *shape, dtype=torch.int64):
        return torch.randint(low, high, shape, generator=self.generator, dtype=dtype)

    def tokens_i8(self, *shape):
        codes, scales = quantize_rows(self.normal(*shape, dtype=torch.bfloat16).float())
        return codes, scales

    def weight_i8(self, *shape):
        scale = self.uniform(*shape[:-1], low=0.5, high=1.5) * (0.03 / shape[-1] ** 0.5)
        return self.integers(-127, 128, *shape, dtype=torch.int8), scale


def rms_norm_inputs(seed=0, t=5):
    draw = Draw(seed)
    x = (draw.normal(t, D) - 0.5).bfloat16()
    return {"x": x, "norm_w": (1 + draw.normal(D, std=0.1)).bfloat16()}, {"rms_eps": RMS_EPS}


def hc_pre_inputs(seed=0, t=5):
    draw = Draw(seed)
    mix = (2 + HC) * HC
    tensors = {
        "x": draw.normal(t, HC, D, std=0.05, dtype=torch.bfloat16),
        "hc_fn": draw.normal(mix, HC * D, std=0.3),
        "hc_scale": torch.tensor([0.076099, 0.032597, 0.226994]),
        "hc_base": draw.normal(mix, std=3.0),
    }
    return tensors, {"rms_eps": RMS_EPS, "hc_eps": HC_EPS, "sinkhorn_iters": 20}


def hc_post_inputs(seed=0, t=5):
    draw = Draw(seed)
    tensors = {
        "x": draw.normal(t, D, std=0.05, dtype=torch.bfloat16),
        "residual": draw.normal(t, HC, D, std=0.05, dtype=torch.bfloat16),
        "post": 2 * draw.normal(t, HC).sigmoid(),
        "comb": draw.uniform(t, HC * HC, low=0.1, high=0.4),
    }
    return tensors, {}


def gate_inputs(seed=0, t=5, layer_id=10, num_tokens=None, n=N):
    draw = Draw(seed)
    table = torch.stack([torch.randperm(n, generator=draw.generator)[:K] for _ in range(VOCAB)])
    tensors = {
        "x_mixed": draw.normal(t, D, dtype=torch.bfloat16),
        "norm_w": (1 + draw.normal(D, std=0.1)).bfloat16(),
        "gate_w": draw.normal(n, D, std=D**-0.5),
        "gate_bias": draw.normal(n, std=0.1),
        "layer_id": layer_id,
        "num_tokens": t if num_tokens is None else num_tokens,
        "tid2eid": table.to(torch.int32),
        "input_ids": draw.integers(0, VOCAB, t),
    }
    return tensors, {"rms_eps": RMS_EPS, "n_hash_layers": 3, "routed_scaling": 1.5}


def expert_shared_inputs(seed=0, t=5, limit=10.0):
    draw = Draw(seed)
    x, scale = draw.tokens_i8(t, D)
    tensors = {"x_local_i8": x, "x_local_scale_dq": scale}
    for name, shape in (("w1", (INTER, D)), ("w3", (INTER, D)), ("w2", (D, INTER))):
        tensors[f"shared_{name}"], tensors[f"shared_{name}_scale"] = draw.weight_i8(*shape)
    return tensors, {"swiglu_limit": limit}


def expert_routed_inputs(seed=0, counts=(0, 1, 17, 3, RECV_MAX), limit=10.0):
    draw = Draw(seed)
    e = len(counts)
    x, scale = draw.tokens_i8(e, RECV_MAX, D)
    tensors = {
        "recv_x": x,
        "recv_scale_dq": scale.squeeze(2),
        "recv_weights": draw.uniform(e, RECV_MAX),
        "recv_expert_count": torch.tensor(counts, dtype=torch.int32).unsqueeze(1),
    }
    for name, shape in (("w1", (e, INTER, D)), ("w3", (e, INTER, D)), ("w2", (e, D, INTER))):
        tensors[f"routed_{name}"], tensors[f"routed_{name}_scale"] = draw.weight_i8(*shape)
    return tensors, {"swiglu_limit": limit}


def hc_head_inputs(seed=0, t=5):
    draw = Draw(seed)
    tensors = {
        "x_hc": draw.normal(t, HC, D, std=0.05, dtype=torch.bfloat16),
        "hc_head_fn": draw.normal(HC, HC * D, std=0.3),
        "hc_head_scale": torch.tensor([0.3]),
        "hc_head_base": draw.normal(HC),
    }
    return tensors, {"rms_eps": RMS_EPS, "hc_eps": HC_EPS}


def mtp_projection_inputs(seed=0, t=5, s=2):
    draw = Draw(seed)
    tensors = {
        "hidden_states": draw.normal(t, s, D, dtype=torch.bfloat16),
        "prev_hidden_states": draw.normal(t, s, D, dtype=torch.bfloat16),
        "enorm_w": 1 + draw.normal(D, std=0.3),
        "hnorm_w": 1 + draw.normal(D, std=0.3),
    }
    for branch in "eh":
        tensors[f"{branch}_proj_w"], tensors[f"{branch}_proj_w_scale"] = draw.weight_i8(D, D)
        tensors[f"{branch}_proj_smooth"] = draw.uniform(D, low=0.5, high=2.5)
    return tensors, {"rms_eps": RMS_EPS}


def qkv_proj_rope_inputs(seed=0, t=5, rope=8):
    """3 heads of 32 lanes, 8 of them rotary; a low rank of 80."""
    draw = Draw(seed)

    def uniform(*shape, width=1.0):
        return draw.uniform(*shape, low=-width, high=width).bfloat16()

    tensors = {"x": uniform(t, D), "wq_a": uniform(D, INTER, width=0.1)}
    tensors["wq_b"] = draw.integers(-127, 128, INTER, 3 * 32, dtype=torch.int8)
    tensors["wq_b_scale"] = draw.uniform(3 * 32, low=2e-4, high=1.6e-3)
    tensors |= {"wkv": uniform(D, 32, width=0.1), "rope_cos": uniform(t, rope), "rope_sin": uniform(t, rope)}
    tensors |= {"gamma_cq": uniform(INTER), "gamma_ckv": uniform(32)}
    return tensors, {"rms_eps": RMS_EPS}


def lm_head_inputs(seed=0, t=5, tp=2):
    draw = Draw(seed)
    hidden = draw.normal(tp, t, D, std=0.1, dtype=torch.bfloat16)
    return {"hidden_states": hidden, "lm_head_weight": draw.normal(tp, VOCAB, D, std=0.1, dtype=torch.bfloat16)}, {}


def moe_dispatch_inputs(seed=0, t=5, ep=2, n_local=6, recv_max=None, counts=None):
    """Distinct ids; `recv_max` defaults to the worst case, `counts` to all tokens."""
    draw = Draw(seed)
    n = ep * n_local
    ids = [torch.randperm(n, generator=draw.generator)[:K] for _ in range(ep * t)]
    codes, scale = draw.tokens_i8(ep, t, D)
    tensors = {
        "indices": torch.stack(ids).to(torch.int32).view(ep, t, K),
        "x_norm_i8": codes,
        "x_norm_scale": scale,
        "weights": draw.uniform(ep, t, K),
        "num_tokens": torch.tensor(counts or [t] * ep, dtype=torch.int32).view(ep, 1),
    }
    return tensors, {"n_local": n_local, "recv_max": ep * t if recv_max is None else recv_max}


def moe_combine_inputs(seed=0, t=5, ep=2, n_local=6, counts=None):
    """Keys and counts as dispatch leaves them; rows of any value."""
    sent, parameters = moe_dispatch_inputs(seed, t, ep, n_local, counts=counts)
    received = golden("moe_dispatch")(**sent, **parameters)
    draw = Draw(seed + 1)
    tensors = {
        "recv_y": draw.normal(ep, n_local, ep * t, D, dtype=torch.bfloat16),
        "recv_r_route_out": received["recv_r_route_out"],
        "sh": draw.normal(ep, t, D, dtype=torch.bfloat16),
        "recv_meta": received["recv_meta"],
        "num_tokens": sent["num_tokens"],
    }
    return tensors, {"topk": K}


def moe_inputs(seed=0, t=5, ep=2, layer_id=10, num_tokens=None, n_local=16):
    """The parts' own inputs; what is the same on all ranks is copied to them."""
    draw = Draw(seed)
    router, router_parameters = gate_inputs(seed, t, n=ep * n_local)
    mix = hc_pre_inputs(seed, t)[0]

    def replicated(value):
        return value.expand(ep, *value.shape).contiguous()

    tensors = {"x_hc": draw.normal(ep, t, HC, D, dtype=torch.bfloat16)}
    tensors |= {f"hc_ffn_{name}": replicated(mix[f"hc_{name}"]) for name in ("fn", "scale", "base")}
    tensors |= {name: replicated(router[name]) for name in ("norm_w", "gate_w", "gate_bias", "tid2eid")}
    tensors["input_ids"] = draw.integers(0, VOCAB, ep, t)
    for kind, lead in (("routed", (ep, n_local)), ("shared", ())):
        for name, shape in (("w1", (INTER, D)), ("w3", (INTER, D)), ("w2", (D, INTER))):
            codes, scale = draw.weight_i8(*lead, *shape)
            tensors[f"{kind}_{name}"] = codes if lead else replicated(codes)
            tensors[f"{kind}_{name}_scale"] = scale if lead else replicated(scale)
    tensors |= {"layer_id": layer_id, "num_tokens": t if num_tokens is None else num_tokens}
    sizes = {"recv_max": ep * t, "hc_eps": HC_EPS, "sinkhorn_iters": 20, "swiglu_limit": 10.0}
    return tensors, router_parameters | sizes


INPUTS = {
    "rms_norm": rms_norm_inputs,
    "hc_pre": hc_pre_inputs,
    "hc_post": hc_post_inputs,
    "gate": gate_inputs,
    "expert_shared": expert_shared_inputs,
    "expert_routed": expert_routed_inputs,
    "hc_head": hc_head_inputs,
    "mtp_projection": mtp_projection_inputs,
    "qkv_proj_rope": qkv_proj_rope_inputs,
    "lm_head": lm_head_inputs,
    "moe_dispatch": moe_dispatch_inputs,
    "moe_combine": moe_combine_inputs,
    "moe": moe_inputs,
}


def run(op, inputs, **changes):
    """The golden on `inputs` (tensors, parameters) with some of either replaced."""
    tensors, parameters = inputs
    tensors = {name: changes.pop(name, value) for name, value in tensors.items()}
    return golden(op)(*tensors.values(), **(parameters | changes))


def bits(x):
    """Integers that are equal where the bits are: also NaN with itself, not +0 with -0."""
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    return x.contiguous().view(integer)


def assert_same_bits(found, wanted):
    assert found.dtype == wanted.dtype
    assert torch.equal(bits(found), bits(wanted))


def bf16(values):
    """FP32 values rounded to BF16 (RNE), by the integer definition, as FP32."""
    patterns = np.asarray(values, dtype=F32).view(np.uint32).astype(np.int64)
    return (to_bf16(patterns, "rint") << 16).astype(np.uint32).view(F32)


def exact_sum(values):
    return F32(math.fsum(float(v) for v in values))


def exact_dot(a, b):
    return F32(math.fsum(float(x) * float(y) for x, y in zip(a, b, strict=True)))


def exp(v):
    with np.errstate(over="ignore"):
        return F32(np.exp(np.float64(v)))


def q8(row):
    """(codes, scale) of one row, the steps of contracts/hc_gate_experts.md 0.4."""
    q = F32(127) / max([F32(1e-4)] + [abs(v) for v in row])
    return [int(np.rint(v * q)) for v in row], F32(1) / q


def assert_rejected(op, output, found, wanted, by, stages=None):
    """The op's tolerance fails `found` for the reason `by` ("limit", "differing", "bias"); with by=None, passes it."""
    judged = load_tolerances()[op][output].comparator.judge(Output(found, wanted, stages=stages or {}))
    if by is None:
        assert judged.passed, judged.reason
    else:
        assert by in judged.reason
