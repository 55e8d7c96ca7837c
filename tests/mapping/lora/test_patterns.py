"""Patterns of adapters: what Python's `re` says of names, in time that nobody can make long."""

import re
import time
from random import Random

import pytest

from ckpt_tool.common.errors import FormatError
from ckpt_tool.mapping.lora.patterns import compile_pattern

NAMES = [
    "model.layers.0.self_attn.q_proj",
    "model.layers.11.mlp.experts.3.up_proj",
    "visual.blocks.3.attn.qkv",
    "lm_head",
    "",
    "q_proj",
    "x\n",
]
PATTERNS = [
    r"q_proj|v_proj",
    r".*\.(q|k)_proj",
    r"^(?!.*visual).*(?:q_proj|qkv)$",
    r"(?:.*?(?:language|model).*?(?:self_attn|mlp).*?(?:q_proj|up_proj).*?)|(?:\bmodel\.\d{1,}\.x)",
    r"[^.]*",
    r"\w+(\.\w+)*",
    r"model\.layers\.(?:0|1[0-9])\..*",
    r"\D*\d{1,2}\D*",
    r"(?=lm)[a-z_]+\B.",
    r"\S+\Z",
    r"\Alm_(?P<part>head)",
    r"x$",
    r"(|a)*",
    r"[\d\W_a-z]{3,9}?",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_it_is_what_re_says(pattern, name):
    compiled = compile_pattern(pattern)
    assert compiled.matches(name) == (re.fullmatch(pattern, name) is not None)
    if not pattern.startswith(("^", r"\A")) and "\n" not in name:
        ending = re.match(rf"(.*\.)?({pattern})$", name)  # as peft's get_pattern_key
        assert compiled.matches_end(name) == (ending is not None)


def make_pattern(rng: Random, depth: int = 0) -> str:
    kind = rng.randrange(9)
    if depth > 3 or kind < 3:
        return rng.choice(["a", "b", ".", r"\.", "[ab]", "[^a]", r"\w", r"\b", r"\B", "^", "$"])
    if kind < 5:
        return make_pattern(rng, depth + 1) + make_pattern(rng, depth + 1)
    inner = make_pattern(rng, depth + 1)
    if kind == 5:
        return f"(?:{inner}|{make_pattern(rng, depth + 1)})"
    if kind == 6:
        return f"({inner})" + rng.choice(["*", "+", "?", "*?", "{2}", "{1,3}", "{0,2}?"])
    return f"(?{'=' if kind == 7 else '!'}{inner})"


def test_random_patterns_are_what_re_says():
    rng = Random(16)
    seen = set()
    for _ in range(2000):
        pattern, name = make_pattern(rng), "".join(rng.choices("ab.", k=rng.randrange(1, 8)))
        expected = re.fullmatch(pattern, name) is not None
        assert compile_pattern(pattern).matches(name) == expected, (pattern, name)
        seen.add(expected)
    assert seen == {True, False}


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a+)+$",
        r"((a|a)*)*c",
        r"(?=(a+)*b)(a*)*b",
        r"(?:.*\.){40}x",
        "x*" * 300,
        r"(?:(?:(?:a*){1000}){1000}){1000}b",
        r"(?:(?:(?:){999}){999}){999}b",
    ],
)
def test_patterns_that_take_for_ever_do_not(pattern):
    begun = time.process_time()
    assert not compile_pattern(pattern).matches("a" * 500 + "x.y" * 30)
    assert time.process_time() - begun < 5


def test_what_would_still_take_long_is_refused():
    with pytest.raises(FormatError, match="takes too long to match"):
        compile_pattern("(?:a(?:.*(?:a(.*z)?)z)?)*q").matches("a" * 500)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("(", "no regular expression"),
        ("a{99999999999}", "no regular expression"),
        ("(" * 20_000, "no regular expression|20,000"),
        ("a{5000}", "repeats more than 1,000 times"),
        ("(?i)a", "changes the flags"),
        (r"(a)\1", "groupref"),
        (r"(?<=a)b", "assert"),
        ("a" * 20_001, "expected up to 20,000"),
    ],
)
def test_others_are_refused(pattern, said):
    with pytest.raises(FormatError, match=said) as refused:
        compile_pattern(pattern)
    assert len(str(refused.value)) < 300
