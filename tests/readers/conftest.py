"""Checkpoints to be damaged."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import megatron


@pytest.fixture
def copied(megatron_cases: Path, tmp_path: Path) -> Callable[[str, str], Path]:
    """A copy of rank files, to be damaged: the folder that has those of the ranks in it."""

    def copy(name: str, size: str) -> Path:
        folder = tmp_path / "copy"
        shutil.copytree(megatron.ranks(megatron_cases, name, size), folder)
        return next(folder.glob("*/mp_rank_*")).parent

    return copy
