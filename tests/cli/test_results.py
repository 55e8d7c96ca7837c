"""The sentences in which a command says what came of it."""

import pytest

from ckpt_tool.cli.results import load_text
from ckpt_tool.plans.options import LoadCheck

ALL = "Critic of transformers 5.0 finds all 1,028 tensors it wants, and "


@pytest.mark.parametrize(
    ("ignored", "heads", "expected"),
    [
        (0, 0, "no other"),
        (3, 0, "ignores the 3 of multi-token prediction"),
        (0, 2, "ignores the 2 of other heads"),
        (3, 2, "ignores the 3 of multi-token prediction and the 2 of other heads"),
    ],
)
@pytest.mark.parametrize(
    ("also", "more"),
    [
        ((), ""),
        (("Model",), "; Model can open it, too"),
        (("Model", "Other"), "; Model and Other can open it, too"),
        (("Model", "Other", "Third"), "; Model, Other and Third can open it, too"),
    ],
)
def test_what_opened_a_model_is_one_sentence(
    ignored: int, heads: int, expected: str, also: tuple[str, ...], more: str
) -> None:
    check = LoadCheck("Critic", 1028, "transformers 5.0", ignored, heads, also)
    assert load_text(check) == ALL + expected + more
