"""What lies below a run's folder, whatever a trainer calls its steps."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

from ckpt_tool.common.errors import AmbiguousError, FormatError
from ckpt_tool.readers import list_checkpoints, open_checkpoint, runs
from tests.support.merging import values, write_rank

STATE = {"a.weight": values(3, 4)}


def ranks(folder: Path) -> Path:
    return write_rank(folder, STATE)


def distributed(folder: Path) -> Path:
    dcp.save(dict(STATE), checkpoint_id=folder)
    return folder


def listed(root: Path) -> list[str]:
    found = list_checkpoints(root)
    assert found.is_whole
    return [place.path.relative_to(root).as_posix() for place in found.places]


@pytest.mark.parametrize(
    ("write", "below", "named"),
    [
        (ranks, "checkpoint-500/pytorch_model_fsdp_0", "checkpoint-500"),
        (ranks, "checkpoint-500", "checkpoint-500"),
        (ranks, "global_step_3/actor", "global_step_3"),
        (ranks, "checkpoints/global_step_3/policy", "checkpoints/global_step_3"),
        (distributed, "outputs/checkpoint/step-10", "outputs/checkpoint/step-10"),
        (distributed, "step-10", "step-10"),
        (distributed, "epoch_0_step_20/model", "epoch_0_step_20"),
        (distributed, "epoch=0-step=10.ckpt", "epoch=0-step=10.ckpt"),
        (distributed, "results/grpo/step_7/policy/weights", "results/grpo/step_7"),
    ],
)
def test_the_only_step_is_found(tmp_path, write, below, named):
    folder = write(tmp_path / below)
    assert listed(tmp_path) == [named]
    found = open_checkpoint(tmp_path)
    assert found.path == folder
    assert found.named == (tmp_path,)


def test_of_several_steps_one_has_to_be_named(tmp_path):
    for number in (1000, 500, 90):
        distributed(tmp_path / f"checkpoint-{number}" / "pytorch_model_fsdp_0")
        distributed(tmp_path / f"checkpoint-{number}" / "optimizer_0")
    names = ["checkpoint-90", "checkpoint-500", "checkpoint-1000"]
    assert listed(tmp_path) == names
    with pytest.raises(AmbiguousError, match=f"{tmp_path}: 3 checkpoints are below it") as refused:
        open_checkpoint(tmp_path)
    assert refused.value.choices == tuple(str(tmp_path / name) for name in names)


def test_every_step_and_role_of_a_run_with_a_tracker(tmp_path):
    for step in (2, 10):
        for role in ("actor", "critic"):
            ranks(tmp_path / f"global_step_{step}" / role)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("10")
    steps = [f"global_step_{n}/{role}" for n in (2, 10) for role in ("actor", "critic")]
    assert listed(tmp_path) == steps
    assert listed(tmp_path / "global_step_2") == ["actor", "critic"]
    assert listed(tmp_path / "global_step_2" / "actor") == ["."]


def test_formats_may_differ(tmp_path):
    ranks(tmp_path / "global_step_5")
    (tmp_path / "model").mkdir()
    save_file(STATE, tmp_path / "model" / "model.safetensors")
    distributed(tmp_path / "step-1")
    found = list_checkpoints(tmp_path).places
    names = {place.path.name: place.format.name for place in found}
    assert names == {"global_step_5": "fsdp", "model": "huggingface", "step-1": "dcp"}


def test_what_is_saved_beside_a_model_is_none(tmp_path):
    for name in ("optim", "optimizer_0", "lr_scheduler", "dataloader", ".cache"):
        distributed(tmp_path / "step_1" / name)
    model = distributed(tmp_path / "step_1" / "model")
    assert open_checkpoint(tmp_path / "step_1").path == model
    assert listed(tmp_path) == ["step_1"]


def test_a_link_to_the_last_step_is_no_other_one(tmp_path):
    ranks(tmp_path / "step-2")
    (tmp_path / "latest").symlink_to("step-2")
    (tmp_path / "step-2" / "up").symlink_to("..")
    (tmp_path / "here").symlink_to(".")
    assert listed(tmp_path) == ["step-2"]
    ranks(tmp_path / "step-3")
    assert listed(tmp_path) == ["step-2", "step-3"]


def test_nothing_is_nothing(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    torch.save(STATE, tmp_path / "a" / "b" / "notes.pt")
    assert listed(tmp_path) == []
    with pytest.raises(FormatError, match="no checkpoint of a known format"):
        open_checkpoint(tmp_path)


def test_a_large_tree_is_not_walked_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "_MOST_FOLDERS", 20)
    for number in range(40):
        (tmp_path / f"logs-{number}").mkdir()
    for number in range(2):
        ranks(tmp_path / f"a-{number}")
    found = list_checkpoints(tmp_path)
    assert not found.is_whole
    with pytest.raises(AmbiguousError) as refused:
        open_checkpoint(tmp_path)
    assert "folders that were not looked at" in str(refused.value)


def test_a_folder_of_others_hides_what_is_in_it(tmp_path, monkeypatch):
    ranks(tmp_path / "step-1")
    (tmp_path / "private").mkdir()
    scan = os.scandir

    def refuse(path):
        if Path(path).name == "private":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = list_checkpoints(tmp_path)
    assert [place.path.name for place in found.places] == ["step-1"]
    assert not found.is_whole
    with pytest.raises(PermissionError):
        list_checkpoints(tmp_path / "private")


def test_steps_below_the_model_of_a_trainer_s_end_are_found(tmp_path):
    """The Trainer saves its last model above them; what is a model below it is a part of it."""
    run = tmp_path / "run"
    for number in (20, 3):
        distributed(run / f"checkpoint-{number}" / "pytorch_model_fsdp_0")
    (run / "lora_adapter").mkdir()
    for folder in (run, run / "lora_adapter"):
        save_file(STATE, folder / "model.safetensors")
    assert listed(run) == [".", "checkpoint-3", "checkpoint-20"]
    assert open_checkpoint(run).format == "huggingface"
    with pytest.raises(AmbiguousError, match="with 1 model among them"):
        open_checkpoint(tmp_path)


def test_what_lies_below_a_model_without_a_number_is_that_model_once_more(tmp_path):
    """As Meta's own files do in ``original/``."""
    (tmp_path / "llama" / "original").mkdir(parents=True)
    save_file(STATE, tmp_path / "llama" / "model.safetensors")
    torch.save(STATE, tmp_path / "llama" / "original" / "consolidated.00.pth")
    assert listed(tmp_path) == ["llama"]
    assert open_checkpoint(tmp_path).path == tmp_path / "llama"
