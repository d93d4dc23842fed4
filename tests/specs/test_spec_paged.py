"""Paged memory of decode: every table, slot, state and pool is what its distribution promises, counted."""

import pytest
import torch

from goldens.numerics import paging
from goldens.numerics.rope import build_rope_tables
from specs.distributions import KvTable, Positions, StateTable
from specs.distributions.paged import DEAD_ROW, DEAD_STATE, FP32_NEG, reach
from specs.distributions.positions import csa_starts, hca_starts, legal, mixed_starts, swa_starts
from specs.errors import SpecError
from specs.model import DEPLOYMENTS, FLASH, PRESETS, TINY
from specs.registry import load_op
from specs.tensors import TensorSpec

OPS = ("decode_compressor_ratio4", "decode_compressor_ratio128", "decode_indexer_compressor", "decode_indexer")
DECODE = ("decode", "decode_mtp")
SIZES = [pytest.param(p, d, id=f"{p}-{d}") for p in ("tiny", "flash") for d in DECODE]


def drawn(op, deployment="decode", case="default", preset="tiny", seed=0):
    loaded = load_op(op, preset, deployment)
    return loaded, loaded.inputs(case, seed)


def table_of(op, inputs):
    return inputs["inner_compress_state_block_table" if op == "decode_indexer" else "compress_state_block_table"]


def ratio_of(op):
    return 128 if op.endswith("128") else 4


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("where", DECODE)
def test_state_tables_are_shuffled_rings_with_holes(op, where):
    loaded, inputs = drawn(op, where)
    table, positions = table_of(op, inputs).long(), inputs["position_ids"].long()
    page, physical = (8, 64) if ratio_of(op) == 128 else (4, 65)
    column = torch.arange(table.shape[1])
    live = (column >= reach(positions, ratio_of(op)) // page) & (column <= positions[:, -1:] // page)
    assert torch.equal(table >= 0, live)
    owners = [set(row[row >= 0].tolist()) for row in table]
    assert sum(len(pages) for pages in owners) == len(set.union(*owners)) == int(live.sum())
    assert any(max(pages) - min(pages) >= physical for pages in owners)  # not in one request's range
    assert int(table.max()) < loaded.deployment.batch * physical


def test_a_ring_shares_a_page_between_logical_pages():
    loaded = load_op("decode_compressor_ratio4", "flash")
    spec = TensorSpec("table", (8, 4096), torch.int32, StateTable(4, 4, 1), "in")
    context = loaded.context("default", 0)
    table = spec.init.draw(context, spec)
    assert all(len(set(row[row >= 0].tolist())) == 1 for row in table)  # with one page, every column has it


@pytest.mark.parametrize("where", DECODE)
def test_kv_tables_are_permutations_of_the_pool_with_holes_beyond_the_length(where):
    loaded, inputs = drawn("decode_indexer", where, preset="flash")
    table, positions = inputs["idx_block_table"], inputs["position_ids"]
    rows = (positions[:, -1] + 1) // 4
    assert (table >= 0).sum(dim=1).tolist() == [-(-int(n) // 128) for n in rows]
    named = table[table >= 0]
    assert named.unique().numel() == named.numel()
    assert int(named.max()) >= loaded.deployment.batch * 8
    assert not torch.equal(named.sort().values, named)
    full = KvTable(4, holes=False).draw(loaded.context("default", 0), loaded.signature[19])
    assert torch.equal(full.flatten().sort().values, torch.arange(full.numel(), dtype=torch.int32))
    assert torch.equal(torch.where(table >= 0, full, -1), table)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("preset", "where"), SIZES)
def test_default_closes_groups_at_every_kind_of_place(op, preset, where):
    """A first group, one behind the ring's end, the last position of all; and a request that closes none."""
    loaded = load_op(op, preset, where)
    inputs = {"position_ids": loaded.input("position_ids")}
    ratio, positions = ratio_of(op), inputs["position_ids"]
    closing = positions[(positions + 1) % ratio == 0].tolist()
    assert ratio - 1 in closing
    assert loaded.config.max_position_embeddings - 1 in closing
    assert any(p >= (260 if ratio == 4 else 512) for p in closing)
    assert loaded.config.max_position_embeddings // 2 - 1 in closing
    if where == "decode":
        assert len(closing) < loaded.deployment.batch


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("where", DECODE)
def test_slots_are_lowered_from_positions_and_tables(op, where):
    _, inputs = drawn(op, where)
    page = 8 if ratio_of(op) == 128 else 4
    slots = inputs["inner_state_slot_mapping" if "indexer" in op else "state_slot_mapping"]
    assert torch.equal(slots, paging.state_slots(inputs["position_ids"], table_of(op, inputs), page))
    assert (slots >= 0).all()
    compressed = inputs["idx_slot_mapping" if "indexer" in op else "cmp_slot_mapping"]
    assert torch.equal(compressed >= 0, (inputs["position_ids"] + 1) % ratio_of(op) == 0)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("where", DECODE)
def test_the_state_holds_numbers_where_the_window_reaches_and_poison_elsewhere(op, where):
    _, inputs = drawn(op, where)
    state = inputs["inner_compress_state" if op == "decode_indexer" else "compress_state"]
    page, ratio, positions = state.shape[1], ratio_of(op), inputs["position_ids"]
    flat = state.view(-1, state.shape[2])
    first = reach(positions, ratio)
    rows = 0
    for request, p0 in enumerate(positions[:, 0].tolist()):
        history = torch.arange(int(first[request]), p0).unsqueeze(0)
        found = flat[paging.state_slots(history, table_of(op, inputs)[request : request + 1], page)[0]]
        assert not (found == DEAD_STATE).any()
        rows += history.numel()
    assert int((flat != DEAD_STATE).all(dim=1).sum()) == rows
    live = flat[(flat != DEAD_STATE).all(dim=1)]
    kv, score = live.chunk(2, dim=1)
    assert abs(float(kv.std()) - 1.6) < 0.1
    assert abs(float(score.std()) - 2.5) < 0.15


def test_an_empty_state_is_that_of_the_reference():
    for op, ratio in (("decode_compressor_ratio4", 4), ("decode_compressor_ratio128", 128)):
        state = load_op(op).input("compress_state", "reference_fixture")
        kv, score = state.chunk(2, dim=2)
        assert not kv.any()
        assert (score == (FP32_NEG if ratio == 4 else 0.0)).all()


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("where", DECODE)
def test_pools_hold_rows_of_unit_rms_for_complete_groups_and_dead_rows_elsewhere(op, where):
    _, inputs = drawn(op, where)
    cache = inputs["idx_kv_cache" if "indexer" in op else "cmp_kv_cache"]
    rows = cache.view(-1, cache.shape[3]).double()
    live = (rows != DEAD_ROW).all(dim=1)
    assert int(live.sum()) == int((inputs["position_ids"][:, 0] // ratio_of(op)).sum())
    assert ((rows[live].square().mean(dim=1).sqrt() - 1).abs() < 4e-3).all()
    assert rows[live].unique(dim=0).shape[0] == int(live.sum())


def test_ties_stand_in_four_slots():
    _, inputs = drawn("decode_indexer", case="ties")
    cache = inputs["idx_kv_cache"].view(-1, 128)
    live = cache[(cache != DEAD_ROW).all(dim=1)]
    assert live.unique(dim=0).shape[0] <= -(-len(live) // 4) + 1


@pytest.mark.parametrize(("preset", "where"), SIZES)
def test_rotary_rows_stand_at_the_token_and_at_the_first_position_of_its_group(preset, where):
    loaded = load_op("decode_indexer", preset, where)
    positions = loaded.input("position_ids").long()
    for name, table in zip(("cos", "sin"), build_rope_tables(loaded.config, 4), strict=True):
        half = table[:, :32].float()
        assert torch.equal(loaded.input(name), half[positions.flatten()])
        assert torch.equal(loaded.input(f"inner_{name}"), half[positions[:, 0] - positions[:, 0] % 4])


def test_check_values_of_the_compressed_profile():
    """1.5: BF16 cosines and sines of FLASH at position 8192."""
    loaded = load_op("decode_compressor_ratio4", "flash")
    cos, sin = (loaded.input(name, "reference_fixture")[0] for name in ("cos", "sin"))
    columns = [0, 1, 15, 16, 25, 31]
    assert cos[columns].tolist() == [0.29296875, -0.921875, -0.06298828125, 0.95703125, 1, 1]
    assert sin[columns].tolist() == [-0.95703125, -0.392578125, -0.99609375, -0.28515625, 0.0439453125, 0.004638671875]


def test_hadamard_is_sylvesters_matrix():
    matrix = load_op("decode_indexer").input("hadamard").double()
    assert set(matrix.abs().flatten().tolist()) == {0.08837890625}
    assert torch.equal(matrix, matrix.T)
    assert torch.equal(matrix @ matrix, torch.eye(128, dtype=torch.float64) * 128 * 0.08837890625**2)
    assert (matrix[0] > 0).all()
    assert matrix[1, :4].sign().tolist() == [1, -1, 1, -1]


def test_start_sets():
    decode, mtp = DEPLOYMENTS["decode"], DEPLOYMENTS["decode_mtp"]
    assert csa_starts(FLASH, decode)[:8] == (8192, 0, 3, 7, 127, 128, 255, 511)
    assert csa_starts(FLASH, mtp) == (8192, 0, 2, 3, 7, 127, 128, 255, 511)
    assert hca_starts(FLASH, decode) == (8192, 127, 128, 255, 7, 10)
    assert swa_starts(FLASH, decode) == (8192, 127, 31)
    assert legal((0, 0, 1023, 1022, 5000, -1), TINY, mtp) == (0, 1022)
    assert all(len(mixed_starts(PRESETS[p], decode, r)) == 8 for p in ("tiny", "flash") for r in (4, 128))


def test_positions_refuse_what_the_model_does_not_have():
    loaded = load_op("decode_compressor_ratio4")
    context = loaded.context("default", 0)
    spec = TensorSpec("position_ids", (8, 1), torch.int32, Positions((1024,)), "in")
    with pytest.raises(SpecError, match=r"start position 1024 is outside 0\.\.1023"):
        spec.init.draw(context, spec)
    with pytest.raises(SpecError, match="has room for neither 8 starts nor all tokens"):
        Positions((0,)).draw(context, spec.replace(shape=(5,)))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("where", DECODE)
def test_mapped_elements_are_what_the_golden_may_change(op, where):
    """Every mapped row of the state belongs to a token of the step; nothing unmapped changes."""
    loaded, inputs = drawn(op, where)
    outputs, mapped = loaded.golden(inputs), loaded.mapped(inputs)
    assert len(mapped) == 2
    for name, mask in mapped.items():
        assert mask.shape == inputs[name].shape
        changed = outputs[name] != inputs[name]
        assert not (changed & ~mask).any()
        assert changed.sum() > 0.9 * mask.sum() > 0
    state = next(mask for name, mask in mapped.items() if name.endswith("state"))
    assert int(state.sum()) == loaded.deployment.tokens * state.shape[2]


@pytest.mark.parametrize("op", OPS)
def test_an_uncommitted_step_maps_no_compressed_row(op):
    loaded, inputs = drawn(op, case="uncommitted")
    mapped = loaded.mapped(inputs)
    cache = next(mask for name, mask in mapped.items() if name.endswith("cache"))
    assert not cache.any()
    kv = loaded.valid(inputs)["inner_kv" if op == "decode_indexer" else "kv"]
    assert not kv.any()


@pytest.mark.parametrize("op", OPS)
def test_prefill_and_pro_are_refused_with_a_reason(op):
    with pytest.raises(SpecError, match=f"^{op}: S = 128 tokens per request .* prefill has ops of its own$"):
        load_op(op, "tiny", "prefill")
    with pytest.raises(SpecError, match=f"^{op}: MAX_SEQ_LEN = 1048576 is outside"):
        load_op(op, "pro")
    assert load_op(op, "pro", max_position_embeddings=16384).config.hidden_size == 7168
    assert load_op(op, "demo").config.max_position_embeddings == 4096


def test_topk_edge_has_one_row_less_as_many_and_one_more_than_are_selected():
    loaded, inputs = drawn("decode_indexer", case="topk_edge", preset="flash")
    visible = (inputs["kv_seq_lens"] // 4).tolist()
    assert {loaded.config.index_topk + more for more in (-1, 0, 1)} <= set(visible)
