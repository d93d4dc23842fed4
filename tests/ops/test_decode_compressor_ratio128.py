"""decode_compressor_ratio128: every case on the emulator against its golden.

Contract: decode_compressor_indexer.md, 3.
"""

import pytest


@pytest.mark.goldengate("decode_compressor_ratio128", deployments=("decode", "decode_mtp"), schedules=(7,))
def test_decode_compressor_ratio128(goldengate_run):
    goldengate_run.check()
