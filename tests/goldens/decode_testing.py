"""What the tests of the decode goldens share: a small model, a stream of tokens decoded step by step over shuffled
pages, and the plain FP64 evaluation of the whole history that it must agree with.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from golden_testing import Draw, golden

from goldens.numerics import paging

EPS = 1e-6
D, PAIRS = 48, 4
NEG = -3.4028234663852886e38
BOTH_HALVES = ("decode_compressor_ratio4", "decode_indexer_compressor")
COMPRESSORS = (*BOTH_HALVES, "decode_compressor_ratio128")
CACHE = dict.fromkeys(COMPRESSORS, "cmp_kv_cache") | {"decode_indexer_compressor": "idx_kv_cache"}
SLOTS = dict.fromkeys(COMPRESSORS, "cmp_slot_mapping") | {"decode_indexer_compressor": "idx_slot_mapping"}
STATE_SLOTS = dict.fromkeys(COMPRESSORS, "state_slot_mapping") | {
    "decode_indexer_compressor": "inner_state_slot_mapping"
}


@dataclass
class Stream:
    """`batch` requests of `length` tokens, a compressor's weights, and its memory: an empty state, dead cache rows.

    Pages are shuffled over all requests. The state is a ring of `pages` pages of `page` rows per request.
    """

    op: str
    batch: int = 2
    length: int = 32
    width: int = 16
    seed: int = 0
    starts: tuple[int, ...] = ()
    x: torch.Tensor = field(init=False)

    def __post_init__(self):
        draw = Draw(self.seed)
        self.ratio = 128 if self.op.endswith("128") else 4
        self.page, self.pages = (8, 64) if self.ratio == 128 else (4, 65)
        out = self.width * (1 if self.ratio == 128 else 2)
        self.x = draw.normal(self.batch, self.length, D, dtype=torch.bfloat16)
        self.wkv = draw.normal(out, D, std=0.2, dtype=torch.bfloat16)
        self.wgate = draw.normal(out, D, std=0.3, dtype=torch.bfloat16)
        self.ape = draw.normal(self.ratio, out)
        self.norm_w = (1 + draw.normal(self.width, std=0.2)).bfloat16()
        self.hadamard = draw.normal(self.width, self.width, std=self.width**-0.5, dtype=torch.bfloat16)
        self.frequency = draw.uniform(PAIRS, low=0.01, high=1.0)
        shuffled = torch.randperm(self.batch * self.pages, generator=draw.generator).view(self.batch, self.pages)
        columns = -(-(self.length + 8) // self.page)
        self.state_table = shuffled[:, torch.arange(columns) % self.pages].int()
        self.cache_table = torch.randperm(self.batch * 2, generator=draw.generator).view(self.batch, 2).int()
        self.state = torch.zeros(self.batch * self.pages, self.page, 2 * out)
        self.state[..., out:] = NEG
        self.cache = torch.full((self.batch * 2, 128, 1, self.width), 7.0, dtype=torch.bfloat16)

    def rope(self, positions):
        angle = positions.double().unsqueeze(-1) * self.frequency.double()
        return angle.cos().bfloat16().float(), angle.sin().bfloat16().float()

    def arguments(self, first, seq, **changes):
        """The golden's inputs for the step of the positions `first` to first + seq - 1, by name."""
        starts = torch.full((self.batch,), first, dtype=torch.int32)
        positions = paging.position_ids(starts, seq)
        cos, sin = self.rope(positions[:, 0] - positions[:, 0] % self.ratio)
        found = {
            "x": self.x[:, first : first + seq].contiguous(),
            "compress_state": self.state,
            "compress_state_block_table": self.state_table,
            "wkv": self.wkv,
            "wgate": self.wgate,
            "ape": self.ape,
            "norm_w": self.norm_w,
            "cos": cos,
            "sin": sin,
            "hadamard": self.hadamard,
            CACHE[self.op]: self.cache,
            "position_ids": positions,
            SLOTS[self.op]: paging.compressed_slots(positions, self.cache_table, self.ratio),
            STATE_SLOTS[self.op]: paging.state_slots(positions, self.state_table, self.page),
        }
        if self.op != "decode_indexer_compressor":
            del found["hadamard"]
        return found | changes

    def step(self, first, seq, **changes):
        """Decode one step in place; returns the golden's outputs."""
        found = golden(self.op)(**self.arguments(first, seq, **changes), rms_eps=EPS)
        self.state, self.cache = found["compress_state"], found[CACHE[self.op]]
        return found

    def decode(self, seq, until=None):
        """All tokens, `seq` at a time; the last step may be shorter."""
        length = self.length if until is None else until
        for first in range(0, length, seq):
            self.step(first, min(seq, length - first))
        return self

    def rows(self, request):
        """The compressed rows of a request, in logical order, BF16 as FP32 [groups, width]."""
        groups = torch.arange(self.length // self.ratio).unsqueeze(0)
        flat = paging.flat_rows(groups, self.cache_table[request : request + 1], 128)[0]
        return self.cache.view(-1, self.width)[flat].float()


def history(stream, request):
    """(kv, score) of all positions of a request in FP64, from its tokens alone: [length, OUT] each."""
    x = stream.x[request].double().numpy()
    kv, score = (x @ w.double().numpy().T for w in (stream.wkv, stream.wgate))
    return kv, score + stream.ape.double().numpy()[np.arange(stream.length) % stream.ratio]


def compressed_rows(stream, request, rope_at=0):
    """FP64 oracle: every complete group of a request, pooled, normed and rotated at its position `rope_at`.

    The front halves of the group before and the back halves of the group itself; without overlap the group alone.
    """
    kv, score = history(stream, request)
    rows, width = [], stream.width
    for first in range(0, stream.length - stream.ratio + 1, stream.ratio):
        own = slice(first, first + stream.ratio)
        if stream.ratio == 128:
            window, weight = kv[own], score[own]
        else:
            before = slice(first - 4, first) if first else slice(0, 0)
            window = np.concatenate([kv[before, :width], kv[own, width:]])
            weight = np.concatenate([score[before, :width], score[own, width:]])
        weight = np.exp(weight - weight.max(axis=0))
        pooled = (window * weight).sum(axis=0) / weight.sum(axis=0)
        normed = pooled / np.sqrt((pooled * pooled).mean() + EPS) * stream.norm_w.double().numpy()
        cos, sin = (t.double().numpy() for t in stream.rope(torch.tensor(first + rope_at)))
        turned = (normed[-2 * PAIRS :: 2] + 1j * normed[-2 * PAIRS + 1 :: 2]) * (cos + 1j * sin)
        normed[-2 * PAIRS :: 2], normed[-2 * PAIRS + 1 :: 2] = turned.real, turned.imag
        rows.append(normed)
    return np.array(rows)
