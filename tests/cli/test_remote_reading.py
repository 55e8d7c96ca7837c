"""Checkpoints in a bucket of a real server, on the command line: the same as those on a disk."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ckpt_tool.cli.app import app
from tests.support import megatron
from tests.support.merging import TINY, values, write_rank
from tests.support.objects.buckets import Bucket

pytest.importorskip("obstore")


def ckpt(*words: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code == code, done.output
    return done.stdout


@pytest.fixture
def actor(bucket: Bucket, checkpoints) -> Path:
    """Ranks of real FSDP in the bucket, at `run/actor`; what they are copied from."""
    shutil.copytree(checkpoints["fsdp2_w2"] / "actor", bucket.folder / "run" / "actor")
    return checkpoints["fsdp2_w2"] / "actor"


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_ranks_of_fsdp_are_merged_bit_for_bit(bucket, actor, tmp_path):
    ckpt("merge", actor, tmp_path / "near")
    ckpt("merge", f"{bucket.url}/run/actor", tmp_path / "far")
    assert content(tmp_path / "far") == content(tmp_path / "near") != {}


def test_a_merge_reads_each_byte_once(bucket, tmp_path):
    """But for the metadata: both ends of a file, and headers within it."""
    folder = write_rank(bucket.folder / "big", {"w": values(3000, 1000)}, TINY)
    ckpt("merge", f"{bucket.url}/big", tmp_path / "out", "--config", "none")
    (path,) = folder.glob("*.pt")
    assert 0 <= bucket.sizes()[f"big/{path.name}"] - path.stat().st_size < 200_000


def test_a_folder_of_megatron_core_is_merged_bit_for_bit(bucket, megatron_cases, tmp_path):
    saved = megatron.saved(megatron_cases, "llama", "tp2_pp2")
    shutil.copytree(saved, bucket.folder / "dist")
    config = ("--config", megatron.hf(megatron_cases, "llama"))
    ckpt("merge", saved, tmp_path / "near", *config)
    ckpt("merge", f"{bucket.url}/dist", tmp_path / "far", *config)
    assert content(tmp_path / "far") == content(tmp_path / "near") != {}


def test_inspect_says_the_same(bucket, actor):
    near = json.loads(ckpt("inspect", "--json", actor))
    far = json.loads(ckpt("inspect", "--json", f"{bucket.url}/run/actor"))
    assert far["path"] == f"{bucket.url}/run/actor"
    assert far["tensors"] == near["tensors"]


def test_a_large_file_is_not_read_to_inspect_it(bucket):
    write_rank(bucket.folder / "big", {"w": values(3000, 1000)}, TINY)
    ckpt("inspect", f"{bucket.url}/big")
    assert sum(bucket.sizes().values()) < 200_000


def test_both_sides_of_verify_may_lie_in_a_bucket(bucket, actor, tmp_path):
    ckpt("merge", actor, tmp_path / "model")
    shutil.copytree(tmp_path / "model", bucket.folder / "model")
    for sides in (
        (f"{bucket.url}/run/actor", tmp_path / "model"),
        (actor, f"{bucket.url}/model"),
        (f"{bucket.url}/run/actor", f"{bucket.url}/model"),
    ):
        ckpt("verify", *sides)


def test_what_differs_in_a_bucket_is_found(bucket, actor, tmp_path):
    ckpt("merge", actor, tmp_path / "model")
    path = bucket.folder / "model" / "model.safetensors"
    shutil.copytree(tmp_path / "model", path.parent)
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    ckpt("verify", actor, f"{bucket.url}/model", code=1)


def test_config_and_tokenizer_may_lie_in_a_bucket(bucket, actor, tmp_path):
    config = f"{bucket.url}/run/actor/huggingface"
    ckpt("merge", actor, tmp_path / "out", "--config", config)
    near = actor / "huggingface" / "config.json"
    wrote = json.loads((tmp_path / "out" / "config.json").read_text())
    assert wrote.items() >= {"model_type": json.loads(near.read_text())["model_type"]}.items()


def test_what_is_wrong_with_a_checkpoint_is_said_by_its_address(bucket, actor):
    (bucket.folder / "run" / "actor" / "model_world_size_2_rank_1.pt").unlink()
    done = CliRunner().invoke(app, ["merge", f"{bucket.url}/run/actor", "never-written"])
    assert done.exit_code == 2
    assert f"{bucket.url}/run/actor: " in done.output
    assert "/tmp/" not in done.output
