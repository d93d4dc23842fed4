"""decode_compressor_ratio4: every case on the emulator against its golden.

Contract: decode_compressor_indexer.md, 2.
"""

import pytest


@pytest.mark.goldengate("decode_compressor_ratio4", deployments=("decode", "decode_mtp"), schedules=(7,))
def test_decode_compressor_ratio4(goldengate_run):
    goldengate_run.check()
