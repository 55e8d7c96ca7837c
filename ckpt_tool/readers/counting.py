"""How many files a reader will look at, as their names tell: so that whoever waits knows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ckpt_tool.common.garbage import pause_collection
from ckpt_tool.common.progress import Progress
from ckpt_tool.readers.deepspeed.folder import count_deepspeed
from ckpt_tool.readers.fsdp.files import find_rank_files
from ckpt_tool.readers.megatron.ranks import count_megatron_ranks
from ckpt_tool.readers.reading import tell

#: By format, for those of which names tell it: files of ranks, which are looked at one by one.
_COUNTS = {
    "fsdp": lambda folder: len(find_rank_files(folder)),
    "megatron-ranks": count_megatron_ranks,
    "deepspeed": count_deepspeed,
}


@contextmanager
def watch_reading(
    format_name: str, places: Iterable[Path | None], progress: Progress | None
) -> Iterator[None]:
    """Read the metadata of a checkpoint in ``places`` inside the block.

    ``progress`` is told of each file, and no garbage is looked for among what is made. Raises what
    opening raises for kinds of files that are not read.
    """
    count = _COUNTS.get(format_name)
    total = sum(count(place) for place in places if place) if count else None
    with pause_collection(), tell(progress, total):
        yield
