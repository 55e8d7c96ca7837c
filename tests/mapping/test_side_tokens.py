"""Tokens without a row in the embedding are said, before a server finds out."""

import json
from pathlib import Path
from typing import Any

import pytest

from ckpt_tool.mapping.config import load_config
from ckpt_tool.mapping.side_files import gather_side_files


def warned(folder: Path, config: dict[str, Any], tokenizer: str, **changes: Any) -> list[str]:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    (folder / "tokenizer.json").write_text(tokenizer)
    made = load_config(folder)
    found = gather_side_files(made.with_text(**changes), [folder], quantised=False)
    return [warning for warning in found.warnings if "token" in warning]


def tokens(*numbers: int) -> str:
    added = [{"id": number, "content": f"<{number}>"} for number in numbers]
    return json.dumps({"version": "1.0", "added_tokens": added, "model": {"vocab": {"a": 0}}})


def test_tokens_beyond_the_embedding_are_named(tmp_path):
    (said,) = warned(tmp_path, {"vocab_size": 32}, tokens(0, 31, 40, 33))
    assert "2 tokens from number 33 ('<33>')" in said
    assert "embedding of 32 rows" in said


@pytest.mark.parametrize(
    ("config", "numbers"),
    [
        ({"vocab_size": 34}, (0, 33)),
        ({}, (40,)),
        ({"vocab_size": 32, "additional_vocab_size": 2}, (33,)),
        ({"text_config": {"vocab_size": 41}, "vocab_size": 3}, (40,)),
    ],
)
def test_nothing_is_said_of_those_that_have_one_or_of_what_is_not_known(tmp_path, config, numbers):
    assert warned(tmp_path, config, tokens(*numbers)) == []


def test_the_rows_that_are_written_count(tmp_path):
    assert warned(tmp_path, {"vocab_size": 32}, tokens(33), vocab_size=40) == []


@pytest.mark.parametrize(
    "broken", ['{"added_tokens": 3}', '{"added_tokens": [{"id": "x"}]}', '{"added_tokens": [3]}']
)
def test_a_tokenizer_of_another_kind_is_let_be(tmp_path, broken):
    assert warned(tmp_path, {"vocab_size": 32}, broken) == []
