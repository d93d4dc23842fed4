"""Golden of decode_metadata: the check values and properties of contracts/moe_and_layers.md 9.2 to 9.8, and of
contracts/decode_compressor_indexer.md 6.3 to 6.8.
"""

import pytest
import torch

from goldens.decode_metadata import decode_metadata
from goldens.errors import GoldenInputError
from goldens.numerics import paging
from specs.registry import load_op

CSA = [8192, 0, 3, 7, 127, 128, 255, 511]
HCA = [8192, 127, 128, 255, 7, 10, 8192, 127]
SWA = [8192, 127, 31, 8192, 127, 31, 8192, 127]
LAYER = [8192] * 8
NONE = [-1] * 8


def tables(batch=8, permuted=False):
    """The reference fixtures' tables at FLASH sizes."""
    shapes = {
        "ori_block_table": (1, 1),
        "cmp_block_table": (32, 32),
        "idx_block_table": (64, 64),
        "hca_compress_state_block_table": (2048, 64),
        "csa_compress_state_block_table": (4096, 65),
        "csa_inner_compress_state_block_table": (4096, 65),
    }
    return {name: paging.block_table(batch, *shape, permuted) for name, shape in shapes.items()}


def lowered(starts, seq=1, commit=None, max_seq_len=16384, **changed):
    start_pos = torch.tensor(starts, dtype=torch.int32)
    found = tables(len(starts)) | changed
    return decode_metadata(
        start_pos,
        **found,
        commit_tokens=seq if commit is None else commit,
        seq=seq,
        window=128,
        max_seq_len=max_seq_len,
    )


# moe_and_layers.md 9.6
CHECK_VALUES = [
    (CSA, "ori_slot_mapping", [0, 128, 259, 391, 639, 640, 895, 1023]),
    (CSA, "csa_cmp_slot_mapping", [-1, -1, 8192, 12289, 16415, -1, 24639, 28799]),
    (CSA, "csa_idx_slot_mapping", [-1, -1, 16384, 24577, 32799, -1, 49215, 57471]),
    (CSA, "csa_state_slot_mapping", [132, 260, 523, 787, 1167, 1428, 1815, 2071]),
    (CSA, "csa_inner_state_slot_mapping", [132, 260, 523, 787, 1167, 1428, 1815, 2071]),
    (HCA, "hca_cmp_slot_mapping", [-1, 4096, -1, 12289, -1, -1, -1, 28672]),
    (HCA, "hca_state_slot_mapping", [0, 639, 1152, 1791, 2055, 2570, 3072, 3711]),
    (LAYER, "ori_slot_mapping", [0, 128, 256, 384, 512, 640, 768, 896]),
    (LAYER, "csa_cmp_slot_mapping", NONE),
    (LAYER, "hca_cmp_slot_mapping", NONE),
    (LAYER, "csa_state_slot_mapping", [132, 392, 652, 912, 1172, 1432, 1692, 1952]),
    (LAYER, "hca_state_slot_mapping", [0, 512, 1024, 1536, 2048, 2560, 3072, 3584]),
]


@pytest.mark.parametrize(("starts", "name", "wanted"), CHECK_VALUES)
def test_check_values(starts, name, wanted):
    found = lowered(starts)[name]
    assert found.dtype == torch.int64
    assert found.tolist() == [[slot] for slot in wanted]


@pytest.mark.parametrize(
    ("case", "wanted"),
    [("reference_csa", CSA), ("reference_hca", HCA), ("reference_swa", SWA), ("reference_layer", LAYER)],
)
def test_start_sets_of_the_reference(case, wanted):
    assert load_op("decode_metadata", "flash").input("start_pos", case).tolist() == wanted


def test_permuted_tables_of_ratio128():
    """decode_compressor_indexer.md 3.2, rows 13 and 14."""
    found = lowered(HCA, **tables(permuted=True))
    assert found["hca_cmp_slot_mapping"].flatten().tolist() == [-1, 4480, -1, 12673, -1, -1, -1, 29056]
    assert found["hca_state_slot_mapping"].flatten().tolist() == [24, 871, 1432, 1767, 2079, 2642, 3096, 3943]


def test_refuses_a_permutation_that_collides():
    with pytest.raises(GoldenInputError, match="14 physical pages are a multiple of 7"):
        paging.block_table(1, 14, 14, permuted=True)


def test_positions_and_lengths():
    found = lowered([5, 0], seq=3, commit=1)
    assert found["position_ids"].tolist() == [[5, 6, 7], [0, 1, 2]]
    assert found["kv_seq_lens"].tolist() == [6, 1]
    assert found["position_ids"].dtype == found["kv_seq_lens"].dtype == torch.int32
    assert lowered([5, 0], seq=3)["kv_seq_lens"].tolist() == [8, 3]


def test_the_commit_mask_hides_compressed_rows_alone():
    """9.5: an uncommitted token that closes a group writes no compressed row, but its state and window rows."""
    starts = [126, 2, 127, 6]  # positions 127 and 3 come second, 127 and 7 first and second
    all_of_it, first = lowered(starts, seq=2), lowered(starts, seq=2, commit=1)
    for name in ("csa_cmp_slot_mapping", "csa_idx_slot_mapping", "hca_cmp_slot_mapping"):
        closing = all_of_it[name] >= 0
        assert torch.equal(first[name][:, 0], all_of_it[name][:, 0])
        assert closing[:, 1].any()
        assert (first[name][:, 1] == -1).all()
        assert (lowered(starts, seq=2, commit=0)[name] == -1).all()
    for name in ("ori_slot_mapping", "csa_state_slot_mapping", "hca_state_slot_mapping"):
        assert torch.equal(first[name], all_of_it[name])


def test_mask_uncommitted_needs_two_equal_2d_shapes():
    positions = torch.tensor([[2, 3]], dtype=torch.int32)
    mapping = torch.tensor([[-1, 9]])
    assert paging.mask_uncommitted(mapping, positions, 4, None).tolist() == [[-1, 9]]
    assert paging.mask_uncommitted(mapping, positions, 4, 1).tolist() == [[-1, -1]]
    assert mapping.tolist() == [[-1, 9]]
    with pytest.raises(GoldenInputError, match="positions has shape"):
        paging.mask_uncommitted(mapping, positions[:, :1], 4, 1)
    with pytest.raises(GoldenInputError, match="mapping has shape"):
        paging.mask_uncommitted(mapping[0], positions[0], 4, 1)


@pytest.mark.parametrize(
    ("starts", "seq", "commit", "message"),
    [
        ([0, -1], 1, 1, r"start_pos\[1\] is -1, expected 0..16383"),
        ([16384], 1, 1, r"start_pos\[0\] is 16384, expected 0..16383"),
        ([16383], 2, 2, r"start_pos\[0\] is 16383, expected 0..16382"),
        ([0], 2, 3, "commit_tokens is 3, expected 0..2"),
        ([0], 2, -1, "commit_tokens is -1, expected 0..2"),
    ],
)
def test_rejects(starts, seq, commit, message):
    with pytest.raises(GoldenInputError, match=message):
        lowered(starts, seq=seq, commit=commit)


def test_the_last_position_is_legal():
    assert lowered([16383])["position_ids"].tolist() == [[16383]]


def test_holes_and_ends_of_a_table_are_no_slots():
    """Entries are looked up at their own column; beyond the table nothing is, whatever the clamped entry says."""
    table = torch.tensor([[3, -1, 5]], dtype=torch.int32)
    positions = torch.tensor([[3, 7, 11, 15, 200]], dtype=torch.int32)
    assert paging.state_slots(positions, table, 4).tolist() == [[15, -1, 23, -1, -1]]
    rows = torch.tensor([[4 * 127 + 3, 4 * 128 + 3, 4 * 256 + 3, 4 * 384 + 3]], dtype=torch.int32)
    assert paging.compressed_slots(rows, table, 4).tolist() == [[3 * 128 + 127, -1, 5 * 128, -1]]


def test_rows_of_large_pools_leave_int32():
    table = torch.tensor([[2**25]], dtype=torch.int32)
    assert paging.state_slots(torch.tensor([[127]], dtype=torch.int32), table, 128).tolist() == [[2**32 + 127]]


@pytest.mark.parametrize(
    ("name", "period"),
    [("ori_slot_mapping", 128), ("csa_state_slot_mapping", 260), ("hca_state_slot_mapping", 512)],
)
def test_rings_are_injective_within_a_period_and_repeat_after_it(name, period):
    step = 64
    first = torch.cat([lowered([p], seq=step)[name] for p in range(0, period, step)], dim=1)[:, :period]
    again = torch.cat([lowered([p + period], seq=step)[name] for p in range(0, period, step)], dim=1)[:, :period]
    assert first.unique().numel() == period
    assert torch.equal(first, again)


@pytest.mark.parametrize(("name", "ratio"), [("csa_cmp_slot_mapping", 4), ("hca_cmp_slot_mapping", 128)])
def test_a_compressed_slot_is_written_once_per_group_and_grows(name, ratio):
    slots = torch.cat([lowered([p], seq=128)[name] for p in range(0, 1024, 128)], dim=1)[0]
    closing = (torch.arange(1024) + 1) % ratio == 0
    assert (slots[~closing] == -1).all()
    assert torch.equal(slots[closing], torch.arange(1024 // ratio))


def test_requests_never_share_a_row():
    found = lowered(list(range(100, 108)), seq=4, **tables(permuted=True))
    for name in ("ori_slot_mapping", "csa_state_slot_mapping", "hca_state_slot_mapping", "csa_idx_slot_mapping"):
        written = found[name][found[name] >= 0]
        assert written.numel() >= 8
        assert written.unique().numel() == written.numel()


def test_shifting_by_a_page_shifts_the_table_by_a_column():
    table = torch.randperm(40, generator=torch.Generator().manual_seed(0)).view(1, 40).int()
    rolled = table.roll(-1, dims=1)
    positions = torch.arange(0, 100, dtype=torch.int32).view(1, -1)
    assert torch.equal(paging.state_slots(positions + 4, table, 4), paging.state_slots(positions, rolled, 4))
