"""decode_metadata: start positions and block tables to positions, lengths and slot mappings.

contracts/moe_and_layers.md 9, contracts/decode_compressor_indexer.md 6. Outputs have the names of the decode layer's
inputs (moe_and_layers.md 10.2).
"""

from __future__ import annotations

import torch

from specs.distributions import Constant, IdentityTable, KvTable, Positions, StateTable
from specs.distributions.positions import Starts, csa_starts, hca_starts, legal, mixed_starts, swa_starts
from specs.model import Deployment, ModelConfig
from specs.paging import STATE4_PAGE, STATE4_PAGES, STATE128_PAGE, STATE128_PAGES, paging
from specs.registry import Case, Op
from specs.requirements import require_multiple
from specs.tensors import Distribution, ScalarSpec, TensorSpec

OP = "decode_metadata"
INT32, INT64 = torch.int32, torch.int64


def build(config: ModelConfig, deployment: Deployment) -> Op:
    """start_pos [B] INT32, six block tables [B, columns] INT32, commit_tokens -> position_ids [B, S] and kv_seq_lens
    [B] INT32, seven slot mappings [B, S] INT64.

    WIN must be a multiple of 128. Any S: a prefill step is lowered by the same rule.
    """
    pages = paging(config, deployment)
    require_multiple(OP, "WIN", config.sliding_window, 128)
    batch, seq = deployment.batch, deployment.seq
    ring4 = StateTable(4, STATE4_PAGE, STATE4_PAGES)
    ring128 = StateTable(128, STATE128_PAGE, STATE128_PAGES)

    def table(name: str, columns: int, init: Distribution) -> TensorSpec:
        return TensorSpec(name, (batch, columns), INT32, init, "in")

    def mapping(name: str) -> TensorSpec:
        return TensorSpec(name, (batch, seq), INT64, None, "out")

    return Op(
        name=OP,
        config=config,
        deployment=deployment,
        signature=(
            TensorSpec("start_pos", (batch,), INT32, Positions(mixed_starts(config, deployment, 4)), "in"),
            table("ori_block_table", pages.ori_max_blocks, KvTable(1)),
            table("cmp_block_table", pages.cmp_max_blocks, KvTable(4)),
            table("idx_block_table", pages.idx_max_blocks, KvTable(4)),
            table("hca_compress_state_block_table", pages.state128_max_blocks, ring128),
            table("csa_compress_state_block_table", pages.state4_max_blocks, ring4),
            table("csa_inner_compress_state_block_table", pages.state4_max_blocks, ring4),
            ScalarSpec("commit_tokens", INT32, seq),
            TensorSpec("position_ids", (batch, seq), INT32, None, "out"),
            TensorSpec("kv_seq_lens", (batch,), INT32, None, "out"),
            mapping("ori_slot_mapping"),
            mapping("hca_cmp_slot_mapping"),
            mapping("hca_state_slot_mapping"),
            mapping("csa_cmp_slot_mapping"),
            mapping("csa_idx_slot_mapping"),
            mapping("csa_state_slot_mapping"),
            mapping("csa_inner_state_slot_mapping"),
        ),
        cases=_cases(config, deployment),
        parameters={"seq": seq, "window": config.sliding_window, "max_seq_len": config.max_position_embeddings},
    )


def _cases(config: ModelConfig, deployment: Deployment) -> tuple[Case, ...]:
    seq, last = deployment.seq, config.max_position_embeddings - deployment.seq

    def starts(name: str, positions: Starts, *tags: str, **more: Distribution) -> Case:
        return Case(name, {"start_pos": Positions(legal(positions, config, deployment)), **more}, tags=tags)

    tables: dict[str, int | None] = {
        "ori_block_table": None,
        "cmp_block_table": None,
        "idx_block_table": None,
        "hca_compress_state_block_table": STATE128_PAGES,
        "csa_compress_state_block_table": STATE4_PAGES,
        "csa_inner_compress_state_block_table": STATE4_PAGES,
    }
    in_order = {name: IdentityTable(physical) for name, physical in tables.items()}
    permuted = {name: IdentityTable(physical, permuted=True) for name, physical in tables.items()}
    return (
        Case("default", tags=("default",)),
        starts("ratio128", mixed_starts(config, deployment, 128)),
        starts("reference_csa", csa_starts(config, deployment), "reference", **in_order),
        starts("reference_hca", hca_starts(config, deployment), "reference", **permuted),
        starts("reference_swa", swa_starts(config, deployment), "reference", **in_order),
        starts("reference_layer", (config.max_position_embeddings // 2,), "reference", **in_order),
        starts("first_tokens", (0, 1, 2, 3, 4, 5, 6, 7), "edge"),
        starts("last_positions", (last, last - 1, last - 2, last - 3, last - 4, last - 127, last - 128, 0), "edge"),
        starts("page_edges", (127, 128, 255, 256, 259, 260, 511, 512), "edge"),
        *(Case(f"commit_{n}", scalars={"commit_tokens": n}, tags=("partial",)) for n in (0, 1) if n < seq),
        # A request without any page: every mapping is -1, positions and lengths are as ever.
        Case("no_pages", {name: Constant(-1) for name in in_order}, tags=("edge",)),
        Case("start_negative", {"start_pos": Constant(-1)}, tags=("invalid",)),
        Case("start_too_far", {"start_pos": Constant(last + 1)}, tags=("invalid",)),
        Case("commit_too_many", scalars={"commit_tokens": seq + 1}, tags=("invalid",)),
        Case("commit_negative", scalars={"commit_tokens": -1}, tags=("invalid",)),
    )
