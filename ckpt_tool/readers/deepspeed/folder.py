"""Where a DeepSpeed checkpoint lies, and which rank each of its files is of.

``save_checkpoint(FOLDER)`` writes ``FOLDER/<tag>/``, the tag being ``global_stepN`` unless it was
given another, and ``FOLDER/latest``, which names the last one. In it are model states,
``mp_rank_00_model_states.pt`` (stages 0 to 2) or ``zero_pp_rank_R_mp_rank_00_model_states.pt``
(stage 3), and in stages 1 to 3 ``[bf16_]zero_pp_rank_R_mp_rank_00_optim_states.pt``. The Trainer
has all of it in ``checkpoint-N/``, beside its config. A universal checkpoint has ``zero/`` in place
of the optimizer states. Source: ``deepspeed/runtime/engine.py``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from ckpt_tool.common.errors import AmbiguousError, FormatError
from ckpt_tool.readers.find import find, find_latest

_MODEL = re.compile(r"(?:zero_pp_rank_(\d{1,9})_)?mp_rank_(\d{2,9})_model_states\.pt")
_OPTIM = re.compile(r"(?:bf16_)?zero_pp_rank_(\d{1,9})_mp_rank_(\d{2,9})_optim_states\.pt")
_EXPERT = re.compile(
    r"(?:layer_\d+_)?expert_\d+_mp_rank_\d+_model_states\.pt"
    r"|expp_rank_\d+_mp_rank_\d+_optim_states\.pt"
)
_LAYER = re.compile(r"layer_\d+-model_.*model_states\.pt")
_TAG = re.compile(r"global_step\d+")
_WEIGHTS = frozenset((".safetensors", ".bin"))
_UNIVERSAL = "zero"


@dataclass
class Files:
    """The files of a step: model states of stages 0 to 2 (``whole``) or by rank, optimizer states.

    ``twice``: further files of a rank that has one. ``universal``: a file for each parameter, where
    partitions were made into these.
    """

    whole: Path | None = None
    model: dict[int, Path] = field(default_factory=dict)
    optim: dict[int, Path] = field(default_factory=dict)
    twice: list[tuple[int, Path]] = field(default_factory=list)
    universal: dict[str, Path] = field(default_factory=dict)

    def listed(self) -> list[tuple[Path, int | None]]:
        """All of them with their ranks."""
        ranked = [*self.model.items(), *self.optim.items(), *self.twice]
        whole = [(self.whole, None)] if self.whole is not None else []
        others: list[tuple[Path, int | None]] = [(each, None) for each in self.universal.values()]
        return whole + [(path, rank) for rank, path in sorted(ranked)] + others


def locate_deepspeed(path: Path) -> Path | None:
    """The folder of the step at or below ``path``, or None.

    AmbiguousError where ``latest`` names a step that is not there, and what `find` raises. Beside a
    Hugging Face model it may: the Trainer's users delete the step, and keep the model.
    """
    folder = find(path, _holds_states)
    if folder is None and path.is_dir():
        _refuse_absent(path)
    return folder


def _refuse_absent(path: Path) -> None:
    named = find_latest(path)
    steps = sorted(step for step in path.glob("global_step*") if _holds_states(step))
    if not named or not (steps or _TAG.fullmatch(named)):
        return
    if steps or not any(each.suffix in _WEIGHTS for each in path.iterdir()):
        said = f"{path / 'latest'}: names {named}, which has no files of DeepSpeed here"
        copy = "" if steps else "Copy that folder too, or name another checkpoint."
        raise AmbiguousError(said, steps, hint=copy)


def _holds_states(folder: Path) -> bool:
    """Whether files of model or optimizer states are directly in ``folder``."""
    if not folder.is_dir():
        return False
    return any(_MODEL.fullmatch(p.name) or _OPTIM.fullmatch(p.name) for p in folder.iterdir())


def list_files(folder: Path) -> Files:
    """The files of the step in ``folder``.

    FormatError where they are of a kind that is not read: tensor or pipeline parallel, experts.
    """
    _refuse_kinds(folder)
    files = Files()
    for path in sorted(folder.iterdir()):
        model, optim = _MODEL.fullmatch(path.name), _OPTIM.fullmatch(path.name)
        if model and model[1] is None:
            files.whole = path
            continue
        matched = model or optim
        if matched:
            ranked, rank = (files.model if model else files.optim), int(matched[1])
            if rank in ranked:
                files.twice.append((rank, path))
            else:
                ranked[rank] = path
    if not files.optim and (folder / _UNIVERSAL).is_dir():
        found = sorted((folder / _UNIVERSAL).glob("*/fp32.pt"))
        files.universal = {path.parent.name: path for path in found}
    return files


def count_deepspeed(folder: Path) -> int:
    """How many files of the step in ``folder`` are read. FormatError as :func:`list_files`."""
    files = list_files(folder)
    return len(files.listed()) - len(files.twice)


def _refuse_kinds(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir())
    matched = [
        found for name in names if (found := _MODEL.fullmatch(name) or _OPTIM.fullmatch(name))
    ]
    parallel = next((found.string for found in matched if int(found[2])), None)
    expert = next((name for name in names if _EXPERT.fullmatch(name)), None)
    layer = next((name for name in names if _LAYER.fullmatch(name)), None)
    if layer is not None:
        raise FormatError(
            f"a checkpoint of DeepSpeed's pipeline engine ({layer}), which is not supported",
            path=folder,
            hint="Load it where it was trained, and save the model with save_pretrained.",
        )
    if expert is not None:
        raise FormatError(
            f"experts of DeepSpeed's MoE in files of their own ({expert}), which is not supported",
            path=folder,
            hint="Load it where it was trained, and save the model with save_pretrained.",
        )
    if parallel is not None:
        raise FormatError(
            f"several tensor parallel ranks ({parallel}), which is not supported: nothing in these"
            " files says how tensors are cut",
            path=folder,
            hint="Gather the model where it was trained, or save it with tensor parallelism of 1.",
        )
