"""Which links are followed: those that stay in what was named, and those of the Hub's cache."""

import os
from pathlib import Path

import pytest

from ckpt_tool.common.errors import CheckpointError
from ckpt_tool.common.links import is_inside, list_below, require_inside


def make(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def link(path: Path, to: Path | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(to)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder that is named, with one beside it that is not."""
    make(tmp_path / "secret" / "id_rsa")
    make(tmp_path / "run" / "huggingface" / "config.json")
    make(tmp_path / "run" / "shared" / "vocab.txt")
    return tmp_path / "run"


SIDE = Path("huggingface") / "vocab.txt"


def test_a_link_within_is_followed(run: Path) -> None:
    assert is_inside(run / "huggingface" / "config.json", [run])
    assert is_inside(link(run / SIDE, "../shared/vocab.txt"), [run])
    assert is_inside(link(run / "a", run / "huggingface") / "config.json", [run])
    assert is_inside(link(run / "twice", "a/vocab.txt"), [run])


def test_a_link_out_of_it_is_not(run: Path) -> None:
    secret = run.parent / "secret"
    for number, to in enumerate(["../../secret/id_rsa", secret / "id_rsa", "/proc/self/environ"]):
        assert not is_inside(link(run / "huggingface" / f"{number}", to), [run])
    assert not is_inside(link(run / "folder", secret) / "id_rsa", [run])
    link(run / "step", "folder/id_rsa")
    assert not is_inside(link(run / "chain", "step"), [run])


def test_a_name_that_only_begins_alike_is_outside(run: Path) -> None:
    make(run.parent / "run-secret" / "x")
    assert not is_inside(link(run / "x", "../run-secret/x"), [run])


def test_what_is_named_is_followed(run: Path) -> None:
    """A link on the command line, one as the folder of the config, and a file."""
    named = link(run.parent / "latest", run)
    assert is_inside(named / "huggingface" / "config.json", [named])
    folder = link(run.parent / "config", run.parent / "secret")
    assert is_inside(folder / "id_rsa", [run, folder])
    assert is_inside(link(run / SIDE, "../../secret/id_rsa"), [run, folder])
    assert is_inside(run / "huggingface" / "config.json", [run / "huggingface" / "weights.bin"])


def test_relative_paths_are_what_they_are_from_here(run: Path, monkeypatch) -> None:
    monkeypatch.chdir(run)
    link(run / SIDE, "../shared/vocab.txt")
    assert is_inside(SIDE, [Path()])
    assert not is_inside(SIDE, [Path("huggingface")])
    monkeypatch.chdir(run / "huggingface")
    assert is_inside(Path("../huggingface/vocab.txt"), [Path("..")])


def test_what_is_looked_for_beside_stays_there(run: Path) -> None:
    """As of `actor/dist_ckpt`: the config is in `actor/huggingface`."""
    dist = make(run / "dist_ckpt" / ".metadata").parent
    assert is_inside(run / "huggingface" / "config.json", [dist])
    assert is_inside(link(run / SIDE, "../shared/vocab.txt"), [dist])
    assert not is_inside(link(run / "huggingface" / "x", "../../secret/id_rsa"), [dist])
    linked = link(run / "hf_config_and_tokenizer", run.parent / "secret")
    assert not is_inside(linked / "id_rsa", [dist])


def test_but_what_is_in_it_may_not_lead_beside_it(run: Path) -> None:
    dist = make(run / "dist_ckpt" / ".metadata").parent
    assert not is_inside(link(dist / "config.json", "../huggingface/config.json"), [dist])


CACHE = Path("hub") / "models--a--b"


def snapshot(root: Path, name: str, to: str | Path) -> Path:
    return link(root / CACHE / "snapshots" / "abc" / name, to)


def test_links_of_the_hubs_cache_lead_to_blobs(tmp_path: Path) -> None:
    blob = make(tmp_path / CACHE / "blobs" / "0123")
    path = snapshot(tmp_path, "vocab.txt", "../../blobs/0123")
    below = snapshot(tmp_path, "1_Pooling/config.json", "../../../blobs/0123")
    assert is_inside(path, [path.parent])
    assert is_inside(below, [path.parent])
    assert is_inside(link(tmp_path / "model", path.parent) / "vocab.txt", [tmp_path / "model"])
    assert is_inside(snapshot(tmp_path, "absolute", blob), [path.parent])


def test_but_to_no_other_place(tmp_path: Path) -> None:
    make(tmp_path / "secret")
    make(tmp_path / "hub" / "models--c--d" / "blobs" / "45")
    make(tmp_path / CACHE / "refs" / "main")
    link(tmp_path / CACHE / "blobs" / "67", tmp_path / "secret")
    named = [tmp_path / CACHE / "snapshots" / "abc"]
    for to in (
        "../../../../secret",
        "../../../models--c--d/blobs/45",
        "../../refs/main",
        "../../blobs/67",
        "../../blobs/../refs/main",
    ):
        assert not is_inside(snapshot(tmp_path, to.replace("/", "_"), to), named)


def test_blobs_that_are_elsewhere_are_not_the_caches(tmp_path: Path) -> None:
    make(tmp_path / "secret" / "id_rsa")
    link(tmp_path / CACHE / "blobs", tmp_path / "secret")
    path = snapshot(tmp_path, "vocab.txt", "../../blobs/id_rsa")
    assert not is_inside(path, [path.parent])


def test_a_checkpoint_cannot_borrow_a_cache(run: Path) -> None:
    """A link to a folder of a cache, of which nobody spoke."""
    make(run.parent / CACHE / "blobs" / "0123")
    path = snapshot(run.parent, "vocab.txt", "../../blobs/0123")
    assert not is_inside(link(run / "borrowed", path.parent) / "vocab.txt", [run])
    assert not is_inside(link(run / "file", path), [run])


def test_every_link_out_is_named_with_where_it_leads(run: Path) -> None:
    secret = run.parent / "secret" / "id_rsa"
    out = [link(run / "huggingface" / name, secret) for name in ("a", "b")]
    kept = run / "huggingface" / "config.json"
    with pytest.raises(CheckpointError, match="2 files lead out of it") as error:
        require_inside([kept, *out], [run])
    assert [problem.where for problem in error.value.problems] == list(map(str, out))
    assert {problem.kind for problem in error.value.problems} == {"link"}
    assert all(str(secret) in problem.message for problem in error.value.problems)
    assert "`config=DIR`" in error.value.hint
    with pytest.raises(CheckpointError, match="1 file leads out of it"):
        require_inside(out[:1], [run])
    require_inside([kept], [run])
    other = make(run.parent / "other" / "weights").parent
    with pytest.raises(CheckpointError, match=f"^{run / 'huggingface'}: 2 files lead"):
        require_inside(out, [other, run / "huggingface"])


def test_folders_are_listed_whole_through_links_within(run: Path) -> None:
    make(run / "code" / "b" / "c.py")
    make(run / "code" / "a.py")
    link(run / "code" / "d", "../shared")
    os.mkfifo(run / "code" / "fifo")
    link(run / "code" / "dangling", "gone")
    found = [path.relative_to(run).as_posix() for path in list_below(run / "code", [run])]
    files = ["code/a.py", "code/b/c.py", "code/d/vocab.txt"]
    assert found == sorted([*files, "code/dangling", "code/fifo"])  # who wants files says so
    assert list_below(run / "code" / "fifo", [run]) == [run / "code" / "fifo"]
    assert list_below(run / "gone", [run]) == []
    assert list_below(run / "code" / "a.py", [run]) == []


def test_folders_out_of_it_are_not_walked(run: Path) -> None:
    link(run / "code", "/")
    with pytest.raises(CheckpointError, match="1 file leads out of it"):
        list_below(run / "code", [run])
    make(run / "more" / "x.py")
    link(run / "more" / "deep", "../../secret")
    with pytest.raises(CheckpointError, match="leads out"):
        list_below(run / "more", [run])


def test_what_has_no_end_is_refused(run: Path) -> None:
    make(run / "code" / "a.py")
    link(run / "code" / "again", ".")
    with pytest.raises(CheckpointError, match="there twice") as error:
        list_below(run / "code", [run])
    (problem,) = error.value.problems
    assert problem.message.endswith("which is listed already")


def test_two_ways_to_a_folder_do_not_multiply(run: Path) -> None:
    """Forty folders, each with two links to the next: 2**40 ways to the last."""
    for number in range(40):
        (run / f"f{number}").mkdir()
        for name in "ab":
            link(run / f"f{number}" / name, f"../f{number + 1}")
    with pytest.raises(CheckpointError, match="there twice"):
        list_below(run / "f0", [run])


def test_links_are_resolved_and_no_folders(tmp_path: Path, monkeypatch) -> None:
    """To resolve each of a thousand nested folders takes minutes."""
    deep = tmp_path.joinpath(*["d"] * 300)
    deep.mkdir(parents=True)
    make(deep / "x")
    asked: list[object] = []
    honest = os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda path: asked.append(path) or honest(path))
    assert len(list_below(tmp_path / "d", [tmp_path])) == 1
    assert len(asked) < 10
