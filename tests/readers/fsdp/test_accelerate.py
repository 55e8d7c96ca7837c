"""accelerate's files of a rank each (`use_dcp=False`), which do not say how many there are."""

import shutil
from pathlib import Path

import pytest
import torch

from ckpt_tool import MergeOptions, merge_checkpoint, verify_checkpoint
from ckpt_tool.common.errors import CheckpointError
from ckpt_tool.readers import open_checkpoint, open_folders
from ckpt_tool.readers.fsdp.files import RankName, parse_rank_name
from tests.support.merging import assert_same, load_folder
from tests.support.torchrun import run_ranks


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What accelerate's `save_fsdp_model` wrote, by two ranks, of one model in three ways."""
    fsdp_utils = pytest.importorskip("accelerate.utils.fsdp_utils")
    if "use_dcp" not in fsdp_utils.save_fsdp_model.__code__.co_varnames:
        pytest.skip("accelerate before 1.15 has no use_dcp")
    return run_ranks("tests.real.accelerate_rank", tmp_path_factory.mktemp("accelerate"), 2)


def expected(saved: Path) -> dict[str, torch.Tensor]:
    found = torch.load(saved / "whole.pt")
    assert isinstance(found, dict)
    return found


@pytest.mark.real
@pytest.mark.parametrize("kind", ["fsdp2", "fsdp1"])
def test_it_is_read_merged_and_verified(saved, kind, tmp_path):
    folder = saved / kind
    names = [f"pytorch_model_fsdp_0_rank{rank}.bin" for rank in range(2)]
    assert sorted(path.name for path in folder.iterdir()) == names
    found = open_checkpoint(folder)
    assert (found.format, found.world_size, found.problems) == ("fsdp", 2, ())
    result = merge_checkpoint(folder, tmp_path / "out", MergeOptions(keep_names=True))
    assert result.format == "fsdp"
    assert_same(load_folder(tmp_path / "out"), expected(saved))
    assert verify_checkpoint(folder, tmp_path / "out").equal


@pytest.mark.real
def test_its_step_is_found_from_the_folder_above(saved, tmp_path):
    step = shutil.copytree(saved / "fsdp2", tmp_path / "checkpoint-5")
    assert open_checkpoint(tmp_path).path == step
    first, second = sorted(step.iterdir())
    (tmp_path / "node-1").mkdir()
    second.rename(tmp_path / "node-1" / second.name)
    assert open_folders([step, tmp_path / "node-1"]).problems == ()
    assert open_checkpoint(first).format == "fsdp-rank"


@pytest.mark.real
@pytest.mark.parametrize(
    ("kind", "gone", "problem"),
    [
        ("fsdp2", 1, "missing-rank"),
        ("fsdp2", 0, "missing-rank"),
        ("fsdp1", 0, "missing-rank"),
        ("fsdp1", 1, "coverage"),  # nothing in rank 0's file says that there is another
    ],
)
def test_a_rank_that_is_missing(saved, kind, gone, problem, tmp_path):
    folder = shutil.copytree(saved / kind, tmp_path / "in")
    (folder / f"pytorch_model_fsdp_0_rank{gone}.bin").unlink()
    found = open_checkpoint(folder)
    assert {each.kind for each in found.problems} == {problem}
    if problem == "missing-rank":
        assert f"rank {gone} of {2 if kind == 'fsdp2' or not gone else 1} missing" in str(
            found.problems[0]
        )
    with pytest.raises(CheckpointError):
        merge_checkpoint(folder, tmp_path / "out", MergeOptions(keep_names=True))
    assert not (tmp_path / "out").exists()


@pytest.mark.real
def test_flat_parameters_are_one_problem(saved, tmp_path):
    folder = saved / "local"
    assert {path.name for path in folder.iterdir()} == {
        f"pytorch_model_fsdp_rank{rank}.bin" for rank in range(2)
    }
    (problem,) = open_checkpoint(folder).problems
    assert problem.kind == "flat-parameters"
    assert "5 tensors cut from flat parameters of FSDP1 (LOCAL_STATE_DICT)" in problem.message
    with pytest.raises(CheckpointError):
        merge_checkpoint(folder, tmp_path / "out", MergeOptions(keep_names=True))


@pytest.mark.real
def test_of_two_models_in_one_folder_neither_is_taken(saved, tmp_path):
    folder = shutil.copytree(saved / "fsdp2", tmp_path / "in")
    for path in sorted(folder.iterdir()):
        shutil.copy(path, folder / path.name.replace("fsdp_0", "fsdp_1"))
    problems = open_checkpoint(folder).problems
    assert [problem.kind for problem in problems] == ["duplicate-rank"] * 2
    assert "move it to a folder of its own" in problems[0].message


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model_world_size_16_rank_3.pt", RankName(3, 16, "verl")),
        ("pytorch_model_fsdp_0_rank3.bin", RankName(3, None, "model 0")),
        ("pytorch_model_fsdp_2_rank11.bin", RankName(11, None, "model 2")),
        ("pytorch_model_fsdp_rank0.bin", RankName(0, None, "model 0")),
        ("pytorch_model_fsdp.bin", None),
        ("pytorch_model_fsdp_0.bin", None),
        ("optimizer_0_rank0.bin", None),
        ("optim_world_size_2_rank_0.pt", None),
        ("model_world_size_2_rank_0.pt.tmp", None),
        ("model_world_size_2_rank_0123456789.pt", None),
    ],
)
def test_what_names_say(name, said):
    assert parse_rank_name(name) == said
