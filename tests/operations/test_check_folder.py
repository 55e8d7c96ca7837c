"""A folder held against its manifest: whatever is not as it was written is named."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ckpt_tool import check_folder, convert_to_mcore
from ckpt_tool.operations.check_folder import check_folder_as_team
from ckpt_tool.operations.options import ToMcoreOptions
from ckpt_tool.plans.manifest import MANIFEST_NAME
from ckpt_tool.plans.options import WriteOptions
from ckpt_tool.writers.digests import digest_together
from ckpt_tool.writers.stream import digest_bytes, digest_file
from tests.plans.test_manifest import contents, merge, write_run
from tests.real.megatron_models import write_model
from tests.support.teams import Told, run_as_team


@pytest.fixture
def out(tmp_path: Path) -> Path:
    merge(write_run(tmp_path / "here"), tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture(params=["bare", "megatron-lm"])
def mcore(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    options = ToMcoreOptions(layout=request.param, write=WriteOptions(fsync=False))
    convert_to_mcore(write_model("qwen3", tmp_path / "model"), tmp_path / "mcore", options)
    return tmp_path / "mcore"


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def require_every_flip_is_found(folder: Path) -> None:
    assert check_folder(folder).equal
    names = sorted(contents(folder).keys() - {MANIFEST_NAME})
    assert len(names) > 3
    for name in names:
        size = (folder / name).stat().st_size
        for at in {0, size // 2, size - 1}:
            flip(folder / name, at)
            found = check_folder(folder)
            assert not found.equal
            assert list(found.different) == [name]
            assert (found.missing, found.unexpected) == ([], [])
            flip(folder / name, at)
    assert check_folder(folder).equal


def test_a_flipped_bit_in_any_file_is_found_and_named(out: Path) -> None:
    require_every_flip_is_found(out)


@pytest.mark.slow
def test_a_flipped_bit_in_any_file_of_megatrons_too(mcore: Path) -> None:
    require_every_flip_is_found(mcore)


def replace_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


CONFIG = "config.json"
SPOILED: dict[str, tuple[Callable[[Path], object], tuple[list[str], list[str], list[str]]]] = {
    "longer": (lambda out: (out / CONFIG).open("a").write("x"), ([], [], [CONFIG])),
    "empty": (lambda out: os.truncate(out / CONFIG, 0), ([], [], [CONFIG])),
    "gone": (lambda out: (out / CONFIG).unlink(), ([CONFIG], [], [])),
    "one more": (lambda out: (out / "x").touch(), ([], ["x"], [])),
    "hidden": (lambda out: (out / ".x").touch(), ([], [".x"], [])),
    "renamed": (lambda out: (out / CONFIG).rename(out / "y"), ([CONFIG], ["y"], [])),
    "a link to nothing": (lambda out: (out / "x").symlink_to("gone"), ([], ["x"], [])),
    "a link to a folder": (lambda out: (out / "x").symlink_to("/etc"), ([], ["x"], [])),
    "a FIFO": (lambda out: replace_by_fifo(out / CONFIG), ([], [], [CONFIG])),
    "a device": (lambda out: replace_by_device(out / CONFIG), ([], [], [CONFIG])),
    "a folder": (lambda out: replace_by_folder(out / CONFIG), ([CONFIG], [], [])),
    "an empty folder": (lambda out: (out / "empty").mkdir(), ([], [], [])),
    "the Hub's own": (lambda out: (out / ".gitattributes").touch(), ([], [], [])),
}


@pytest.mark.parametrize(("spoil", "named"), SPOILED.values(), ids=SPOILED)
def test_what_is_missing_too_many_or_different_is_named(out: Path, spoil, named) -> None:
    spoil(out)
    found = check_folder(out)
    assert (found.missing, found.unexpected, list(found.different)) == named
    assert found.equal == (named == ([], [], []))


def test_a_file_behind_a_linked_folder_is_not_read(out: Path, tmp_path: Path) -> None:
    """Though the manifest lists one of that name, and of that content."""
    manifest = out / MANIFEST_NAME
    (tmp_path / "secret").mkdir()
    (out / CONFIG).rename(tmp_path / "secret" / CONFIG)
    (out / "sub").symlink_to(tmp_path / "secret")
    manifest.write_text(manifest.read_text().replace(f'"{CONFIG}"', f'"sub/{CONFIG}"'))
    found = check_folder(out)
    assert (found.missing, found.unexpected) == ([f"sub/{CONFIG}"], ["sub"])


def test_a_folder_of_a_hub_cache_is_checked(out: Path, tmp_path: Path) -> None:
    """There every file is a link to a blob."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    out.rename(blobs)
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(Path("..") / ".." / "blobs" / path.name)
    assert check_folder(snapshot).equal


def test_the_result_says_what_was_looked_at(out: Path) -> None:
    found = check_folder(out)
    held = contents(out)
    del held[MANIFEST_NAME]
    assert (found.num_files, found.total_bytes) == (len(held), sum(map(len, held.values())))
    assert found.source == {"run": "qwen-grpo", "step": 100, "role": "actor", "format": "fsdp"}
    assert found.path == out


def test_progress_is_in_bytes(out: Path) -> None:
    told = Told()
    found = check_folder(out, jobs=1, progress=told)
    assert told.totals == told.done == {"checking": found.total_bytes}


def test_processes_share_the_reading(out: Path) -> None:
    flip(out / CONFIG, 3)
    found = run_as_team(2, lambda team: check_folder_as_team(out, team))
    assert [list(result.different) for result, _ in found] == [[CONFIG], [CONFIG]]
    shares = [told.done["checking"] for _, told in found]
    assert min(shares) > 0
    assert sum(shares) == found[0][0].total_bytes


@pytest.mark.parametrize("size", [0, 1, (2 << 20) - 1, 2 << 20, (6 << 20) + 5])
@pytest.mark.parametrize("jobs", [1, 3])
def test_the_digest_is_the_same_however_it_is_taken(tmp_path: Path, size: int, jobs: int) -> None:
    content = os.urandom(size)
    (tmp_path / "x").write_bytes(content)
    done: list[int] = []
    found = digest_together(tmp_path / "x", jobs, done.append)
    assert found == digest_bytes(content) == digest_file(tmp_path / "x")
    assert sum(done) == size
