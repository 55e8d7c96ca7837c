"""What is read of each stage, in files that follow the layout, and what else may lie in them."""

import datetime
from pathlib import Path

import pytest
import torch

from ckpt_tool.common.errors import CheckpointError
from ckpt_tool.readers import open_checkpoint
from tests.support.deepspeed_files import FROZEN, GROUPS, Step, expected_of, make_step
from tests.support.merging import assert_same, values

EVERY = [(stage, world) for stage in (0, 1, 2, 3) for world in (1, 2, 3, 5)]


def read(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = open_checkpoint(folder)
    assert checkpoint.problems == ()
    return {name: tensor.read() for name, tensor in checkpoint.items()}


@pytest.mark.parametrize(("stage", "world"), EVERY)
def test_every_tensor_of_every_stage_is_read(tmp_path, stage, world):
    found = read(make_step(stage, world).write(tmp_path))
    assert_same(found, expected_of(stage))


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_what_the_checkpoint_says_of_itself(tmp_path, stage):
    checkpoint = open_checkpoint(make_step(stage, 3).write(tmp_path))
    assert checkpoint.format == "deepspeed"
    assert checkpoint.path == tmp_path / "global_step7"
    assert (checkpoint.world_size, checkpoint.step) == (3, 7)
    assert [file.rank for file in checkpoint.files] == {
        0: [None], 2: [None, 0, 1, 2], 3: [0, 0, 1, 1, 2, 2],
    }[stage]  # fmt: skip
    assert len(checkpoint.sums) == len(checkpoint.files)


def test_a_rank_holds_a_range_of_the_row_major_order(tmp_path):
    checkpoint = open_checkpoint(make_step(3, 2).write(tmp_path))
    held = checkpoint.entries["a.weight"].holdings
    assert [(each.rank, str(each.box)) for each in held] == [
        (0, "[0:2, 0:3]"), (0, "[2:3, 0:2]"), (1, "[2:3, 2:3]"), (1, "[3:5, 0:3]"),
    ]  # fmt: skip


@pytest.mark.parametrize("tag", ["checkpoint", "epoch 1", "global_step7"])
def test_latest_names_the_step_whatever_it_is_called(tmp_path, tag):
    step = make_step(2, 2)
    step.write(tmp_path, "global_step3")
    step.write(tmp_path, tag)
    assert open_checkpoint(tmp_path).path == tmp_path / tag


def test_a_second_name_has_the_same_blocks(tmp_path):
    step = make_step(3, 2)
    for rank in (0, 1):
        name = f"zero_pp_rank_{rank}_mp_rank_00_model"
        step.edit(name, lambda state: state["module"].update(g=torch.empty(0)))
    step.edit("zero_pp_rank_0_mp_rank_00_model", lambda s: s["shared_params"].update(g="a.weight"))
    assert_same(read(step.write(tmp_path)), expected_of(3) | {"g": GROUPS[0]["a.weight"]})


def test_one_memory_is_a_second_name_that_nothing_lists(tmp_path):
    """Versions before 0.8 have no `shared_params`."""
    step = make_step(2, 2)

    def share(state: dict) -> None:
        state["module"]["g"] = state["module"]["a.weight"]
        del state["shared_params"]

    step.edit("model_states", share)
    assert_same(read(step.write(tmp_path)), expected_of(2) | {"g": GROUPS[0]["a.weight"]})


def test_what_stage_1_froze_is_in_the_state_dict_alone(tmp_path):
    step = make_step(1, 2)
    nothing = dict.fromkeys(("frozen_param_shapes", "frozen_param_fragments"))
    step.edit("model_states", lambda state: state.update(nothing))
    assert_same(read(step.write(tmp_path)), expected_of(1))


def test_padding_behind_each_parameter_is_skipped(tmp_path):
    """Newer versions align parameters; the numbers are those of the elements in between."""
    step = make_step(2, 1, groups=GROUPS[:1])
    gap = torch.full((3,), torch.nan)
    a, b = (tensor.reshape(-1) for tensor in GROUPS[0].values())
    own = step.partitions(0)
    own["single_partition_of_fp32_groups"] = [torch.cat([a, gap, b, gap[:1]])]
    own |= {"param_alignment_paddings": [[3, 1]], "group_paddings": [0]}
    found = read(step.write(tmp_path))
    assert_same({name: found[name] for name in GROUPS[0]}, GROUPS[0])


def test_a_partition_may_be_all_padding(tmp_path):
    """A slice of more than there is: DeepSpeed leaves what Python leaves of it."""
    step = make_step(2, 4, groups=[{"a": values(1)}], frozen={}, buffers={})
    assert_same(read(step.write(tmp_path)), {"a": values(1)})


class Mine:
    """A class of the user's own, among what a run was given to save."""

    def __init__(self) -> None:
        self.when = datetime.timezone.utc


def test_what_a_run_saves_beside_the_model_is_not_looked_at(tmp_path):
    step = make_step(2, 2).edit("model_states", lambda state: state.update(client=[Mine()]))
    step.edit("model_states", lambda state: state.update(ds_config={"zero": {"stage": 2.5}}))
    assert_same(read(step.write(tmp_path)), expected_of(2))


def test_states_of_transformer_engine_are_said_to_be_left_out(tmp_path):
    step = make_step(2, 2)
    step.edit("model_states", lambda state: state["module"].update({"a._extra_state": None}))
    checkpoint = open_checkpoint(step.write(tmp_path))
    assert checkpoint.problems == ()
    assert list(checkpoint.left_out) == ["a._extra_state"]


@pytest.mark.parametrize("stage", [2, 3])
def test_frozen_parameters_may_be_excluded(tmp_path, stage):
    step = make_step(stage, 2, frozen={})
    alias = FROZEN["e.weight"] if stage == 2 else torch.empty(0)

    def exclude(state: dict) -> None:
        state["module"]["g"] = alias
        state["shared_params"] = {"g": "e.weight"}
        state |= dict.fromkeys(("frozen_param_shapes", "frozen_param_fragments"))

    for name in step.files:
        if "model_states" in name:
            exclude(step.files[name])
    checkpoint = open_checkpoint(step.write(tmp_path))
    assert checkpoint.problems == ()
    assert "g" not in checkpoint
    assert list(checkpoint.left_out) == ["g"]


def test_replicas_of_a_buffer_are_listed(tmp_path):
    entry = open_checkpoint(make_step(3, 3).write(tmp_path)).entries["f.scale"]
    assert [each.rank for each in entry.holdings] == [0, 1, 2]
    assert len(list(entry.replicas())) == 2


def test_a_tensor_of_a_class_of_its_own_is_a_problem_that_names_it(tmp_path):
    step = make_step(2, 2).edit("model_states", lambda s: s["module"].update({"f.scale": Mine()}))
    checkpoint = open_checkpoint(step.write(tmp_path))
    ((kind, text),) = [(p.kind, p.message) for p in checkpoint.problems]
    assert kind == "tensor"
    assert "f.scale: a Mine, no tensor" in text
    with pytest.raises(CheckpointError):
        checkpoint["a.weight"]


def test_a_step_alone_is_opened_by_its_own_name(tmp_path):
    Step(make_step(2, 2).files).write(tmp_path)
    (tmp_path / "latest").unlink()
    assert open_checkpoint(tmp_path / "global_step7").path == tmp_path / "global_step7"
    assert open_checkpoint(tmp_path).path == tmp_path / "global_step7"
