"""Errors: what they say, and what they keep as fields."""

import pickle
from pathlib import Path

import pytest

from ckpt_tool.common.errors import CkptError, FormatError, UnsafeContentError


@pytest.mark.parametrize("kind", [FormatError, UnsafeContentError])
@pytest.mark.parametrize("path", ["a/b.pt", Path("a/b.pt")])
def test_a_format_error_joins_its_path_and_its_reason(kind, path):
    error = kind("cut short", path=path, hint="Copy it again.")
    assert str(error) == error.message == "a/b.pt: cut short"
    assert (error.path, error.reason, error.hint) == ("a/b.pt", "cut short", "Copy it again.")


def test_a_format_error_without_a_path_says_its_reason():
    error = FormatError("cut short")
    assert str(error) == error.message == error.reason == "cut short"
    error.path = "late.pt"
    assert str(error) == "late.pt: cut short"


def test_what_a_process_sends_to_another_says_the_same():
    for error in (
        FormatError("cut short", path="b.pt", hint="Copy it."),
        CkptError("no", hint="?"),
    ):
        found = pickle.loads(pickle.dumps(error))
        assert (type(found), str(found), found.hint) == (type(error), str(error), error.hint)
