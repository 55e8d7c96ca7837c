"""What the library says names options as Python has them; the command line makes flags of these."""

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import ckpt_tool
from ckpt_tool.cli.flags import FLAGS, find_parameter, spell_flags, spell_hint
from ckpt_tool.operations.options import MergeOptions, RunOptions, ToMcoreOptions, VerifyOptions
from ckpt_tool.operations.upload import Upload
from tests.support.commands import COMMANDS
from tests.support.house import module_of

ROOT = Path(ckpt_tool.__file__).parent
#: module -> its text
LIBRARY = {
    module: path.read_text()
    for path in sorted(ROOT.rglob("*.py"))
    if not (module := module_of(path, ROOT)).startswith(("cli", "__main__"))
}
OUR_FLAGS = {
    flag
    for command in COMMANDS.values()
    for parameter in command.params
    for flag in (*parameter.opts, *parameter.secondary_opts)
    if flag.startswith("--")
}
#: Flags of other programs that are called as one of ours is, by who speaks of them.
OTHERS = {"operations.upload": {"--private"}}  # hf upload
#: A number, and what several do; of what is always several it may be said.
PLURALS = re.compile(
    r"(?<!of )(?<!some )\bX (?:[a-z-]+ ){0,2}[a-z]*[a-rt-z]s"
    r" (?:are|have|get|differ|were|belong|lie|would|cannot|of the)\b"
)
SEVERAL = re.compile(r"X checkpoints are")
#: What is in backticks and no option.
QUOTED = {"`git lfs pull`"}


def documentation(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                yield first.value


@functools.cache
def said_in(source: str) -> list[str]:
    """Every string that is no documentation; of an f-string ``X`` is what it puts in."""
    return list(_find_said(source))


def _find_said(source: str) -> Iterator[str]:
    tree = ast.parse(source)
    seen = set(documentation(tree))
    for node in ast.walk(tree):
        if node in seen:
            continue
        if isinstance(node, ast.JoinedStr):
            seen.update(node.values)
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def flags_in(source: str) -> set[str]:
    found = (re.findall(r"(?<![\w-])--[a-z][a-z-]*", said) for said in said_in(source))
    return {flag for flags in found for flag in flags} & OUR_FLAGS


def options_in(source: str) -> set[str]:
    """What is in backticks, one or more words of it."""
    return {each for said in said_in(source) for each in re.findall(r"`[^`]+`", said)} - QUOTED


def ways(options: Any, start: str = "") -> Iterator[str]:
    """The fields of options, and those of the options that are in them."""
    hints = get_type_hints(options)
    for field in fields(options):
        if is_dataclass(hints[field.name]):
            yield from ways(hints[field.name], f"{start}{field.name}.")
        else:
            yield f"{start}{field.name}"


def test_the_library_does_not_speak_of_flags() -> None:
    spoken = {
        module: flags_in(source) - OTHERS.get(module, set()) for module, source in LIBRARY.items()
    }
    assert {module: flags for module, flags in spoken.items() if flags} == {}


def test_what_it_has_in_backticks_is_an_option_that_becomes_a_flag() -> None:
    quoted = [(module, each) for module, source in LIBRARY.items() for each in options_in(source)]
    assert len(quoted) > 50
    for module, option in quoted:
        typed = spell_flags(option)
        assert "`" not in typed, (module, option)
        assert typed.split()[0] in OUR_FLAGS, (module, option)


def test_every_option_has_a_flag_that_a_command_has() -> None:
    known = {
        way
        for options in (MergeOptions, RunOptions, ToMcoreOptions, VerifyOptions)
        for way in ways(options)
    }
    known |= {"upload", *ways(Upload, "upload.")}
    assert known == FLAGS.keys()
    assert {flag.split()[0] for flag in FLAGS.values()} <= OUR_FLAGS


def test_the_parameter_of_every_flag_is_found_by_its_name() -> None:
    """Else a hint on it would be left out where it would help."""
    found = {}
    for command in COMMANDS.values():
        for parameter in command.params:
            found |= dict.fromkeys(parameter.opts, parameter.name)
    for flag in FLAGS.values():
        assert find_parameter(flag) == found[flag.split()[0]]


def test_a_hint_names_only_options_that_the_command_has() -> None:
    hint = "Save it anew. Or try `names.rename` of it, or `dtype=keep`. It is in `git lfs pull`."
    everywhere = "Save it anew. It is in `git lfs pull`."
    assert spell_hint(hint, ["dtype"]) == everywhere
    assert spell_hint(hint, []) == everywhere
    assert spell_hint(hint, ["rename", "dtype"]) == spell_flags(hint)


def test_a_switch_that_can_be_turned_off_has_the_flag_for_it() -> None:
    for way in ("tie_word_embeddings", "value_model", "sums", "write.fsync", "write.direct"):
        assert spell_flags(f"`{way}=False`") in OUR_FLAGS


@pytest.mark.parametrize(
    ("said", "typed"),
    [
        ("`keep_names=True`", "--config none"),
        ("`config=DIR`: no", "--config DIR: no"),
        ("`lora.mode='split'`", "--lora split"),
        ("`lora.alpha=0.5`", "--lora-alpha 0.5"),
        ("`names.rename=['h.*=layers.*']`", "--rename 'h.*=layers.*'"),
        ("`names.prefix='a b'`", "--prefix 'a b'"),
        ("`lora.base='/a/b c'`", "--base '/a/b c'"),
        ("`write.overwrite=True` or `write.fsync=False`", "--overwrite or --no-fsync"),
        ("`git lfs pull`, `mode`, `config.json`, `config`s", None),
    ],
)
def test_options_are_typed_as_the_shell_takes_them(said: str, typed: str | None) -> None:
    assert spell_flags(said) == (said.replace("`config`", "--config") if typed is None else typed)


def test_what_is_counted_may_be_one() -> None:
    """``count_doing`` says ``1 tensor is`` where this would say ``1 tensors are``."""
    found = {
        said
        for path in ROOT.rglob("*.py")
        for said in said_in(path.read_text())
        if PLURALS.search(said) and not SEVERAL.search(said)
    }
    assert found == set()
    assert PLURALS.search("X quantised weights cannot be read")
    assert PLURALS.search("x: X tensors get a name that another one has")


def test_the_guard_sees_what_it_is_to_see() -> None:
    planted = (
        '"""Docs of --dtype."""\n'
        "def f(x):\n"
        '    """And of --lora."""\n'
        '    raise ValueError(f"--base {x}: " " `dtype={x!r}`, `keep`", "--load, --no-crc")\n'
    )
    assert flags_in(planted) == {"--base", "--no-crc"}
    assert options_in(planted) == {"`dtype={x!r}`", "`keep`"}
    assert options_in('f"`dtype={x!r}`" "`write.verify`"') == {"`dtype=X`", "`write.verify`"}
