"""What `verify_checkpoint` can be told, and its own example."""

import doctest
from pathlib import Path

import pytest

from ckpt_tool import VerifyOptions, verify_checkpoint
from ckpt_tool.common.errors import UsageError
from ckpt_tool.operations import verify as operation
from tests.support.teams import Told
from tests.support.verifying import Tensors, planted, verify

UP = "model.layers.0.mlp.up_proj.weight"
NORM = "model.norm.weight"


@pytest.fixture
def case(checkpoints: dict[str, Path]) -> Path:
    return checkpoints["fsdp2_w2"]


def test_the_example_is_true() -> None:
    found = doctest.testmod(operation)
    assert (found.failed, found.attempted > 5) == (0, True)


def test_no_number_of_threads_is_the_default(case: Path) -> None:
    for jobs in (0, 1, 3):
        assert verify(case, case / "reference", jobs=jobs).equal
    assert VerifyOptions().jobs == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [(VerifyOptions(jobs=-1), "^`jobs=-1`"), (VerifyOptions(explained=-1), "^explained -1")],
)
def test_options_that_make_no_sense_are_refused(
    case: Path, options: VerifyOptions, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        verify_checkpoint(case, case / "reference", options)


def test_only_the_worst_are_explained_and_progress_says_so(case: Path, tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        tensors[UP].mul_(1.5)
        tensors[NORM].mul_(-3)

    other = planted(case / "reference", tmp_path / "other", change)
    expected = {UP: "scaled by 1.5", NORM: "scaled by -3"}
    for explained, hints in ((None, expected), (1, expected | {UP: ""}), (0, {UP: "", NORM: ""})):
        told = Told()
        found = verify_checkpoint(other, case, VerifyOptions(explained=explained), told)
        assert {each.name: each.hint for each in found.mismatched} == hints
        assert [each.name for each in found.mismatched] == [
            n for n in found.right.tensors if n in hints
        ]
        assert ("explaining" in told.totals) == (explained != 0)
        assert told.done.get("explaining") == told.totals.get("explaining")
