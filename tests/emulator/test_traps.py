"""The forty traps of contracts/pypto_dsl.md section 7: where each one is tested; those without a better place, here."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from harness.devices.base import KernelRefused

HERE = Path(__file__).parent
TRAPS = {
    1: ["test_ops_cast::test_the_default_is_half_away_and_recorded"],
    2: ["test_ops_memory::test_accumulator_leaves_with_ties_to_even"],
    3: ["test_ops_cast::test_none_is_ties_even_to_floats"],
    4: ["test_ops_cast::test_narrow_integers_wrap_and_wide_ones_saturate"],
    5: ["test_ops_elementwise::test_int32_compare_tests_equality"],
    6: ["test_ops_elementwise::test_rejects_column_with_matrix",
        "test_ops_elementwise::test_rejects_a_row_without_col_expand"],
    7: ["test_ops_elementwise::test_expand_ignores_the_target"],
    8: ["test_ops_memory::test_outside_the_valid_shape_is_undefined",
        "test_ops_memory::test_reshape_declares_garbage_valid"],
    9: ["test_ops_memory::test_slice_of_gm_is_a_view_in_orchestration_and_a_copy_in_a_kernel",
        "test_ops_memory::test_slice_of_a_tile_is_a_view"],
    10: ["test_ops_memory::test_created_memory_is_undefined",
         "test_ops_memory::test_atomic_add_on_undefined_memory_stays_undefined"],
    11: ["test_ops_memory::test_fillpad_is_full_and_uses_infinities"],
    12: ["test_frontend_runs::test_integer_scalars_follow_c",
         "test_frontend_runs::test_constants_fold_with_python_floor", "test_ranks::test_host_programs_floor"],
    13: ["test_frontend_runs::test_and_evaluates_both_sides"],
    14: ["test_frontend_runs::test_rejects_scalar_category_errors",
         "test_ops_elementwise::test_literal_is_rounded_to_fp32_once"],
    15: ["test_ops_cube::test_int8_is_exact", "test_ops_cube::test_out_dtype_does_not_change_the_accumulator",
         "test_ops_cube::test_batch_axes_broadcast"],
    16: ["test_variance::test_every_option_gives_another_result",
         "test_variance::test_division_by_reciprocal_is_within_two_ulps"],
    17: ["test_ops_elementwise::test_neg_multiplies_by_minus_one"],
    18: ["test_ops_reduce::test_sequential_order_rounds_every_sum"],
    19: ["test_ops_elementwise::test_rejects_a_float_on_integers"],
    20: ["test_ops_elementwise::test_halves_without_arithmetic_are_recorded"],
    21: ["test_ops_gather_sort::test_index_gather_is_per_row_and_tile_gather_flat"],
    22: ["test_ops_gather_sort::test_mask_gather_keeps_its_columns"],
    23: ["test_ops_gather_sort::test_sort32_interleaves_values_and_payload_bits",
         "test_ops_gather_sort::test_a_full_sort_orders_everything_and_carries_the_index"],
    24: ["test_frontend_runs::test_both_lanes_run_the_body", "test_traps::test_atomics_of_both_lanes_are_doubled"],
    25: ["test_frontend_runs::test_blocks_run_in_any_order",
         "test_language_scopes::test_a_synchronous_start_needs_a_core_per_block"],
    26: ["test_order::test_warns_of_a_writer_that_does_not_wait_for_a_reader",
         "test_order::test_rejects_two_writers_in_a_parallel_loop"],
    27: ["test_order::test_rejects_a_missing_dependency_in_a_manual_scope"],
    28: ["test_frontend_runs::test_inline_rebinding_in_a_nested_body_changes_the_callers_variable"],
    29: ["test_language_names::test_entry_scalars_are_constants"],
    30: ["test_frontend_runs::test_a_write_to_a_plain_input_is_a_fault"],
    31: ["test_ops_memory::test_only_the_valid_part_must_lie_inside"],
    32: ["test_ranks::test_a_notify_before_the_data_is_a_finding"],
    33: ["test_ranks::test_windows_start_from_zero_in_every_dispatch"],
    34: ["test_frontend_runs::test_scratch_dies_with_its_scope"],
    35: ["test_ops_elementwise::test_rejects_a_tile_beyond_the_vector_memory",
         "test_ops_cube::test_sizes_the_cube_does_not_take_are_recorded"],
    36: ["test_ops_cast::test_chains_are_recorded_and_round_twice",
         "test_ops_cast::test_rejects_pairs_without_any_chain"],
    37: ["test_traps::test_this_is_the_device_and_not_its_simulator"],
    38: ["test_language_scopes::test_rejects_loops"],
    39: ["test_traps::test_index_arithmetic_in_fp32_is_literal"],
    40: ["test_traps::test_rejects_an_error_in_a_dead_branch"],
}  # fmt: skip


@pytest.mark.parametrize("trap", range(1, 41))
def test_every_trap_is_tested(trap: int) -> None:
    for place in TRAPS[trap]:
        module, _, name = place.partition("::")
        tree = ast.parse((HERE / f"{module}.py").read_text())
        assert name in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}, place


def test_atomics_of_both_lanes_are_doubled(kernel) -> None:
    """Trap 24."""
    file = kernel("""
        @pl.jit
        def kernel(x: pl.Tensor[[8, 8], pl.FP32], out: pl.Out[pl.Tensor[[8, 8], pl.FP32]]):
            with pl.at(level=pl.Level.CORE_GROUP):
                out[:, :] = pl.full([8, 8], pl.FP32, 0.0)
            with pl.at(level=pl.Level.CORE_GROUP):
                for lane in pl.split_aiv(2, mode=pl.SplitMode.NONE):
                    out = pl.assemble(out, x[:, :], [0, 0], atomic=pl.AtomicType.Add)
            return out
        """)
    for schedule in range(4):
        assert torch.equal(file.run(x=torch.ones(8, 8), schedule=schedule).outputs["out"], torch.full((8, 8), 2.0))


def test_this_is_the_device_and_not_its_simulator(kernel) -> None:
    """Trap 37: a2a3sim would round this tie to even, whatever the mode says."""
    file = kernel("""
        @pl.jit
        def kernel(x: pl.Tensor[[8, 16], pl.FP32], out: pl.Out[pl.Tensor[[8, 16], pl.BF16]]):
            with pl.at(level=pl.Level.CORE_GROUP):
                out[:, :] = pl.cast(x[:, :], pl.BF16, mode="round")
            return out
        """)
    tie = 1 + 2.0**-8
    assert float(file.run(x=torch.full((8, 16), tie)).outputs["out"][0, 0]) == 1 + 2.0**-7
    assert float(torch.tensor(tie).bfloat16()) == 1.0


def test_index_arithmetic_in_fp32_is_literal(kernel) -> None:
    """Trap 39: trunc(k * (1/3)) in FP32, with 1/3 rounded once."""
    file = kernel("""
        @pl.jit
        def kernel(out: pl.Out[pl.Tensor[[1, 512], pl.INT32]]):
            with pl.at(level=pl.Level.CORE_GROUP):
                k = pl.cast(pl.arange(0, [1, 512], dtype=pl.INT32), pl.FP32)
                out[:, :] = pl.cast(pl.mul(k, 1.0 / 3.0), pl.INT32, mode="trunc")
            return out
        """)
    third = torch.tensor(1.0 / 3.0)  # rounded once, to FP32
    expected = (torch.arange(512, dtype=torch.float32) * third).trunc().to(torch.int32)
    assert torch.equal(file.run().outputs["out"][0], expected)


@pytest.mark.parametrize("statement", ["t = pl.softmax(t)", "t += 1", "t = missing", "t = helper(t)"])
def test_rejects_an_error_in_a_dead_branch(kernel, statement: str) -> None:
    """Trap 40: both branches of a constant condition are looked at."""
    file = kernel(f"""
        FLAG: bool = False

        @pl.jit
        def kernel(x: pl.Tensor[[8, 8], pl.FP32], out: pl.Out[pl.Tensor[[8, 8], pl.FP32]]):
            with pl.at(level=pl.Level.CORE_GROUP):
                t = x[:, :]
                if FLAG:
                    {statement}
                out[:, :] = t
            return out
        """)
    with pytest.raises(KernelRefused) as error:
        file.load()
    assert error.value.line == file.line(statement)
