"""torch.save archives: what torch writes reads back, what is damaged or crafted is refused."""

import io
import os
import zipfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ckpt_tool.common.errors import FormatError
from ckpt_tool.readers import open_checkpoint
from ckpt_tool.readers.torch_save.archive import TorchArchive
from ckpt_tool.readers.torch_save.rebuilding import TensorRef
from ckpt_tool.tensors.blocks import BlockReader, FileTable
from ckpt_tool.tensors.chunks import Chunk
from ckpt_tool.tensors.geometry import Box
from ckpt_tool.tensors.lazy import LazyTensor
from tests.support.backed import distinct, same
from tests.support.crafted import (
    Entry,
    archive,
    crafted_zip,
    dumps,
    floats,
    load,
    longs,
    storage,
    tensor,
)
from tests.support.versions import torch_dtype


def read(opened: TorchArchive, ref: TensorRef) -> torch.Tensor:
    stored = opened.locate_tensor(ref, "it")
    whole = Box((0,) * len(stored.shape), stored.shape)
    chunks = (Chunk(whole, stored.region),) if whole.volume else ()
    return LazyTensor(stored.shape, stored.dtype, stored.dtype, chunks).read()


def read_back(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a flat state dict."""
    with TorchArchive(path) as opened:
        return {name: read(opened, ref) for name, ref in opened.load().items()}


def plain(value: torch.Tensor) -> torch.Tensor:
    return value.detach().clone(memory_format=torch.contiguous_format)


BASE = distinct((6, 8))
LAYOUTS = {
    "whole": BASE,
    "rows": BASE[2:4],
    "columns": BASE[:, 3:5],
    "a column": BASE[:, 7],
    "every second": BASE[::2, 1::3],
    "transposed": BASE.t(),
    "permuted": distinct((2, 3, 4)).permute(2, 0, 1),
    "expanded": BASE[0].expand(3, 8),
    "expanded scalar": torch.tensor(1.5).expand(2, 2),
    "sliding": BASE.flatten().as_strided((5, 4), (1, 1), 3),
    "channels last": distinct((2, 3, 4, 5)).to(memory_format=torch.channels_last),
    "scalar": torch.tensor(2.5),
    "scalar view": BASE[3, 3],
    "empty": torch.empty(0),
    "empty matrix": torch.empty(3, 0, 2),
    "empty view": BASE[6:],
    "size one": BASE[1:2, 2:3],
    "parameter": nn.Parameter(BASE * 1),
    "frozen parameter": nn.Parameter(BASE * 2, requires_grad=False),
    "parameter view": nn.Parameter(BASE)[1:3].detach(),
    "buffer": nn.Buffer(BASE * 3) if hasattr(nn, "Buffer") else BASE,
    "requires grad": (BASE * 4).requires_grad_(),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_layout_reads_back(tmp_path, protocol):
    path = tmp_path / "t.pt"
    torch.save(LAYOUTS, path, pickle_protocol=protocol)
    found = read_back(path)
    assert list(found) == list(LAYOUTS)
    for name, value in LAYOUTS.items():
        assert same(found[name], plain(value)), name


DTYPES = [
    *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"),
    *("float8_e8m0fnu", "complex64", "int64", "int32", "int16", "int8"),
    *("uint64", "uint32", "uint16", "uint8", "bool"),
]


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_reads_back(tmp_path, name, protocol):
    dtype = torch_dtype(name)
    value = torch.arange(1, 97, dtype=torch.uint8)
    value = (value % 2 if name == "bool" else value).view(dtype)
    value = value.reshape(3, -1)
    saved = {"t": value, "columns": value[:, 1:3], "scalar": value[1, 1], "p": value.t()}
    torch.save(saved, tmp_path / "t.pt", pickle_protocol=protocol)
    found = read_back(tmp_path / "t.pt")
    for key, expected in saved.items():
        assert same(found[key], plain(expected)), key


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = self.layers[0].weight


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_module_state_dict_with_metadata_and_tied_weights(tmp_path, protocol):
    state = Nested().state_dict()
    assert isinstance(state, OrderedDict)
    assert state._metadata
    torch.save(state, tmp_path / "t.pt", pickle_protocol=protocol)
    found = read_back(tmp_path / "t.pt")
    assert list(found) == list(state)
    for name, value in state.items():
        assert same(found[name], plain(value)), name
    with TorchArchive(tmp_path / "t.pt") as opened:
        refs = opened.load()
        tied = [opened.locate_tensor(refs[n], n) for n in ("layers.0.weight", "head.weight")]
        other = opened.locate_tensor(refs["layers.2.weight"], "other")
    assert tied[0].region == tied[1].region
    assert tied[0].storage == tied[1].storage != other.storage


def test_views_of_one_storage_share_its_record(tmp_path):
    torch.save({"a": BASE[0], "b": BASE[1:]}, tmp_path / "t.pt")
    with TorchArchive(tmp_path / "t.pt") as opened:
        refs = opened.load()
        one, other = (opened.locate_tensor(refs[name], name) for name in "ab")
    assert one.storage == other.storage
    assert other.region.offset - one.region.offset == 8 * 4


def test_nested_containers_keep_their_form(tmp_path):
    value = {"model": [{"w": BASE}, (BASE[0], 3, "x", None)], "step": 7, "size": BASE.shape}
    torch.save(value, tmp_path / "t.pt")
    with TorchArchive(tmp_path / "t.pt") as opened:
        found = opened.load()
        assert same(read(opened, found["model"][0]["w"]), BASE)
        assert same(read(opened, found["model"][1][0]), BASE[0])
    assert found["model"][1][1:] == (3, "x", None)
    assert (found["step"], found["size"]) == (7, (6, 8))


@pytest.mark.slow
@settings(max_examples=25)
@given(st.data())
def test_any_view_reads_back(data):
    """Random slices, transposes and selections of a few storages."""
    bases = [distinct((4, 5, 3)), distinct((7,), torch.int64), distinct((6, 4), torch.bfloat16)]
    state = {}
    for number in range(data.draw(st.integers(1, 6))):
        view = data.draw(st.sampled_from(bases))
        for _ in range(data.draw(st.integers(0, 4))):
            if not view.ndim:
                break
            dim = data.draw(st.integers(0, view.ndim - 1))
            start = data.draw(st.integers(0, view.shape[dim]))
            step = data.draw(st.integers(1, 3))
            slices = [slice(None)] * view.ndim
            slices[dim] = slice(start, None, step)
            view = view[tuple(slices)].transpose(0, dim)
        state[str(number)] = view
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with open_scratch(buffer.getvalue()) as path:
        found = read_back(path)
    for name, value in state.items():
        assert same(found[name], plain(value))


class open_scratch:  # noqa: N801
    """A file with this content, for the length of a `with`."""

    def __init__(self, content: bytes) -> None:
        import tempfile

        self._folder = tempfile.TemporaryDirectory()
        self._path = Path(self._folder.name, "scratch.pt")
        self._path.write_bytes(content)

    def __enter__(self) -> Path:
        return self._path

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()


def test_records_at_any_alignment(tmp_path):
    """torch aligns records with padding in the local header only; zipfile does not align."""
    pickled = dumps({"a": tensor(storage("0", 3), (3,), (1,))})
    path = archive(tmp_path / "t.pt", pickled, {"0": floats(1, 2, 3)}, root="x" * 7)
    assert read_back(path)["a"].tolist() == [1, 2, 3]


def test_padding_of_a_local_header_is_skipped(tmp_path):
    pickled = dumps({"a": tensor(storage("0", 3), (3,), (1,))})
    entries = [
        Entry("a/data.pkl", pickled),
        Entry("a/data/0", floats(1, 2, 3), local_extra=b"FB\x09\x00" + b"Z" * 9),
    ]
    (tmp_path / "t.pt").write_bytes(crafted_zip(entries))
    assert read_back(tmp_path / "t.pt")["a"].tolist() == [1, 2, 3]


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="nobody can be told")
def test_headers_amid_the_elements_are_announced_before_any_is_read(tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    state = {f"weight {number}": torch.full((300, 300), float(number)) for number in range(40)}
    torch.save(state, path)
    told, done = [], []
    advise, pread = os.posix_fadvise, os.pread

    def noted(descriptor: int, start: int, size: int, advice: int) -> None:
        told.append((start, start + size))
        assert advice == os.POSIX_FADV_WILLNEED
        advise(descriptor, start, size, advice)

    def counted(descriptor: int, size: int, start: int) -> bytes:
        done.append((start, start + size, len(told)))
        return pread(descriptor, size, start)

    monkeypatch.setattr(os, "posix_fadvise", noted)
    monkeypatch.setattr(os, "pread", counted)
    found = open_checkpoint(path)
    assert found.problems == ()
    places = [entry.holdings[0].region.offset for entry in found.entries.values()]
    read = [(start, stop, known) for start, stop, known in done if start < max(places)]
    headers = [row for row in read if any(row[0] < at <= row[1] + 64 for at in places)]
    assert len(headers) >= 40
    for start, stop, known in headers:
        assert any(a <= start <= stop <= b for a, b in told[:known])


def test_an_archive_without_byteorder_is_little_endian(tmp_path):
    pickled = dumps({"a": tensor(storage("0", 2), (2,), (1,))})
    path = archive(tmp_path / "t.pt", pickled, {"0": floats(1, 2)}, byteorder=None)
    assert read_back(path)["a"].tolist() == [1, 2]


@pytest.mark.parametrize("order", [b"big", b"", b"little\n"])
def test_other_byte_orders_are_refused(tmp_path, order):
    path = archive(tmp_path / "t.pt", dumps({}), byteorder=order)
    with pytest.raises(FormatError, match="byte order"):
        load(path)


def test_a_real_big_endian_archive_is_refused(tmp_path):
    from torch.serialization import LoadEndianness  # noqa: F401 (torch knows of endianness)

    torch.save({"a": BASE}, tmp_path / "t.pt")
    content = (tmp_path / "t.pt").read_bytes()
    entries = []
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        for name in file.namelist():
            data = b"big" if name.endswith("byteorder") else file.read(name)
            entries.append(Entry(name, data))
    (tmp_path / "t.pt").write_bytes(crafted_zip(entries))
    with pytest.raises(FormatError, match="byte order"):
        load(tmp_path / "t.pt")


class TestOtherFiles:
    def refused(self, path: Path, match: str) -> FormatError:
        with pytest.raises(FormatError, match=match) as caught:
            load(path)
        assert str(path) in caught.value.message
        (problem,) = open_checkpoint(path).problems
        assert problem.kind == "unreadable"
        assert problem.where == str(path)
        return caught.value

    def test_the_format_from_before_torch_1_6(self, tmp_path):
        torch.save({"a": BASE}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
        assert "torch.save" in self.refused(tmp_path / "old.pt", r"before 1\.6").hint

    def test_a_git_lfs_pointer(self, tmp_path):
        (tmp_path / "t.pt").write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"
        )
        self.refused(tmp_path / "t.pt", "git lfs pull")

    def test_an_empty_file(self, tmp_path):
        (tmp_path / "t.pt").touch()
        self.refused(tmp_path / "t.pt", "empty")

    @pytest.mark.parametrize("content", [b"x", b"PK\x03\x04", b"\0" * 5000, b"<html></html>" * 9])
    def test_something_else(self, tmp_path, content):
        (tmp_path / "t.pt").write_bytes(content)
        self.refused(tmp_path / "t.pt", "no zip directory")

    def test_a_zip_of_something_else(self, tmp_path):
        (tmp_path / "t.pt").write_bytes(crafted_zip([Entry("word/document.xml", b"<x/>")]))
        self.refused(tmp_path / "t.pt", r"not a torch\.save archive")

    def test_an_empty_zip(self, tmp_path):
        (tmp_path / "t.pt").write_bytes(crafted_zip([]))
        self.refused(tmp_path / "t.pt", r"not a torch\.save archive")

    def test_two_pickles(self, tmp_path):
        entries = [Entry("a/data.pkl", dumps({})), Entry("b/data.pkl", dumps({}))]
        (tmp_path / "t.pt").write_bytes(crafted_zip(entries))
        self.refused(tmp_path / "t.pt", r"not a torch\.save archive")

    def test_a_missing_file_is_an_os_error(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            load(tmp_path / "gone.pt")


PICKLED = dumps(
    {"a": tensor(storage("0", 3), (3,), (1,)), "b": tensor(storage("1", 2), (2,), (1,))}
)
A, B = floats(1, 2, 3), floats(4, 5)


def entries(**changes: Entry) -> list[Entry]:
    made = {
        "pickle": Entry("a/data.pkl", PICKLED),
        "order": Entry("a/byteorder", b"little"),
        "a": Entry("a/data/0", A),
        "b": Entry("a/data/1", B),
    }
    return list((made | changes).values())


def loaded(tmp_path: Path, content: bytes) -> dict[str, list[float]]:
    path = tmp_path / "crafted.pt"
    path.write_bytes(content)
    return {name: value.tolist() for name, value in read_back(path).items()}


GOOD = {"a": [1, 2, 3], "b": [4, 5]}


def test_the_crafted_zip_is_good(tmp_path):
    assert loaded(tmp_path, crafted_zip(entries())) == GOOD


def test_a_zip64_directory(tmp_path):
    assert loaded(tmp_path, crafted_zip(entries(), zip64=True)) == GOOD


def test_a_zip64_field_behind_another_extra_field(tmp_path):
    other = b"XX\x04\x00abcd"
    content = crafted_zip(entries(a=Entry("a/data/0", A, extra=other)), zip64=True)
    assert loaded(tmp_path, content) == GOOD


@pytest.mark.slow
def test_more_records_than_16_bits_count(tmp_path):
    """torch itself writes zip64 from 65535 records on; ours must read the wide count."""
    many = [Entry(f"a/data/{n}", b"") for n in range(2, 66_000)]
    content = crafted_zip([*entries(), *many], zip64=True)
    assert loaded(tmp_path, content) == GOOD


def test_an_archive_with_a_comment(tmp_path):
    content = crafted_zip(entries())
    assert loaded(tmp_path, content[:-2] + b"\x05\x00hello") == GOOD


def falsified(**changes: Entry) -> bytes:
    return crafted_zip(entries(**changes))


DIRECTORIES = {
    "compressed": falsified(a=Entry("a/data/0", A, method=8)),
    "compressed pickle": falsified(pickle=Entry("a/data.pkl", PICKLED, method=8)),
    "encrypted": falsified(a=Entry("a/data/0", A, flags=1)),
    "packed size differs": falsified(a=Entry("a/data/0", A, packed=11)),
    "larger than the file": falsified(b=Entry("a/data/1", B, size=1 << 20)),
    "almost 4 GiB": falsified(b=Entry("a/data/1", B, size=0xFFFFFFFE)),
    "zip64 marks without values": falsified(b=Entry("a/data/1", B, size=0xFFFFFFFF)),
    "zip64 values cut": falsified(
        b=Entry("a/data/1", B, size=0xFFFFFFFF, extra=b"\x01\x00\x08\x00" + b"\x08" + b"\0" * 7)
    ),
    "header behind the file": falsified(b=Entry("a/data/1", B, header=1 << 30)),
    "into the directory": falsified(b=Entry("a/data/1", B, size=100)),
    "over the next record": falsified(a=Entry("a/data/0", A, size=14)),
    "at another's header": falsified(b=Entry("a/data/1", B, header=0)),
    "inside another record": falsified(b=Entry("a/data/1", B, header=10)),
    "duplicate name": crafted_zip([*entries(), Entry("a/data/0", floats(7, 8, 9))]),
    "duplicate pickle": crafted_zip([*entries(), Entry("a/data.pkl", PICKLED)]),
    "no local header": falsified(a=Entry("a/data/0", A, local_mark=b"PK\x01\x02")),
    "one entry too many": crafted_zip(entries(), count=5),
    "65534 entries": crafted_zip(entries(), count=65534),
    "one entry too few": crafted_zip(entries(), count=3),
    "shifted directory": crafted_zip(entries(), shift=1),
    "directory behind the end": crafted_zip(entries(), shift=1 << 20),
    "zip64 count": crafted_zip(entries(), zip64=True, count=2**64 - 1),
    "zip64 directory far away": crafted_zip(entries(), zip64=True, shift=2**62),
    "record missing": falsified(a=Entry("a/data/00", A)),
    "short record": falsified(a=Entry("a/data/0", A[:-1])),
    "empty record": falsified(a=Entry("a/data/0", b"")),
    "padding into the next": falsified(a=Entry("a/data/0", A, local_extra=b"", size=12)).replace(
        b"\x08\x00\x00\x00a/data/0" + A, b"\x08\x00\x14\x00a/data/0" + A, 1
    ),
}


@pytest.mark.parametrize("content", DIRECTORIES.values(), ids=DIRECTORIES.keys())
def test_falsified_directories_are_format_errors(tmp_path, content):
    assert content != crafted_zip(entries())
    with pytest.raises(FormatError, match=r"crafted\.pt"):
        loaded(tmp_path, content)


def test_overlaps_are_refused_also_where_nothing_reads_the_record(tmp_path):
    content = crafted_zip([*entries(), Entry("a/version", b"3\n", size=500)])
    (tmp_path / "t.pt").write_bytes(content)
    with pytest.raises(FormatError, match="record a/version overlaps"):
        TorchArchive(tmp_path / "t.pt")


def test_a_storage_that_claims_more_than_its_record(tmp_path):
    pickled = dumps({"a": tensor(storage("0", 4), (3,), (1,))})
    path = archive(tmp_path / "t.pt", pickled, {"0": A})
    with pytest.raises(FormatError, match="storage 0 of it has 12 bytes, expected 16"):
        read_back(path)


EXTENTS = [
    ((4,), (1,), 0),
    ((3,), (1,), 1),
    ((1,), (1,), 3),
    ((), (), 3),
    ((2,), (3,), 0),
    ((2, 2), (2, 1), 0),
    ((2,), (2**62,), 0),
    ((1,), (1,), 2**62),
]


@pytest.mark.parametrize(("size", "stride", "offset"), EXTENTS)
def test_a_tensor_that_reaches_beyond_its_storage(tmp_path, size, stride, offset):
    pickled = dumps({"a": tensor(storage("0", 3), size, stride, offset)})
    path = archive(tmp_path / "t.pt", pickled, {"0": A, "1": B * 50})
    with pytest.raises(FormatError, match="reaches element"):
        read_back(path)
    assert open_checkpoint(path).problems


@pytest.mark.parametrize(
    ("size", "stride", "offset", "expected"),
    [
        ((3,), (1,), 0, [1, 2, 3]),
        ((1,), (2**62,), 2, [3]),
        ((2, 2), (1, 1), 0, [[1, 2], [2, 3]]),
        ((0,), (1,), 99, []),
    ],
)
def test_the_extent_is_exact(tmp_path, size, stride, offset, expected):
    pickled = dumps({"a": tensor(storage("0", 3), size, stride, offset)})
    path = archive(tmp_path / "t.pt", pickled, {"0": A})
    assert read_back(path)["a"].tolist() == expected


@pytest.mark.parametrize("key", ["../1", "/etc/passwd", "", "0\0", "0/", "data.pkl"])
def test_storage_keys_are_record_names_and_nothing_else(tmp_path, key):
    path = archive(tmp_path / "t.pt", dumps({"a": tensor(storage(key, 3), (3,), (1,))}), {"0": A})
    with pytest.raises(FormatError, match="no record"):
        read_back(path)


def test_small_integer_tensors_are_read_in_row_major_order(tmp_path):
    """A mesh may be a transposed view: reading it as it lies would swap ranks."""
    ranks = torch.arange(6)
    views = {
        "plain": ranks.reshape(2, 3),
        "int32": ranks.to(torch.int32).reshape(3, 2),
        "slice": ranks[2:5],
        "transposed": ranks.reshape(2, 3).t(),
        "column": ranks.reshape(2, 3)[:, 1],
        "expanded": ranks[3:4].expand(2, 2),
        "scalar": ranks[4],
        "empty": ranks[:0],
    }
    torch.save(views, tmp_path / "t.pt")
    with TorchArchive(tmp_path / "t.pt") as opened:
        found = opened.load()
        for name, view in views.items():
            with suppress(FormatError):  # refusing a view is right, misreading it is not
                assert opened.read_integers(found[name]) == view.flatten().tolist(), name


def test_negative_integers_and_other_types_are_no_mesh(tmp_path):
    pickled = dumps({"a": tensor(storage("0", 3), (3,), (1,))})
    path = archive(tmp_path / "t.pt", pickled, {"0": A})
    with TorchArchive(path) as opened, pytest.raises(FormatError, match="mesh of float32"):
        opened.read_integers(opened.load()["a"])


def test_an_enormous_expanded_mesh_is_refused(tmp_path):
    ref = tensor(storage("0", 1, "LongStorage"), (1 << 30, 1 << 20), (0, 0))
    path = archive(tmp_path / "t.pt", dumps({"a": ref}), {"0": longs(0)})
    with TorchArchive(path) as opened, pytest.raises(FormatError, match="mesh"):
        opened.read_integers(opened.load()["a"])


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A small archive of torch's own, and a scratch file."""
    folder = tmp_path_factory.mktemp("real")
    state = {"a": distinct((3, 4)), "b": distinct((5,), torch.int64), "c": distinct((2, 2))[:, 1]}
    torch.save(state, folder / "real.pt")
    return folder / "scratch.pt", (folder / "real.pt").read_bytes()


@pytest.mark.slow
def test_truncation_at_any_byte_is_a_format_error(real):
    path, content = real
    for end in range(len(content)):
        path.write_bytes(content[:end])
        with pytest.raises(FormatError):
            read_back(path)


def test_bytes_missing_at_the_front_are_a_format_error(real):
    path, content = real
    for start in (1, 4, 64, 500):
        path.write_bytes(content[start:])
        with pytest.raises(FormatError):
            read_back(path)


def test_a_hole_in_the_middle_is_a_format_error_or_harmless(real):
    """A block that a copy lost: what follows is not where the directory says."""
    path, content = real
    path.write_bytes(content)
    whole = {name: value.tolist() for name, value in read_back(path).items()}
    refused = 0
    for start in range(0, len(content) - 64, 7):
        path.write_bytes(content[:start] + content[start + 64 :])
        try:  # the zip64 end record is redundant in a small archive
            found = {name: value.tolist() for name, value in read_back(path).items()}
        except FormatError:
            refused += 1
        else:
            assert found == whole
    assert refused > 200


def positions(content: bytes) -> list[int]:
    """Bytes of the pickle, the headers and the directory: everything but tensor data."""
    directory = content.find(b"PK\x01\x02")
    pickle_end = content.find(b"PK\x03\x04", 4)
    return [*range(pickle_end), *range(directory, len(content))]


@pytest.mark.slow
@settings(max_examples=300)
@given(st.data())
def test_changed_bytes_give_tensors_or_a_format_error(real, data):
    path, content = real
    changed = bytearray(content)
    places = positions(content)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.sampled_from(places))] = data.draw(st.integers(0, 255))
    path.write_bytes(changed)
    with suppress(FormatError), TorchArchive(path) as opened:
        value = opened.load()
        for ref in value.values() if isinstance(value, dict) else ():
            if isinstance(ref, TensorRef):
                stored = opened.locate_tensor(ref, "it")
                room = len(content) - stored.region.offset
                assert room >= 0 or 0 in ref.shape
                if 0 < ref.dtype.itemsize * torch.Size(ref.shape).numel() < 1 << 20:
                    read(opened, ref)


@pytest.mark.slow
@settings(max_examples=150)
@given(st.data())
def test_open_checkpoint_survives_changed_bytes(real, data):
    path, content = real
    changed = bytearray(content)
    places = positions(content)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.sampled_from(places))] = data.draw(st.integers(0, 255))
    path.write_bytes(changed)
    with suppress(FormatError):
        checkpoint = open_checkpoint(path)
        assert all(problem.message for problem in checkpoint.problems)


def test_reading_an_archive_that_shrank_meanwhile_is_a_format_error(real):
    path, content = real
    path.write_bytes(content)
    with TorchArchive(path) as opened:
        ref = opened.load()["b"]
        stored = opened.locate_tensor(ref, "b")
        path.write_bytes(content[: stored.region.offset + 8])
        whole = Chunk(Box((0,), (5,)), stored.region)
        lazy = LazyTensor((5,), stored.dtype, stored.dtype, (whole,))
        with FileTable() as files, pytest.raises(FormatError, match="ends at byte"):
            BlockReader(files).read(lazy, 0, 5, memoryview(bytearray(40)))


def descriptors_of(path: Path) -> int:
    """How many descriptors of this process are of `path`."""
    return sum(link.resolve() == path for link in Path("/proc/self/fd").iterdir())


def test_the_file_is_closed(tmp_path):
    path = archive(tmp_path / "t.pt", dumps({}))
    with TorchArchive(path):
        assert descriptors_of(path) == 1
    assert descriptors_of(path) == 0


def test_the_file_of_no_archive_is_closed(tmp_path):
    path = tmp_path / "t.pt"
    path.write_bytes(b"no archive")
    with pytest.raises(FormatError):
        TorchArchive(path)
    assert descriptors_of(path) == 0


def test_archives_share_a_descriptor_and_leave_it_open(tmp_path):
    path = archive(tmp_path / "t.pt", dumps({}))
    with FileTable() as files:
        for _ in range(3):
            with TorchArchive(path, files=files) as opened:
                assert opened.load() == {}
            assert descriptors_of(path) == 1
    assert descriptors_of(path) == 0
