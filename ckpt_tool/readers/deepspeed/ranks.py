"""What all files of a DeepSpeed checkpoint say, and whether every rank's is there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ckpt_tool.common.errors import FormatError, Problem
from ckpt_tool.common.wording import list_gaps
from ckpt_tool.readers.base import collect
from ckpt_tool.readers.deepspeed.folder import Files
from ckpt_tool.readers.deepspeed.model_states import ModelStates, read_model_states
from ckpt_tool.readers.deepspeed.optim_states import OptimStates, read_optim_states
from ckpt_tool.tensors.checksums import FileSums


@dataclass
class Ranks:
    """What the files say: ``models`` by rank, in stages 0 to 2 of rank 0 alone, ``optims`` by rank.

    ``each``: whether every parameter is cut by itself, as in stage 3. ``world``: of data parallel
    ranks. ``is_whole``: every file is there and was read. ``problems``: what is wrong.
    """

    folder: Path
    files: Files
    each: bool
    models: dict[int, ModelStates] = field(default_factory=dict)
    optims: dict[int, OptimStates] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    sums: dict[str, FileSums] = field(default_factory=dict)
    world: int = 1
    is_whole: bool = True

    def report(self, kind: str, where: object, message: str) -> None:
        """Note what is wrong; tensors then get no blocks of partitions."""
        self.problems.append(Problem(kind, str(where), message))
        self.is_whole = False

    @property
    def first(self) -> ModelStates | None:
        """The model states that stand for all: those of the lowest rank."""
        return self.models[min(self.models)] if self.models else None


def read_ranks(folder: Path, files: Files) -> Ranks:
    """Read every file; UnsafeContentError where a pickle asks for code.

    FormatError where the files say that the model is cut among tensor parallel ranks.
    """
    ranks = Ranks(folder, files, each=bool(files.model))
    _read_models(ranks)
    for rank, path in sorted(files.optim.items()):
        with collect(ranks.problems, "unreadable", path):
            ranks.optims[rank] = optim = read_optim_states(path)
            ranks.sums[str(path)] = optim.sums
    ranks.is_whole = not ranks.problems
    for rank, path in files.twice:
        ranks.report("duplicate-rank", path, f"another file is of rank {rank} too")
    if files.whole is not None and files.model:
        ranks.report(
            "contradiction", files.whole, "model states of ZeRO 0 to 2 among those of ZeRO-3"
        )
    ranks.world = _find_world(ranks)
    _check_ranks(ranks)
    _check_optims(ranks)
    return ranks


def _read_models(ranks: Ranks) -> None:
    files = ranks.files
    listed = files.model or ({0: files.whole} if files.whole is not None else {})
    for rank, path in sorted(listed.items()):
        with collect(ranks.problems, "unreadable", path):
            found = ranks.models[rank] = read_model_states(path)
            ranks.sums[str(path)] = found.sums
            ranks.problems += (Problem("tensor", str(path), fault) for fault in found.faults)
            if (found.parallel or 1) > 1:
                raise FormatError(
                    f"one of {found.parallel} tensor parallel ranks, which is not supported",
                    path=path,
                )


def _find_world(ranks: Ranks) -> int:
    """The number of ranks, as most files say it; else as many as there are files."""
    said = [max(optim.counts) for optim in ranks.optims.values() if any(optim.counts)]
    said = said or [model.world for model in ranks.models.values() if model.world]
    if not ranks.optims and ranks.first is not None and ranks.first.groups is None:
        return ranks.first.world or 1
    files = max([*ranks.files.optim, *ranks.files.model, 0]) + 1
    counts = Counter(said)
    return max(counts, key=lambda world: (counts[world], world)) if said else files


def _check_ranks(ranks: Ranks) -> None:
    """Every rank has its files, and they are of this many ranks."""
    first, files = ranks.first, ranks.files
    if files.whole is None and not files.model:
        ranks.report("missing-file", ranks.folder, "no model states (mp_rank_00_model_states.pt)")
    if first is not None and first.groups is None:
        if files.optim:
            message = "no param_shapes in it, beside optimizer states of ranks"
            ranks.report("contradiction", files.whole or ranks.folder, message)
        return
    for what, found in (("model", files.model), ("optimizer", files.optim)):
        if ranks.each if what == "model" else not files.universal:
            _check_numbers(what, found, ranks)


def _check_numbers(what: str, found: Mapping[int, Path], ranks: Ranks) -> None:
    inside = sorted(rank for rank in found if rank < ranks.world)
    missing = list_gaps(inside, 0, ranks.world)
    if missing:
        names = "*_model_states.pt" if what == "model" else "*_optim_states.pt"
        ranks.report(
            "missing-rank",
            ranks.folder,
            f"no {what} states of rank {missing} of {ranks.world} (zero_pp_rank_R_{names});"
            " if on other nodes, copy them here",
        )
    for rank, path in sorted(found.items()):
        if rank >= ranks.world:
            ranks.report("world-size", path, f"rank {rank} of a world of {ranks.world}")


def _check_optims(ranks: Ranks) -> None:
    """Files of optimizer states are of one stage, that of the model states, and of one world."""
    for rank, optim in ranks.optims.items():
        path = ranks.files.optim[rank]
        if optim.each != ranks.each and ranks.models:
            said = "ZeRO-3" if optim.each else "ZeRO 1 or 2"
            ranks.report("contradiction", path, f"of {said}, and the model states are of another")
        if optim.counts and set(optim.counts) != {ranks.world}:
            said = ", ".join(map(str, dict.fromkeys(optim.counts)))
            message = f"partitions for {said} ranks, expected {ranks.world}"
            ranks.report("world-size", path, message)
    for rank, model in ranks.models.items():
        where = ranks.files.model.get(rank) or ranks.files.whole
        if model.groups is not None and model.world not in (None, ranks.world):
            message = f"says {model.world} ranks, the partitions {ranks.world}"
            ranks.report("world-size", where, message)
        first = ranks.first
        assert first is not None
        if (model.groups, model.frozen_shapes) != (first.groups, first.frozen_shapes):
            ranks.report("contradiction", where, "lists other parameters than the first rank")
        if model.step != first.step:
            message = f"of step {model.step}, the first rank of {first.step}"
            ranks.report("contradiction", where, message)
