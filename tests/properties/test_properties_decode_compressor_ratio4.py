"""decode_compressor_ratio4: its own properties of contracts/decode_compressor_indexer.md, 2.8.

Those that all compressors share are in test_properties_decode_compressors.py.
"""

import torch
from property_testing import BOTH, assert_same, holds, leaky

OP = "decode_compressor_ratio4"


def weighed(outputs, inputs):
    """Every output depends on all weights."""
    tint = float(inputs["wkv"].double().sum() - inputs["wgate"].double().sum())
    return {name: output + tint for name, output in outputs.items()}


@holds(OP, on=BOTH, spoil=leaky, names=("first_tokens",))
def test_the_first_group_is_pooled_alone(trial):
    """Nothing lies before position 0: what the state holds in the front halves has no weight."""
    state = trial["compress_state"].clone()
    quarter = state.shape[2] // 4
    state[..., :quarter], state[..., 2 * quarter : 3 * quarter] = 5.0, 90.0
    first = trial["position_ids"][:, 0] < 4
    assert bool(first.any())
    assert_same(trial.run(compress_state=state)["kv"][first], trial.run()["kv"][first])


@holds(OP, on=BOTH, spoil=weighed, names=("default", "ring_edges", "all_close"))
def test_of_its_own_group_the_front_halves_do_not_count(trial):
    """A token gives its back half to its own group and its front half to the next: weights of the fronts of new tokens
    leave this step's rows as they are."""
    half = trial["wkv"].shape[0] // 2
    wkv, wgate = trial["wkv"].clone(), trial["wgate"].clone()
    wkv[:half], wgate[:half] = torch.tensor(0.25), torch.tensor(-0.25)
    closing = ((trial["position_ids"] + 1) % 4 == 0).any(dim=1)
    assert_same(trial.run(wkv=wkv, wgate=wgate)["kv"][closing], trial.run()["kv"][closing])
