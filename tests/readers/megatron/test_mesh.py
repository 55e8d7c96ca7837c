"""Which ranks have files, worked out by hand from megatron-core's order of ranks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.readers.megatron.file import RankFile
from ckpt_tool.readers.megatron.mesh import Rank, Sizes, infer_parallel_sizes, make_grid
from ckpt_tool.tensors.checksums import FileSums

EMPTY = RankFile([], [], {}, FileSums(()))


def files(ranks, **said):
    return dict.fromkeys(ranks, RankFile([], [], said, FileSums(())))


@pytest.mark.parametrize(
    ("tp", "ep", "expert_tp", "expected"),
    [
        (1, 1, 1, {(0, 0)}),
        (2, 1, 1, {(0, 0), (1, 0)}),
        (1, 3, 1, {(0, 0), (0, 1), (0, 2)}),
        # Two ranks are enough for either, so the grid is only a diagonal.
        (2, 2, 1, {(0, 0), (1, 1)}),
        (2, 2, 2, {(0, 0), (1, 0), (0, 1), (1, 1)}),
        (4, 2, 1, {(0, 0), (1, 1), (2, 0), (3, 1)}),
        (4, 2, 2, {(0, 0), (1, 0), (2, 1), (3, 1)}),
        (2, 4, 1, {(0, 0), (1, 1), (0, 2), (1, 3)}),
        (2, 3, 1, {(0, 0), (1, 1), (0, 2), (1, 0), (0, 1), (1, 2)}),
    ],
)
def test_the_grid_of_ranks(tp, ep, expert_tp, expected):
    assert make_grid(tp, ep, expert_tp) == expected


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 4), st.integers(1, 3))
def test_every_share_is_in_the_grid_once(expert_tp, ep, factor, pp):
    tp = expert_tp * factor
    sizes = Sizes(tp, pp, ep, expert_tp)
    ranks = sizes.ranks()
    assert len(ranks) == len(set(ranks)) == sizes.count
    for stage in range(pp):
        here = [rank for rank in ranks if rank.pp == stage]
        assert {rank.tp for rank in here} == set(range(tp))
        shares = {(rank.tp % expert_tp, rank.ep) for rank in here}
        assert shares == {(t, e) for t in range(expert_tp) for e in range(ep)}


@given(st.integers(1, 4), st.integers(2, 4), st.integers(1, 3), st.integers(1, 2))
def test_the_grid_tells_how_experts_are_cut(expert_tp, ep, factor, pp):
    """As far as it can: no two sizes are both possible without experts to compare."""
    tp = expert_tp * factor
    ranks = Sizes(tp, pp, ep, expert_tp).ranks()
    found = infer_parallel_sizes(ranks, dict.fromkeys(ranks, EMPTY))
    assert (found.tp, found.pp, found.ep) == (tp, pp, ep)
    assert make_grid(tp, ep, found.expert_tp) == make_grid(tp, ep, expert_tp)


def test_what_the_arguments_say_counts_more_than_the_files_there_are():
    ranks = [Rank(0, 0, 0), Rank(1, 0, 0)]
    found = infer_parallel_sizes(ranks, files(ranks, tp=4, pp=2, ep=1, expert_tp=2))
    assert found == Sizes(4, 2, 1, 2)
    assert found.count == 8


def test_a_cut_of_experts_that_cannot_be_is_not_believed():
    ranks = [Rank(0, 0, 0), Rank(1, 0, 0)]
    assert infer_parallel_sizes(ranks, files(ranks, expert_tp=3)).expert_tp in (1, 2)


def test_millions_of_ranks_are_only_counted():
    ranks = [Rank(9999, 9999, 9999)]
    assert infer_parallel_sizes(ranks, files(ranks)).count == 10_000**3
