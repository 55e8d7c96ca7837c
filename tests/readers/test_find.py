"""Where a checkpoint lies below the folder that was named."""

from pathlib import Path

import pytest
import torch

from ckpt_tool.common.errors import AmbiguousError
from ckpt_tool.readers import open_checkpoint
from tests.support.merging import values, write_rank

TRACKERS = ["latest_checkpointed_iteration.txt", "latest_ckpt_global_step.txt"]


def ranks(folder: Path) -> Path:
    return write_rank(folder, {"a.weight": values(4)})


def iteration(folder: Path) -> Path:
    """Rank files of Megatron."""
    (folder / "mp_rank_00").mkdir(parents=True)
    state = {"decoder.final_layernorm.weight": values(4)}
    torch.save({"model": state}, folder / "mp_rank_00" / "model_optim_rng.pt")
    return folder


@pytest.mark.parametrize("role", ["actor", "policy", "critic", "weights"])
def test_the_only_role_is_found(tmp_path, role):
    folder = ranks(tmp_path / role)
    assert open_checkpoint(tmp_path).path == folder


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        (("actor", "critic"), "an actor and a critic"),
        (("policy", "critic"), "a policy and a critic"),
        (("actor", "policy", "critic"), "an actor, a policy and a critic"),
        (("policy", "ref"), "a policy and a reference"),
    ],
)
def test_of_several_one_has_to_be_named(tmp_path, roles, said):
    folders = [ranks(tmp_path / role) for role in roles]
    with pytest.raises(AmbiguousError, match=said) as refused:
        open_checkpoint(tmp_path)
    assert refused.value.choices == tuple(map(str, folders))


@pytest.mark.parametrize("tracker", TRACKERS)
def test_the_step_that_a_tracker_names_is_found(tmp_path, tracker):
    for step in (2, 4, 10):
        ranks(tmp_path / f"global_step_{step}" / "policy")
    (tmp_path / tracker).write_text("4\n")
    assert open_checkpoint(tmp_path).path == tmp_path / "global_step_4" / "policy"


@pytest.mark.parametrize("place", [".", "weights", "policy/weights"])
def test_the_only_iteration_needs_no_tracker(tmp_path, place):
    found = iteration(tmp_path / place / "iter_0000005")
    assert open_checkpoint(tmp_path).path == found


def test_of_several_iterations_without_a_tracker_none_is_taken(tmp_path):
    folders = [iteration(tmp_path / f"iter_{number:07}") for number in (5, 6)]
    with pytest.raises(AmbiguousError, match="2 checkpoints are below it") as refused:
        open_checkpoint(tmp_path)
    assert refused.value.choices == tuple(map(str, folders))


def test_a_tracker_that_names_what_is_not_there_leads_nowhere(tmp_path):
    found = iteration(tmp_path / "iter_0000005")
    (tmp_path / TRACKERS[0]).write_text("6")
    with pytest.raises(
        AmbiguousError, match=f"{TRACKERS[0]} names '6', which is not here"
    ) as refused:
        open_checkpoint(tmp_path)
    assert refused.value.choices == (str(found),)
