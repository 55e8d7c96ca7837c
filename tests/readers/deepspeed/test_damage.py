"""Files of DeepSpeed that are missing, damaged or at odds: one problem that says file and rank."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_tool.common.errors import AmbiguousError, FormatError, UnsafeContentError
from ckpt_tool.readers import open_checkpoint
from tests.support.deepspeed_files import GROUPS, make_step

OPTIM = "zero_pp_rank_{}_mp_rank_00_optim_states.pt"
MODEL = "zero_pp_rank_{}_mp_rank_00_model_states.pt"
JOINED, EACH = "single_partition_of_fp32_groups", "fp32_flat_groups"


def problems(folder: Path) -> list[tuple[str, str]]:
    """Kind and text of every problem of a checkpoint; none of its tensors can be read."""
    checkpoint = open_checkpoint(folder)
    assert checkpoint.entries or checkpoint.problems
    return [(problem.kind, str(problem)) for problem in checkpoint.problems]


def only(folder: Path) -> tuple[str, str]:
    """The one problem of a checkpoint."""
    (found,) = problems(folder)
    return found


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("rank", [0, 2])
def test_a_rank_without_partitions_is_named(tmp_path, stage, rank):
    folder = make_step(stage, 3).write(tmp_path)
    (folder / "global_step7" / OPTIM.format(rank)).unlink()
    kind, text = only(folder)
    assert kind == "missing-rank"
    assert f"no optimizer states of rank {rank} of 3" in text


def test_a_rank_without_model_states_is_named(tmp_path):
    folder = make_step(3, 3).write(tmp_path)
    (folder / "global_step7" / MODEL.format(1)).unlink()
    kind, text = only(folder)
    assert kind == "missing-rank"
    assert "no model states of rank 1 of 3" in text


def test_all_partitions_may_be_missing(tmp_path):
    folder = make_step(2, 3).write(tmp_path)
    for path in folder.glob("*/*optim*"):
        path.unlink()
    kind, text = only(folder)
    assert kind == "missing-rank"
    assert "no optimizer states of rank 0-2 of 3" in text


def test_partitions_without_model_states_are_no_checkpoint(tmp_path):
    folder = make_step(2, 2).write(tmp_path)
    (folder / "global_step7" / "mp_rank_00_model_states.pt").unlink()
    kind, text = only(folder)
    assert kind == "missing-file"
    assert "mp_rank_00_model_states.pt" in text


@pytest.mark.parametrize("size", [0, 100, -100])
@pytest.mark.parametrize("name", [OPTIM.format(1), MODEL.format(0)])
def test_a_truncated_file_is_named(tmp_path, name, size):
    folder = make_step(3, 2).write(tmp_path)
    path = folder / "global_step7" / name
    path.write_bytes(path.read_bytes()[:size])
    kind, text = only(folder)
    assert kind == "unreadable"
    assert str(path) in text


def test_a_rank_of_another_world_is_named(tmp_path):
    folder = make_step(2, 2).write(tmp_path)
    step = folder / "global_step7"
    shutil.copy(step / OPTIM.format(1), step / OPTIM.format(4))
    kind, text = only(folder)
    assert kind == "world-size"
    assert OPTIM.format(4) in text
    assert "rank 4 of a world of 2" in text


def test_a_file_of_a_run_with_more_ranks_is_named(tmp_path):
    folder = make_step(2, 3).write(tmp_path)
    other = make_step(2, 2)
    torch.save(other.files[OPTIM.format(1)], folder / "global_step7" / OPTIM.format(1))
    kind, text = only(folder)
    assert kind == "world-size"
    assert OPTIM.format(1) in text
    assert "partitions for 2 ranks, expected 3" in text


def test_two_files_of_one_rank_are_a_problem(tmp_path):
    folder = make_step(2, 2).write(tmp_path)
    step = folder / "global_step7"
    shutil.copy(step / OPTIM.format(1), step / f"bf16_{OPTIM.format(1)}")
    kind, text = only(folder)
    assert kind == "duplicate-rank"
    assert "rank 1" in text


def test_files_of_two_stages_in_one_folder_are_at_odds(tmp_path):
    make_step(3, 2).write(tmp_path)
    step = make_step(2, 2)
    del step.files[OPTIM.format(0)], step.files[OPTIM.format(1)]
    assert only(step.write(tmp_path))[0] == "contradiction"


def test_partitions_of_another_stage_are_named(tmp_path):
    step = make_step(2, 2)
    step.files[OPTIM.format(1)] = make_step(3, 2).files[OPTIM.format(1)]
    kind, text = only(step.write(tmp_path))
    assert kind == "contradiction"
    assert OPTIM.format(1) in text
    assert "ZeRO-3" in text


def test_a_partition_in_the_file_of_another_rank_is_found(tmp_path):
    """Real files say where parameters are in them; sizes alone would not tell."""
    fixture = Path(__file__).parents[2] / "fixtures" / "deepspeed0.19_z1_lora"
    folder = shutil.copytree(fixture / "ckpt", tmp_path / "ckpt")
    one, other = sorted(folder.glob("*/*optim*"))
    content = one.read_bytes()
    shutil.copy(other, one)
    other.write_bytes(content)
    found = problems(folder)
    assert [kind for kind, _ in found] == ["contradiction"] * 2
    assert f"{one}: the partition of rank 1, in a file of rank 0" in found[0][1]


def shorten(key: str, group: int) -> Callable[[dict[str, Any]], None]:
    """One element less in a flat partition."""

    def change(state: dict[str, Any]) -> None:
        rows = state["optimizer_state_dict"][key]
        rows[group] = rows[group][:-1].clone()

    return change


@pytest.mark.parametrize(("stage", "key"), [(2, JOINED), (3, EACH)])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_short_partition_is_named(tmp_path, stage, key, rank):
    step = make_step(stage, 3).edit(OPTIM.format(rank), shorten(key, 0))
    found = problems(step.write(tmp_path))
    assert {kind for kind, _ in found} == {"contradiction"}
    assert all("elements" in text and "expected" in text for _, text in found)


@pytest.mark.parametrize(("stage", "key"), [(2, JOINED), (3, EACH)])
def test_partitions_that_are_all_short_do_not_hold_the_parameters(tmp_path, stage, key):
    step = make_step(stage, 2)
    for rank in (0, 1):
        rows = step.partitions(rank)[key]
        rows[0] = rows[0][:-4].clone()
    kind, text = only(step.write(tmp_path))
    assert kind == "coverage"
    assert "for 2 parameters" in text or "for 4 parameters" in text


@pytest.mark.parametrize("stage", [2, 3])
def test_more_elements_than_parameters_and_padding_are_refused(tmp_path, stage):
    step = make_step(stage, 2)
    for file in step.files.values():
        if "param_shapes" in file:
            file["param_shapes"][0].pop("b.weight", None)
    assert "coverage" in [kind for kind, _ in problems(step.write(tmp_path))]


@pytest.mark.parametrize("rank", [0, 1])
def test_another_number_of_groups_is_refused(tmp_path, rank):
    step = make_step(2, 2)
    step.partitions(rank)[JOINED].pop()
    kind, text = only(step.write(tmp_path))
    assert kind == "contradiction"
    assert "1 partition, expected 2" in text


def test_shapes_that_differ_from_the_state_dict_are_refused(tmp_path):
    step = make_step(2, 2)
    step.edit("model_states", lambda s: s["param_shapes"][0].update({"a.weight": (3, 5)}))
    kind, text = only(step.write(tmp_path))
    assert kind == "contradiction"
    assert "a.weight: [3, 5] in param_shapes, [5, 3] in the state dict" in text


@pytest.mark.parametrize("key", ["param_shapes", "global_steps", "frozen_param_shapes"])
def test_ranks_that_say_something_else_are_named(tmp_path, key):
    other = {"param_shapes": list(GROUPS[:1]), "global_steps": 8, "frozen_param_shapes": {}}
    other["param_shapes"] = [{name: t.shape for name, t in GROUPS[0].items()}]
    step = make_step(3, 2).edit(MODEL.format(1), lambda state: state.update({key: other[key]}))
    found = problems(step.write(tmp_path))
    assert found[0][0] == "contradiction"
    assert MODEL.format(1) in found[0][1]


def test_a_parameter_in_two_groups_is_refused(tmp_path):
    step = make_step(2, 2)
    step.edit("model_states", lambda s: s["param_shapes"][1].update({"a.weight": (5, 3)}))
    assert "duplicate" in [kind for kind, _ in problems(step.write(tmp_path))]


def test_partitions_of_several_dtypes_are_refused(tmp_path):
    step = make_step(2, 2)
    rows = step.partitions(1)[JOINED]
    rows[1] = rows[1].half()
    kind, text = only(step.write(tmp_path))
    assert kind == "contradiction"
    assert "float16, float32" in text


def test_a_frozen_piece_of_another_size_is_named(tmp_path):
    step = make_step(3, 2)
    pieces = step.files[MODEL.format(1)]["frozen_param_fragments"]
    pieces["e.weight"] = pieces["e.weight"][:-1].clone()
    kind, text = only(step.write(tmp_path))
    assert kind == "coverage"
    assert text.startswith("e.weight: ")


def test_a_frozen_parameter_that_is_nowhere_is_named(tmp_path):
    step = make_step(3, 2)
    for rank in (0, 1):
        del step.files[MODEL.format(rank)]["frozen_param_fragments"]["e.weight"]
    kind, text = only(step.write(tmp_path))
    assert kind == "coverage"
    assert "nothing on 0 ranks" in text


def test_a_placeholder_that_nothing_lists_is_named(tmp_path):
    step = make_step(3, 2)
    for rank in (0, 1):
        step.files[MODEL.format(rank)]["module"]["g.weight"] = torch.empty(0)
    assert only(step.write(tmp_path)) == ("missing-tensor", "g.weight: no file has its elements")


def test_a_second_name_of_nothing_is_named(tmp_path):
    step = make_step(2, 2)
    step.edit("model_states", lambda s: s["shared_params"].update(g="nowhere"))
    kind, text = only(step.write(tmp_path))
    assert kind == "missing-tensor"
    assert "g: shared with nowhere" in text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("param_shapes", [{"a": ("x",)}]),
        ("param_shapes", {"a": 1}),
        ("param_shapes", [{3: (1,)}]),
        ("param_shapes", [{"a": (1 << 40, 1 << 40)}]),
        ("param_shapes", [3]),
        ("frozen_param_shapes", [3]),
        ("frozen_param_fragments", 3),
        ("module", None),
    ],
)
def test_values_of_other_kinds_are_refused(tmp_path, key, value):
    step = make_step(2, 2).edit("model_states", lambda state: state.update({key: value}))
    kind, text = problems(step.write(tmp_path))[0]
    assert kind == "unreadable"
    assert "mp_rank_00_model_states.pt" in text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (JOINED, 3),
        (JOINED, [3, 4]),
        (JOINED, [torch.ones(2, 2), torch.ones(2)]),
        (JOINED, [torch.ones(4, dtype=torch.int64), torch.ones(2)]),
        ("partition_count", "two"),
        ("group_paddings", [-1, 0]),
        ("param_alignment_paddings", [[0, 0], 3]),
        ("param_slice_mappings", 3),
    ],
)
def test_values_of_other_kinds_in_partitions_are_refused(tmp_path, key, value):
    step = make_step(2, 2)
    step.partitions(0)[key] = value
    kind, text = problems(step.write(tmp_path))[0]
    assert kind == "unreadable"
    assert OPTIM.format(0) in text


def test_one_list_in_place_of_many_is_refused(tmp_path):
    """Walked again for each of them it would take the square of the file's size."""
    group = {"a.weight": (5, 3)}
    step = make_step(2, 2).edit("model_states", lambda s: s.update(param_shapes=[group] * 9))
    assert "one row in place of several" in problems(step.write(tmp_path))[0][1]


def test_numbers_of_a_billion_ranks_are_no_work(tmp_path):
    step = make_step(2, 2)
    for rank in (0, 1):
        step.partitions(rank)["partition_count"] = [1 << 40] * 2
    assert {kind for kind, _ in problems(step.write(tmp_path))} >= {"missing-rank"}


def test_partitions_for_no_rank_are_refused(tmp_path):
    step = make_step(3, 2)
    for rank in (0, 1):
        step.partitions(rank)["partition_count"] = 0
    found = problems(step.write(tmp_path))
    assert [kind for kind, _ in found] == ["world-size"] * 2
    assert "partitions for 0 ranks, expected 2" in found[0][1]


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return __import__("os").system, ("true",)


@pytest.mark.parametrize("name", ["model_states", OPTIM.format(1)])
def test_code_in_a_pickle_is_refused(tmp_path, name):
    step = make_step(2, 2).edit(name, lambda state: state.update(client=Harmful()))
    with pytest.raises(UnsafeContentError, match=r"system.*nothing was run"):
        open_checkpoint(step.write(tmp_path))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mp_rank_01_model_states.pt", "tensor parallel"),
        ("zero_pp_rank_0_mp_rank_03_optim_states.pt", "tensor parallel"),
        ("layer_0_expert_3_mp_rank_00_model_states.pt", "experts of DeepSpeed's MoE"),
        ("expert_3_mp_rank_00_model_states.pt", "experts of DeepSpeed's MoE"),
        ("expp_rank_0_mp_rank_00_optim_states.pt", "experts of DeepSpeed's MoE"),
        ("layer_01-model_00-model_states.pt", "pipeline engine"),
    ],
)
def test_what_is_not_read_is_refused_by_name(tmp_path, name, said):
    folder = make_step(2, 2).write(tmp_path)
    (folder / "global_step7" / name).write_bytes(b"")
    with pytest.raises(FormatError, match=said) as caught:
        open_checkpoint(folder)
    assert name in str(caught.value)
    assert caught.value.hint


def test_a_file_that_tells_of_tensor_parallel_ranks_is_refused(tmp_path):
    step = make_step(2, 2).edit("model_states", lambda state: state.update(mp_world_size=2))
    assert "one of 2 tensor parallel ranks" in problems(step.write(tmp_path))[0][1]


@pytest.fixture
def universal(tmp_path: Path) -> Path:
    """A copy of what DeepSpeed made of a checkpoint of stage 2."""
    fixture = Path(__file__).parents[2] / "fixtures" / "deepspeed0.19_universal_z2"
    return shutil.copytree(fixture / "ckpt", tmp_path / "universal")


NORM = "model.model.norm.weight"


def test_a_parameter_that_a_universal_checkpoint_lacks_is_named(universal):
    shutil.rmtree(universal / "zero" / NORM)
    kind, text = only(universal)
    assert kind == "missing-file"
    assert f"{NORM}: no zero/{NORM}/fp32.pt" in text


@pytest.mark.parametrize(
    "found", [{"param": torch.ones(5)}, torch.ones(2, 3), torch.ones(6).long(), {}, [torch.ones(6)]]
)
def test_another_parameter_in_its_place_is_named(universal, found):
    path = universal / "zero" / NORM / "fp32.pt"
    torch.save(found, path)
    kind, text = only(universal)
    assert kind == "unreadable"
    assert str(path) in text


def test_a_truncated_parameter_of_a_universal_checkpoint_is_named(universal):
    path = universal / "zero" / NORM / "fp32.pt"
    path.write_bytes(path.read_bytes()[:-50])
    kind, text = only(universal)
    assert kind == "unreadable"
    assert str(path) in text


def test_a_folder_of_no_parameters_is_no_universal_checkpoint(universal):
    shutil.rmtree(universal / "zero")
    assert only(universal)[0] == "missing-rank"


def test_latest_that_names_an_absent_step_lists_those_that_are_there(tmp_path):
    folder = make_step(2, 2).write(tmp_path)
    (folder / "latest").write_text("global_step9\n")
    with pytest.raises(AmbiguousError, match="names global_step9") as caught:
        open_checkpoint(folder)
    assert caught.value.choices == (str(folder / "global_step7"),)


def test_latest_alone_says_what_to_copy(tmp_path):
    (tmp_path / "latest").write_text("global_step9")
    with pytest.raises(AmbiguousError, match="names global_step9") as caught:
        open_checkpoint(tmp_path)
    assert "Copy that folder" in caught.value.hint


@pytest.mark.parametrize("named", ["../other", "/etc", "..", "a\x00b", ""])
def test_latest_leads_to_no_other_place(tmp_path, named):
    make_step(2, 2).write(tmp_path / "other")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "latest").write_text(named)
    with pytest.raises(FormatError, match="no checkpoint of a known format"):
        open_checkpoint(tmp_path / "run")


def test_a_frozen_piece_that_one_rank_lacks_is_named(tmp_path):
    step = make_step(3, 3)
    del step.files[MODEL.format(2)]["frozen_param_fragments"]["e.weight"]
    kind, text = only(step.write(tmp_path))
    assert kind == "coverage"
    assert "on 2 ranks, expected [3] on each of 3" in text


def test_a_buffer_that_one_rank_lacks_is_named(tmp_path):
    step = make_step(3, 3)
    del step.files[MODEL.format(1)]["module"]["f.scale"]
    kind, text = only(step.write(tmp_path))
    assert kind == "missing-on-rank"
    assert text == "f.scale: not in the file of rank 1, but in others"


def test_a_buffer_of_another_shape_on_one_rank_is_named(tmp_path):
    step = make_step(3, 2)
    step.files[MODEL.format(1)]["module"]["f.scale"] = torch.ones(5)
    kind, text = only(step.write(tmp_path))
    assert kind == "contradiction"
    assert "float32 [5] in the file of rank 1, expected float32 [4]" in text
