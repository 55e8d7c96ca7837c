"""Per-rank files of Megatron: ``mp_rank_TT[_PPP][_EEE]/`` with one file each, as one checkpoint.

``TT``, ``PPP`` and ``EEE`` are tensor, pipeline and expert parallel rank; the second number is the
pipeline's or, where the model has only one stage, the experts'. verl 0.3 and 0.4 write
``model.pt``, Megatron-LM ``model_optim_rng.pt`` (``--ckpt-format torch``), verl 0.7 LoRA adapters
alone (``adapter_checkpoint/mp_rank_TT[_PPP]_adapter.pt``). Tensors come out under
one name each: layers, which files number within their pipeline chunk, are numbered through, and
the experts of a layer lie along a first dimension. Source: ``megatron/training/checkpointing.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ckpt_tool.common.errors import Problem
from ckpt_tool.common.regular import announce_ends
from ckpt_tool.readers.base import Checkpoint, Mesh, ShardFile, collect
from ckpt_tool.readers.find import find, locate_config_beside
from ckpt_tool.readers.megatron.file import RankFile, read_rank_file
from ckpt_tool.readers.megatron.join import join
from ckpt_tool.readers.megatron.mesh import Rank, Sizes, infer_parallel_sizes

_FOLDER = re.compile(r"mp_rank_(\d{2,4})(?:_(\d{3,4}))?(?:_(\d{3,4}))?")
#: verl 0.7's LoRA adapters, without the model below them.
_ADAPTER = re.compile(_FOLDER.pattern + r"_adapter\.pt")
_MOST_LISTED = 1000
_FILES = ("model.pt", "model_optim_rng.pt", "model_rng.pt")
#: What only the first stage has (or, for multi-token prediction, the last one too), and the last.
_FIRST = ("word_embeddings.weight", "embed_tokens.weight")
_LAST = ("decoder.final_layernorm.weight", "decoder.final_norm.weight", "model.norm.weight")


def locate_megatron_ranks(path: Path) -> Path | None:
    """The folder with ``mp_rank_*`` folders at or below ``path``; raises what `find` does."""
    return find(path, lambda folder: bool(_rank_files(folder)))


def count_megatron_ranks(folder: Path) -> int:
    """How many rank files there are, as names say."""
    return len(_rank_files(folder))


def open_megatron_ranks(folder: Path) -> Checkpoint:
    """The whole model's tensors; what is missing or contradictory becomes ``problems``.

    UnsafeContentError where a pickle asks for code.
    """
    problems: list[Problem] = []
    numbers = _rank_files(folder)
    stats = {path: ShardFile.stat(path) for path in numbers.values()}
    announce_ends(stats)
    contents = {path: _read(path, problems) for path in numbers.values()}
    alone = _are_adapters(numbers)
    with_experts = not alone and _has_expert_number(numbers, contents)
    ranks = {_rank(found, with_experts): path for found, path in numbers.items()}
    files = {rank: file for rank, path in ranks.items() if (file := contents[path]) is not None}
    sizes = infer_parallel_sizes(ranks, files)
    problems += _missing(folder, ranks, sizes)
    if files and not alone:
        problems += _missing_ends(folder, files)
    listed = sorted(ranks.items())
    return Checkpoint(
        format="megatron-ranks",
        path=folder,
        entries=join(files, sizes, problems),
        files=tuple(replace(stats[path], parallel=rank._asdict()) for rank, path in listed),
        problems=tuple(problems),
        mesh=Mesh((sizes.tp, sizes.pp, sizes.ep), Rank._fields),
        side_files=locate_config_beside(folder),
        sums={str(path): file.sums for path, file in contents.items() if file is not None},
        step=next((f.iteration for f in files.values() if f.iteration is not None), None),
    )


def _rank_files(folder: Path) -> dict[tuple[int | None, ...], Path]:
    """The file in each rank's folder, by the numbers in the folder's name."""
    found = {}
    for path in sorted(folder.iterdir()):
        matched = _ADAPTER.fullmatch(path.name)
        if matched and path.is_file():
            found[tuple(None if n is None else int(n) for n in matched.groups())] = path
            continue
        matched = _FOLDER.fullmatch(path.name)
        files = [path / name for name in _FILES if matched and (path / name).is_file()]
        if matched and files:
            found[tuple(None if n is None else int(n) for n in matched.groups())] = files[0]
    return found


def _are_adapters(numbers: Mapping[tuple[int | None, ...], Path]) -> bool:
    """Whether these are files of adapters alone; a second number is then taken for the stage's."""
    return all(_ADAPTER.fullmatch(path.name) for path in numbers.values())


def _read(path: Path, problems: list[Problem]) -> RankFile | None:
    with collect(problems, "unreadable", path):
        file = read_rank_file(path)
        where = f"{path.parent.name}/{path.name}"
        problems.extend(Problem("tensor", where, fault) for fault in file.faults)
        return file
    return None


def _has_expert_number(
    numbers: Mapping[tuple[int | None, ...], Path], contents: Mapping[Path, RankFile | None]
) -> bool:
    """Whether a second number is the expert rank: every file then begins and ends the model."""
    for (_, second, third), path in numbers.items():
        if third is not None or second is None:
            return False
        file = contents[path]
        if file is not None and not (_holds(file, _FIRST) and _holds(file, _LAST)):
            return False
    return True


def _holds(file: RankFile, ends: tuple[str, ...]) -> bool:
    return any(part.name.endswith(ends) for chunk in file.chunks for part in chunk)


def _rank(numbers: tuple[int | None, ...], with_experts: bool) -> Rank:
    tp, second, third = (number or 0 for number in numbers)
    return Rank(tp, 0, second) if with_experts else Rank(tp, second, third)


def _missing(folder: Path, ranks: Mapping[Rank, Path], sizes: Sizes) -> list[Problem]:
    """Ranks that the others imply, and that have no file."""
    of = f"{sizes.tp} tensor x {sizes.pp} pipeline x {sizes.ep} expert parallel"
    if sizes.count - len(ranks) > _MOST_LISTED:
        message = f"{len(ranks)} of {sizes.count} ranks have a file; ranks: {of}"
        return [Problem("missing-rank", str(folder), message)]
    absent = [rank for rank in sizes.ranks() if rank not in ranks]
    return [
        Problem("missing-rank", str(folder), f"no file of {rank}; ranks: {of}") for rank in absent
    ]


def _missing_ends(folder: Path, files: Mapping[Rank, RankFile]) -> list[Problem]:
    """The first or last pipeline stage, where no file is of it."""
    return [
        Problem("missing-rank", str(folder), f"no {ends[0]} in any file: the {which} is missing")
        for ends, which in ((_FIRST, "first pipeline stage"), (_LAST, "last pipeline stage"))
        if not any(_holds(file, ends) for file in files.values())
    ]
