"""decode_metadata: every case on the emulator against its golden, and the contract's own check values.

Contracts: moe_and_layers.md, 9.6; decode_compressor_indexer.md, 3.2 and 6.3.
"""

from __future__ import annotations

import pytest

from harness.devices import get_device
from specs.registry import load_op

STATE_CSA = [132, 260, 523, 787, 1167, 1428, 1815, 2071]
EVERYWHERE_8192 = [-1] * 8
CHECK_VALUES = {
    "reference_csa": {
        "position_ids": [8192, 0, 3, 7, 127, 128, 255, 511],
        "kv_seq_lens": [8193, 1, 4, 8, 128, 129, 256, 512],
        "ori_slot_mapping": [0, 128, 259, 391, 639, 640, 895, 1023],
        "csa_cmp_slot_mapping": [-1, -1, 8192, 12289, 16415, -1, 24639, 28799],
        "csa_idx_slot_mapping": [-1, -1, 16384, 24577, 32799, -1, 49215, 57471],
        "csa_state_slot_mapping": STATE_CSA,
        "csa_inner_state_slot_mapping": STATE_CSA,
    },
    "reference_hca": {
        "position_ids": [8192, 127, 128, 255, 7, 10, 8192, 127],
        "hca_cmp_slot_mapping": [-1, 4480, -1, 12673, -1, -1, -1, 29056],
        "hca_state_slot_mapping": [24, 871, 1432, 1767, 2079, 2642, 3096, 3943],
    },
    "reference_swa": {"position_ids": [8192, 127, 31, 8192, 127, 31, 8192, 127]},
    "reference_layer": {
        "ori_slot_mapping": [0, 128, 256, 384, 512, 640, 768, 896],
        "hca_cmp_slot_mapping": EVERYWHERE_8192,
        "csa_cmp_slot_mapping": EVERYWHERE_8192,
        "csa_idx_slot_mapping": EVERYWHERE_8192,
        "csa_state_slot_mapping": [132, 392, 652, 912, 1172, 1432, 1692, 1952],
        "hca_state_slot_mapping": [0, 512, 1024, 1536, 2048, 2560, 3072, 3584],
    },
}


@pytest.mark.goldengate("decode_metadata", deployments=("decode", "decode_mtp", "prefill"), schedules=(7,))
def test_decode_metadata(goldengate_run):
    goldengate_run.check()


@pytest.mark.parametrize("case", CHECK_VALUES)
def test_decode_metadata_gives_the_check_values_of_the_contract(case: str) -> None:
    op = load_op("decode_metadata", "flash")
    device = get_device("emulator")
    run = device.run(device.load(op.kernel, op.name, op.sizes, None), op, op.inputs(case), 0)
    for name, expected in CHECK_VALUES[case].items():
        assert run.outputs[name].flatten().tolist() == expected, name
