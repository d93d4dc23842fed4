"""Sizes the kernels of this package are built for. As it stands: FLASH, decode (T = 8), retiled by #672.

The front end resolves names in a kernel body from the globals of the kernel's module, so sizes are plain
numbers. The loader of the harness executes a kernel file once per configuration in a fresh module and binds
a fresh copy of this one, with other values, to the name `kernels.sizes`. Symbols are those of
contracts/dense.md, section 1, and decode_attention.md, section 0.
"""

# Model
D = 4096
HC_MULT = 4
HC_DIM = HC_MULT * D
MIX_HC = (2 + HC_MULT) * HC_MULT
HC_SINKHORN_ITERS = 20
HC_EPS = 1e-6
RMS_EPS = 1e-6
MOE_INTER = 2048
N_EXPERTS = 256
TOPK = 6
ROUTED_SCALING = 1.5
SWIGLU_LIMIT = 10.0
N_HASH_LAYERS = 3
VOCAB = 129280
N_HEADS = 64
HEAD_DIM = 512
ROPE_DIM = 64
NOPE_DIM = HEAD_DIM - ROPE_DIM
Q_LORA = 1024
O_LORA = 1024
O_GROUPS = 8
O_GROUP_IN = N_HEADS * HEAD_DIM // O_GROUPS
WIN = 128
SOFTMAX_SCALE = 512**-0.5
IDX_N_HEADS = 64
IDX_HEAD_DIM = 128
IDX_NOPE_DIM = IDX_HEAD_DIM - ROPE_DIM
IDX_TOPK = 512
IDX_WEIGHTS_SCALE = 128**-0.5 * 64**-0.5
MAX_SEQ_LEN = 16384
SCORE_LEN = MAX_SEQ_LEN // 4

# Deployment
B = 8
S = 1
T = 8
T_MAX = 128
EP_WORLD_SIZE = 8
N_LOCAL = N_EXPERTS // EP_WORLD_SIZE
RECV_MAX = EP_WORLD_SIZE * T
MAX_PER_SRC = RECV_MAX // EP_WORLD_SIZE
TP_SIZE = 2
VOCAB_PER_TP = VOCAB // TP_SIZE

# Pages of the decode pools: MAX_BLOCKS columns of a request's block table, BLOCK_NUM pages of the whole pool
BLOCK_SIZE = 128
ORI_MAX_BLOCKS = 1
ORI_BLOCK_NUM = 8
CMP_MAX_BLOCKS = 32
CMP_BLOCK_NUM = 256
IDX_MAX_BLOCKS = 64
IDX_BLOCK_NUM = 512
STATE4_PAGE = 4
STATE4_MAX_BLOCKS = 4096
STATE4_BLOCK_NUM = 520
STATE128_PAGE = 8
STATE128_MAX_BLOCKS = 2048
STATE128_BLOCK_NUM = 512

# INT8 quantisation and masking
INT8_SCALE_MAX = 127.0
INT8_AMAX_EPS = 1e-4
FP32_NEG_INF = -3.4028234663852886e38

# Tiling
TILE_SETS = ("pr672", "before_pr672")
TILE_SET = "pr672"


def choose(*, pr672: int, before_pr672: int) -> int:
    """The size of the tile set in force, for an axis whose extent is not known here (a dynamic T)."""
    if TILE_SET not in TILE_SETS:
        raise ValueError(f"unknown tile set {TILE_SET!r}, known are {', '.join(TILE_SETS)}")
    return pr672 if TILE_SET == "pr672" else before_pr672


def tile(extent: int, *, multiple: int = 1, pr672: int, before_pr672: int | None = None) -> int:
    """Tile size along an axis of `extent` elements, for the tile set in force; it divides the extent.

    The named sizes are those of FLASH. Where the axis is too short for two such tiles, or the size does not
    divide it, the largest multiple of `multiple` that divides the extent and leaves at least two tiles is
    taken, so that a small preset still runs every loop more than once; an axis of one `multiple` is one
    tile. Raises ValueError when no multiple of `multiple` divides the extent: a tail would be dropped.
    """
    wanted = choose(pr672=pr672, before_pr672=pr672 if before_pr672 is None else before_pr672)
    if extent % wanted == 0 and (extent >= 2 * wanted or wanted == multiple):
        return wanted
    for size in range(min(wanted, extent // 2) // multiple * multiple, 0, -multiple):
        if extent % size == 0:
            return size
    if extent == multiple:
        return extent
    raise ValueError(f"no tile of a multiple of {multiple} divides the extent {extent}")
