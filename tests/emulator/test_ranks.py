"""Several ranks: windows, copies, signals, collectives, dead-locks, order between ranks (contracts/pypto_dsl.md 4)."""

from __future__ import annotations

import pytest
import torch

from harness.devices.base import KernelFault
from harness.devices.emulator.host import execute_host

SCHEDULES = range(12)

RING = """
    import pypto.language.distributed as pld

    WORLD = 4

    @pl.jit
    def child(x: pl.Tensor[[8, 16], pl.FP32], out: pl.Out[pl.Tensor[[8, 16], pl.FP32]],
              data: pld.DistributedTensor[[8, 16], pl.FP32], signal: pld.DistributedTensor[[8, 8], pl.INT32],
              rank: pl.Scalar[pl.INT32]):
        ctx = pld.get_comm_ctx(data)
        n = pld.nranks(ctx)
        right = (rank + 1) % n
        with pl.at(level=pl.Level.CORE_GROUP, name_hint="send"):
            pld.tensor.put(data, right, x)
            {notify}
        with pl.at(level=pl.Level.CORE_GROUP, name_hint="receive"):
            {wait}
            out[:, :] = data[:, :]
        return out

    @pl.jit.host
    def kernel(x: pl.Tensor[[WORLD, 8, 16], pl.FP32], out: pl.Out[pl.Tensor[[WORLD, 8, 16], pl.FP32]]):
        buf = pld.alloc_window_buffer(8 * 16 * 4)
        sig = pld.alloc_window_buffer([8, 8], dtype=pl.INT32)
        data = pld.window(buf, [8, 16], dtype=pl.FP32)
        signal = pld.window(sig, [8, 8], dtype=pl.INT32)
        for r in pl.range(pld.world_size()):
            child(x[r], out[r], data, signal, r, device=r)
        return out
    """
NOTIFY = "pld.system.notify(signal, right, [0, 0], 1, op=pld.NotifyOp.AtomicAdd)"
WAIT = "pld.system.wait(signal, [0, 0], 1, cmp=pld.WaitCmp.Ge)"


def run(file, schedule: int = 0, world: int = 4, **inputs):
    functions = file.load()
    return execute_host(functions["kernel"], inputs, schedule, frozenset({str(file.path)}), world=world)


def ring(kernel, notify: str = NOTIFY, wait: str = WAIT):
    return kernel(RING.format(notify=notify, wait=wait))


X = torch.arange(4 * 8 * 16, dtype=torch.float32).reshape(4, 8, 16)


def test_a_ring_exchange_is_right_and_clean_under_every_interleaving(kernel) -> None:
    file = ring(kernel)
    for schedule in SCHEDULES:
        result = run(file, schedule, x=X)
        assert torch.equal(result.outputs["out"], X.roll(1, 0))
        assert result.findings == []
        assert result.counters["notifies"] == 4


def test_reading_before_the_wait_is_a_finding_in_every_schedule(kernel) -> None:
    file = kernel(RING.format(notify=NOTIFY, wait="pass").replace("WORLD = 4", "WORLD = 2"))
    results = [run(file, s, world=2, x=X[:2]) for s in range(30)]
    assert all("GG404" in {f.code for f in r.findings} for r in results)
    right = {bool(torch.equal(r.outputs["out"], X[:2].flip(0))) for r in results}
    assert right == {True, False}, "some interleavings happen to be right: only the finding is reliable"


def test_a_missing_notify_is_a_dead_lock_that_says_who_waits_for_what(kernel) -> None:
    file = ring(kernel, notify="pass")
    with pytest.raises(KernelFault, match=r"GG405") as error:
        run(file, x=X)
    text = str(error.value)
    for rank in range(4):
        assert f"rank {rank}" in text
    assert ">= 1, it is 0" in text
    assert f":{file.line('pld.system.wait')} " in text


def test_a_notify_before_the_data_is_a_finding(kernel) -> None:
    file = kernel(
        RING.format(notify="pass", wait=WAIT).replace(
            "pld.tensor.put(data, right, x)", f"{NOTIFY}\n            pld.tensor.put(data, right, x)"
        )
    )
    assert all("GG404" in {f.code for f in run(file, s, x=X).findings} for s in SCHEDULES)


def test_waiting_on_the_wrong_source_is_a_dead_lock(kernel) -> None:
    with pytest.raises(KernelFault, match="GG405"):
        run(ring(kernel, wait=WAIT.replace("[0, 0]", "[1, 0]")), x=X)


def test_a_task_that_waits_does_not_stop_the_rank(kernel) -> None:
    """The receiving task is submitted first; the sending one must still run."""
    source = RING.format(notify=NOTIFY, wait=WAIT)
    send = source[
        source.index('        with pl.at(level=pl.Level.CORE_GROUP, name_hint="send")') : source.index(
            '        with pl.at(level=pl.Level.CORE_GROUP, name_hint="receive")'
        )
    ]
    end = "        return out\n\n    @pl.jit.host"
    file = kernel(source.replace(send, "").replace(end, send + end))
    for schedule in SCHEDULES:
        assert torch.equal(run(file, schedule, x=X).outputs["out"], X.roll(1, 0))


def test_windows_start_from_zero_in_every_dispatch(kernel) -> None:
    functions = ring(kernel)
    loaded = functions.load()
    result = execute_host(loaded["kernel"], {"x": X}, 0, frozenset({str(functions.path)}), world=4, dispatches=3)
    assert torch.equal(result.outputs["out"], X.roll(1, 0))
    assert result.counters["dispatches"] == 12


@pytest.mark.parametrize(("residency", "uploads"), [({}, 12), ({"x": "stacked"}, 4)])
def test_counts_uploads(kernel, residency: dict[str, str], uploads: int) -> None:
    file = ring(kernel)
    result = execute_host(
        file.load()["kernel"], {"x": X}, 0, frozenset({str(file.path)}), world=4, dispatches=3, residency=residency
    )
    assert result.counters["uploads.x"] == uploads
    assert result.counters["downloads.out"] == 12


@pytest.mark.parametrize("world", [2, 4, 8])
def test_worlds(kernel, world: int) -> None:
    file = kernel(RING.format(notify=NOTIFY, wait=WAIT).replace("WORLD = 4", f"WORLD = {world}"))
    x = torch.randn(world, 8, 16, generator=torch.Generator().manual_seed(1))
    for schedule in range(4):
        assert torch.equal(run(file, schedule, world, x=x).outputs["out"], x.roll(1, 0))


COLLECTIVE = """
    import pypto.language.distributed as pld

    @pl.jit
    def child(x: pl.Tensor[[4, 8], pl.FP32], out: pl.Out[pl.Tensor[[4, 8], pl.FP32]],
              data: pld.DistributedTensor[[4, 8], pl.FP32], signal: pld.DistributedTensor[[8, 8], pl.INT32]):
        with pl.at(level=pl.Level.CORE_GROUP):
            data[:, :] = x[:, :]
            {call}
            out[:, :] = data[:, :]
        return out

    @pl.jit.host
    def kernel(x: pl.Tensor[[4, 4, 8], pl.FP32], out: pl.Out[pl.Tensor[[4, 4, 8], pl.FP32]]):
        buf = pld.alloc_window_buffer([4, 8], dtype=pl.FP32)
        sig = pld.alloc_window_buffer(256)
        data = pld.window(buf, [4, 8], dtype=pl.FP32)
        signal = pld.window(sig, [8, 8], dtype=pl.INT32)
        for r in pl.range(pld.world_size()):
            child(x[r], out[r], data, signal, device=r)
        return out
    """
Y = torch.arange(128, dtype=torch.float32).reshape(4, 4, 8)


def reduce_scattered() -> torch.Tensor:
    expected = Y.clone()
    for rank in range(4):
        expected[rank, rank] = Y[:, rank].sum(0)
    return expected


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("pld.tensor.allreduce(data, signal, op=pld.ReduceOp.Sum)", Y.sum(0).expand(4, 4, 8)),
        ("pld.tensor.broadcast(data, signal, root=2)", Y[2].expand(4, 4, 8)),
        ("pld.tensor.barrier(signal)", Y),
        ("pld.tensor.allgather(data, signal)", torch.stack([Y[r, r] for r in range(4)]).expand(4, 4, 8)),
        ("pld.tensor.reduce_scatter(data, signal)", reduce_scattered()),
        ("pld.tensor.all_to_all(data, signal)", Y.transpose(0, 1)),
    ],
    ids=["allreduce", "broadcast", "barrier", "allgather", "reduce_scatter", "all_to_all"],
)
def test_collectives(kernel, call: str, expected: torch.Tensor) -> None:
    file = kernel(COLLECTIVE.format(call=call))
    for schedule in range(5):
        result = run(file, schedule, x=Y)
        assert torch.equal(result.outputs["out"], expected)
        assert result.findings == []


def test_a_collective_that_one_rank_skips_is_a_dead_lock(kernel) -> None:
    call = "if pld.rank(pld.get_comm_ctx(data)) != 3:\n                pld.tensor.barrier(signal)"
    with pytest.raises(KernelFault, match=r"GG405.*for ranks \[3\]"):
        run(kernel(COLLECTIVE.format(call=call)), x=Y)


REMOTE = """
    import pypto.language.distributed as pld

    @pl.jit
    def child(x: pl.Tensor[[8, 16], pl.FP32], out: pl.Out[pl.Tensor[[8, 16], pl.FP32]],
              data: pld.DistributedTensor[[16, 16], pl.FP32], signal: pld.DistributedTensor[[8, 8], pl.INT32],
              rank: pl.Scalar[pl.INT32]):
        other = 1 - rank
        with pl.at(level=pl.Level.CORE_GROUP):
            t = pl.add(x[:, :], 1.0)
            pld.tile.remote_store(t, data, other, [8, 0])
            pld.system.notify(signal, other, [0, 0], 7, op=pld.NotifyOp.Set)
            pld.system.wait(signal, [0, 0], 7, cmp=pld.WaitCmp.Eq)
            back = pld.tile.remote_load(data, rank, [8, 0], [8, 16])
            out[:, :] = back
        return out

    @pl.jit.host
    def kernel(x: pl.Tensor[[2, 8, 16], pl.FP32], out: pl.Out[pl.Tensor[[2, 8, 16], pl.FP32]]):
        buf = pld.alloc_window_buffer([16, 16], dtype=pl.FP32)
        sig = pld.alloc_window_buffer([8, 8], dtype=pl.INT32)
        data = pld.window(buf, [16, 16], dtype=pl.FP32)
        signal = pld.window(sig, [8, 8], dtype=pl.INT32)
        for r in pl.range(pld.world_size()):
            child(x[r], out[r], data, signal, r, device=r)
        return out
    """


def test_remote_store_and_load(kernel) -> None:
    file = kernel(REMOTE)
    for schedule in SCHEDULES:
        result = run(file, schedule, world=2, x=X[:2])
        assert torch.equal(result.outputs["out"], X[:2].flip(0) + 1)
        assert result.findings == []


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ("remote_store(t, data, other", "remote_store(t, data, 2", "ranks 0..1"),
        ("remote_store(t, data, other, [8, 0])", "remote_store(t, data, other, [12, 0])", "out of bounds"),
        ("remote_store(t, data, other, [8, 0])", "remote_store(t, out, other, [8, 0])", "needs a window"),
        ("device=r", "device=2", "device=2"),
    ],
)
def test_rejects_a_wrong_place(kernel, before: str, after: str, reason: str) -> None:
    with pytest.raises(KernelFault, match=reason):
        run(kernel(REMOTE.replace(before, after)), world=2, x=X[:2])


def test_undefined_memory_is_named_on_every_rank(kernel) -> None:
    """`out` is born on the host; rank 3 reads it before anybody has written it."""
    early = "if rank == 3:\n                pl.write(out, [0, 0], pl.read(out, [2, 5]))"
    with pytest.raises(KernelFault, match=r"GG502.*never-written element of out"):
        run(ring(kernel, notify=f"{early}\n            {NOTIFY}"), x=X)


def test_a_finding_of_several_ranks_is_reported_once(kernel) -> None:
    file = kernel(RING.format(notify=NOTIFY, wait="pass"))
    lines = [(f.code, f.line) for f in run(file, x=X).findings]
    assert lines
    assert len(lines) == len(set(lines))


def test_host_programs_floor(kernel) -> None:
    floored = "device=r - (0 - 1) // 2 - 1)"
    source = RING.format(notify=NOTIFY, wait=WAIT).replace("device=r)", floored)
    assert torch.equal(run(kernel(source), x=X).outputs["out"], X.roll(1, 0))
