"""Loops, where scopes may stand, lanes and task ids (pypto_dsl.md 2)."""

from __future__ import annotations

import pytest
import torch
from language_testing import IN, NAMES, SCHEDULES, X, outputs

from harness.devices.base import KernelFault, KernelRefused

# -- loops (2.1) ------------------------------------------------------------------------------------------------

WHILE = """
    @pl.jit
    def kernel(x: pl.Tensor[[8, 16], pl.FP32], out: pl.Out[pl.Tensor[[8, 16], pl.FP32]]):
        with pl.at(level=pl.Level.CORE_GROUP):
            t = x[:, :]
            for n, acc in pl.while_(init_values=(0, t)):
                {cond}
                if n > 1:
                    step = pl.yield_(pl.add(acc, 1.0))
                else:
                    step = pl.yield_(pl.add(acc, 10.0))
                count, last = pl.yield_(n + 1, step)
            out[:, :] = pl.add(last, pl.cast(count, pl.FP32))
        return out
    """


def test_accepts_while_with_carried_values_and_yields_in_branches(kernel) -> None:
    assert torch.equal(outputs(kernel(WHILE.format(cond="pl.cond(n < 4)")), x=X), X + 22 + 4)


def test_rejects_a_while_without_its_condition(kernel) -> None:
    with pytest.raises(KernelRefused, match=r"pl.cond"):
        kernel(WHILE.format(cond="pass")).load()


@pytest.mark.parametrize(
    ("loop", "reason"),
    [
        ("pl.range(4, 0, -1)", "never count down"),
        ("pl.range(0, 4, 0)", "never count down"),
        ("pl.pipeline(4)", "stage"),
        ("pl.pipeline(4, stage=0)", "stage"),
        ("pl.unroll(0, 4, 0)", "step 0"),
    ],
)
def test_rejects_loops(kernel, loop: str, reason: str) -> None:
    """Trap 38."""
    with pytest.raises(KernelFault, match=reason):
        kernel(NAMES.format(body=f"for i in {loop}:\n{IN}    pass")).run(x=X)


@pytest.mark.parametrize(
    ("loop", "expected"),
    [
        ("pl.range(4, 2)", 0),
        ("pl.range(3)", 3),
        ("pl.range(1, 8, 3)", 12),
        ("pl.unroll(3, 0, -1)", 6),
        ("pl.parallel(3)", 3),
    ],
)
def test_accepts_loops(kernel, loop: str, expected: int) -> None:
    """The sum of the loop variable."""
    body = f"s = 0\n{IN}for i in {loop}:\n{IN}    s = s + i\n{IN}t = pl.add(t, pl.cast(s, pl.FP32))"
    assert torch.equal(outputs(kernel(NAMES.format(body=body)), x=X), X + expected)


# -- where scopes may stand (2.2, 2.4) --------------------------------------------------------------------------------

SCOPES = """
    @pl.jit(auto_scope={auto})
    def kernel(x: pl.Tensor[[8, 16], pl.FP32], out: pl.Out[pl.Tensor[[8, 16], pl.FP32]]):
        {body}
        return out
    """
STORE = "out[:, :] = x[:, :]"
AT = "with pl.at(level=pl.Level.CORE_GROUP):"


def nested(*heads: str, body: str = STORE) -> str:
    lines = [" " * (8 + 4 * depth) + head for depth, head in enumerate((*heads, body))]
    return "\n".join(lines).strip()


@pytest.mark.parametrize(
    ("auto", "heads"),
    [
        (False, ("with pl.scope():", AT)),
        (False, ("with pl.scope():", "with pl.scope():", AT)),
        (False, ("with pl.scope():", "with pl.manual_scope():", AT)),
        (True, ("with pl.scope(mode=pl.ScopeMode.MANUAL):", AT)),
        (True, ("with pl.cluster():", AT)),
        (True, ("with pl.cluster():", "for i in pl.spmd(1):")),
    ],
)
def test_accepts_scopes(kernel, auto: bool, heads: tuple[str, ...]) -> None:
    assert torch.equal(outputs(kernel(SCOPES.format(auto=auto, body=nested(*heads))), x=X), X)


@pytest.mark.parametrize(
    ("auto", "heads", "reason"),
    [
        (True, ("with pl.scope():", AT), "auto_scope=False"),
        (False, ("with pl.manual_scope():", "with pl.scope():", AT), "inside a manual scope"),
        (False, ("with pl.manual_scope():", "with pl.manual_scope():", AT), "inside a manual scope"),
        (False, (AT, "with pl.scope():"), "not inside a compute region"),
        (True, (AT, AT), "do not nest"),
        (True, (AT, "for i in pl.spmd(1):"), "do not nest"),
        (True, ("for i in pl.spmd(1):", AT), "do not nest"),
        (True, ("for i in pl.spmd(1):", "for j in pl.spmd(1):"), "do not nest"),
        (True, ("with pl.cluster():", "with pl.spmd(1) as tid:"), "reads pl.tile.get_block_idx"),
        (True, ("with pl.at():",), "needs a level"),
        (True, ("for lane in pl.split_aiv(2, mode=pl.SplitMode.NONE):",), "inside a compute region"),
        (True, (AT, "for lane in pl.split_aiv(3):"), "literal 2"),
        (True, ("for i in pl.spmd(-1):",), "-1 blocks"),
    ],
)
def test_rejects_scopes(kernel, auto: bool, heads: tuple[str, ...], reason: str) -> None:
    with pytest.raises((KernelRefused, KernelFault), match=reason):
        kernel(SCOPES.format(auto=auto, body=nested(*heads))).run(x=X)


def test_rejects_a_captured_dispatch_in_a_cluster(kernel) -> None:
    body = nested("with pl.cluster():", "with pl.spmd(1) as tid:", body="i = pl.tile.get_block_idx()")
    with pytest.raises(KernelRefused, match=r"inside pl.cluster"):
        kernel(SCOPES.format(auto=True, body=body)).load()


def test_a_synchronous_start_needs_a_core_per_block(kernel) -> None:
    body = nested("for i in pl.spmd(25, sync_start=True):", body="j = i")
    file = kernel(SCOPES.format(auto=True, body=body))
    assert [f.code for f in file.run(x=X).findings] == ["GG311"]


# -- task ids (2.6) ---------------------------------------------------------------------------------------------------

IDS = """
    @pl.jit
    def kernel(x: pl.Tensor[[8, 32], pl.FP32], out: pl.Out[pl.Tensor[[8, 32], pl.FP32]]):
        tmp = pl.create_tensor([8, 32], dtype=pl.FP32)
        with pl.manual_scope():
            {loop}
                with pl.at(level=pl.Level.CORE_GROUP) as tid:
                    tmp[:, i * 8 : i * 8 + 8] = pl.add(x[:, i * 8 : i * 8 + 8], 1.0)
                {end}
            with pl.at(level=pl.Level.CORE_GROUP, deps=[{deps}]):
                out[:, :] = tmp[:, :]
        return out
    """
WIDE = torch.arange(256.0).reshape(8, 32)


@pytest.mark.parametrize(
    ("loop", "end", "deps"),
    [
        ("for i in pl.parallel(4):", "pass", "tid"),
        ("tid = None\n            for i in pl.parallel(4):", "pass", "tid, None"),
        ("for i, (all_ids,) in pl.parallel(4, init_values=(None,)):", "done = pl.yield_(tid)", "done"),
    ],
)
def test_a_carried_task_id_stands_for_all_iterations(kernel, loop: str, end: str, deps: str) -> None:
    file = kernel(IDS.format(loop=loop, end=end, deps=deps))
    assert torch.equal(outputs(file, x=WIDE), WIDE + 1)


def test_a_task_id_of_a_sequential_loop_is_the_last_one(kernel) -> None:
    file = kernel(IDS.format(loop="for i in pl.range(4):", end="pass", deps="tid"))
    assert all({f.code for f in file.run(x=WIDE, schedule=s).findings} & {"GG402", "GG403"} for s in SCHEDULES)


@pytest.mark.parametrize("deps", ["x", "tmp", "3"])
def test_rejects_other_dependencies(kernel, deps: str) -> None:
    with pytest.raises(KernelFault, match="task ids"):
        kernel(IDS.format(loop="for i in pl.range(4):", end="pass", deps=deps)).run(x=WIDE)


# -- lanes (2.5) -----------------------------------------------------------------------------------------------------

LANES = """
    @pl.jit
    def kernel(a: pl.Tensor[[32, 32], pl.FP32], b: pl.Tensor[[32, 32], pl.FP32],
               out: pl.Out[pl.Tensor[[32, 32], pl.FP32]]):
        with pl.at(level=pl.Level.CORE_GROUP):
            acc = pl.matmul(a[:, :], b[:, :], out_dtype=pl.FP32)
            for lane in pl.split_aiv(2, mode=pl.SplitMode.{mode}):
                half = pl.mul(pl.aiv_shard(acc), 0.5)
                whole = pl.aic_gather(half)
                acc = pl.matmul_acc(acc, whole, b[:, :])
                {store}
        return out
    """
STORES = {
    "UP_DOWN": "out[lane * 16 : lane * 16 + 16, :] = pl.add(pl.aiv_shard(acc), 1.0)",
    "LEFT_RIGHT": "out[:, lane * 16 : lane * 16 + 16] = pl.add(pl.aiv_shard(acc), 1.0)",
}
A = torch.randint(-3, 4, (32, 32), generator=torch.Generator().manual_seed(1)).float()
B = torch.randint(-3, 4, (32, 32), generator=torch.Generator().manual_seed(2)).float()


@pytest.mark.parametrize("mode", STORES)
def test_lanes_share_the_work(kernel, mode: str) -> None:
    """Every lane has half of the rows or columns; the cube multiplies and accumulates once."""
    file = kernel(LANES.format(mode=mode, store=STORES[mode]))
    product = A @ B
    assert torch.equal(outputs(file, a=A, b=B), product + (product / 2) @ B + 1)


@pytest.mark.parametrize("mode", STORES)
def test_the_cube_stores_once(kernel, mode: str) -> None:
    file = kernel(LANES.format(mode=mode, store="out[:, :] = acc"))
    product = A @ B
    assert torch.equal(outputs(file, a=A, b=B), product + (product / 2) @ B)


def test_shards_outside_a_split_are_refused_and_under_none_recorded(kernel) -> None:
    with pytest.raises(KernelFault, match=r"inside pl\.split_aiv"):
        kernel(NAMES.format(body="t = pl.aiv_shard(t)")).run(x=X)
    body = f"for lane in pl.split_aiv(2):\n{IN}    u = pl.aiv_shard(t)"
    assert {f.code for f in kernel(NAMES.format(body=body)).run(x=X).findings} == {"GG306"}


def test_an_odd_extent_gives_lane_0_one_more(kernel) -> None:
    file = kernel("""
        @pl.jit
        def kernel(x: pl.Tensor[[5, 8], pl.FP32], out: pl.Out[pl.Tensor[[8, 8], pl.INT32]]):
            with pl.at(level=pl.Level.CORE_GROUP):
                t = x[:, :]
                for lane in pl.split_aiv(2, mode=pl.SplitMode.UP_DOWN):
                    half = pl.aiv_shard(t)
                    pl.write(out, [0, lane], pl.cast(half.shape[0], pl.INT32))
        """)
    assert file.run(x=torch.ones(5, 8)).outputs["out"][0, :2].tolist() == [3, 2]


def test_lanes_that_do_not_both_gather_dead_lock(kernel) -> None:
    body = "for lane in pl.split_aiv(2, mode=pl.SplitMode.UP_DOWN):\n"
    body += f"{IN}    if lane == 0:\n{IN}        u = pl.aic_gather(t)"
    with pytest.raises(KernelFault, match=r"GG405.*other lane"):
        kernel(NAMES.format(body=body)).run(x=X)
