"""`--resume` where the output is complete: nothing is written again, if it is the same model."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ckpt_tool import MergeOptions, NameOptions, WriteOptions, merge_dcp, merge_fsdp, merge_megatron
from ckpt_tool.common.errors import MappingError, OutputError
from ckpt_tool.common.parallel import ALONE, Team
from ckpt_tool.common.progress import NoProgress
from ckpt_tool.operations.merge_plan import make_plan
from ckpt_tool.plans import fingerprint as fingerprint_module
from ckpt_tool.plans.options import WriteResult
from ckpt_tool.writers.staging import Staging
from ckpt_tool.writers.stream import digest_file
from ckpt_tool.writers.target import make_journal_path, make_partial_path
from tests.support import megatron
from tests.support.merging import TINY, values, write_rank
from tests.support.resaving import save_dcp

CAST = {"max_shard_size": "10KB", "dtype": "bfloat16"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Four files of weights, a cast that overflows, and a tokenizer."""
    state = {f"layers.{n}.weight": values(64, 64, start=n << 12) for n in range(1, 5)}
    state["layers.1.weight"][0, 0] = torch.finfo(torch.float32).max
    folder = write_rank(tmp_path / "in", state, TINY | {"torch_dtype": "bfloat16"})
    (folder / "huggingface" / "tokenizer.json").write_text("{}")
    return folder


def merge(source: Path, out: Path, resume: bool = False, **more) -> WriteResult:
    write = WriteOptions(**{"resume": resume, "check_load": False} | more.pop("write", {}))
    return merge_fsdp([source], out, MergeOptions(**CAST | more, write=write))


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """What changes when a file is written again, or another one put in its place."""
    found = {str(p.relative_to(folder)): p.stat() for p in folder.rglob("*") if p.is_file()}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}


def test_the_result_is_told_from_what_is_there(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first, before = merge(source, out), files(out)
    again = merge(source, out, resume=True)
    assert files(out) == before
    assert again.already_complete
    assert not first.already_complete
    assert again.verified is None
    assert [cast.max_abs_error for cast in first.casts] == [float("inf")]
    same = ("format", "output", "num_tensors", "total_bytes", "casts", "dropped", "warnings")
    assert [getattr(again, name) for name in same] == [getattr(first, name) for name in same]
    assert [(w.name, w.size, w.digest) for w in again.files] == [
        (w.name, w.size, w.digest) for w in first.files
    ]


def test_a_checkpoint_that_moved_is_the_same(source: Path, tmp_path: Path) -> None:
    merge(source, tmp_path / "out")
    moved = source.rename(tmp_path / "moved")
    assert merge(moved, tmp_path / "out", resume=True).already_complete


def test_what_is_complete_is_not_replaced_either(source: Path, tmp_path: Path) -> None:
    merge(source, tmp_path / "out")
    before = files(tmp_path / "out")
    merge(source, tmp_path / "out", resume=True, write={"overwrite": True})
    assert files(tmp_path / "out") == before


def test_without_resume_it_is_in_the_way(source: Path, tmp_path: Path) -> None:
    merge(source, tmp_path / "out")
    with pytest.raises(OutputError, match="not empty"):
        merge(source, tmp_path / "out")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def of_another_tool(out: Path) -> None:
    path = out / "ckpt_manifest.json"
    path.write_text(path.read_text().replace('"tool": "ckpt-tool"', '"tool": "another"'))


def without_rows(out: Path) -> None:
    (out / "ckpt_manifest.json").write_text('{"files": 3, "casts": []}')


WEIGHTS = "model-00003-of-00004.safetensors"
INDEX = "model.safetensors.index.json"
MANIFEST = "ckpt_manifest.json"
OTHER = f"{MANIFEST} is of another checkpoint, other options or another version of ckpt-tool"
SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a weight changed": (lambda out: flip(out / WEIGHTS), f"{WEIGHTS} differs"),
    "a weight file is short": (lambda out: os.truncate(out / WEIGHTS, 99), f"{WEIGHTS} differs"),
    "a weight file is gone": (lambda out: (out / WEIGHTS).unlink(), f"{WEIGHTS} is missing"),
    "the index is gone": (lambda out: (out / INDEX).unlink(), f"{INDEX} is missing"),
    "the tokenizer changed": (lambda out: flip(out / "tokenizer.json"), "tokenizer.json differs"),
    "the config changed": (lambda out: flip(out / "config.json"), "config.json differs"),
    "one more file": (lambda out: (out / "x").write_text("mine"), "x is no part of it"),
    "one more below": (lambda out: (out / "y").symlink_to("nowhere"), "y is no part of it"),
    "no manifest": (lambda out: (out / MANIFEST).unlink(), f"{MANIFEST} is missing"),
    "the manifest of another tool": (of_another_tool, f"{MANIFEST} differs"),
    "the manifest is broken": (lambda out: flip(out / MANIFEST), OTHER),
    "the manifest has no rows": (without_rows, OTHER),
}


@pytest.mark.parametrize(("spoil", "said"), SPOILED.values(), ids=SPOILED)
def test_anything_else_is_refused_with_a_reason_and_left_alone(
    source: Path, tmp_path: Path, spoil, said: str
) -> None:
    out = tmp_path / "out"
    merge(source, out)
    spoil(out)
    before = files(out)
    with pytest.raises(OutputError, match="exists and is not empty") as error:
        merge(source, out, resume=True)
    assert error.value.message.endswith(f"not what would be written: {said}")
    assert files(out) == before


def test_all_reasons_are_given_up_to_five(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    merge(source, out)
    (out / "tokenizer.json").unlink()
    flip(out / "config.json")
    for name in "abcd":
        (out / name).touch()
    with pytest.raises(OutputError) as error:
        merge(source, out, resume=True)
    many = "; ".join(f"{name} is no part of it" for name in "abcd")
    assert error.value.message.endswith(f"tokenizer.json is missing; {many}; and 1 more")


def test_what_tools_of_the_hub_keep_there_is_no_part_of_it(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    merge(source, out)
    cache = out / ".cache" / "huggingface" / "download"
    cache.mkdir(parents=True)
    (cache / "config.json.metadata").write_text("etag")
    before = files(out)
    assert merge(source, out, resume=True).already_complete
    assert files(out) == before
    (out / ".cache" / "modeling.py").write_text("more")
    with pytest.raises(OutputError, match=r"\.cache/modeling\.py is no part of it"):
        merge(source, out, resume=True)


@pytest.mark.parametrize("at", [".cache", ".cache/huggingface"])
def test_nor_is_a_link_in_its_place_one_of_these_folders(
    source: Path, tmp_path: Path, at: str
) -> None:
    out = tmp_path / "out"
    merge(source, out)
    (out / at).parent.mkdir(exist_ok=True)
    (out / at).symlink_to(tmp_path)
    with pytest.raises(OutputError, match=f"{re.escape(at)} is no part of it"):
        merge(source, out, resume=True)


@pytest.mark.parametrize("name", ["optim", "lora_adapter"])
def test_a_folder_of_the_checkpoint_is_not_replaced(
    source: Path, tmp_path: Path, name: str
) -> None:
    ck = Path(shutil.copytree(source, tmp_path / "ck"))
    (ck / name).mkdir()
    assert merge(ck, ck / "hf").num_tensors
    assert merge(ck, ck / "hf", write={"overwrite": True}, resume=True).already_complete
    assert merge(ck, ck / "hf", write={"overwrite": True}).num_tensors  # what ckpt wrote is
    merge(ck, ck / name)  # so is what is empty
    shutil.rmtree(ck / name)
    (ck / name).mkdir()
    (ck / name / "x").write_text("a month")
    (tmp_path / "link").symlink_to(ck / name)
    for out in (ck / name, tmp_path / "link"):
        with pytest.raises(OutputError, match="is a part of the checkpoint"):
            merge(ck, out, write={"overwrite": True})
    assert files(ck / name).keys() == {"x"}


@pytest.mark.parametrize("other", [{"dtype": "keep"}, {"max_shard_size": "40KB"}])
def test_other_options_are_another_model(source: Path, tmp_path: Path, other: dict) -> None:
    merge(source, tmp_path / "out")
    with pytest.raises(OutputError, match="not empty"):
        merge(source, tmp_path / "out", resume=True, **other)


def test_a_later_checkpoint_is_another_model(source: Path, tmp_path: Path) -> None:
    """Of other content: one that was written again as it was is the same."""
    merge(source, tmp_path / "out")
    (rank,) = source.glob("*.pt")
    os.utime(rank, ns=(1, 1))
    assert merge(source, tmp_path / "out", resume=True).already_complete
    state = {f"layers.{n}.weight": values(64, 64, start=n << 13) for n in range(1, 5)}
    size = rank.stat().st_size
    write_rank(source, state)
    assert rank.stat().st_size == size
    with pytest.raises(OutputError, match=r"layers\.1\.weight is not what the source holds now"):
        merge(source, tmp_path / "out", resume=True)


def test_another_version_writes_another_model(source: Path, tmp_path: Path, monkeypatch) -> None:
    merge(source, tmp_path / "out")
    monkeypatch.setattr(fingerprint_module, "__version__", "9.9")
    with pytest.raises(OutputError, match="not empty"):
        merge(source, tmp_path / "out", resume=True)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_the_same_tensors_exchanged_are_another_model(tmp_path: Path) -> None:
    """The same names, shapes and source files: only where the elements come from differs."""
    state = {"one.weight": values(8, 8), "two.weight": values(8, 8, start=100)}
    save_dcp(state, tmp_path / "in")

    def renamed(*rename: str) -> WriteResult:
        options = MergeOptions(
            keep_names=True, names=NameOptions(rename=rename), write=WriteOptions(resume=True)
        )
        return merge_dcp(tmp_path / "in", tmp_path / "out", options)

    renamed()
    assert renamed().already_complete
    with pytest.raises(OutputError, match="not empty"):
        renamed("one=x", "two=one", "x=two")


def test_a_checkpoint_of_megatron_too(megatron_cases: Path, tmp_path: Path) -> None:
    source = megatron.saved(megatron_cases, "llama", "tp1")
    options = MergeOptions(
        config=megatron.hf(megatron_cases, "llama"), write=WriteOptions(resume=True)
    )
    first = merge_megatron(source, tmp_path / "out", options)
    again = merge_megatron(source, tmp_path / "out", options)
    assert (first.already_complete, again.already_complete) == (False, True)
    assert again.dropped == first.dropped


def test_what_a_killed_run_left_beside_it_is_removed(source: Path, tmp_path: Path) -> None:
    """It was killed when it wrote the same over it; what is of other options is named."""
    out = tmp_path / "out"
    merge(source, out)
    for plan, is_left in ((plan_of(source), False), ("another", True)):
        staging = Staging(out, fsync=False, direct=False)
        staging.open(plan, resume=False, replace=True)
        staging.put("part", b"of it")
        staging.leave()
        result = merge(source, out, resume=True)
        assert result.already_complete
        assert any(str(staging.path) in said for said in result.warnings) == is_left
        assert make_partial_path(out).exists() == is_left
        assert make_journal_path(out).exists() == is_left


def plan_of(source: Path) -> str:
    """What the journal of a run of :func:`merge` calls its plan."""
    options = MergeOptions(**CAST, write=WriteOptions(check_load=False))
    return make_plan(source, "fsdp", options, Team(ALONE, 1, NoProgress())).timed_fingerprint


def test_what_is_complete_is_read_back_where_that_is_wanted(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    merge(source, out)
    assert merge(source, out, resume=True, write={"verify": True}).verified is True
    flip(out / WEIGHTS)  # as if it had been written wrong: its digest is what the manifest says
    manifest = json.loads((out / "ckpt_manifest.json").read_text())
    manifest["files"][2]["digest"] = digest_file(out / WEIGHTS)
    (out / "ckpt_manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    before = files(out)
    result = merge(source, out, resume=True, write={"verify": True})
    assert (result.verified, result.differences) == (False, ["layers.3.weight"])
    assert files(out) == before


def test_what_is_complete_is_checked_by_transformers_where_that_is_wanted(
    source: Path, tmp_path: Path
) -> None:
    merge(source, tmp_path / "out")
    with pytest.raises(MappingError, match="LlamaForCausalLM"):
        merge(source, tmp_path / "out", resume=True, write={"check_load": True})
