"""Order between tasks, blocks and lanes, and the accesses that have none (contracts/pypto_dsl.md 2.3 to 2.5).

Each faulty kernel stands beside its repair: the one has exactly the finding, the other none, under every schedule.
"""

from __future__ import annotations

import pytest
import torch

from harness.devices.base import KernelFault

SCHEDULES = range(6)


def findings(file, **inputs) -> set[tuple[str, int]]:
    """Code and line of what any of the schedules finds; every schedule must find the same."""
    seen = [{(f.code, f.line) for f in file.run(schedule=s, **inputs).findings} for s in SCHEDULES]
    assert all(s == seen[0] for s in seen), "a finding must not depend on the order that this run took"
    return seen[0]


OVERLAP = """
    @pl.jit
    def kernel(x: pl.Tensor[[8, 64], pl.FP32], out: pl.Out[pl.Tensor[[8, 72], pl.FP32]]):
        for i in pl.spmd(8):
            out[:, i * 8 : i * 8 + {width}] = pl.full([8, {width}], pl.FP32, 1.0)  # write
        return out
    """


def test_rejects_blocks_that_write_the_same_element(kernel) -> None:
    file = kernel(OVERLAP.format(width=16))
    assert findings(file, x=torch.ones(8, 64)) == {("GG401", file.line("# write"))}


def test_without_checks_a_race_is_not_looked_for_and_an_error_still_found(kernel) -> None:
    file = kernel(OVERLAP.format(width=16))
    run = file.run(x=torch.ones(8, 64), checks=False)
    assert run.findings == []
    assert torch.equal(run.outputs["out"], file.run(x=torch.ones(8, 64)).outputs["out"])
    assert run.undefined["out"] is None
    narrow = kernel(OVERLAP.format(width=4)).run(x=torch.ones(8, 64), checks=False)
    assert {f.code for f in narrow.findings} == {"GG101"}
    assert narrow.undefined["out"] is not None


def test_accepts_blocks_side_by_side_in_one_row(kernel) -> None:
    """Their windows interleave in memory and do not share an element."""
    assert findings(kernel(OVERLAP.format(width=8)), x=torch.ones(8, 64)) == set()


SHARED_ROW = """
    @pl.jit
    def kernel(x: pl.Tensor[[8, 64], pl.FP32], out: pl.Out[pl.Tensor[[8, 64], pl.FP32]]):
        row = pl.create_tensor([8, 64], dtype=pl.FP32)
        scratch = pl.create_tensor([8, 64], dtype=pl.FP32)
        with pl.at(level=pl.Level.CORE_GROUP):
            row[:, :] = pl.add(x[:, :], 1.0)
        with pl.at(level=pl.Level.CORE_GROUP):
            row[:, 0:16] = pl.add(x[:, 0:16], 2.0)
        for i in pl.spmd(8):
            scratch[i : i + 1, :] = pl.add(row[{rows}, 0:64], 1.0)
        with pl.at(level=pl.Level.CORE_GROUP):
            row[:, :] = {written}  # overwrite
            out[:, :] = row[:, :]
        return out
    """


@pytest.mark.parametrize("rows", ["0:1", "i // 2 : i // 2 + 1"])
def test_accepts_a_writer_that_waits_for_blocks_that_read_the_same_elements(kernel, rows: str) -> None:
    """The blocks are not ordered among themselves; who has their result comes after all of them."""
    file = kernel(SHARED_ROW.format(rows=rows, written="pl.mul(scratch[:, :], 0.0)"))
    assert findings(file, x=torch.ones(8, 64)) == set()


@pytest.mark.parametrize("rows", ["0:1", "i // 2 : i // 2 + 1"])
def test_warns_of_a_writer_that_does_not_wait_for_blocks_that_read_the_same_elements(kernel, rows: str) -> None:
    file = kernel(SHARED_ROW.format(rows=rows, written="pl.mul(x[:, :], 0.0)"))
    run = file.run(x=torch.ones(8, 64))
    assert [(f.code, f.line) for f in run.findings] == [("GG403", file.line("# overwrite"))]
    assert "several others" not in run.findings[0].message
    assert "block " in run.findings[0].message


NEIGHBOUR = """
    @pl.jit
    def kernel(x: pl.Tensor[[8, 192], pl.FP32], out: pl.Out[pl.Tensor[[8, 192], pl.FP32]]):
        scratch = pl.create_tensor([8, 192], dtype=pl.FP32)
        for i in pl.spmd(24, sync_start=True):
            mine = i * 8
            other = (23 - i) * 8
            scratch[:, mine : mine + 8] = pl.mul(x[:, mine : mine + 8], 2.0)
            {barrier}
            out[:, mine : mine + 8] = scratch[:, other : other + 8]  # read
        return out
    """


def test_rejects_a_read_of_another_block_before_the_barrier(kernel) -> None:
    file = kernel(NEIGHBOUR.format(barrier="pass"))
    found = {code for code, _ in {(f.code, f.line) for f in file.run(x=torch.ones(8, 192)).findings}}
    assert found == {"GG401"}


def test_accepts_the_read_after_the_barrier(kernel) -> None:
    file = kernel(NEIGHBOUR.format(barrier="pl.system.syncall(core_type='aiv_only', mode='hard')"))
    x = torch.arange(1536.0).reshape(8, 192)
    expected = (2 * x).reshape(8, 24, 8).flip(1).reshape(8, 192)
    for schedule in SCHEDULES:
        run = file.run(x=x, schedule=schedule)
        assert run.findings == []
        assert torch.equal(run.outputs["out"], expected)


def test_a_barrier_that_not_every_block_reaches_is_a_dead_lock(kernel) -> None:
    file = kernel("""
        @pl.jit
        def kernel(out: pl.Out[pl.Tensor[[8, 192], pl.FP32]]):
            for i in pl.spmd(24, sync_start=True):
                if i != 5:
                    pl.system.syncall(mode="hard")
                out[:, i * 8 : i * 8 + 8] = pl.full([8, 8], pl.FP32, 1.0)
            return out
        """)
    with pytest.raises(KernelFault, match=r"GG405.*23 of 24 arrived"):
        file.run()


def test_a_hard_barrier_needs_every_core(kernel) -> None:
    file = kernel("""
        @pl.jit
        def kernel(out: pl.Out[pl.Tensor[[8, 32], pl.FP32]]):
            for i in pl.spmd(4, sync_start=True):
                pl.system.syncall(mode="hard")
                out[:, i * 8 : i * 8 + 8] = pl.full([8, 8], pl.FP32, 1.0)
            return out
        """)
    assert findings(file) == {("GG305", file.line("syncall"))}


MANUAL = """
    @pl.jit
    def kernel(x: pl.Tensor[[8, 8], pl.FP32], out: pl.Out[pl.Tensor[[8, 8], pl.FP32]]):
        scratch = pl.create_tensor([8, 8], dtype=pl.FP32)
        with pl.manual_scope():
            with pl.at(level=pl.Level.CORE_GROUP) as first:
                scratch[:, :] = pl.add(x[:, :], 1.0)
            with pl.at(level=pl.Level.CORE_GROUP{deps}) as second:
                out[:, :] = scratch[:, :]  # read
        return out
    """


def test_rejects_a_missing_dependency_in_a_manual_scope(kernel) -> None:
    file = kernel(MANUAL.format(deps=""))
    runs = [file.run(x=torch.ones(8, 8), schedule=s) for s in range(20)]
    assert all({f.code for f in r.findings} & {"GG402", "GG403"} for r in runs)
    results = {bool(torch.equal(r.outputs["out"], torch.full((8, 8), 2.0))) for r in runs}
    assert results == {True, False}, "some legal order reads the scratch before it is written"


def test_accepts_the_declared_dependency(kernel) -> None:
    file = kernel(MANUAL.format(deps=", deps=[first]"))
    for schedule in range(20):
        run = file.run(x=torch.ones(8, 8), schedule=schedule)
        assert run.findings == []
        assert torch.equal(run.outputs["out"], torch.full((8, 8), 2.0))


def test_automatic_order_needs_no_dependency(kernel) -> None:
    source = MANUAL.format(deps="").replace("with pl.manual_scope():", "with pl.scope():")
    source = source.replace("@pl.jit", "@pl.jit(auto_scope=False)")
    file = kernel(source)
    for schedule in range(20):
        run = file.run(x=torch.ones(8, 8), schedule=schedule)
        assert run.findings == []
        assert torch.equal(run.outputs["out"], torch.full((8, 8), 2.0))


WAR = """
    @pl.jit
    def kernel(x: pl.Tensor[[8, 8], pl.FP32], a: pl.Out[pl.Tensor[[8, 8], pl.FP32]],
               b: pl.Out[pl.Tensor[[8, 8], pl.FP32]]):
        scratch = pl.create_tensor([8, 8], dtype=pl.FP32)
        with pl.at(level=pl.Level.CORE_GROUP):
            scratch[:, :] = pl.add(x[:, :], 1.0)
        with pl.at(level=pl.Level.CORE_GROUP) as reader:
            a[:, :] = scratch[:, :]
        with pl.at(level=pl.Level.CORE_GROUP{deps}):
            scratch[:, :] = pl.add(x[:, :], 5.0)  # overwrite
        with pl.at(level=pl.Level.CORE_GROUP):
            b[:, :] = scratch[:, :]
        return a, b
    """


def test_warns_of_a_writer_that_does_not_wait_for_a_reader(kernel) -> None:
    """The runtime searches writers only (trap 26)."""
    file = kernel(WAR.format(deps=""))
    runs = [file.run(x=torch.ones(8, 8), schedule=s) for s in range(20)]
    codes = {f.code for r in runs for f in r.findings}
    assert "GG403" in {f.code for f in runs[0].findings}
    assert codes <= {"GG403", "GG402"}
    assert len({float(r.outputs["a"][0, 0]) for r in runs}) == 2


def test_accepts_the_writer_that_waits_for_the_reader(kernel) -> None:
    file = kernel(WAR.format(deps=", deps=[reader]"))
    for schedule in range(20):
        run = file.run(x=torch.ones(8, 8), schedule=schedule)
        assert run.findings == []
        assert float(run.outputs["a"][0, 0]) == 2.0
        assert float(run.outputs["b"][0, 0]) == 6.0


PARALLEL = """
    @pl.jit
    def kernel(x: pl.Tensor[[8, 32], pl.FP32], out: pl.Out[pl.Tensor[[8, 32], pl.FP32]]):
        for i in pl.{loop}(4):
            with pl.at(level=pl.Level.CORE_GROUP):
                out[:, {column} : {column} + 8] = x[:, i * 8 : i * 8 + 8]
        return out
    """


def test_rejects_two_writers_in_a_parallel_loop(kernel) -> None:
    file = kernel(PARALLEL.format(loop="parallel", column="0"))
    assert {code for code, _ in findings(file, x=torch.ones(8, 32))} == {"GG402"}


@pytest.mark.parametrize(("loop", "column"), [("parallel", "i * 8"), ("range", "0"), ("range", "i * 8")])
def test_accepts_disjoint_or_sequential_writers(kernel, loop: str, column: str) -> None:
    assert findings(kernel(PARALLEL.format(loop=loop, column=column)), x=torch.ones(8, 32)) == set()


LANES = """
    @pl.jit
    def kernel(x: pl.Tensor[[8, 16], pl.FP32], out: pl.Out[pl.Tensor[[8, 16], pl.FP32]]):
        with pl.at(level=pl.Level.CORE_GROUP):
            for lane in pl.split_aiv(2, mode=pl.SplitMode.NONE):
                out[:, {column} : {column} + 8] = x[:, lane * 8 : lane * 8 + 8]
        return out
    """


def test_rejects_lanes_that_write_the_same_element(kernel) -> None:
    assert {c for c, _ in findings(kernel(LANES.format(column="0")), x=torch.ones(8, 16))} == {"GG401"}


def test_accepts_lanes_with_work_of_their_own(kernel) -> None:
    assert findings(kernel(LANES.format(column="lane * 8")), x=torch.ones(8, 16)) == set()


def test_atomic_additions_do_not_conflict_and_their_target_must_be_zeroed_before(kernel) -> None:
    file = kernel("""
        @pl.jit
        def kernel(x: pl.Tensor[[8, 64], pl.FP32], out: pl.Out[pl.Tensor[[8, 8], pl.FP32]]):
            with pl.at(level=pl.Level.CORE_GROUP):
                out[:, :] = pl.full([8, 8], pl.FP32, 0.0)
            for i in pl.spmd(8):
                out = pl.assemble(out, x[:, i * 8 : i * 8 + 8], [0, 0], atomic=pl.AtomicType.Add)
            return out
        """)
    x = torch.arange(512.0).reshape(8, 64)
    assert findings(file, x=x) == set()
    assert torch.equal(file.run(x=x, schedule=4).outputs["out"], x.reshape(8, 8, 8).sum(1))


def test_orchestration_waits_for_the_producer_of_what_it_reads(kernel) -> None:
    file = kernel("""
        @pl.jit
        def kernel(out: pl.Out[pl.Tensor[[8, 8], pl.INT32]]):
            counts = pl.create_tensor([8, 8], dtype=pl.INT32)
            with pl.at(level=pl.Level.CORE_GROUP):
                counts[:, :] = pl.full([8, 8], pl.INT32, 3)
            n = pl.read(counts, [0, 0])
            with pl.at(level=pl.Level.CORE_GROUP):
                out[:, :] = pl.full([8, 8], pl.INT32, 0)
            for i in pl.range(n):
                pl.write(out, [0, i], n)
            return out
        """)
    for schedule in range(20):
        run = file.run(schedule=schedule)
        assert run.findings == []
        assert run.outputs["out"][0].tolist() == [3, 3, 3, 0, 0, 0, 0, 0]


def test_a_task_dummy_joins_dependencies(kernel) -> None:
    file = kernel("""
        @pl.jit
        def kernel(x: pl.Tensor[[8, 16], pl.FP32], out: pl.Out[pl.Tensor[[8, 16], pl.FP32]]):
            scratch = pl.create_tensor([8, 16], dtype=pl.FP32)
            tids = pl.array.create(2, pl.TASK_ID)
            with pl.manual_scope():
                for i in pl.range(2):
                    with pl.at(level=pl.Level.CORE_GROUP) as tid:
                        scratch[:, i * 8 : i * 8 + 8] = x[:, i * 8 : i * 8 + 8]
                    tids[i] = tid
                both = pl.system.task_dummy(deps=[tids[i] for i in range(2)])
                with pl.at(level=pl.Level.CORE_GROUP, deps=[both]):
                    out[:, :] = scratch[:, :]
            return out
        """)
    x = torch.arange(128.0).reshape(8, 16)
    for schedule in range(20):
        run = file.run(x=x, schedule=schedule)
        assert run.findings == []
        assert torch.equal(run.outputs["out"], x)
