"""Every operator on a few lines of source: what it makes of them, and what it leaves alone."""

from __future__ import annotations

import ast

import pytest

from harness.errors import UsageError
from harness.mutate.mutants import OPERATORS, mutants_of
from harness.mutate.source import Source

NAMES = {"EPS": 1e-6, "QMAX": 127.0, "GAIN": 1.5, "N": 4}

EXAMPLES = {
    "int8_range": ("v = pl.mul(a, QMAX)", {"v = pl.mul(a, 126.0)", "v = pl.mul(a, 128.0)"}),
    "rotary_pair": (
        "v = pl.gather(a, mask_pattern=pl.tile.MaskPattern.P0101)",
        {"v = pl.gather(a, mask_pattern=pl.tile.MaskPattern.P1010)"},
    ),
    "top_k": ("v = pl.sort32(a, ids)", {"v = pl.sort32(pl.neg(a), ids)"}),
    "wrong_expert": ("n = pl.read(table, [expert, 0])", {"n = pl.read(table, [(expert + 1 - expert % 2 * 2), 0])"}),
    "wrong_rank": ("pld.system.wait(done, [peer, 0], 1)", {"pld.system.wait(done, [(peer + 1 - peer % 2 * 2), 0], 1)"}),
    "missing_signal": ("pld.system.notify(done, 1, [0, 0], 1)", {"pass"}),
    "missing_dep": (
        "pl.submit(a, deps=[one, two])",
        {"pl.submit(a, deps=[two])", "pl.submit(a, deps=[one])"},
    ),
    "cast_mode": (
        'v = pl.cast(a, pl.BF16, mode="rint")',
        {f'v = pl.cast(a, pl.BF16, mode="{mode}")' for mode in ("round", "trunc", "floor", "ceil", "odd")},
    ),
    "dropped_rounding": (
        "v = pl.cast(pl.cast(a, pl.BF16), pl.FP32)",
        {"v = a", "v = pl.cast(a, pl.FP32)"},
    ),
    "added_rounding": ("v = pl.recip(a)", {'v = pl.cast(pl.cast(pl.recip(a), pl.BF16, mode="rint"), pl.FP32)'}),
    "epsilon": (
        "v = pl.recip(pl.add(pl.sqrt(a), EPS))",
        {
            "v = pl.recip(pl.add(pl.sqrt(a), 0.0))",
            "v = pl.add(pl.recip(pl.sqrt(a)), EPS)",
            "v = pl.recip(pl.sqrt(pl.add(a, EPS)))",
        },
    ),
    "constant_ulp": ("v = pl.mul(a, 1.5)", {"v = pl.mul(a, 1.5078125)", "v = pl.mul(a, 1.4921875)"}),
    "scale": ("v = pl.mul(a, b)", {"v = a", "v = b", "v = pl.mul(pl.mul(a, b), b)"}),
    "arithmetic": ("v = pl.sub(a, b)", {"v = pl.add(a, b)", "v = a", "v = b"}),
    "swapped_operands": ("v = pl.div(a, b)", {"v = pl.div(b, a)"}),
    "axis": ("v = pl.row_sum(a)", {"v = pl.col_sum(a)"}),
    "loop_first": ("for i in pl.range(N):\n        pass", {"for i in pl.range(1, N):\n        pass"}),
    "loop_last": (
        "for i in pl.range(1, N):\n        pass",
        {"for i in pl.range(1, N - 1):\n        pass", "for i in pl.range(1, N + 1):\n        pass"},
    ),
    "block": (
        "for b in pl.spmd(N):\n        pl.write(y, [b], 0)",
        {
            "for b in pl.spmd(N - 1):\n        pl.write(y, [b], 0)",
            "for b in pl.spmd(N - 1):\n        pl.write(y, [(b + 1)], 0)",
        },
    ),
    "comparison": ("v = a < b", {"v = a <= b"}),
    "missing_guard": (
        "if a < b:\n        pass",
        {"if True:\n        pass", "if False:\n        pass"},
    ),
    "missing_statement": ("pl.write(y, [0], 1.0)", {"pass"}),
    "missing_token": (
        "y[t : t + 8, 0:W] = v",
        {"y[t : t + 8, 0:W] = pl.set_validshape(v, 8 - 1, W)"},
    ),
    "stale_tile": (
        "for i in pl.range(N):\n        k = i * 8\n        v = x[k : k + 8, 0:W]",
        {"for i in pl.range(N):\n        k = i * 8\n        v = x[0 : 0 + 8, 0:W]"},
    ),
    "index": ("v = pl.read(x, [t])", {"v = pl.read(x, [t + 1])", "v = pl.read(x, [t - 1])"}),
    "bound": (
        "v = pl.set_validshape(a, rows)",
        {"v = pl.set_validshape(a, rows - 1)", "v = pl.set_validshape(a, rows + 1)"},
    ),
}


def program(body: str, name: str = "f") -> str:
    return f"@pl.jit\ndef {name}():\n    {body}\n"


@pytest.mark.parametrize("operator", [name for name in OPERATORS if name != "rotary_sign"])
def test_makes_exactly_these(operator: str) -> None:
    before, after = EXAMPLES[operator]
    found = mutants_of("op", program(before), "k.py", NAMES, [operator])
    assert {mutant.text for mutant in found} == {program(text) for text in after}
    assert len({mutant.id for mutant in found}) == len(found)


def test_signs_are_only_those_of_rotations() -> None:
    body = "v = pl.sub(a, b)"
    assert not mutants_of("op", program(body), "k.py", NAMES, ["rotary_sign"])
    (mutant,) = mutants_of("op", program(body, "rotate"), "k.py", NAMES, ["rotary_sign"])
    assert "pl.add(a, b)" in mutant.text


def test_a_cast_before_is_found_through_a_name() -> None:
    body = "r = pl.cast(a, pl.BF16)\n    v = pl.cast(r, pl.FP32)"
    found = {m.text for m in mutants_of("op", program(body), "k.py", NAMES, ["dropped_rounding"])}
    assert program(body.replace("pl.cast(r, pl.FP32)", "a")) in found


def test_the_first_block_of_a_with_dispatch() -> None:
    body = "with pl.spmd(N):\n        b = pl.tile.get_block_idx()"
    found = {m.text for m in mutants_of("op", program(body), "k.py", NAMES, ["block"])}
    assert program("with pl.spmd(N - 1):\n        b = (pl.tile.get_block_idx() + 1)") in found


def test_a_named_constant_moves_by_a_factor() -> None:
    found = {m.text for m in mutants_of("op", program("v = pl.mul(a, GAIN)"), "k.py", NAMES, ["constant_ulp"])}
    factors = {eval(text.split("GAIN * ")[1].split(")")[0]) for text in found}
    assert factors == {1 + 2**-7 / 1.5, 1 - 2**-7 / 1.5}


@pytest.mark.parametrize(
    ("operator", "body"),
    [
        ("cast_mode", "v = pl.cast(a, pl.FP32)"),
        ("dropped_rounding", "v = pl.cast(a, pl.FP32)"),
        ("constant_ulp", "v = pl.mul(a, N)"),
        ("epsilon", "v = pl.add(a, GAIN)"),
        ("int8_range", "v = pl.mul(a, GAIN)"),
        ("missing_statement", "v = pl.add(a, b)"),
        ("missing_token", "y[t : t + 1, 0:W] = v"),
        ("stale_tile", "x[t : t + 8, 0:W] = v"),
        ("wrong_expert", "n = pl.read(table, [experience, 0])"),
    ],
)
def test_leaves_alone(operator: str, body: str) -> None:
    assert not mutants_of("op", program(body), "k.py", NAMES, [operator])


def test_plain_functions_and_docstrings_are_left_alone() -> None:
    text = 'def host():\n    """pl.add(a, b)"""\n    return pl.add(a, b)\n'
    assert not mutants_of("op", text, "k.py", NAMES)


def test_ids_are_stable_and_all_mutants_are_different_python() -> None:
    body = 'v = pl.mul(pl.add(a, EPS), QMAX)\n    y[0:8, 0:W] = pl.cast(v, pl.BF16, mode="rint")'
    first, second = (mutants_of("op", program(body), "k.py", NAMES) for _ in range(2))
    assert first == second
    assert len(first) > 20
    assert len({mutant.text for mutant in first}) == len({mutant.id for mutant in first}) == len(first)
    for mutant in first:
        ast.parse(mutant.text)
        assert mutant.diff(program(body)).count("\n+") == 2  # the header and one line


def test_operations_that_begin_at_one_place_have_ids_of_their_own() -> None:
    found = mutants_of("op", program("n = (a + b - 1) // b"), "k.py", NAMES, ["arithmetic"])
    assert len(found) == 2
    assert len({mutant.id for mutant in found}) == len(found)


def test_columns_count_characters() -> None:
    text = program('é = pl.cast(ü, pl.BF16, mode="rint")')
    mutant = mutants_of("op", text, "k.py", NAMES, ["cast_mode"])[0]
    assert text.splitlines()[mutant.line - 1][mutant.column - 1 :].startswith("pl.cast")
    assert mutant.text == text.replace("rint", "round")


def test_unknown_operator_is_refused() -> None:
    with pytest.raises(UsageError, match=r"unknown operator 'cast_modes'; did you mean cast_mode\?"):
        mutants_of("op", program("pass"), "k.py", NAMES, ["cast_modes"])


def test_every_operator_says_what_it_does() -> None:
    assert set(EXAMPLES) | {"rotary_sign"} == set(OPERATORS)
    assert all(operator.meaning.endswith(".") for operator in OPERATORS.values())


def test_edits_of_one_source_do_not_change_it() -> None:
    source = Source(program("v = pl.add(a, b)"), NAMES)
    before = source.edited(())
    call = next(node for _, node in source.nodes() if isinstance(node, ast.Call))
    assert "pl.neg(c)" in source.edited([source.replace(call, "pl.neg(c)")])
    assert source.edited(()) == before
