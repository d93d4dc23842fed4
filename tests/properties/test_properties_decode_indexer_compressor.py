"""decode_indexer_compressor: its own properties of contracts/decode_compressor_indexer.md, 4.8.

Those that all compressors share are in test_properties_decode_compressors.py.
"""

import torch
from property_testing import BOTH, GOLDEN, assert_near, assert_same, by_column, golden, holds, shifted

OP = "decode_indexer_compressor"
CLOSING = ("default", "ring_edges", "all_close", "random_rotation")


def identity(trial):
    return torch.eye(len(trial["hadamard"]), dtype=torch.bfloat16)


@holds(OP, on=BOTH, spoil=shifted, names=("default", "ring_edges", "all_close"))
def test_the_hadamard_matrix_keeps_the_length_of_a_row(trial):
    """It is orthonormal to the rounding of its entries to BF16: 128 * 0.08837890625^2 = 0.99979."""
    found, plain = trial.run()["kv"], trial.run(hadamard=identity(trial))["kv"]
    assert_near(found.double().norm(dim=2), plain.double().norm(dim=2), rtol=1e-3)


@holds(OP, on=BOTH, spoil=shifted, names=CLOSING)
def test_with_the_identity_it_is_the_ratio_4_compressor_rounded_once_more(trial):
    main = {name: value for name, value in trial.inputs.items() if name != "hadamard"}
    for ours, theirs in (
        ("idx_kv_cache", "cmp_kv_cache"),
        ("idx_slot_mapping", "cmp_slot_mapping"),
        ("inner_state_slot_mapping", "state_slot_mapping"),
    ):
        main[theirs] = main.pop(ours)
    wanted = golden("decode_compressor_ratio4")(**main, **trial.op.parameters)
    found = trial.run(hadamard=identity(trial))
    assert_near(found["kv"].bfloat16(), wanted["kv"].bfloat16(), ulp=1, atol=1e-6)
    assert_near(found["compress_state"], wanted["compress_state"], rtol=1e-5, atol=1e-5)


@holds(OP, on=BOTH, spoil=by_column, names=CLOSING)
def test_columns_of_the_matrix_are_lanes_of_the_key(trial):
    order = trial.permutation(len(trial["hadamard"]))
    found = trial.run(hadamard=trial["hadamard"][:, order].contiguous())
    plain = trial.run()
    assert_same(found["kv"], plain["kv"][..., order])


@holds(OP, on=BOTH, spoil=shifted, names=CLOSING)
def test_a_power_of_two_in_the_matrix_is_one_in_the_key(trial):
    power = trial.power_of_two()
    found, plain = trial.run(hadamard=trial["hadamard"] * power), trial.run()
    assert_same(found["kv"], plain["kv"] * power)
    assert_same(found["compress_state"], plain["compress_state"])


@holds(OP, on=GOLDEN, spoil=shifted, names=CLOSING)
def test_the_row_is_multiplied_from_the_left(trial):
    """Row j of the matrix alone picks lane j of the rounded row."""
    stages = trial.stages()
    matrix = torch.zeros_like(trial["hadamard"])
    matrix[5, 3] = 1.0
    closing = ((trial["position_ids"] + 1) % 4 == 0).any(dim=1)
    found = trial.run(hadamard=matrix)["kv"][closing, 0]
    assert_same(found[:, 3], stages["row_bf16"].view(len(closing), -1)[closing, 5].float())
    assert not bool(found[:, :3].any())
