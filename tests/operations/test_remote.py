"""What lies in an object store is read as what lies in a folder is: every format, every command."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ckpt_tool import (
    FormatError,
    MergeOptions,
    StoreError,
    ToMcoreOptions,
    UsageError,
    check_folder,
    convert_to_mcore,
    inspect_checkpoint,
    merge_checkpoint,
    open_checkpoint,
    verify_checkpoint,
)
from ckpt_tool.common.remote.shadow import reach, recall
from ckpt_tool.operations import watching
from ckpt_tool.operations.options import VerifyOptions
from ckpt_tool.operations.watching import Watch
from ckpt_tool.plans.options import WriteOptions
from tests.common.test_parallel import run_together
from tests.support.merging import values, write_rank

FIXTURES = Path(__file__).parent.parent / "fixtures"

#: One of each format; the folder or file in it that is read.
FORMATS = [
    "torch2.9.1_fsdp2_w3",
    "torch2.4.1_fsdp1_w2",
    "mcore0.19_moe/checkpoint",
    "mcore0.18_ranks/checkpoint",
    "deepspeed0.19_z3_groups/ckpt",
    "deepspeed0.19_universal_z2/ckpt",
    "torchtitan0.3_llama3/checkpoint",
    "transformers5.24_sharded_moe",
    "compressed_tensors0.20_int4/model.safetensors",
    "lightning2.6_ckpt/last.ckpt",
]


def put(bucket, source: Path, key: str = "run") -> str:
    """Copy a folder or a file into the bucket; its address."""
    target = bucket.folder / key / source.name
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)
    return f"{bucket.url}/{key}/{source.name}"


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read_as_in_a_folder(bucket, name):
    local = FIXTURES / name
    address = put(bucket, local)
    there, here = inspect_checkpoint([address]), inspect_checkpoint([local])
    assert there.checkpoint.format == here.checkpoint.format
    assert [*there.checkpoint] == [*here.checkpoint]
    assert [e.shape for e in there.entries] == [e.shape for e in here.entries]
    assert there.checkpoint.problems == here.checkpoint.problems == ()
    for tensor in here.checkpoint:
        assert there.checkpoint[tensor].read().equal(here.checkpoint[tensor].read())


@pytest.fixture
def run(tmp_path, checkpoints):
    """A step of real FSDP ranks, with its config, in a run."""
    step = tmp_path / "source" / "global_step_7"
    shutil.copytree(checkpoints["fsdp2_w2"], step)
    return step


def test_a_merge_from_a_bucket_is_the_one_from_a_folder(bucket, run, tmp_path):
    address = put(bucket, run, "source")
    ours = merge_checkpoint(address, tmp_path / "ours")
    theirs = merge_checkpoint(run, tmp_path / "theirs")
    assert (ours.format, ours.step, ours.role) == (theirs.format, theirs.step, theirs.role)
    names = {path.name for path in (tmp_path / "theirs").iterdir()}
    assert {path.name for path in (tmp_path / "ours").iterdir()} == names
    for name in names:
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()


def test_a_merge_asks_for_every_byte_of_the_ranks_once(bucket, tmp_path):
    state = {f"layers.{n}.weight": values(300, 500) for n in range(4)}
    write_rank(bucket.folder / "global_step_1", state)
    merge_checkpoint(f"{bucket.url}/global_step_1", tmp_path / "out", MergeOptions(keep_names=True))
    (path,) = (bucket.folder / "global_step_1").iterdir()
    sent, size = bucket.sizes()[f"global_step_1/{path.name}"], path.stat().st_size
    assert 0.95 * size <= sent <= 1.05 * size + (256 << 10)  # and both ends for the metadata


def test_looking_at_a_checkpoint_reads_metadata_only(bucket):
    state = {f"layers.{n}.weight": values(1000, 1000) for n in range(4)}
    write_rank(bucket.folder / "global_step_1", state)
    inspect_checkpoint([f"{bucket.url}/global_step_1"])
    (path,) = (bucket.folder / "global_step_1").iterdir()
    assert bucket.sizes()[f"global_step_1/{path.name}"] < path.stat().st_size / 20


def test_both_sides_of_a_comparison_may_lie_elsewhere(bucket, run, tmp_path):
    merge_checkpoint(run, tmp_path / "merged")
    address, model = put(bucket, run, "source"), put(bucket, tmp_path / "merged")
    assert verify_checkpoint(address, model).equal
    assert verify_checkpoint(run, model).equal
    from safetensors.torch import load_file, save_file

    changed = bucket.folder / "run" / "merged" / "model.safetensors"
    tensors = load_file(changed)
    name = sorted(tensors)[3]
    tensors[name].view(-1)[5] += 1
    save_file(tensors, changed, {"format": "pt"})
    result = verify_checkpoint(run, model)  # what is there now, not what was there before
    assert [each.name for each in result.mismatched] == [name]


def test_a_folder_is_held_against_its_manifest(bucket, run, tmp_path):
    merge_checkpoint(run, tmp_path / "merged")
    address = put(bucket, tmp_path / "merged")
    assert check_folder(address).equal
    whole = (tmp_path / "merged" / "model.safetensors").read_bytes()
    (tmp_path / "merged" / "model.safetensors").write_bytes(whole[:-1] + b"\x01")
    result = check_folder(put(bucket, tmp_path / "merged", "again"))
    assert [*result.different] == ["model.safetensors"]


def test_a_model_becomes_one_of_megatron_core(bucket, run, tmp_path):
    merge_checkpoint(run, tmp_path / "merged")
    address = put(bucket, tmp_path / "merged")
    convert_to_mcore(address, tmp_path / "ours", ToMcoreOptions(write=WriteOptions(verify=True)))
    convert_to_mcore(tmp_path / "merged", tmp_path / "theirs")
    for path in (tmp_path / "theirs").glob("*.distcp"):
        assert (tmp_path / "ours" / path.name).read_bytes() == path.read_bytes()


def test_config_and_tokenizer_may_lie_elsewhere(bucket, run, tmp_path):
    config = put(bucket, run / "actor" / "huggingface")
    shutil.rmtree(run / "actor" / "huggingface")
    options = MergeOptions(config=config, tokenizer=config)
    merge_checkpoint(run, tmp_path / "out", options)
    assert json.loads((tmp_path / "out" / "config.json").read_bytes())["model_type"]


def test_a_config_beside_the_checkpoint_is_found(bucket, run, tmp_path):
    put(bucket, run, "source")
    merge_checkpoint(f"{bucket.url}/source/global_step_7/actor", tmp_path / "out")
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_run_is_watched(bucket, tmp_path):
    state = {"a.weight": torch.ones(3)}
    write_rank(bucket.folder / "global_step_1", state)
    watch = Watch(Path(bucket.url), None, only_last=False)
    assert watch.look() == []
    assert [each.step for each in watch.look()] == [1]
    write_rank(bucket.folder / "global_step_2", state)
    assert [each.step for each in watch.look()] == [1]
    assert [each.step for each in watch.look()] == [1, 2]


def test_a_model_elsewhere_is_not_run(bucket, run, tmp_path):
    merge_checkpoint(run, tmp_path / "merged")
    address = put(bucket, tmp_path / "merged")
    with pytest.raises(UsageError, match=f"{address} is not on this machine"):
        verify_checkpoint(tmp_path / "merged", address, VerifyOptions(logits="text"))


def test_nothing_at_an_address_is_said(bucket, tmp_path):
    (bucket.folder / "run").mkdir()
    (bucket.folder / "run" / "file").write_bytes(b"x")
    with pytest.raises(UsageError, match=f"{bucket.url}/rum: nothing is there"):
        inspect_checkpoint([f"{bucket.url}/rum"])


def test_empty_objects_that_mark_folders_are_folders(bucket, monkeypatch):
    """What consoles make by "Create folder"; rclone's folders of a disk cannot have both."""
    write_rank(bucket.folder / "run" / "global_step_1", {"a.weight": torch.ones(3)})
    from ckpt_tool.common.remote import listing

    list_rows = listing._list_bucket

    def add_marks(address):
        for rows in list_rows(address):
            marks = [
                replace(rows[0], name=name, size=0) for name in ("", "run", "run/global_step_1")
            ]
            yield [marks[0], *rows[:1], *marks[1:], *rows[1:]]
            yield marks

    monkeypatch.setitem(listing.LISTERS, "s3", add_marks)
    assert [*open_checkpoint(bucket.url)] == ["a.weight"]
    monkeypatch.setitem(listing.LISTERS, "s3", lambda address: iter([[mark(address, list_rows)]]))
    with pytest.raises(UsageError, match="nothing is there"):
        open_checkpoint(bucket.url)


def mark(address, list_rows):
    """An empty object of the name that was asked for."""
    return replace(next(list_rows(address))[0], name="", size=0)


def test_a_step_is_the_one_of_the_newest_listing(bucket):
    write_rank(bucket.folder / "run" / "global_step_1", {"a.weight": torch.ones(3)})
    open_checkpoint(f"{bucket.url}/run/global_step_1")
    write_rank(bucket.folder / "run" / "global_step_1", {"a.weight": torch.zeros(5)})
    above = reach(f"{bucket.url}/run")
    assert recall(f"{bucket.url}/run/global_step_1") == above / "global_step_1"


def test_a_watch_outlives_an_outage(bucket, monkeypatch):
    write_rank(bucket.folder / "global_step_1", {"a.weight": torch.ones(3)})
    watch = Watch(Path(bucket.url), None, only_last=False)
    assert watch.look() == []
    with monkeypatch.context() as patch:
        patch.setattr(watching, "look_again", refuse)
        assert watch.look() == []
    assert [each.step for each in watch.look()] == [1]


def test_a_watch_that_never_sees_anything_ends(bucket, monkeypatch):
    monkeypatch.setattr(watching, "look_again", refuse)
    with pytest.raises(StoreError, match="away"):
        Watch(Path(bucket.url), None, only_last=False).look()


def refuse(path):
    raise StoreError(f"{path}: away")


def test_what_stands_for_a_remote_file_cannot_be_opened_by_mistake(bucket):
    (bucket.folder / "run").mkdir()
    (bucket.folder / "run" / "model.bin").write_bytes(b"weights")
    path = reach(f"{bucket.url}/run") / "model.bin"
    assert path.stat().st_size == 7
    with pytest.raises(RuntimeError, match="stands for a remote file"):
        path.read_bytes()


def test_what_was_opened_stays_what_it_was_or_cannot_be_read(bucket):
    old, new = values(400, 500), values(400, 500) + 1
    write_rank(bucket.folder / "run", {"a.weight": old})
    opened = open_checkpoint(f"{bucket.url}/run")
    write_rank(bucket.folder / "run", {"a.weight": new})
    assert open_checkpoint(f"{bucket.url}/run")["a.weight"].read().equal(new)
    with pytest.raises(FormatError, match="was written again after it was opened"):
        opened["a.weight"].read()


def test_several_processes_share_what_they_find_elsewhere(bucket, run, tmp_path):
    put(bucket, run, "source")
    run_together("merge", f"{bucket.url}/source", str(tmp_path / "ours"), "--step", "latest")
    merge_checkpoint(run, tmp_path / "theirs")
    ours, theirs = (tmp_path / name / "model.safetensors" for name in ("ours", "theirs"))
    assert ours.read_bytes() == theirs.read_bytes()
