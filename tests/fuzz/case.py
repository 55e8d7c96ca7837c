"""What is done with the files of a case, and what came of it."""

from __future__ import annotations

import io
import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import typer

from ckpt_tool.cli.inspect import inspect
from ckpt_tool.common.errors import CheckpointError, CkptError, MappingError
from ckpt_tool.common.parallel import ALONE, Team
from ckpt_tool.common.progress import NoProgress
from ckpt_tool.mapping.lora.options import LoraOptions
from ckpt_tool.operations import inspect as inspect_operation
from ckpt_tool.operations import source as source_operation
from ckpt_tool.operations import to_mcore as to_mcore_operation
from ckpt_tool.operations.merge_plan import make_plan
from ckpt_tool.operations.options import MergeOptions, ToMcoreOptions, VerifyOptions
from ckpt_tool.operations.sides import open_sides
from ckpt_tool.operations.to_mcore import plan_to_mcore
from ckpt_tool.plans.checks.cache import read_wanted
from ckpt_tool.plans.holding import hold_folder
from ckpt_tool.plans.options import WriteOptions
from ckpt_tool.readers import Checkpoint, open_checkpoint
from ckpt_tool.readers.base import Wanted
from ckpt_tool.writers.journal import read_finished
from ckpt_tool.writers.target import make_journal_path
from tests.fuzz.guard import Violation, guarded

_TEAM = Team(ALONE, 1, NoProgress())
NAME = "case.json"


@dataclass(frozen=True)
class Case:
    """``action``: what is done with ``ck/`` below the case's folder, besides ``inspect``.

    ``command``: as which kind it is merged. ``config`` and ``base``: folders that are named.
    """

    action: str
    command: str = ""
    config: str = ""
    base: str = ""
    keep_names: bool = False
    weights: str = "model"

    def save(self, folder: Path, **more: object) -> None:
        """Write it beside the files that it is about."""
        (folder / NAME).write_text(json.dumps({"case": asdict(self), **more}, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Case:
        return cls(**json.loads((folder / NAME).read_text())["case"])


@dataclass(frozen=True)
class Outcome:
    """``kind``: ``ok``, ``refused``, or of a defect its exception's; ``said``: message or trace.

    ``place``: where in our code a defect is.
    """

    kind: str
    said: str
    place: str = ""

    @property
    def is_defect(self) -> bool:
        return self.kind not in ("ok", "refused")


def run_case(case: Case, root: Path, number: int = 0) -> Outcome:
    """Do all of it with the folder ``root``; ``number`` says whether and how ``inspect`` shows it.

    What plans is given the checkpoint that ``inspect`` has opened: that is most of the work.
    """
    try:
        with guarded(root), _captured() as output, _opened_once():
            try:
                if number % 2 == 0:
                    _show(root / "ck", number // 2, output)
                _ACTIONS[case.action](case, root)
            except CkptError as error:
                return Outcome("refused", _spell(error))
        return Outcome("ok", "")
    except Exception as error:
        return Outcome(type(error).__name__, traceback.format_exc()[-6000:], _find_place(error))


@contextmanager
def _opened_once() -> Iterator[None]:
    """The same checkpoint for all who open it inside the block."""
    known: dict[Path, Checkpoint] = {}

    def open_known(
        path: str | Path, wanted: Wanted | None = None, progress: object = None
    ) -> Checkpoint:
        path = Path(path)
        if path not in known:
            known[path] = open_checkpoint(path, wanted)
        return known[path]

    def open_only(
        paths: Sequence[Path], wanted: Wanted | None = None, progress: object = None
    ) -> Checkpoint:
        (path,) = paths
        return open_known(path, wanted)

    with (
        mock.patch.object(inspect_operation, "open_folders", open_only),
        mock.patch.object(source_operation, "open_folders", open_only),
        mock.patch.object(to_mcore_operation, "open_checkpoint", open_known),
    ):
        yield


def _show(path: Path, number: int, output: io.TextIOWrapper) -> None:
    """``inspect``: as JSON or text, with shards or without."""
    with suppress(typer.Exit):
        _inspect(
            [path],
            shards=number % 2 == 1,
            patterns=None,
            problems=False,
            everything=number % 8 == 0,
            as_json=number % 4 > 1,
        )
    output.flush()


_inspect = inspect.__wrapped__  # type: ignore[attr-defined]


def _merge(case: Case, root: Path) -> None:
    options = MergeOptions(
        config=root / case.config if case.config else None,
        keep_names=case.keep_names,
        lora=LoraOptions(base=root / case.base if case.base else None),
        weights=case.weights,
        jobs=1,
        write=WriteOptions(check_load=False),
    )
    make_plan(root / "ck", case.command, options, _TEAM)


def _to_mcore(case: Case, root: Path) -> None:
    plan_to_mcore(root / "ck", ToMcoreOptions(jobs=1), _TEAM)


def _verify(case: Case, root: Path) -> None:
    open_sides(root / "ck", root / "ck", VerifyOptions(jobs=1), _TEAM)


def _state(case: Case, root: Path) -> None:
    """What ``--resume``, ``verify OUT`` and the load check read of earlier runs."""
    options = MergeOptions(dtype="bfloat16", jobs=1, write=WriteOptions(check_load=False))
    plan = make_plan(root / "ck", case.command, options, _TEAM)
    plan.compare(root / "out", NoProgress())
    read_finished(make_journal_path(root / "out"))
    with suppress(CkptError):
        hold_folder(root / "out", _TEAM)
    with mock.patch.dict(os.environ, XDG_CACHE_HOME=str(root)):
        read_wanted("0" * 64)


_ACTIONS = {"merge": _merge, "to-mcore": _to_mcore, "verify": _verify, "state": _state}


def _spell(error: CkptError) -> str:
    """All of what the command would show of it."""
    lines = [f"{type(error).__name__}: {error}"]
    if isinstance(error, CheckpointError):
        lines += map(str, error.problems)
    elif isinstance(error, MappingError):
        lines += error.names
    return "\n".join([*lines, error.hint])


@contextmanager
def _captured() -> Iterator[io.TextIOWrapper]:
    """Stdout as it is where it is a file in UTF-8, which knows no lone surrogates."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    before, sys.stdout = sys.stdout, stream
    try:
        yield stream
    finally:
        sys.stdout = before


def _find_place(error: BaseException) -> str:
    """The innermost line of ours that it comes from."""
    if isinstance(error, Violation):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/ckpt_tool/" in frame.filename]
    if not ours:
        return "outside"
    return f"{ours[-1].filename.rpartition('/ckpt_tool/')[2]}:{ours[-1].name}"
