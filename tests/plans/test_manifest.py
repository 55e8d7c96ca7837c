"""What a manifest says, that it is the same wherever a source lies, and what is no manifest."""

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_tool import MergeOptions, WriteOptions, check_folder, merge_fsdp, merge_megatron
from ckpt_tool.common.errors import FormatError, OutputError, UsageError
from ckpt_tool.plans.manifest import MANIFEST_NAME, read_manifest
from ckpt_tool.plans.options import WriteResult
from ckpt_tool.plans.provenance import find_run
from ckpt_tool.writers.stream import digest_bytes
from tests.support.merging import TINY, values, write_rank

STEP = Path("qwen-grpo") / "global_step_100"


def write_run(root: Path) -> Path:
    """A tied model in two weight files, with a tokenizer, cast when it is merged."""
    state = {f"model.layers.{n}.weight": values(64, 64, start=n << 12) for n in range(1, 5)}
    state["model.embed_tokens.weight"] = values(16, 8, start=7)
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    config = TINY | {"tie_word_embeddings": True, "torch_dtype": "bfloat16"}
    folder = write_rank(root / STEP / "actor", state, config)
    (folder / "huggingface" / "tokenizer.json").write_text('{"a": 1}')
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_run(tmp_path / "here")


def merge(source: Path, out: Path, **write: Any) -> WriteResult:
    options = WriteOptions(**{"check_load": False} | write)
    return merge_fsdp([source], out, MergeOptions(max_shard_size="20KB", write=options))


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def load(out: Path) -> dict[str, Any]:
    found = json.loads((out / MANIFEST_NAME).read_text())
    assert isinstance(found, dict)
    return found


def test_it_says_where_the_model_came_from_and_what_was_done(source: Path, tmp_path: Path) -> None:
    result = merge(source, tmp_path / "out")
    found = load(tmp_path / "out")
    rank = source / "model_world_size_1_rank_0.pt"
    assert found["source"] == {
        "run": "qwen-grpo",
        "step": 100,
        "role": "actor",
        "format": "fsdp",
        "world_size": 1,
        "files": [{"name": rank.name, "bytes": rank.stat().st_size}],
    }
    assert found["tied"] == {"lm_head.weight": "model.embed_tokens.weight"}
    assert found["dropped"] == result.dropped
    assert found["dropped"].keys() == {"lm_head.weight"}
    assert (found["filled"], found["lora"]) == ([], None)
    (cast,) = found["casts"]
    assert (cast["from"], cast["to"], cast["num_tensors"]) == ("float32", "bfloat16", 5)
    assert 0 < cast["max_abs_error"] < 0.1


def test_it_lists_every_file_but_itself(source: Path, tmp_path: Path) -> None:
    merge(source, tmp_path / "out")
    there = contents(tmp_path / "out")
    del there[MANIFEST_NAME]
    rows = {row["name"]: (row["bytes"], row["digest"]) for row in load(tmp_path / "out")["files"]}
    assert rows == {name: (len(held), digest_bytes(held)) for name, held in there.items()}
    assert {"config.json", "tokenizer.json", "model.safetensors.index.json"} < rows.keys()


@pytest.mark.parametrize("jobs", [1, 4])
def test_a_source_that_is_copied_elsewhere_gives_the_same_bytes(
    source: Path, tmp_path: Path, jobs: int
) -> None:
    """Of every file, though times are others; and nothing says where either was."""
    merge(source, tmp_path / "out")
    there = tmp_path / "quite" / "elsewhere"
    shutil.copytree(tmp_path / "here", there, copy_function=shutil.copyfile)
    copy = there / STEP / "actor"
    for path in copy.rglob("*"):
        os.utime(path, ns=(1, 1))
    options = MergeOptions(
        max_shard_size="20KB", jobs=jobs, write=WriteOptions(check_load=False, direct=False)
    )
    merge_fsdp([copy], tmp_path / "again", options)
    found = contents(tmp_path / "out")
    assert contents(tmp_path / "again") == found
    assert not [name for name, held in found.items() if str(tmp_path).encode() in held]


def test_folders_of_other_names_change_run_and_step_and_nothing_else(
    source: Path, tmp_path: Path
) -> None:
    merge(source, tmp_path / "out")
    shutil.copytree(source, tmp_path / "nas" / "actor")
    merge(tmp_path / "nas" / "actor", tmp_path / "again")
    found, again = contents(tmp_path / "out"), contents(tmp_path / "again")
    del found[MANIFEST_NAME], again[MANIFEST_NAME]
    said, unsaid = (each.pop("README.md").decode().splitlines() for each in (found, again))
    assert found == again
    assert {*said} - {*unsaid} == {
        "# LlamaForCausalLM, step 100",
        "| Trained | to step 100 (actor) |",
    }
    assert {*unsaid} - {*said} == {"# LlamaForCausalLM"}
    one, other = load(tmp_path / "out"), load(tmp_path / "again")
    named = ("run", "step", "role")
    assert [other["source"][key] for key in named] == [None, None, "actor"]
    other["source"] |= {key: one["source"][key] for key in named}
    cards = [{row["name"]: row for row in each["files"]}.pop("README.md") for each in (one, other)]
    assert cards[0].keys() == cards[1].keys()
    for each, card in zip((one, other), cards, strict=True):
        each["files"].remove(card)
    assert one == other


def test_a_complete_output_is_known_when_the_source_was_copied(
    source: Path, tmp_path: Path
) -> None:
    """Nobody knows the times of the copy: what it holds is compared with what is there."""
    merge(source, tmp_path / "out")
    copy = tmp_path / "there" / STEP
    shutil.copytree(source.parent, copy, copy_function=shutil.copyfile)
    assert merge(copy / "actor", tmp_path / "out", resume=True).already_complete


def change_in_place(path: Path, times: bool) -> None:
    """Saved again, of the same size, with one bit of the last tensor another."""
    before, state = path.stat(), torch.load(path)
    state["model.layers.4.weight"].view(torch.uint8).flatten()[-1] ^= 1
    torch.save(state, path)
    assert path.stat().st_size == before.st_size
    if times:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_source_that_was_changed_in_place_is_another_model(source: Path, tmp_path: Path) -> None:
    merge(source, tmp_path / "out")
    change_in_place(source / "model_world_size_1_rank_0.pt", times=False)
    before = contents(tmp_path / "out")
    said = r"model\.layers\.4\.weight is not what the source holds now$"
    with pytest.raises(OutputError, match=said):
        merge(source, tmp_path / "out", resume=True)
    assert contents(tmp_path / "out") == before
    result = merge(source, tmp_path / "out", resume=True, overwrite=True)
    assert not result.already_complete
    assert contents(tmp_path / "out") != before
    assert check_folder(tmp_path / "out").equal


def test_where_no_times_are_kept_contents_are_compared(
    source: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    merge(source, tmp_path / "out")
    assert merge(source, tmp_path / "out", resume=True).already_complete
    change_in_place(source / "model_world_size_1_rank_0.pt", times=True)
    with pytest.raises(OutputError, match="not what the source holds now"):
        merge(source, tmp_path / "out", resume=True)


def test_times_are_kept_in_the_users_cache(source: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    merge(source, tmp_path / "out")
    (entry,) = (tmp_path / "cache" / "ckpt-tool" / "written").iterdir()
    kept = json.loads(entry.read_text().partition("\n")[2])
    rank = source / "model_world_size_1_rank_0.pt"
    assert kept["output"] == str(tmp_path / "out")
    assert kept["sources"] == [[str(rank), rank.stat().st_size, rank.stat().st_mtime_ns]]
    assert kept["seconds"] > 0
    assert stat.S_IMODE(entry.stat().st_mode) == 0o600


def test_without_one_the_rest_is_the_same(source: Path, tmp_path: Path) -> None:
    with_it = merge(source, tmp_path / "out")
    without = merge(source, tmp_path / "bare", manifest=False)
    expected = contents(tmp_path / "out")
    del expected[MANIFEST_NAME]
    assert contents(tmp_path / "bare") == expected
    assert (with_it.manifest, without.manifest) == (True, False)


def test_without_one_nobody_knows_what_is_complete(source: Path, tmp_path: Path) -> None:
    merge(source, tmp_path / "out")
    merge(source, tmp_path / "bare", manifest=False)
    unknown = f"without {MANIFEST_NAME} nobody knows whether it is complete"
    for out, said in (("bare", unknown), ("out", f"{MANIFEST_NAME} is no part of it")):
        with pytest.raises(OutputError, match=f"{said}$"):
            merge(source, tmp_path / out, manifest=False, resume=True)


def test_a_run_without_one_goes_on_where_it_stopped(source: Path, tmp_path: Path) -> None:
    merge(source, tmp_path / "new", manifest=False, resume=True)
    assert MANIFEST_NAME not in contents(tmp_path / "new")


RUNS = {
    "/data/qwen-grpo/global_step_100/actor": ("qwen-grpo", 100),
    "/data/run/global_step_5": ("run", 5),
    "/data/seven/checkpoints/iter_0000020": ("seven/checkpoints", 20),
    "/data/sft/checkpoint-500/pytorch_model_fsdp_0": ("sft", 500),
    "/data/sft/checkpoint-500/global_step500": ("sft", 500),
    "/outputs/checkpoint/step-7": ("outputs/checkpoint", 7),
    "/global_step_3": (None, 3),
    "/data/model": (None, None),
    "/data/checkpoints/model": (None, None),
    "/data/run/global_step_x/actor": (None, None),
    f"/data/run/step_{'1' * 30}": (None, None),
}


@pytest.mark.parametrize(("path", "found"), RUNS.items(), ids=RUNS)
def test_run_and_step_are_the_names_of_folders(path: str, found: tuple[str, int]) -> None:
    assert find_run(Path(path)) == found


def test_a_link_to_the_last_step_is_that_step(source: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(source.parent)
    assert find_run(tmp_path / "latest" / "actor") == ("qwen-grpo", 100)


def test_a_run_behind_links_in_a_circle_has_the_name_that_it_was_given(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    place = tmp_path / "loop" / "run" / "global_step_3"
    assert find_run(place / "actor") == ("run", 3)
    assert find_run(tmp_path / "loop" / "actor") == (None, None)


def test_files_of_ranks_are_named_in_their_folders(tmp_path: Path) -> None:
    """And the iteration in them is the step."""
    embedding = values(4, 2)
    parts = {0: {"embedding.word_embeddings.weight": embedding[:2]}}
    parts[1] = {"embedding.word_embeddings.weight": embedding[2:]}
    for rank, part in parts.items():
        folder = tmp_path / "in" / f"mp_rank_0{rank}"
        folder.mkdir(parents=True)
        state = {"model": part | {"decoder.final_layernorm.weight": values(2)}, "iteration": 70}
        torch.save(state, folder / "model_optim_rng.pt")
    options = MergeOptions(keep_names=True, write=WriteOptions(check_load=False))
    merge_megatron(tmp_path / "in", tmp_path / "out", options)
    found = load(tmp_path / "out")["source"]
    assert [row["name"] for row in found["files"]] == [
        "mp_rank_00/model_optim_rng.pt",
        "mp_rank_01/model_optim_rng.pt",
    ]
    assert (found["run"], found["step"]) == (None, 70)


def change(**keys: Any) -> Any:
    return lambda found: found | keys


def with_row(**keys: Any) -> Any:
    return lambda found: found | {"files": [found["files"][0] | keys]}


def twice(found: dict[str, Any]) -> dict[str, Any]:
    return found | {"files": found["files"][:1] * 2}


OUTSIDE = ["../x", "/etc/passwd", "a/../../x", ".", "", "a//b", "a/", "./a", "x\0y", MANIFEST_NAME]
WRONG: dict[str, Any] = {
    "no rows": change(files=3),
    "rows that are none": change(files=[1]),
    "null for a row": change(files=[None]),
    "a file twice": twice,
    "another form": change(schema=2),
    "a truth for the form": change(schema=True),
    "a fraction for the form": change(schema=1.0),
    "other digests": change(digest="sha256"),
    "a list for the source": change(source=[]),
    "a list for the run": change(source={"run": ["x"]}),
    "a truth for the step": change(source={"step": True}),
    "casts of numbers": change(casts=[1]),
    "names of numbers": change(not_finite=[1]),
    "no names": change(not_finite=None),
    "an error of a cast that is none": change(casts=[{"max_abs_error": "much", "from": 1}]),
    "an error of a cast that no float holds": change(
        casts=[{"from": "float32", "to": "bfloat16", "max_abs_error": 10**400}]
    ),
    "negative bytes": with_row(bytes=-1),
    "a fraction of bytes": with_row(bytes=1.0),
    "a truth for bytes": with_row(bytes=True),
    "more bytes than a file has": with_row(bytes=1 << 63),
    "more bytes than a float holds": with_row(bytes=10**400),
    "text for bytes": with_row(bytes="5"),
    "a short digest": with_row(digest="ab"),
    "a number for a digest": with_row(digest=5),
    "a name that is too long": with_row(name="x" * 5000),
    "a number for a name": with_row(name=5),
} | {f"the name {name!r:.20}": with_row(name=name) for name in OUTSIDE}
BYTES = {
    "nothing": b"",
    "half": b'{"schema": 1, "fi',
    "a list": b"[]",
    "text": b'"x"',
    "nested deeply": b"[" * 200_000,
    "a huge number": b'{"schema": ' + b"9" * 100_000 + b"}",
    "infinity": b'{"schema": Infinity}',
    "no text": b"\xff\xfe\x00",
    "another tool's": b'{"files": []}',
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_what_no_folder_can_hold_is_refused(source: Path, tmp_path: Path, wrong) -> None:
    merge(source, tmp_path / "out")
    (tmp_path / "out" / MANIFEST_NAME).write_text(json.dumps(wrong(load(tmp_path / "out"))))
    with pytest.raises(FormatError, match="not a manifest of this version") as error:
        check_folder(tmp_path / "out")
    assert error.value.hint
    assert len(error.value.message) < 600


@pytest.mark.parametrize("content", BYTES.values(), ids=BYTES)
def test_what_is_no_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(FormatError, match="not a manifest of this version"):
        read_manifest(tmp_path)


def test_what_never_ends_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / MANIFEST_NAME
    os.mkfifo(path)
    with pytest.raises(OSError, match="not a regular file"):
        read_manifest(tmp_path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(OSError, match="not a regular file"):
        read_manifest(tmp_path)
    path.unlink()
    path.touch()
    os.truncate(path, 1 << 40)
    with pytest.raises(FormatError, match="1,099,511,627,776 bytes"):
        read_manifest(tmp_path)


def test_a_folder_without_one_is_said(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="this folder, which is empty"):
        check_folder(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UsageError, match=f"this is a .*, without the {MANIFEST_NAME} that"):
        check_folder(tmp_path)
    with pytest.raises(UsageError, match="no such file or folder"):
        check_folder(tmp_path / "nowhere")
