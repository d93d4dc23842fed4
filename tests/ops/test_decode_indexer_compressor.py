"""decode_indexer_compressor: every case on the emulator against its golden.

Contract: decode_compressor_indexer.md, 4.
"""

import pytest


@pytest.mark.goldengate("decode_indexer_compressor", deployments=("decode", "decode_mtp"), schedules=(7,))
def test_decode_indexer_compressor(goldengate_run):
    goldengate_run.check()
