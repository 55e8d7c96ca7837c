"""OUT as a mount point (`docker -v host:/out`): nothing can be renamed to it."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckpt_tool.common.errors import CheckpointError, OutputError
from ckpt_tool.common.parallel import ALONE, Team
from ckpt_tool.operations.merge import merge_fsdp
from ckpt_tool.operations.merge_plan import make_plan
from ckpt_tool.operations.options import MergeOptions
from ckpt_tool.plans.options import WriteOptions, WriteResult
from ckpt_tool.plans.write import write
from ckpt_tool.writers import target
from tests.plans.test_sources import Once
from tests.support.merging import TINY, values, write_rank

WEIGHTS = "model-0000{}-of-00004.safetensors"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = {f"layers.{n}.weight": values(64, 64, start=n << 12) for n in range(4)}
    folder = write_rank(tmp_path_factory.mktemp("source"), state, TINY)
    (folder / "huggingface" / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the system says is a mount point: a rename to it would fail as there."""
    folder = tmp_path / "mount"
    folder.mkdir()
    (folder / "lost+found").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == folder)
    return folder


def merge(source: Path, out: Path, **more: object) -> WriteResult:
    return merge_fsdp(
        [source],
        out,
        MergeOptions(max_shard_size="20KB", write=WriteOptions(check_load=False, **more)),
    )


def bytes_of(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def expected(source: Path, tmp_path: Path) -> dict[str, bytes]:
    merge(source, tmp_path / "beside")
    return bytes_of(tmp_path / "beside")


def test_it_is_written_inside_with_what_completes_it_last(
    source: Path, out: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, moved = Path.rename, list[str]()

    def watch(self: Path, to: Path) -> Path:
        moved.append(to.name)
        assert self.parent == out / ".ckpt-partial"
        assert to.parent == out
        return plain(self, to)

    monkeypatch.setattr(Path, "rename", watch)
    result = merge(source, out, verify=True)
    assert (result.verified, result.warnings) == (True, [])
    assert bytes_of(out) == expected
    assert sorted(moved[:4]) == [WEIGHTS.format(number) for number in (1, 2, 3, 4)]
    assert moved[4:] == ["tokenizer.json", "README.md", "ckpt_manifest.json",
                         "model.safetensors.index.json", "config.json"]  # fmt: skip
    assert {path.name for path in out.iterdir()} == {*expected, "lost+found"}
    assert {path.name for path in out.parent.iterdir()} == {"mount", "beside"}


def test_what_is_in_it_is_not_replaced_unless_told_otherwise(
    source: Path, out: Path, expected: dict[str, bytes]
) -> None:
    (out / "config.json").write_text("mine")
    with pytest.raises(OutputError, match="exists and is not empty"):
        merge(source, out)
    assert bytes_of(out) == {"config.json": b"mine"}
    assert merge(source, out, overwrite=True).warnings == []
    assert bytes_of(out) == expected
    assert merge(source, out, resume=True).already_complete


@pytest.mark.parametrize("at", ["model.safetensors.index.json", "config.json"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, PermissionError(1, "no")], ids=["^C", "no"])
def test_an_interruption_among_the_renames_leaves_what_was_there(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch, at: str, error: object
) -> None:
    (out / "config.json").write_text("mine")
    plain = Path.rename

    def stop(self: Path, to: Path) -> Path:
        if to == out / at and self.parent == out / ".ckpt-partial":
            raise error
        return plain(self, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", stop)
        with pytest.raises((KeyboardInterrupt, OutputError)) as raised:
            merge(source, out, overwrite=True)
    assert "`write.resume=True` continues" in f"{raised.value}{getattr(raised.value, 'hint', '')}"
    left = {path.name for path in out.iterdir()}
    assert left == {"config.json", "lost+found", ".ckpt-partial", ".ckpt-journal"}
    assert (out / "config.json").read_text() == "mine"
    kept = {path.name: path.stat().st_ino for path in (out / ".ckpt-partial").glob("model-*")}
    merge(source, out, overwrite=True, resume=True)
    assert {path.name: path.stat().st_ino for path in out.glob("model-*")} == kept
    assert not (out / ".ckpt-partial").exists()


def test_a_source_that_changed_leaves_nothing_in_it(source: Path, out: Path) -> None:
    plan = make_plan(source, "fsdp", MergeOptions(max_shard_size="20KB"))
    team = Team(ALONE, 2, Once(lambda: os.utime(plan.checkpoint.files[0].path)))
    with pytest.raises(CheckpointError, match="changed while it was read"):
        write(plan, out, WriteOptions(check_load=False), team)
    assert [path.name for path in out.iterdir()] == ["lost+found"]


def test_room_is_looked_for_where_it_is_written(
    out: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    usage = target.shutil.disk_usage(out)
    monkeypatch.setattr(
        target.shutil, "disk_usage", lambda path: (asked.append(path), usage._replace(free=9))[1]
    )
    with pytest.raises(OutputError, match="9 are free"):
        merge(source, out)
    assert asked == [out]


MOUNTED = """
import subprocess, sys
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
subprocess.run(["mount", *sys.argv[1].split(), sys.argv[2], sys.argv[3]], check=True)
print("mounted", flush=True)
from ckpt_tool.cli.app import main
sys.argv[:] = ["ckpt", *sys.argv[4:]]
main()
"""


def in_namespace(
    kind: str, what: Path | str, out: Path, *words: object, fails: bool = False
) -> str:
    """Run `ckpt` where something is mounted at `out`; skips where that may not be done."""
    command = ["unshare", "--mount", sys.executable, "-c", MOUNTED, kind, str(what), str(out)]
    done = subprocess.run(
        [*command, *map(str, words)], capture_output=True, text=True, check=False, timeout=120
    )
    if not done.stdout.startswith("mounted"):
        pytest.skip("nothing can be mounted here")
    assert done.returncode == (2 if fails else 0), done.stderr
    return done.stderr if fails else done.stdout


@pytest.mark.slow
def test_a_folder_of_the_same_file_system_mounted_there(
    source: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    """By its device number it is no mount point, and a rename to it fails all the same."""
    host, out = tmp_path / "host", tmp_path / "out"
    host.mkdir()
    out.mkdir()
    words = ("merge", "fsdp", source, out, "--no-check-load", "--max-shard-size", "20KB")
    said = in_namespace("--bind", host, out, *words, "--verify")
    assert "every bit as planned" in said
    assert bytes_of(host) == expected
    assert "Already complete" in in_namespace("--bind", host, out, *words, "--resume")
    (host / "config.json").unlink()
    in_namespace("--bind", host, out, *words, "--overwrite")
    assert bytes_of(host) == expected
    assert {path.name for path in host.iterdir()} == set(expected)
    assert not list(out.iterdir())


@pytest.mark.slow
def test_another_file_system_mounted_there(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    words = ("merge", "fsdp", source, out, "--max-shard-size", "20KB", "--verify")
    words += ("--no-check-load",)
    assert "every bit as planned" in in_namespace("-t tmpfs", "tmpfs", out, *words)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.fixture
def layers(
    source: Path, tmp_path: Path, expected: dict[str, bytes]
) -> Iterator[tuple[str, Path, Path]]:
    """How to mount a container's file system, its image below, and where it is to be mounted.

    In the image there is the source, and a model that was made of it.
    """
    place = Path(tempfile.mkdtemp(prefix="ckpt-layers-", dir="/dev/shm"))
    for name in ("below", "above", "work", "merged"):
        (place / name).mkdir()
    shutil.copytree(source, place / "below" / "source")
    shutil.copytree(tmp_path / "beside", place / "below" / "model")
    (place / "below" / "empty").mkdir()
    options = f"lowerdir={place}/below,upperdir={place}/above,workdir={place}/work"
    yield f"-t overlay -o {options}", place / "below", place / "merged"
    shutil.rmtree(place)


@pytest.mark.slow
def test_in_a_container(layers: tuple[str, Path, Path], expected: dict[str, bytes]) -> None:
    kind, image, root = layers
    above = image.parent / "above"

    def ckpt(out: str, *more: str, fails: bool = False) -> str:
        words = ("merge", "fsdp", root / "source", root / out, "--no-check-load")
        words += ("--max-shard-size", "20KB")
        return in_namespace(kind, "overlay", root, *words, *more, fails=fails)

    for out in ("new", "empty"):
        assert "every bit as planned" in ckpt(out, "--verify")
        assert bytes_of(above / out) == expected
        assert "Already complete" in ckpt(out, "--resume")
        ckpt(out, "--overwrite", "--dtype", "bfloat16")
        assert sum(path.stat().st_size for path in (above / out).glob("model-*")) < 40_000
    assert "Already complete" in ckpt("model", "--resume")
    said = ckpt("model", "--overwrite", "--dtype", "bfloat16", fails=True)
    assert "model: cannot give way to what would be written: it cannot be renamed" in said
    assert bytes_of(image / "model") == expected
    assert not (above / "model").exists()
