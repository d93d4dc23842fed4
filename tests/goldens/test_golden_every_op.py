"""What holds for every golden: pure, taps in order, bad inputs refused in one line, no dependence on
threads.
"""

import inspect

import pytest
import torch
from decode_inputs import INPUTS as DECODE
from decode_inputs import tensor_names
from golden_testing import INPUTS as OTHERS
from golden_testing import bits, golden, run, stages

from goldens.errors import GoldenInputError
from specs.registry import all_ops

INPUTS = OTHERS | DECODE
OPS = sorted(INPUTS)
BY_TOKEN = [
    op for op in sorted(OTHERS) if op not in ("expert_routed", "lm_head", "moe_dispatch", "moe_combine", "moe")
]  # others have a leading axis of experts or ranks; decode ops have pools
OF_THE_INNER_COMPRESSOR = ("idx_kv_cache", "position_ids", "idx_slot_mapping")
"""Besides its own: tensors that decode_indexer hands on, and its part refuses by its own names for them."""


def refused_by_a_part(op, name):
    """Composed decode ops hand tensors on; a part says that its own tensor is wrong."""
    inner = name.startswith("inner_") or name in OF_THE_INNER_COMPRESSOR
    return op.startswith("decode_attention") or (op == "decode_indexer" and inner)


def says_a_size(op, name):
    """Whether this tensor alone says what the size of its last axis is: any will do, or the error is about that."""
    if op in DECODE:
        table = name.endswith("block_table") and (name != "ori_block_table" or op == "decode_metadata")
        return table or name in ("norm_w", "wo_a") or (op, name) == ("decode_sparse_attn_csa", "cmp_sparse_indices")
    return (op, name) in (("gate", "tid2eid"), ("moe", "tid2eid"), ("moe_dispatch", "x_norm_i8"))


TENSORS = [
    (op, name) for op in OTHERS for name, value in INPUTS[op]()[0].items() if isinstance(value, torch.Tensor)
] + [(op, name) for op in DECODE for name in tensor_names(op) if not refused_by_a_part(op, name)]


def test_no_op_is_left_out():
    assert sorted(all_ops()) == OPS


@pytest.mark.parametrize("op", OPS)
def test_taps_are_the_stages_and_change_nothing(op):
    taps = {}
    found, plain = run(op, INPUTS[op](), taps=taps), run(op, INPUTS[op]())
    assert tuple(taps) == stages(op)
    assert list(found) == list(plain)
    assert all(torch.equal(bits(found[name]), bits(plain[name])) for name in plain)
    assert all(torch.equal(bits(taps[name]), bits(found[name])) for name in found)


@pytest.mark.parametrize("op", OPS)
def test_inputs_are_left_alone_and_outputs_are_new(op):
    inputs, before = INPUTS[op](), INPUTS[op]()[0]
    found = run(op, inputs)
    storages = {v.untyped_storage().data_ptr() for v in inputs[0].values() if isinstance(v, torch.Tensor)}
    assert not storages & {v.untyped_storage().data_ptr() for v in found.values()}
    assert all(v.is_contiguous() for v in found.values())
    for name, value in inputs[0].items():
        same = (
            torch.equal(bits(value), bits(before[name])) if isinstance(value, torch.Tensor) else value == before[name]
        )
        assert same, name


@pytest.mark.parametrize("op", OPS)
def test_same_bits_with_one_thread_and_more(op):
    sizes = {} if op == "expert_routed" or op in DECODE else {"t": 64}
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(run(op, INPUTS[op](**sizes)))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(bits(other[name]), bits(found[0][name])) for name in other)


@pytest.mark.parametrize("op", BY_TOKEN)
@pytest.mark.parametrize("t", [1, 3, 8, 17])
def test_rows_do_not_depend_on_their_number_or_order(op, t):
    """The first t of 20 tokens alone, and all 20 in reverse, give the same rows."""
    tensors, parameters = INPUTS[op](t=20)
    tensors |= {"num_tokens": 20} if op == "gate" else {}
    whole = run(op, (tensors, parameters))
    per_token = {n: v for n, v in tensors.items() if isinstance(v, torch.Tensor) and v.shape[0] == 20}
    few = run(op, (tensors, parameters), **{n: v[:t] for n, v in per_token.items()})
    turned = run(op, (tensors, parameters), **{n: v.flip(0) for n, v in per_token.items()})
    for name, value in whole.items():
        assert torch.equal(bits(few[name]), bits(value[:t]))
        assert torch.equal(bits(turned[name]), bits(value.flip(0)))


@pytest.mark.parametrize("op", BY_TOKEN)
def test_no_tokens_at_all(op):
    assert all(value.shape[0] == 0 for value in run(op, INPUTS[op](t=0)).values())


@pytest.mark.parametrize(("op", "name"), TENSORS)
def test_rejects_wrong_dtype(op, name):
    value = INPUTS[op]()[0][name]
    kind = str(value.dtype).removeprefix("torch.")
    with pytest.raises(GoldenInputError, match=f"^{op}: {name} has dtype float64, expected {kind}$"):
        run(op, INPUTS[op](), **{name: value.double()})


@pytest.mark.parametrize(("op", "name"), [pair for pair in TENSORS if not says_a_size(*pair)])
def test_rejects_one_column_too_many(op, name):
    """In any tensor but one that alone says what a size is. Another tensor may be named: the first that
    differs.
    """
    value = INPUTS[op]()[0][name]
    wider = torch.cat([value, value[..., :1]], dim=-1)
    with pytest.raises(GoldenInputError, match=rf"^{op}: \w+ has shape \[.*\], expected \[.*\]$"):
        run(op, INPUTS[op](), **{name: wider})


@pytest.mark.parametrize(("op", "name"), TENSORS)
def test_rejects_one_axis_too_many(op, name):
    value = INPUTS[op]()[0][name]
    with pytest.raises(GoldenInputError, match=rf"^{op}: {name} has shape \[.*\], expected \[.*\]$"):
        run(op, INPUTS[op](), **{name: value.unsqueeze(0)})


@pytest.mark.parametrize("op", OPS)
def test_model_parameters_are_keyword_only_and_have_no_default(op):
    parameters = inspect.signature(golden(op)).parameters
    model = [p for name, p in parameters.items() if name in INPUTS[op]()[1]]
    assert len(model) == len(INPUTS[op]()[1])
    assert all(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in model)
