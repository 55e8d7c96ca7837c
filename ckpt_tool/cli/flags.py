"""What to type for an option: library messages name options as Python has them, in backticks.

``write.resume`` is the field ``resume`` of the ``write`` of a command's options. Whatever else a
message has in backticks stays as it is.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping

#: Each field of the options of operations, by the way to it, and its flag.
FLAGS = {
    "config": "--config",
    "keep_names": "--config none",
    "names.prefix": "--prefix",
    "names.select": "--select",
    "names.rename": "--rename",
    "lora.mode": "--lora",
    "lora.alpha": "--lora-alpha",
    "lora.base": "--base",
    "fill_from": "--fill-from",
    "weights": "--weights",
    "step": "--step",
    "steps": "--steps",
    "watch": "--watch",
    "watch_every": "--watch-every",
    "dtype": "--dtype",
    "tokenizer": "--tokenizer",
    "max_shard_size": "--max-shard-size",
    "tie_word_embeddings": "--tie-word-embeddings",
    "value_model": "--value-model",
    "check_replicas": "--check-replicas",
    "layout": "--layout",
    "layers": "--layers",
    "vocab_multiple": "--pad-vocab-to-multiple",
    "tower": "--tower",
    "sums": "--crc",
    "tolerance.atol": "--atol",
    "tolerance.rtol": "--rtol",
    "cast_reference": "--cast-reference",
    "ignore": "--ignore",
    "explained": "--top",
    "totals": "--totals",
    "origin": "--origin",
    "ranks": "--rank",
    "logits": "--logits",
    "write.verify": "--verify",
    "write.check_load": "--check-load",
    "write.check_crc": "--check-crc",
    "check_crc": "--check-crc",
    "write.overwrite": "--overwrite",
    "write.resume": "--resume",
    "write.fsync": "--fsync",
    "write.direct": "--direct-io",
    "write.manifest": "--manifest",
    "card": "--card",
    "upload": "--upload",
    "upload.repo": "--upload",
    "upload.private": "--private",
    "jobs": "--jobs",
}
_OPTION = re.compile(r"`([a-z_.]+)(?:=([^`]*))?`")
_SENTENCE_END = re.compile(r"(?<=[.!?]) (?=[A-Z])")
_STRING = re.compile(r"\[?'([^']*)'\]?")  # alone, or the one item of a list


def spell_flags(text: str) -> str:
    """A message of the library with its options as flags.

    >>> as_typed("Keep them apart with `lora.mode='split'`, or try `keep_names=True`.")
    'Keep them apart with --lora split, or try --config none.'
    >>> as_typed("Run `git lfs pull`, and leave out `write.fsync=False` and `config=DIR`.")
    'Run `git lfs pull`, and leave out --no-fsync and --config DIR.'
    """
    return _OPTION.sub(_type_option, text)


def spell_hint(hint: str, parameters: Iterable[str]) -> str:
    """A hint as :func:`spell_flags` gives it, without sentences on options of other commands.

    ``parameters``: what the command has, as Python calls it.
    """
    known = set(parameters)
    sentences = _SENTENCE_END.split(hint)
    return spell_flags(" ".join(each for each in sentences if _needed_for(each) <= known))


def _needed_for(sentence: str) -> set[str]:
    """The parameters whose flags a sentence has."""
    named = (found[1] for found in _OPTION.finditer(sentence))
    return {find_parameter(FLAGS[name]) for name in named if name in FLAGS}


def find_parameter(flag: str) -> str:
    """What the parameter of a flag is called.

    >>> find_parameter("--config none"), find_parameter("--max-shard-size")
    ('config', 'max_shard_size')
    """
    return flag.split(maxsplit=1)[0].removeprefix("--").replace("-", "_")


def spell_reasons(reasons: Mapping[str, str]) -> dict[str, str]:
    """Names of tensors, which stay, with reasons as :func:`spell_flags` gives them."""
    return {name: spell_flags(reason) for name, reason in reasons.items()}


def _type_option(found: re.Match[str]) -> str:
    name, value = found.groups()
    if name not in FLAGS:
        return found[0]
    flag = FLAGS[name]
    if value is None or value == "True":
        return flag
    if value == "False":
        return flag.replace("--", "--no-", 1)
    string = _STRING.fullmatch(value)
    return f"{flag} {value if string is None else shlex.quote(string[1])}"
