"""Numbers and what they count, as people say it."""

import pytest

from ckpt_tool.common.wording import count_doing, count_noun


@pytest.mark.parametrize(
    ("count", "noun", "said"),
    [
        (0, "tensor", "0 tensors"),
        (1, "tensor", "1 tensor"),
        (1, "copy", "1 copy"),
        (2, "copy", "2 copies"),
        (12345, "quantised weight", "12,345 quantised weights"),
    ],
)
def test_what_is_counted_is_one_or_several(count, noun, said):
    assert count_noun(count, noun) == said


@pytest.mark.parametrize(
    ("verb", "one"), [("are", "is"), ("have", "has"), ("differ", "differs"), ("lie", "lies")]
)
def test_one_does_what_several_do(verb, one):
    assert count_doing(1, "tensor", verb) == f"1 tensor {one}"
    assert count_doing(0, "tensor", verb) == f"0 tensors {verb}"
    assert count_doing(2, "tensor", verb) == f"2 tensors {verb}"
