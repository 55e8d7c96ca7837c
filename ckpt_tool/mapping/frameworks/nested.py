"""Names of a state dict that somebody nested or spelled in another way -> those of the model.

torch.distributed.checkpoint joins the keys of nested dictionaries with dots: a model saved as
``{"app": {"model": ...}}`` has names that begin with ``app.model.``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from ckpt_tool.common.errors import MappingError, UsageError
from ckpt_tool.common.wording import count_noun
from ckpt_tool.mapping.hub.value_head import BASE, HEAD
from ckpt_tool.mapping.renaming import rename_all

T = TypeVar("T")

#: What models call their token embedding, the longest names first; from these on, what comes
#: before one of them is no part of the model.
_EMBEDDINGS = (
    "model.language_model.embed_tokens",
    "language_model.model.embed_tokens",
    "model.decoder.embed_tokens",
    "model.embed_tokens",
    "transformer.word_embeddings",
    "transformer.wte",
    "gpt_neox.embed_in",
    "tok_embeddings",
)
#: The same in models without a head, asked for only where there is none of the above.
_BARE = ("embed_tokens", "word_embeddings", "wte")

_SHOWN = 8


def find_prefix(names: Iterable[str], *, bare: bool = True) -> str:
    """What is nested around the names of a model, with its last dot; empty where nothing is known.

    ``bare``: names of models without a head are asked for too, if there are no others. UsageError
    where there are several models to choose from.
    """
    listed = [name for name in names if name.endswith(".weight")]
    found = _find_prefixes(listed, _EMBEDDINGS)
    if bare and not found:
        found = _find_prefixes(listed, _BARE)
    if len(found) > 1:
        raise UsageError(
            "several models in one checkpoint: under "
            + ", ".join(repr(prefix) for prefix in sorted(found)),
            hint="Choose one of them with `names.prefix`.",
        )
    return next(iter(found), "")


def choose_group(groups: Mapping[str, str]) -> str:
    """What the names of the model begin with, in a file with several dictionaries of tensors.

    ``groups``: of each name, what it begins with up to the dictionary that it is in. It is the only
    one, or that with the token embedding of a language model, or that around all others.
    UsageError where there are several to choose from.
    """
    held = set(groups.values())
    if len(held) > 1:
        listed = [name for name in groups if name.endswith(".weight")]
        held = {groups[name] for name in listed if _find_prefixes([name], _EMBEDDINGS)} or held
    first = min(held, key=len, default="")
    if all(group.startswith(first) for group in held):
        return first
    raise UsageError(
        "several state dicts in one file: under "
        + ", ".join(repr(group) for group in sorted(held)[:_SHOWN]),
        hint="Choose one of them with `names.prefix`.",
    )


def _find_prefixes(names: Sequence[str], embeddings: Sequence[str]) -> set[str]:
    found = set()
    for name in names:
        for embedding in embeddings:
            whole = f"{embedding}.weight"
            if name == whole or name.endswith(f".{whole}"):
                prefix = name.removesuffix(whole)
                around = prefix.removesuffix(BASE)
                beside = any(other.startswith(f"{around}{HEAD}") for other in names)
                found.add(around if beside else prefix)
                break
    return found


def strip_prefix(tensors: Mapping[str, T], prefix: str) -> dict[str, T]:
    """The tensors by their names below ``prefix``; MappingError lists those that are not there."""
    others = [name for name in tensors if not name.startswith(prefix)]
    if others:
        raise MappingError(
            f"{count_noun(len(others), 'tensor')} beside the model, which is under {prefix!r}",
            others,
            hint=f"Leave them out with `names.prefix={prefix!r}` or `names.select=['{prefix}*']`.",
        )
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def rename_tensors(tensors: Mapping[str, T], renames: Sequence[str]) -> dict[str, T]:
    """The tensors by new names, each ``OLD=NEW`` of ``renames`` applied in turn.

    OLD is one or more whole parts of a name between dots, anywhere in it (at its beginning with a
    leading ``^``), the first time that they occur; a ``*`` in it is anything but a dot, and stands
    in NEW for the same. UsageError where one is malformed or changes nothing, MappingError where
    two tensors would get one name.
    """
    names = {name: name for name in tensors}
    for rename in renames:
        changed = {name: _apply(rename, now) for name, now in names.items()}
        if changed == names:
            some = ", ".join(list(dict.fromkeys(names.values()))[:_SHOWN])
            raise UsageError(
                f"`names.rename=[{rename!r}]`: no name has these parts",
                hint=f"Names are like: {some}",
            )
        names = changed
    return rename_all(tensors, names.__getitem__)


def _apply(rename: str, name: str) -> str:
    old, equals, new = rename.partition("=")
    start = old.startswith("^")
    parts = old.removeprefix("^").strip(".")
    if not equals or not parts or new.count("*") > parts.count("*"):
        raise UsageError(
            f"`names.rename=[{rename!r}]`: expected OLD=NEW, with no more * in NEW than in OLD",
            hint="Like `names.rename=['backbone=model']`, or"
            " `names.rename=['h.*.attn=layers.*.self_attn']`.",
        )
    pattern = re.escape(parts).replace(r"\*", "([^.]*)")
    begin = "^" if start else r"(?<![^.])"
    matched = re.search(f"{begin}{pattern}(?![^.])", name)
    if matched is None:
        return name
    stars = iter(matched.groups())
    filled = re.sub(r"\*", lambda _: next(stars), new.strip("."))
    joined = f"{name[: matched.start()]}{filled}{name[matched.end() :]}"
    return joined.replace("..", ".").strip(".")
