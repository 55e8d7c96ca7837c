"""Orders of rows, named and checked against torch doing the same to row numbers."""

import re

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ckpt_tool.compare.heads import Heads
from ckpt_tool.compare.rows import explain_order
from tests.support.measuring import labels

PLAIN = "rows permuted: the same rows in another order"
SWAPPED = "gate and up halves swapped"
MIXED = "gate and up rows interleaved, those of the reference are not"
UNMIXED = "gate and up rows not interleaved, those of the reference are"


def fused(plain: torch.Tensor, heads: Heads, groups: int) -> torch.Tensor:
    """Rows of Q, K and V one after the other, as `groups` groups of all three."""
    sizes = [count * heads.dim for count in (heads.query, heads.key_value, heads.key_value)]
    return torch.cat([part.view(groups, -1) for part in plain.split(sizes)], 1).flatten()


def applied(name: str, rows: int, heads: Heads | None) -> torch.Tensor:
    """Which rows of the reference an order's name says lie where, in torch."""
    order = torch.arange(rows)
    if name == SWAPPED:
        return order.roll(rows // 2)
    if name in (MIXED, UNMIXED):
        return order.view((2, -1) if name == MIXED else (-1, 2)).T.flatten()
    if match := re.fullmatch(r"rotary halves of each head \(head_dim (\d+)\) (.*)", name):
        per_head = order.view(-1, int(match[1]))
        shape = {"interleaved": (2, -1), "no longer interleaved": (-1, 2)}[match[2]]
        return torch.stack([head.view(shape).T.flatten() for head in per_head]).flatten()
    regrouped = r"heads of another grouping \(head_dim (\d+), (\d+) heads as (\d+) groups\)"
    if match := re.fullmatch(regrouped, name):
        dim, count, groups = map(int, match.groups())
        return order.view(groups, count // groups, dim).transpose(0, 1).flatten()
    regrouped = r"Q/K/V interleaved by (\d+) query groups, the reference by (\d+)"
    match = re.fullmatch(regrouped, name)
    assert match, name
    assert heads is not None
    mine, theirs = (fused(order, heads, int(groups)) for groups in match.groups())
    return theirs.argsort()[mine]


def check_name(name: str, order: torch.Tensor, heads: Heads | None, *, stacked: bool) -> None:
    """That the name is true of rows in this order."""
    rows = len(order)
    if stacked and "entries of dimension 0" in name:
        assert name.startswith(f"the {rows} entries")
    elif match := re.fullmatch(r"rows permuted in blocks of (\d+): .*", name):
        blocks = order.view(-1, int(match[1]))
        assert (blocks[:, 0] % int(match[1]) == 0).all()
        assert (blocks.diff(dim=1) == 1).all()
    elif name != PLAIN:
        assert applied(name, rows, heads).tolist() == order.tolist()


def explained(
    order: torch.Tensor,
    heads: Heads | None = None,
    *,
    stacked: bool = False,
    attention: bool | None = None,
) -> str:
    right = labels(torch.arange(len(order)))
    return explain_order(labels(order), right, heads, stacked=stacked, attention=attention)


@pytest.mark.parametrize(
    ("name", "rows", "heads"),
    [
        (SWAPPED, 6, None),
        (SWAPPED, 96, Heads(4, 2, 16)),
        (MIXED, 10, None),
        (UNMIXED, 10, None),
        (MIXED, 128, None),
        ("rotary halves of each head (head_dim 8) interleaved", 32, Heads(4, 2, 8)),
        ("rotary halves of each head (head_dim 8) no longer interleaved", 32, Heads(4, 2, 8)),
        ("rotary halves of each head (head_dim 16) interleaved", 96, None),
        ("rotary halves of each head (head_dim 64) no longer interleaved", 192, None),
        ("rotary halves of each head (head_dim 128) interleaved", 256, Heads(2, 1, 128)),
        ("heads of another grouping (head_dim 4, 6 heads as 2 groups)", 24, Heads(6, 3, 4)),
        ("heads of another grouping (head_dim 4, 6 heads as 3 groups)", 24, Heads(6, 3, 4)),
        ("heads of another grouping (head_dim 16, 8 heads as 4 groups)", 128, None),
        ("Q/K/V interleaved by 1 query groups, the reference by 3", 48, Heads(6, 3, 4)),
        ("Q/K/V interleaved by 3 query groups, the reference by 1", 48, Heads(6, 3, 4)),
        ("Q/K/V interleaved by 1 query groups, the reference by 4", 48, Heads(4, 4, 4)),
        ("Q/K/V interleaved by 1 query groups, the reference by 4", 96, Heads(8, 2, 8)),
        ("Q/K/V interleaved by 2 query groups, the reference by 4", 96, Heads(8, 4, 6)),
        ("Q/K/V interleaved by 8 query groups, the reference by 2", 96, Heads(8, 2, 8)),
    ],
)
def test_a_known_order_is_named(name, rows, heads):
    assert explained(applied(name, rows, heads), heads) == name


def test_known_orders_by_hand():
    assert explained(torch.tensor([3, 4, 5, 0, 1, 2])) == SWAPPED
    assert explained(torch.tensor([0, 3, 1, 4, 2, 5])) == MIXED
    assert explained(torch.tensor([0, 2, 4, 1, 3, 5])) == UNMIXED
    heads = Heads(2, 1, 4)
    name = "rotary halves of each head (head_dim 4) interleaved"
    assert explained(torch.tensor([0, 2, 1, 3, 4, 6, 5, 7]), heads) == name
    name = "Q/K/V interleaved by 2 query groups, the reference by 1"
    heads = Heads(2, 2, 1 + 1)  # Q: rows 0 to 3, K: 4 to 7, V: 8 to 11
    order = torch.tensor([0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11])
    assert explained(order, heads) == name


def test_whole_heads_in_another_order():
    order = torch.arange(80).view(5, 16)[[3, 0, 1, 4, 2]].flatten()
    assert explained(order) == "rows permuted in blocks of 16: whole heads are in another order"
    order[[0, 1]] = order[[1, 0]]
    assert explained(order) == PLAIN


def test_experts_in_another_order():
    name = "the 5 entries of dimension 0 are permuted (expert order changed)"
    assert explained(torch.tensor([1, 3, 0, 2, 4]), stacked=True) == name
    assert explained(torch.tensor([1, 3, 0, 2, 4])) == PLAIN


@pytest.mark.parametrize("order", [[2, 3, 0, 1], [0, 2, 1, 3], [1, 0]])
def test_experts_are_not_gate_and_up(order):
    assert "entries of dimension 0" in explained(torch.tensor(order), stacked=True)


def test_the_rows_of_one_head_are_rotary_not_gate_and_up():
    """A key projection with a single head, as multi-query attention has."""
    heads = Heads(8, 1, 32)
    name = "rotary halves of each head (head_dim 32) interleaved"
    assert explained(applied(name, 32, heads), heads) == name


def test_rows_of_heads_are_not_gate_and_up_nor_the_other_way_around():
    for name in (SWAPPED, MIXED, UNMIXED):
        order = applied(name, 12, None)
        assert explained(order, attention=False) == name
        assert explained(order, attention=True) == PLAIN
    heads = Heads(6, 3, 4)
    for name in (
        "rotary halves of each head (head_dim 4) interleaved",
        "heads of another grouping (head_dim 4, 6 heads as 3 groups)",
        "Q/K/V interleaved by 3 query groups, the reference by 1",
    ):
        order = applied(name, 48 if "/" in name else 24, heads)
        assert explained(order, heads, attention=True) == name
        assert explained(order, heads, attention=False) == PLAIN


def test_heads_of_one_row():
    assert explained(torch.tensor([1, 0, 2]), Heads(3, 3, 1)) != ""


def test_what_is_no_order_of_the_same_rows_has_no_name():
    rows = labels(torch.arange(6))
    assert explain_order(rows, rows, None, stacked=False) == ""
    assert explain_order([*rows[3:], *rows[:2], b"new"], rows, None, stacked=False) == ""
    assert explain_order(rows[:5], rows, None, stacked=False) == ""
    one = [b"a", b"a", b"b"]
    assert explain_order(one, [b"a", b"b", b"b"], None, stacked=False) == ""
    assert explain_order([b"b", b"a", b"a"], one, None, stacked=False) == PLAIN


@st.composite
def head_counts(draw: st.DrawFn) -> Heads:
    key_value = draw(st.integers(1, 3))
    return Heads(key_value * draw(st.integers(1, 3)), key_value, draw(st.sampled_from([2, 4, 6])))


@pytest.mark.slow
@given(st.data(), st.none() | head_counts(), st.booleans(), st.sampled_from([None, True, False]))
@settings(max_examples=150)
def test_a_permutation_is_recognised_and_named_nothing_that_it_is_not(
    data, heads, stacked, attention
):
    sizes = [2, 3, 4, 5, 6, 8, 16, 32, 48]
    if heads is not None:
        sizes.append((heads.query + 2 * heads.key_value) * heads.dim)
    rows = data.draw(st.sampled_from(sizes))
    order = torch.tensor(data.draw(st.permutations(range(rows))))
    name = explained(order, heads, stacked=stacked, attention=attention)
    assert (name == "") == (order.tolist() == list(range(rows)))
    if name:
        check_name(name, order, heads, stacked=stacked)


@pytest.mark.slow
@given(st.data(), head_counts())
@settings(max_examples=80)
def test_a_known_order_has_a_name_that_is_true(data, heads):
    rows = data.draw(st.sampled_from([heads.query, heads.query + 2 * heads.key_value])) * heads.dim
    count, dim = rows // heads.dim, heads.dim
    rotary = f"rotary halves of each head (head_dim {dim})"
    names = [SWAPPED, MIXED, UNMIXED, f"{rotary} interleaved", f"{rotary} no longer interleaved"]
    grouping = f"heads of another grouping (head_dim {dim}, {count} heads as"
    names += [f"{grouping} {groups} groups)" for groups in range(2, count) if not count % groups]
    if rows != heads.query * dim:
        grouped = f"query groups, the reference by {heads.key_value}"
        names += [f"Q/K/V interleaved by 1 {grouped}"] if heads.key_value > 1 else []
    order = applied(data.draw(st.sampled_from(names)), rows, heads)
    assume(order.tolist() != list(range(rows)))
    found = explained(order, heads)
    assert not found.startswith("rows permuted")
    check_name(found, order, heads, stacked=False)
    one, other = (data.draw(st.integers(0, rows - 1)) for _ in range(2))
    order[[one, other]] = order[[other, one]]  # two rows off: another name, or the same rows
    check_name(explained(order, heads) or PLAIN, order, heads, stacked=False)
