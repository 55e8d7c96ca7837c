"""Several merges of one output that start at once: one writes, and nobody sees half of it."""

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from ckpt_tool.common.errors import OutputError
from ckpt_tool.operations.merge import merge_fsdp
from ckpt_tool.operations.options import MergeOptions
from ckpt_tool.plans import stage as stage_module
from ckpt_tool.plans.options import WriteOptions
from tests.plans.test_mounts import bytes_of
from tests.support.merging import TINY, values, write_rank

WORKERS = 8
REFUSED = ("another ckpt is writing it just now", "exists and is not empty")


def merge(source: Path, out: Path, number: int) -> None:
    """As others do it, each in its own way: over what is there, going on, or neither."""
    how = WriteOptions(
        check_load=False, fsync=False, overwrite=number % 2 == 0, resume=number % 4 == 1
    )
    merge_fsdp(source, out, MergeOptions(max_shard_size="20KB", jobs=1, write=how))


class Room:
    """Counts who is in it: written by all processes, under one lock."""

    def __init__(self, context: Any) -> None:
        self.inside, self.clashes, self.done = (context.Value("i", 0) for _ in range(3))

    def watch(self, work):
        def watched(*arguments: object, **named: object) -> object:
            self.change(1)
            try:
                return work(*arguments, **named)
            finally:
                self.change(-1)

        return watched

    def change(self, by: int) -> None:
        with self.inside.get_lock():
            self.inside.value += by
            self.clashes.value += self.inside.value > 1


def take_part(number: int, source: Path, outs: list[Path], barrier: Any, room: Room) -> None:
    for name in ("_write_tensors", "_put_small_files"):
        setattr(stage_module, name, room.watch(getattr(stage_module, name)))
    try:
        for out in outs:
            barrier.wait(60)
            try:
                merge(source, out, number)
            except OutputError as error:
                if not any(said in str(error) for said in REFUSED):
                    raise
            else:
                with room.done.get_lock():
                    room.done.value += 1
    except BaseException:
        barrier.abort()  # nobody waits for this one
        raise


@pytest.mark.slow
def test_of_eight_merges_that_start_at_once_one_writes_at_a_time(tmp_path: Path) -> None:
    """Rounds by `CKPT_RACES`: small merges, so that the ways of several cross often."""
    rounds = int(os.environ.get("CKPT_RACES", "60"))
    state = {f"layers.{n}.weight": values(64, 64, start=n << 12) for n in range(4)}
    source = write_rank(tmp_path / "in", state, TINY)
    merge(source, tmp_path / "alone", 0)
    outs = [tmp_path / f"out{number}" for number in range(rounds)]
    context = multiprocessing.get_context("fork")
    room, barrier = Room(context), context.Barrier(WORKERS)
    them = [
        context.Process(target=take_part, args=(number, source, outs, barrier, room))
        for number in range(WORKERS)
    ]
    for one in them:
        one.start()
    for one in them:
        one.join()
    assert [one.exitcode for one in them] == [0] * WORKERS
    assert room.clashes.value == 0
    assert rounds <= room.done.value <= rounds * WORKERS
    expected = bytes_of(tmp_path / "alone")
    assert all(bytes_of(out) == expected for out in outs)
    assert {path.name for path in tmp_path.iterdir()} == {"in", "alone", *(o.name for o in outs)}
