"""Links in a checkpoint, for every command that reads one: weights may be, the rest stays in it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ckpt_tool import merge_dcp, merge_fsdp, merge_megatron
from ckpt_tool.cli.app import app
from ckpt_tool.common.errors import CheckpointError
from ckpt_tool.mapping.lora.options import LoraOptions
from ckpt_tool.operations.options import MergeOptions, ToMcoreOptions, VerifyOptions
from ckpt_tool.operations.to_mcore import plan_to_mcore
from ckpt_tool.operations.verify import verify_checkpoint
from ckpt_tool.plans.options import WriteOptions
from tests.operations.merge.test_megatron_lora import WRITTEN
from tests.real.megatron_models import write_model
from tests.support.merging import write_rank
from tests.support.resaving import save_dcp
from tests.support.tiny_llama import LLAMA, make_llama

UNCHECKED = WriteOptions(check_load=False, fsync=False)
CONFIG = Path("huggingface") / "config.json"
SECRET = {"vocab.txt": "a private key", "tokenizer.json": '{"secret": 1}'}


def save_fsdp(folder: Path) -> None:
    write_rank(folder, make_llama(), LLAMA)


def save_nested(folder: Path) -> None:
    save_dcp({"model": make_llama()}, folder)
    (folder / CONFIG).parent.mkdir()
    (folder / CONFIG).write_text(json.dumps(LLAMA))


def save_megatron(folder: Path) -> None:
    shutil.copytree(WRITTEN, folder)


KINDS: dict[str, tuple[Callable[[Path], None], Any, MergeOptions]] = {
    "fsdp": (save_fsdp, merge_fsdp, MergeOptions(write=UNCHECKED)),
    "dcp": (save_nested, merge_dcp, MergeOptions(write=UNCHECKED)),
    "megatron": (
        save_megatron,
        merge_megatron,
        MergeOptions(write=UNCHECKED, lora=LoraOptions(alpha=16)),
    ),
}
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Files that are none of the checkpoint's, a config among them."""
    (tmp_path / "home").mkdir()
    for name, text in (SECRET | {"config.json": json.dumps(LLAMA)}).items():
        (tmp_path / "home" / name).write_text(text)
    return tmp_path / "home"


def merge(kind: str, source: Path, out: Path, **more: Any) -> None:
    _, operation, options = KINDS[kind]
    operation(source, out, MergeOptions(**vars(options) | more))


def save(kind: str, folder: Path) -> Path:
    KINDS[kind][0](folder)
    return folder


@pytest.mark.parametrize("name", [*SECRET, "config.json"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_link_brings_a_file_into_the_output(tmp_path: Path, home, kind: str, name: str) -> None:
    source, out = save(kind, tmp_path / "in"), tmp_path / "out"
    path = source / "huggingface" / name
    path.unlink(missing_ok=True)
    path.symlink_to(home / name)
    with pytest.raises(CheckpointError, match="1 file leads out of it") as error:
        merge(kind, source, out)
    assert [problem.where for problem in error.value.problems] == [str(path)]
    assert not out.exists()
    assert [each.name for each in tmp_path.iterdir() if "ckpt" in each.name] == []


@pytest.mark.parametrize("kind", KINDS)
def test_nor_does_a_link_in_place_of_the_folder(tmp_path: Path, home: Path, kind: str) -> None:
    source = save(kind, tmp_path / "in")
    shutil.move(source / "huggingface", tmp_path / "elsewhere")
    (source / "huggingface").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="out of it"):
        merge(kind, source, tmp_path / "out")
    merge(kind, source, tmp_path / "out", config=source / "huggingface")  # as the user says himself
    assert (tmp_path / "out" / "config.json").is_file()


@pytest.mark.parametrize("kind", KINDS)
def test_a_link_within_the_run_is_copied(tmp_path: Path, kind: str) -> None:
    save(kind, tmp_path / "run" / "actor")
    (tmp_path / "run" / "shared.json").write_text('{"a": 1}')
    path = tmp_path / "run" / "actor" / "huggingface" / "tokenizer.json"
    path.symlink_to("../../shared.json")
    merge(kind, tmp_path / "run", tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == '{"a": 1}'
    assert not (tmp_path / "out" / "tokenizer.json").is_symlink()
    with pytest.raises(CheckpointError, match="out of it"):
        merge(kind, tmp_path / "run" / "actor", tmp_path / "other")


@pytest.mark.parametrize("kind", KINDS)
def test_weights_may_be_links_to_anywhere(tmp_path: Path, kind: str) -> None:
    """As where shards of several nodes are brought together; and so may the folder itself."""
    source = save(kind, tmp_path / "in")
    weights = [p for p in source.rglob("*") if p.is_file() and "huggingface" not in p.parts]
    for number, path in enumerate(weights):
        path.rename(tmp_path / f"file{number}")
        path.symlink_to(tmp_path / f"file{number}")
    (tmp_path / "latest").symlink_to(source)
    merge(kind, tmp_path / "latest", tmp_path / "out")
    assert verify_checkpoint(tmp_path / "latest", tmp_path / "out", options_of(kind)).equal


def options_of(kind: str) -> VerifyOptions:
    return VerifyOptions(lora=KINDS[kind][2].lora)


@pytest.mark.parametrize("kind", KINDS)
def test_verify_reads_no_config_behind_a_link(tmp_path: Path, home: Path, kind: str) -> None:
    source = save(kind, tmp_path / "in")
    merge(kind, source, tmp_path / "out")
    (source / CONFIG).rename(tmp_path / "moved.json")
    (source / CONFIG).symlink_to(tmp_path / "moved.json")
    with pytest.raises(CheckpointError, match="out of it"):
        verify_checkpoint(source, tmp_path / "out", options_of(kind))


def test_a_base_is_no_way_out_either(tmp_path: Path, home: Path) -> None:
    source, base = save("fsdp", tmp_path / "in"), tmp_path / "base"
    merge("fsdp", source, base)
    (base / "vocab.txt").symlink_to(home / "vocab.txt")
    with pytest.raises(CheckpointError) as error:
        merge("fsdp", source, tmp_path / "out", config=base)
    assert error.value.problems[0].where == str(base / "vocab.txt")


@pytest.mark.parametrize("option", ["config", "tokenizer"])
def test_what_is_named_beside_may_be_linked_to(tmp_path: Path, home: Path, option: str) -> None:
    """Who names a folder may have what is in it, by whatever way."""
    source = save("fsdp", tmp_path / "in")
    (source / "huggingface" / "tokenizer.json").symlink_to(home / "tokenizer.json")
    merge("fsdp", source, tmp_path / "out", **{option: home})
    assert (tmp_path / "out" / "tokenizer.json").read_text() == SECRET["tokenizer.json"]


@pytest.mark.slow
def test_to_mcore_reads_no_config_behind_a_link(tmp_path: Path) -> None:
    model = write_model("qwen3", tmp_path / "model")
    (model / "config.json").rename(tmp_path / "config.json")
    (model / "config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="out of it"):
        plan_to_mcore(model)
    assert plan_to_mcore(model, ToMcoreOptions(config=tmp_path)).num_tensors
    (tmp_path / "linked").mkdir()
    for path in model.glob("*.safetensors*"):
        (tmp_path / "linked" / path.name).symlink_to(path)
    shutil.copy(tmp_path / "config.json", tmp_path / "linked")
    assert plan_to_mcore(tmp_path / "linked").num_tensors


@pytest.mark.parametrize("name", ["../x.safetensors", "/x.safetensors", "sub/../../x.safetensors"])
def test_an_index_names_files_of_its_folder(tmp_path: Path, name: str) -> None:
    save("fsdp", tmp_path / "in")
    merge("fsdp", tmp_path / "in", tmp_path / "model", max_shard_size="200B")
    index = tmp_path / "model" / "model.safetensors.index.json"
    found = json.loads(index.read_text())
    first = min(found["weight_map"])
    shutil.copy(tmp_path / "model" / found["weight_map"][first], tmp_path / "x.safetensors")
    found["weight_map"][first] = name.replace("/x", f"{tmp_path}/x") if name[0] == "/" else name
    index.write_text(json.dumps(found))
    for read in (plan_to_mcore, lambda model: verify_checkpoint(model, tmp_path / "in")):
        with pytest.raises(CheckpointError) as error:
            read(tmp_path / "model")
        said = [problem.message for problem in error.value.problems if problem.kind == "index"]
        assert "the index names a file outside of the folder" in said


def test_people_are_told_what_to_do(tmp_path: Path, home: Path) -> None:
    source = save("fsdp", tmp_path / "in")
    path = source / "huggingface" / "vocab.txt"
    path.symlink_to(home / "vocab.txt")
    words = ["merge", "fsdp", str(source), str(tmp_path / "out"), "--no-check-load"]
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, words)
    assert done.exit_code == 2
    assert f"{source}: 1 file leads out of it" in done.stderr
    assert f"[link] {path}: leads to {home / 'vocab.txt'}, which is not in it" in done.stderr
    assert "--config DIR" in done.stderr
    assert SECRET["vocab.txt"] not in done.output
