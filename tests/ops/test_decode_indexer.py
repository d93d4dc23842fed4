"""decode_indexer: every case on the emulator against its golden.

Contract: decode_compressor_indexer.md, 5. What the retiling of #672 must keep: tests/seeds/test_672_attention.py.
"""

from __future__ import annotations

import pytest


@pytest.mark.goldengate("decode_indexer", deployments=("decode", "decode_mtp"), schedules=(7,))
def test_decode_indexer(goldengate_run):
    goldengate_run.check()
