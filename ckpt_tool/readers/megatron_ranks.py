"""Per-rank files of Megatron: ``mp_rank_TT[_PPP][_EEE]/`` with one file each, as one checkpoint.

``TT``, ``PPP`` and ``EEE`` are tensor, pipeline and expert parallel rank; the second number is the
pipeline's or, where the model has only one stage, the experts'. verl 0.3 and 0.4 write
``model.pt``, Megatron-LM ``model_optim_rng.pt`` (``--ckpt-format torch``). Tensors come out under
one name each: layers, which files number within their pipeline chunk, are numbered through, and
the experts of a layer lie along a first dimension. Source: ``megatron/training/checkpointing.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ckpt_tool.errors import FormatError, Problem, UnsafeContentError
from ckpt_tool.readers.base import Checkpoint, Mesh, ShardFile, size_of
from ckpt_tool.readers.find import config_near, find
from ckpt_tool.readers.megatron_cuts import grid_of
from ckpt_tool.readers.megatron_file import Part, read_chunks
from ckpt_tool.readers.megatron_join import Rank, expert_parts, join, sizes_of_ranks

_FOLDER = re.compile(r"mp_rank_(\d{2,4})(?:_(\d{3,4}))?(?:_(\d{3,4}))?")
_FILES = ("model.pt", "model_optim_rng.pt", "model_rng.pt")
#: What only the first stage has (or, for multi-token prediction, the last one too), and the last.
_FIRST = ("word_embeddings.weight", "embed_tokens.weight")
_LAST = ("decoder.final_layernorm.weight", "model.norm.weight")


def locate_ranks(path: Path) -> Path | None:
    """The folder with ``mp_rank_*`` folders at or below ``path``; raises what `find` does."""
    return find(path, lambda folder: bool(_rank_files(folder)))


def open_megatron_ranks(folder: Path) -> Checkpoint:
    """The whole model's tensors; what is missing or contradictory becomes ``problems``.

    UnsafeContentError where a pickle asks for code.
    """
    problems: list[Problem] = []
    numbers = _rank_files(folder)
    contents = {path: _read(path, problems) for path in numbers.values()}
    if not any(contents.values()):
        return Checkpoint("megatron-ranks", folder, {}, (), tuple(problems))
    ranks = {
        _rank(found, _has_expert_number(numbers, contents)): path for found, path in numbers.items()
    }
    readable = {rank: contents[path] for rank, path in ranks.items() if contents[path]}
    parts = expert_parts(readable)
    problems += _missing(folder, list(ranks), parts)
    entries = join(readable, parts, problems)
    files = (_file(rank, path) for rank, path in sorted(ranks.items()))
    return Checkpoint(
        format="megatron-ranks",
        path=folder,
        entries=entries,
        files=tuple(files),
        problems=tuple(problems),
        mesh=Mesh(tuple(sizes_of_ranks(ranks)), Rank._fields),
        side_files=config_near(folder, beside=True),
    )


def _rank_files(folder: Path) -> dict[tuple[int | None, ...], Path]:
    """The file in each rank's folder, by the numbers in the folder's name."""
    found = {}
    for path in sorted(folder.iterdir()):
        matched = _FOLDER.fullmatch(path.name)
        files = [path / name for name in _FILES if matched and (path / name).is_file()]
        if matched and files:
            found[tuple(None if n is None else int(n) for n in matched.groups())] = files[0]
    return found


def _read(path: Path, problems: list[Problem]) -> list[list[Part]]:
    where = f"{path.parent.name}/{path.name}"
    try:
        chunks, faults = read_chunks(path)
    except UnsafeContentError:
        raise
    except (FormatError, OSError) as error:
        message = error.message if isinstance(error, FormatError) else str(error)
        problems.append(Problem("unreadable", str(path), message.removeprefix(f"{path}: ")))
        return []
    problems += [Problem("tensor", where, fault) for fault in faults]
    return chunks


def _has_expert_number(
    numbers: Mapping[tuple[int | None, ...], Path],
    contents: Mapping[Path, Sequence[Sequence[Part]]],
) -> bool:
    """Whether a second number is the expert rank: every file then begins and ends the model."""
    for (_, second, third), path in numbers.items():
        if third is not None or second is None:
            return False
        names = [part.name for chunk in contents[path] for part in chunk]
        if names and not all(any(n.endswith(ends) for n in names) for ends in (_FIRST, _LAST)):
            return False
    return True


def _rank(numbers: tuple[int | None, ...], has_expert_number: bool) -> Rank:
    tp, second, third = (number or 0 for number in numbers)
    return Rank(tp, 0, second) if has_expert_number else Rank(tp, second, third)


def _missing(folder: Path, ranks: Sequence[Rank], parts: int) -> list[Problem]:
    """Ranks that the others imply, and that have no file."""
    sizes = sizes_of_ranks(ranks)
    grid = grid_of(sizes.tp, sizes.ep, parts)
    wanted = [Rank(tp, pp, ep) for pp in range(sizes.pp) for tp, ep in sorted(grid)]
    return [
        Problem("missing-rank", str(folder), f"no file of {rank}; ranks: {sizes.tp} tensor x"
                f" {sizes.pp} pipeline x {sizes.ep} expert parallel")
        for rank in wanted
        if rank not in ranks
    ]  # fmt: skip


def _file(rank: Rank, path: Path) -> ShardFile:
    return ShardFile(str(path), size_of(path), None, rank._asdict())
