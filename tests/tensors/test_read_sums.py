"""What is read in pieces, held against the checksum of the whole: any order, overlaps, damage."""

import random
import zlib
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ckpt_tool.common.errors import FormatError
from ckpt_tool.common.parallel import Team
from ckpt_tool.tensors.blocks import BlockReader
from ckpt_tool.tensors.checksums import FileSums, RecordSum
from ckpt_tool.tensors.chunks import Chunk, Region
from ckpt_tool.tensors.dtypes import FLOAT32
from ckpt_tool.tensors.followed_files import FollowedFiles, exchange, prove, read_gaps
from ckpt_tool.tensors.geometry import Box
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.tensors.read_sums import DAMAGED, PART, SOUND, UNREAD, UNSAID, ReadSums
from tests.support.backed import distinct
from tests.support.teams import run_as_team

FILE = "f"
START = 7  # of the record in its file


def follow(data: bytes, crc: int | None = None) -> ReadSums:
    crc = zlib.crc32(data) if crc is None else crc
    return ReadSums({FILE: FileSums([RecordSum(START, len(data), crc, "r")])})


def note(read: ReadSums, data: bytes, start: int, stop: int) -> None:
    read.note(FILE, START + start, memoryview(data)[start:stop])


class Backwards(random.Random):
    """A way to shuffle that is always the same."""

    def shuffle(self, x: list[object]) -> None:
        x.reverse()


@st.composite
def pieces(draw: st.DrawFn, overlapping: bool) -> tuple[bytes, list[tuple[int, int]]]:
    """Bytes, and pieces of them; they cover all where they do not overlap."""
    data = draw(st.binary(min_size=1, max_size=60).filter(zlib.crc32))
    cuts = sorted(draw(st.sets(st.integers(0, len(data)), max_size=8)) | {0, len(data)})
    cut = list(pairwise(cuts))
    if overlapping:
        ends = st.tuples(st.integers(0, len(data)), st.integers(0, len(data)))
        cut = [tuple(sorted(pair)) for pair in draw(st.lists(ends, max_size=12))]
    return data, draw(st.permutations(cut))


@given(pieces(overlapping=False), st.data())
def test_pieces_in_any_order_prove_the_whole(case, data):
    content, cut = case
    for changed in (False, True):
        read, seen = follow(content), bytearray(content)
        if changed:
            seen[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        for start, stop in cut:
            assert read.state((FILE, 0)) in (UNREAD, PART)
            note(read, bytes(seen), start, stop)
        assert read.state((FILE, 0)) == (DAMAGED if changed else SOUND)
        assert [d.found for d in read.damaged()] == ([zlib.crc32(seen)] if changed else [])


OVERTAKEN = (b"\0\0\0\0", [(2, 3), (0, 3), (1, 2)])  # whose third joins the first, in the second
ORPHANED = (b"\0\0\0\0\0\0\0\0", [(0, 3), (2, 6), (4, 6)])  # whose second goes, the third stays


@given(pieces(overlapping=True), st.booleans(), st.randoms())
@example(OVERTAKEN, False, Backwards())
@example(ORPHANED, False, Backwards())
def test_what_overlaps_is_proven_once_the_gaps_are_read(case, changed, order):
    content, cut = case
    read, seen = follow(content), bytearray(content)
    seen[len(seen) // 2] ^= changed
    for start, stop in cut:
        note(read, bytes(seen), start, stop)
        assert read.state((FILE, 0)) != (SOUND if changed else DAMAGED)
    gaps = list(read.gaps([(FILE, 0)]))
    order.shuffle(gaps)  # several threads read them
    for _, at, size in gaps:
        note(read, bytes(seen), at - START, at - START + size)
    assert read.state((FILE, 0)) == (DAMAGED if changed else SOUND)
    assert list(read.gaps([(FILE, 0)])) == []


@given(pieces(overlapping=False), st.data())
def test_processes_tell_each_other(case, data):
    """Each has read some of the pieces; whoever hears of all of them knows the whole."""
    content, cut = case
    team = [follow(content) for _ in range(3)]
    for start, stop in cut:
        note(data.draw(st.sampled_from(team)), content, start, stop)
    tell(team)
    assert {read.state((FILE, 0)) for read in team} == {SOUND}


#: Of which whoever has the last two puts the first in between, and nobody else can.
CLOSED = (b"\0" * 8, [(0, 2), (1, 5), (2, 5)])


@given(pieces(overlapping=True), st.lists(st.integers(0, 2), min_size=12, max_size=12))
@example(CLOSED, [1, 0, 0, *[0] * 9])
def test_processes_see_the_same_gaps(case, ranks):
    content, cut = case
    team = [follow(content) for _ in range(3)]
    for (start, stop), rank in zip(cut, ranks, strict=False):
        note(team[rank], content, start, stop)
    tell(team)
    first, *others = (list(read.gaps([(FILE, 0)])) for read in team)
    assert all(gaps == first for gaps in others)


def tell(team: list[ReadSums]) -> None:
    told = [read.findings() for read in team]
    for read in team:
        read.learn(told)


@pytest.mark.parametrize(
    "starts",
    [(range(0, 4000, 500), range(20, 4000, 500)), ((0, 2000), (*range(100, 600, 5), 2100))],
    ids=["few of each", "very many by one, which are one"],
)
def test_a_team_proves_what_it_has_read_in_part(tmp_path, starts):
    """Each has read other pieces of two records, with gaps between."""
    path, content = tmp_path / "f", random.Random(1).randbytes(4000)
    path.write_bytes(content)
    halves = content[:2000], content[2000:]
    records = [RecordSum(2000 * n, 2000, zlib.crc32(half), "r") for n, half in enumerate(halves)]

    def work(team: Team) -> tuple[list[int], int]:
        read = ReadSums({str(path): FileSums(records)})
        with FollowedFiles(read) as files:
            for at in starts[team.world.rank]:
                files.read(str(path), at, memoryview(bytearray(5)))
        exchange(read, team)
        size = prove(read, list(read.gaps(read.places(PART))), team)
        return [read.state((str(path), number)) for number in (0, 1)], size

    (first, _), (other, _) = run_as_team(2, work)
    assert first == other
    assert first[0] == [SOUND, SOUND]


def test_damage_that_one_process_has_found_is_known_to_all():
    one, other = follow(b"abcd", crc=5), follow(b"abcd", crc=5)
    note(one, b"abcd", 0, 4)
    tell([one, other])
    assert other.damaged() == one.damaged() != []
    assert other.damaged()[0].record.name == "r"


def test_a_record_without_a_checksum_is_said_and_not_read_again():
    read = follow(b"abcd", crc=0)
    note(read, b"abcd", 0, 2)
    assert read.places(UNSAID) == [(FILE, 0)]
    unread = follow(b"abcd", crc=0)
    assert list(unread.gaps(unread.places(UNREAD))) == []
    assert unread.places(UNSAID) == [(FILE, 0)]


def test_empty_records_and_bytes_between_records_are_nothing():
    rows = [RecordSum(0, 4, 1, "a"), RecordSum(9, 0, 0, "b"), RecordSum(10, 4, 1, "c")]
    sums = FileSums(rows)
    assert [sums.find(at) for at in (0, 3, 4, 9, 10, 13, 14)] == [0, 0, -1, -1, 1, 1, -1]
    read = ReadSums({FILE: sums})
    read.note(FILE, 5, memoryview(b"xy"))
    read.note("other", 0, memoryview(b"xy"))
    assert read.places(UNREAD) == [(FILE, 0), (FILE, 1)]


def test_a_record_in_very_many_pieces_is_read_once_more():
    content = bytes(range(256))
    read = follow(content)
    for at in range(0, 256, 2):
        note(read, content, at, at + 1)
    assert list(read.gaps([(FILE, 0)])) == [(FILE, START, 256)]
    note(read, content, 0, 256)
    assert read.state((FILE, 0)) == SOUND


def test_gaps_are_followed_however_many_they_are():
    content = bytes(range(256))
    read = follow(content)
    for at in range(0, 120, 2):
        note(read, content, at, at + 1)
    gaps = list(read.gaps([(FILE, 0)]))
    assert len(gaps) == 60
    for _, at, size in gaps:
        note(read, content, at - START, at - START + size)
    assert read.state((FILE, 0)) == SOUND


def columns(path: Path, start: int, width: int, of: int, rows: int) -> LazyTensor:
    """Some columns of a matrix of float32 in a file."""
    region = Region(str(path), START + 4 * start, (of, 1))
    box = Box((0, 0), (rows, width))
    return LazyTensor((rows, width), FLOAT32, FLOAT32, (Chunk(box, region),))


@pytest.mark.parametrize(
    ("width", "other", "state"),
    [(2000, 1100, SOUND), (4, 1100, SOUND), (500, 400, PART)],
    ids=["with the gaps", "run by run", "in short runs"],
)
def test_columns_of_a_matrix_are_followed_without_the_gaps(tmp_path, width, other, state):
    """Both halves of every row are read by two tensors: of each byte once is taken notice."""
    rows, path = 3, tmp_path / "f"
    content = distinct((rows, width + other)).numpy().tobytes()
    path.write_bytes(bytes(START) + content)
    record = RecordSum(START, len(content), zlib.crc32(content), "r")
    read = ReadSums({str(path): FileSums([record])})
    with FollowedFiles(read) as files:
        for start, part in ((0, width), (width, other)):
            tensor = columns(path, start, part, width + other, rows)
            out = memoryview(bytearray(tensor.nbytes))
            BlockReader(files).read(tensor, 0, tensor.numel, out)
    assert read.state((str(path), 0)) == state
    read_gaps(read.gaps([(str(path), 0)]), read, 2, lambda _: None)
    assert read.state((str(path), 0)) == SOUND


def test_a_file_that_ends_too_early_is_an_error(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    read = ReadSums({str(tmp_path / "f"): FileSums([RecordSum(0, 10, 1, "r")])})
    with pytest.raises(FormatError, match="ends at byte 3"):
        read_gaps(read.gaps(read.places(UNREAD)), read, 2, lambda _: None)
