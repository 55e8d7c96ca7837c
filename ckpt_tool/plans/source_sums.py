"""What an output is made of, held against the checksums that its files have, while it is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ckpt_tool.common.errors import CheckpointError, Problem
from ckpt_tool.common.parallel import Team
from ckpt_tool.common.wording import count_noun
from ckpt_tool.plans.options import CrcCheck, WriteOptions
from ckpt_tool.plans.plan import Plan
from ckpt_tool.readers.base import Checkpoint
from ckpt_tool.readers.damage import describe_damage
from ckpt_tool.tensors.chunks import Chunked
from ckpt_tool.tensors.followed_files import exchange, prove
from ckpt_tool.tensors.read_sums import PART, SOUND, UNREAD, UNSAID, Damage, Place, ReadSums

#: What is read once more without being asked for: this part of what is written.
_FREE = 1 / 64


def follow(plan: Plan, options: WriteOptions) -> ReadSums | None:
    """Who follows what is read; None where nobody wants that, or no file has checksums.

    Without fsync the disk is not waited for, and reckoning would take a tenth of the time or more.
    """
    sums = plan.checkpoint.sums
    wanted = bool(sums) and options.fsync if options.check_crc is None else options.check_crc
    return ReadSums(sums) if wanted else None


def settle(plan: Plan, read: ReadSums | None, team: Team, *, every: bool) -> CrcCheck | None:
    """What is known of the sources after all was read, and before anything is published.

    Of a record that was read in part, the rest is read where that is little. With ``every``, all
    that has not been read of any record with a tensor of the plan. Raises CheckpointError with all
    that is damaged; each process of the team does its share, and learns of all.
    """
    if read is None:
        return None
    exchange(read, team)
    places = _list_places(plan) if every else read.places(PART)
    gaps = list(read.gaps(places))
    size = sum(gap.size for gap in gaps)
    if gaps and (every or size <= plan.total_bytes * _FREE):
        prove(read, gaps, team)
    _require_undamaged(plan.checkpoint, read)
    return _make_check(read, plan.checkpoint)


def prove_all(checkpoints: Iterable[Checkpoint], team: Team) -> CrcCheck:
    """Read every record with a tensor; each process of the team does its share.

    CheckpointError with all that is damaged in one of them.
    """
    checks = []
    for checkpoint in checkpoints:
        read = ReadSums(checkpoint.sums)
        prove(read, list(read.gaps(read.places(UNREAD))), team)
        _require_undamaged(checkpoint, read)
        checks.append(_make_check(read, checkpoint))
    return CrcCheck(
        sum(check.num_records for check in checks),
        sum(check.num_files for check in checks),
        sum(check.num_unchecked for check in checks),
        [path for check in checks for path in check.unsaid],
    )


def _require_undamaged(checkpoint: Checkpoint, read: ReadSums) -> None:
    """CheckpointError with every record that is not what was written."""
    found = dict(_by_owner(checkpoint, read.damaged()))
    problems = [problem for listed in found.values() for problem in listed]
    if problems:
        count = count_noun(len(problems), "record")
        of = "this checkpoint" if len(found) == 1 else "these checkpoints"
        raise CheckpointError(
            f"{', '.join(map(str, found))}: {count} of {of}"
            f" {'is' if len(problems) == 1 else 'are'} damaged",
            problems,
            hint="See all of it with: "
            + "; ".join(f"ckpt inspect `check_crc=True` {path}" for path in found),
        )


def _by_owner(
    checkpoint: Checkpoint, damaged: Sequence[Damage]
) -> Iterator[tuple[Path, list[Problem]]]:
    """What is damaged of the checkpoint, and of each model that is read with it, by its place."""
    taken: set[str] = set()
    for other in checkpoint.others:
        own = {file.path for file in other.files} - taken
        taken |= own
        if listed := describe_damage(other, [each for each in damaged if each.path in own]):
            yield other.path, listed
    rest = [each for each in damaged if each.path not in taken]
    if rest:
        yield checkpoint.path, describe_damage(checkpoint, rest)


def _make_check(read: ReadSums, checkpoint: Checkpoint) -> CrcCheck:
    """What is known, for people and programs."""
    plain = [file.path for file in checkpoint.files if file.path.endswith(".safetensors")]
    sound, unsaid = read.places(SOUND), read.places(UNSAID)
    return CrcCheck(
        num_records=len(sound),
        num_files=len({path for path, _ in sound}),
        num_unchecked=len(read.places(PART)),
        unsaid=sorted({*plain, *(path for path, _ in unsaid)}),
    )


def _list_places(plan: Plan) -> list[Place]:
    """The records in which tensors of the plan lie."""
    places: dict[Place, None] = {}
    seen: set[int] = set()
    for file in plan.files:
        for tensor in file.tensors:
            places.update(dict.fromkeys(_places_of(tensor, plan.checkpoint, seen)))
    return list(places)


def _places_of(tensor: Chunked, checkpoint: Checkpoint, seen: set[int]) -> Iterator[Place]:
    """The records of a tensor; of what is computed, those of its operands, once."""
    for chunk in tensor.chunks:
        path, offset, _, computed = chunk.region
        if computed is None:
            sums = checkpoint.sums.get(path)
            index = -1 if sums is None else sums.find(offset)
            if index >= 0:
                yield path, index
        elif id(computed) not in seen:
            seen.add(id(computed))
            for operand in computed.operands:
                yield from _places_of(operand, checkpoint, seen)
