"""A golden that goes on from its own stages notes each of them as it taps it: what is judged given others is judged by
the note."""

import inspect
from importlib import import_module

import pytest
import torch
from golden_testing import bits

from goldens.checks import Given
from specs.registry import all_ops, load_op

OPS = [op for op in all_ops() if "given" in inspect.signature(getattr(import_module(f"goldens.{op}"), op)).parameters]
FEW_TOKENS = ("tokens_5", "score_tokens_1", "score_tokens_5", "hash_tokens_0")


def cases(op):
    names = [case.name for case in load_op(op).cases if not case.invalid]
    return [name for name in ("default", "window_edges", *FEW_TOKENS) if name in names]


def test_layers_gate_and_attention_can_be_continued():
    assert {"gate", "moe", "qkv_proj_rope", "decode_attention_csa", "decode_sparse_attn_swa"} <= set(OPS)


@pytest.mark.parametrize(("op", "case"), [(op, case) for op in OPS for case in cases(op)])
def test_notes_what_it_taps(op, case):
    loaded = load_op(op)
    inputs, taps = loaded.inputs(case), {}
    outputs = loaded.golden(inputs, taps)
    plain = {**taps, **outputs}
    own = Given(plain)
    again = loaded.golden(inputs, {}, given=own)
    assert own.computed
    for name in own.computed.keys() & plain.keys():
        assert torch.equal(bits(own.computed[name]), bits(plain[name])), name
    assert all(torch.equal(bits(again[name]), bits(outputs[name])) for name in outputs)
