"""Options of the scripts that people come from, and what they are here.

Those of verl's ``model_merger`` and ``converter_hf_to_mcore``, with hyphens or underscores.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Old:
    """What an option of a script is here: a place among the arguments, an option, or nothing.

    ``place``: the argument that its value becomes; ``flag``: the option, with the value if the old
    one ``takes`` one; ``why``: what is said of it.
    """

    takes: bool = True
    place: str = ""
    flag: str = ""
    why: str = ""


_RECOGNISED = Old(why="the format is recognised")
_NO_CODE = Old(takes=False, why="nothing of the model is run")
_NO_MODEL = Old(takes=False, why="no model is built, and nothing needs a GPU")
#: By command and option. What stands at "" is so for every command.
OLD: dict[str, dict[str, Old]] = {
    "": {
        "--backend": _RECOGNISED,
        "--trust-remote-code": _NO_CODE,
        "--use-cpu-initialization": _NO_MODEL,
        "--tie-word-embedding": Old(takes=False, why="config.json says it, proven on the weights"),
    },
    "inspect": {"--local-dir": Old(place="PATH")},
    "merge": {
        "--local-dir": Old(place="CKPT"),
        "--target-dir": Old(place="OUT"),
        "--output-path": Old(place="OUT"),
        "--hf-model-path": Old(flag="--config"),
        "--hf-upload-path": Old(flag="--upload"),
        "--tie-word-embedding": Old(takes=False, flag="--tie-word-embeddings"),
        "--is-value-model": Old(takes=False, flag="--value-model"),
        "--test": Old(takes=False, flag="--verify"),
        "--test-hf-dir": Old(why="compare afterwards: ckpt verify CKPT DIR"),
    },
    "verify": {
        "--local-dir": Old(place="CKPT"),
        "--test-hf-dir": Old(place="REFERENCE"),
        "--hf-model-path": Old(flag="--config"),
        "--is-value-model": Old(takes=False, why="value heads are recognised"),
    },
    "to-mcore": {
        "--hf-model-path": Old(place="HF_MODEL"),
        "--local-dir": Old(place="HF_MODEL"),
        "--output-path": Old(place="OUT"),
        "--target-dir": Old(place="OUT"),
        "--test": Old(takes=False, flag="--verify"),
    },
}


@dataclass(frozen=True)
class Takes:
    """What a command takes: ``places``, its arguments in order; ``valued``: options with a value.

    ``command``: as it is typed, like ``merge fsdp``.
    """

    command: str
    places: Sequence[str]
    valued: Collection[str] = ()


@dataclass
class _Said:
    """A command as it is said here: arguments by their places, others, options, remarks."""

    places: dict[str, str] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def translate(option: str, args: Sequence[str], takes: Takes) -> str:
    """What is typed here for ``args``, of which ``option`` is a script's; empty: it is of none.

    >>> print(translate("--local_dir", ["--local_dir", "a", "--backend", "fsdp", "--jobs", "2"],
    ...                 Takes("merge", ("CKPT", "OUT"), ["--jobs"])))
    ckpt merge a OUT --jobs 2
    (--backend: the format is recognised)
    """
    known = OLD[""] | OLD.get(takes.command.partition(" ")[0], {})
    if _spell(option) not in known:
        return ""
    said, waiting = _Said(), list(args)
    while waiting:
        _take(waiting, known, takes.valued, said)
    missing = [place for place in takes.places if place not in said.places]
    said.places.update(zip(missing, said.others, strict=False))
    words = [said.places.get(place, "") for place in takes.places]
    given = [
        shlex.quote(word) if word else place
        for word, place in zip(words, takes.places, strict=True)
    ]
    rest = [*said.others[len(missing) :], *said.options]
    line = " ".join(["ckpt", takes.command, *given, *map(shlex.quote, rest)])
    return "\n".join([line, *(f"({remark})" for remark in said.remarks)])


def _spell(option: str) -> str:
    return option.replace("_", "-").lower()


def _take(waiting: list[str], known: dict[str, Old], valued: Collection[str], said: _Said) -> None:
    """Take the next word, and with it the value of an option that has one."""
    word = waiting.pop(0)
    name, has_value, value = word.partition("=")
    old = known.get(_spell(name)) if word.startswith("--") and name not in valued else None
    if (old.takes if old else name in valued) and not has_value and waiting:
        value = waiting.pop(0)
    if old is None and not word.startswith("-"):
        said.others.append(word)
    elif old is None:
        said.options += [word, value] if value and not has_value else [word]
    elif old.place:
        said.places[old.place] = value
    elif old.flag:
        said.options += [old.flag, value] if value else [old.flag]
    else:
        said.remarks.append(f"{name}: {old.why}")
