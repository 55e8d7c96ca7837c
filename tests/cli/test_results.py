"""The sentences in which a command says what came of it."""

from dataclasses import replace
from pathlib import Path

import pytest

from ckpt_tool.cli.results import load_text, show_result
from ckpt_tool.cli.results_json import result_json
from ckpt_tool.plans.options import Cast, LoadCheck, WriteResult

RESULT = WriteResult(
    format="torch_dist",
    source=Path("mcore"),
    step=None,
    role=None,
    output=Path("out"),
    num_tensors=0,
    total_bytes=0,
    files=[],
    casts=[],
    seconds=0.0,
    bytes_per_second=0.0,
    verified=None,
    warnings=[],
    dropped={},
)
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


def test_what_is_left_out_of_many_layers_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    dropped = {f"layers.{layer}.keys, rows": "shared" for layer in (1, 2, 4)}
    dropped |= {"layers.5.keys, rows": "tied", "embedding[101:102]": "1 row of padding"}
    show_result(replace(RESULT, dropped=dropped))
    assert [line for line in capsys.readouterr().out.splitlines() if "drop" in line] == [
        "  drop     layers.{1..2,4}.keys, rows (shared)",
        "  drop     layers.5.keys, rows (tied)",
        "  drop     embedding[101:102] (1 row of padding)",
    ]


def test_what_was_added_to_elements_is_no_cast_of_theirs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Sums are made in float64, which neither side has."""
    offset = Cast("float64", "float32", 2, 0.0, 1.0)
    made = replace(RESULT, casts=[offset, Cast("float64", "bfloat16", 3, 0.5)])
    show_result(made)
    assert capsys.readouterr().out.splitlines()[2:4] == [
        "  offset   2 tensors by 1, rounded to float32, largest absolute error 0",
        "  cast     3 tensors from float64 to bfloat16, largest absolute error 0.5",
    ]
    assert result_json(made)["casts"][0] == {
        "from": "float64",
        "to": "float32",
        "num_tensors": 2,
        "max_abs_error": 0.0,
    }
