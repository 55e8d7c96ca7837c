"""`ckpt merge CKPT... OUT`: the format is recognised, said, and a word insists on one."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from typer.testing import CliRunner, Result

from ckpt_tool import MergeOptions, merge_checkpoint
from ckpt_tool.cli.app import app
from tests.support.merging import TINY, load_folder, values, write_rank

STATE = {"a.weight": values(3, 4), "b.weight": values(5)}
#: The least that a stage of Megatron has.
ENDS = {
    "embedding.word_embeddings.weight": values(4, 2),
    "decoder.final_layernorm.weight": values(2),
}


def run(*words: object) -> Result:
    return CliRunner(env={"COLUMNS": "100"}).invoke(app, ["merge", *map(str, words)])


def write_fsdp(folder: Path) -> Path:
    return write_rank(folder, STATE, TINY)


def write_dcp(folder: Path) -> Path:
    dcp.save(dict(STATE), checkpoint_id=folder)
    return folder


def write_megatron(folder: Path) -> Path:
    (folder / "mp_rank_00").mkdir(parents=True)
    torch.save({"model": ENDS}, folder / "mp_rank_00" / "model_optim_rng.pt")
    return folder


WRITERS = {
    "fsdp": (write_fsdp, "FSDP checkpoint"),
    "dcp": (write_dcp, "torch.distributed.checkpoint folder"),
    "megatron": (write_megatron, "Megatron rank files"),
}


@pytest.fixture(params=WRITERS)
def word(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_format_is_recognised_and_said(word: str, tmp_path: Path) -> None:
    write, title = WRITERS[word]
    source = write(tmp_path / "run" / "global_step_7")
    done = run(source, tmp_path / "out", "--config", "none")
    assert done.exit_code == 0, done.stderr
    assert f"  from     {title} of step 7: {source}\n" in done.stdout
    assert len(load_folder(tmp_path / "out")) == 2
    insisted = run(word, source, tmp_path / "same", "--config", "none")
    assert f"  from     {title} of step 7: {source}\n" in insisted.stdout
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert written == {path.name: path.read_bytes() for path in (tmp_path / "same").iterdir()}


def test_a_dry_run_and_json_say_it_too(word: str, tmp_path: Path) -> None:
    write, title = WRITERS[word]
    source = write(tmp_path / "in")
    words = (source, tmp_path / "out", "--config", "none")
    assert f"  from     {title}: {source}\n" in run(*words, "--dry-run").stdout
    for more in (("--dry-run",), ()):
        found = json.loads(run(*words, "--json", *more).stdout)
        assert (found["source"], found["step"]) == (str(source), None)


def test_a_word_refuses_what_another_one_is_for(word: str, tmp_path: Path) -> None:
    source = WRITERS[word][0](tmp_path / "in")
    for other in WRITERS.keys() - {word}:
        refused = run(other, source, tmp_path / "out", "--config", "none")
        assert refused.exit_code == 2
        assert f"Merge it with: ckpt merge {word} {source} OUT" in refused.stderr
        assert not (tmp_path / "out").exists()


def test_options_may_come_first(tmp_path: Path) -> None:
    source = write_fsdp(tmp_path / "in")
    done = run("--config", "none", "--jobs=2", source, tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert load_folder(tmp_path / "out").keys() == STATE.keys()


def test_a_folder_may_be_called_like_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_fsdp(tmp_path / "dcp")
    monkeypatch.chdir(tmp_path)
    assert run("./dcp", "out", "--config", "none").exit_code == 0
    assert load_folder(tmp_path / "out").keys() == STATE.keys()


def test_names_are_chosen_without_a_word(tmp_path: Path) -> None:
    dcp.save({"app": {"model": dict(STATE)}}, checkpoint_id=tmp_path / "in")
    done = run(
        tmp_path / "in", tmp_path / "out", "--config", "none",
        "--prefix", "app.model", "--select", "*.a.weight", "--rename", "a=c",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert list(load_folder(tmp_path / "out")) == ["c.weight"]


def test_several_folders_without_a_word(tmp_path: Path) -> None:
    states = [{"a.weight": values(3)}, {"a.weight": values(3)}]
    for rank, state in enumerate(states):
        (tmp_path / f"node{rank}").mkdir()
        name = f"model_world_size_2_rank_{rank}.pt"
        torch.save(state, tmp_path / f"node{rank}" / name)
    done = run(tmp_path / "node0", tmp_path / "node1", tmp_path / "out", "--config", "none")
    assert done.exit_code == 0, done.stderr
    assert list(load_folder(tmp_path / "out")) == ["a.weight"]


def test_a_model_is_one_already(tmp_path: Path) -> None:
    assert run(write_fsdp(tmp_path / "in"), tmp_path / "out", "--config", "none").exit_code == 0
    refused = run(tmp_path / "out", tmp_path / "again")
    assert refused.exit_code == 2
    assert "this is a Hugging Face model\n  There is nothing to merge." in refused.stderr
    write_fsdp(tmp_path / "out" / "checkpoint-7")
    refused = run(tmp_path / "out", tmp_path / "again")
    assert "take one with --step N: there is 7" in refused.stderr


@pytest.mark.parametrize("word", ["", "fsdp", "megatron", "dcp"])
def test_what_is_missing_is_named(word: str, tmp_path: Path) -> None:
    words = [word] if word else []
    assert run(*words, tmp_path).stderr.rstrip().endswith("Missing argument 'OUT'.")
    assert run(*words, "--dtype", "keep").stderr.rstrip().endswith("Missing argument 'CKPT'.")
    assert run(*words, tmp_path).exit_code == 2


def test_help_has_the_options_and_the_words() -> None:
    found = run("-h")
    assert found.exit_code == 0
    assert found.stdout.startswith("Usage: ckpt merge [OPTIONS] ")
    for said in ("CKPT", "OUT", "--check-replicas", "--rename", "--resume", "--json", "megatron"):
        assert said in found.stdout
    assert run("--help").output == found.output == run().output


def test_from_python(word: str, tmp_path: Path) -> None:
    source = WRITERS[word][0](tmp_path / "iter_0000020")
    result = merge_checkpoint(source, tmp_path / "out", MergeOptions(keep_names=True))
    assert (result.source, result.step) == (source, 20)
    assert len(load_folder(tmp_path / "out")) == 2
