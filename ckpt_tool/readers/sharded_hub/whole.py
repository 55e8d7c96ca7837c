"""What says that shards are missing, where no tensor has a gap.

Shapes of whole tensors are not written: without the last rank's file every tensor that is cut ends
earlier, and is as whole as before. What tells are the numbers in names of files, the list of names
that NeMo Automodel leaves beside them, and the number of rows that the config promises.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ckpt_tool.common.errors import FormatError, Problem
from ckpt_tool.common.untrusted import read_json_object
from ckpt_tool.common.wording import join_words, list_gaps
from ckpt_tool.readers.base import Entry, collect
from ckpt_tool.readers.sharded_hub.shard import Shard, list_shards

#: Written by NeMo Automodel: the names of all tensors, and in which file of the model each is.
_MAPPING = ".hf_metadata/fqn_to_file_index_mapping.json"
_EMBEDDINGS = ("embed_tokens.weight", "word_embeddings.weight", "tok_embeddings.weight")


def find_missing(
    folders: Sequence[Path], shards: Sequence[Shard], names: Collection[str]
) -> list[Problem]:
    """Files that others imply: ranks and parts by their numbers, tensors that were to be saved.

    ``names``: of all tensors in ``shards``, which are all that are in ``folders``.
    """
    first = folders[0]
    problems = [*_find_gaps(first, shards), *_find_two_saves(first, shards)]
    mapping = next((each / _MAPPING for each in folders if (each / _MAPPING).is_file()), None)
    if mapping is None:
        return [*problems, *_find_parts(first, shards)]
    with collect(problems, "index", mapping):
        said = f"{_MAPPING} lists it, and no shard has it"
        listed = _read_mapping(mapping)
        problems += [Problem("missing-tensor", n, said) for n in listed if n not in names]
    return problems


def find_others(path: Path) -> Iterator[Problem]:
    """That one file was named of several."""
    others = len([*list_shards(path.parent)]) - 1
    if others:
        message = f"one file of a sharded save of {others + 1}: name the folder, {path.parent}"
        yield Problem("missing-file", str(path), message)


def find_doubles(shards: Sequence[Shard]) -> Iterator[Problem]:
    """Files of one name in two folders."""
    places: dict[str, Path] = {}
    for shard in shards:
        first = places.setdefault(shard.path.name, shard.path)
        if first != shard.path:
            yield Problem("duplicate", str(shard.path), f"also in {first.parent}")


def find_short(entries: Mapping[str, Entry], side_files: Path | None) -> list[Problem]:
    """The embedding, where it has fewer rows than ``config.json`` says: the last shards are gone.

    Nothing is said where there is no config, or several embeddings, or none.
    """
    found = [entry for name, entry in entries.items() if name.endswith(_EMBEDDINGS)]
    rows = _read_vocab_size(side_files) if len(found) == 1 and side_files is not None else None
    if rows is None or not found[0].shape or found[0].shape[0] >= rows:
        return []
    message = (
        f"{found[0].shape[0]} rows, and config.json says vocab_size {rows}: shards of the last"
        " ranks are missing, or the config is another model's"
    )
    return [Problem("missing-rank", found[0].name, message)]


def _find_gaps(folder: Path, shards: Sequence[Shard]) -> Iterator[Problem]:
    numbers = sorted({shard.number for shard in shards})
    if numbers[0] < 1:
        yield Problem("metadata", str(folder), "a shard has the number 0: they begin with 1")
        return
    if gaps := list_gaps(numbers, 1, numbers[-1] + 1):
        message = f"shard {gaps} of a sharded save is missing: here is up to shard {numbers[-1]}"
        yield Problem("missing-rank", str(folder), message)


def _find_parts(folder: Path, shards: Sequence[Shard]) -> Iterator[Problem]:
    """Without a list of names: each file of the model has tensors, on one rank or another."""
    count = max(shard.parts for shard in shards)
    parts = sorted({shard.part for shard in shards if 0 < shard.part <= count})
    if gaps := list_gaps(parts, 1, count + 1):
        message = f"no rank has a shard of file {gaps} of {count} (shard-*-model-*-of-{count:05d})"
        yield Problem("missing-file", str(folder), message)


def _find_two_saves(folder: Path, shards: Sequence[Shard]) -> Iterator[Problem]:
    counts = sorted({shard.parts for shard in shards})
    if len(counts) > 1:
        said = join_words([f"-of-{count:05d}" for count in counts[:3]])
        message = f"shards {said} in one folder are of several saves: keep those of one"
        yield Problem("contradiction", str(folder), message)


def _read_mapping(path: Path) -> dict[str, Any]:
    found = read_json_object(path)
    if not found:
        raise FormatError("names no tensor", path=path)
    return found


def _read_vocab_size(folder: Path) -> int | None:
    """What ``config.json`` says, or its part about text; None where it does not, or is damaged."""
    try:
        config = read_json_object(folder / "config.json")
    except (FormatError, OSError):  # whoever needs the config says so
        return None
    text = config.get("text_config")
    found = text.get("vocab_size") if isinstance(text, dict) else config.get("vocab_size")
    return found if type(found) is int else None
