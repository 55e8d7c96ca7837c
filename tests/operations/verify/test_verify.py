"""`verify_checkpoint`: one model is equal to itself, whatever its format."""

import itertools
import shutil
from pathlib import Path

import pytest
import torch

from tests.real.fsdp_cases import CASES
from tests.support.merging import load_folder
from tests.support.verifying import in_every_format, merged, planted, save, the_mismatch, verify

HEAD = "lm_head.weight"


@pytest.mark.parametrize("case", sorted(set(CASES) - {"fsdp2_buffers_w2"}))
def test_rank_files_are_equal_to_what_transformers_saves(
    checkpoints: dict[str, Path], case: str
) -> None:
    ranks, reference = checkpoints[case] / "actor", checkpoints[case] / "reference"
    names = load_folder(reference).keys()
    for sides in ((ranks, reference), (reference, ranks)):
        result = verify(*sides)
        assert (result.equal, result.exact, result.names_hint) == (True, True, "")
        assert result.num_compared == result.num_equal == len(names)
        assert result.distances == dict.fromkeys(names, 0.0)


@pytest.mark.parametrize(
    "case", ["fsdp2_bf16_w2", "fsdp2_moe_w2", "fsdp2_qwen3vlmoe_w2", "fsdp2_tied_w2"]
)
def test_rank_files_are_equal_to_their_model_in_every_format(
    checkpoints: dict[str, Path], tmp_path: Path, case: str
) -> None:
    names = load_folder(checkpoints[case] / "reference").keys()
    for name, other in in_every_format(checkpoints[case], tmp_path).items():
        result = verify(checkpoints[case], other)
        assert result.equal, (name, result.missing, result.unexpected)
        assert names <= result.distances.keys() <= names | {HEAD}, name


def test_any_two_formats_can_be_compared(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    formats = in_every_format(checkpoints["fsdp2_w2"], tmp_path)
    for one, other in itertools.combinations(formats.values(), 2):
        result = verify(one, other)
        assert (result.equal, result.num_compared) == (True, 27), (one, other)


@pytest.mark.parametrize(
    "case",
    ["fsdp1_w2", "fsdp1_nomesh_w3", "fsdp1_hsdp_w4", "fsdp2_w3", "fsdp2_hsdp_w4", "fsdp2_tp_w4",
     "fsdp2_shard1_w2", "fsdp2_veomni_w2"],
)  # fmt: skip
def test_one_model_is_equal_however_it_was_sharded(checkpoints: dict[str, Path], case: str) -> None:
    result = verify(checkpoints[case], checkpoints["fsdp2_w2"])
    assert (result.equal, result.num_equal) == (True, 27)


def test_another_model_of_the_same_family_is_different(checkpoints: dict[str, Path]) -> None:
    result = verify(checkpoints["world1_w1"], checkpoints["fsdp2_w2"])
    assert not result.equal
    assert result.missing  # qwen2 has biases, llama has none
    assert all(name.endswith(".bias") for name in result.missing)


@pytest.mark.parametrize("bare", ["ckpt", "reference"])
@pytest.mark.parametrize("case", ["fsdp2_moe_w2", "fsdp2_vlm_w2"])
def test_the_config_of_one_side_names_the_tensors_of_both(
    checkpoints: dict[str, Path], tmp_path: Path, case: str, bare: str
) -> None:
    """Without a config the experts stay fused, so only the other side can say what they are."""
    shutil.copytree(checkpoints[case] / "actor", tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare" / "huggingface")
    sides = [tmp_path / "bare", checkpoints[case] / "reference"]
    result = verify(*(sides if bare == "ckpt" else reversed(sides)))
    assert (result.equal, result.exact) == (True, True)
    assert result.num_compared == len(load_folder(checkpoints[case] / "reference"))


def test_without_any_config_names_are_compared_as_they_are(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """Buffers of every kind: 0-d, int64, bool, bfloat16 among float32."""
    case = checkpoints["fsdp2_buffers_w2"]
    result = verify(case, case / "raw_state_dict.safetensors")
    assert (result.equal, result.num_compared) == (True, 9)

    shutil.copytree(case / "actor", tmp_path / "actor")
    reference = merged(case, tmp_path / "out", keep_names=True)
    tensors = load_folder(reference)
    tensors["steps"] += 1
    save(tensors, reference / "model.safetensors")
    wrong = the_mismatch(verify(tmp_path / "actor", reference))
    assert (wrong.name, wrong.first_index) == ("steps", ())
    assert wrong.stats is not None
    assert (wrong.stats.num_different, wrong.stats.num_elements) == (1, 1)
    assert wrong.stats.max_abs == 1.0


@pytest.mark.parametrize("case", ["fsdp2_moe_w2", "fsdp2_vlm_w2"])
def test_names_in_memory_are_mapped_whatever_the_file(
    checkpoints: dict[str, Path], case: str
) -> None:
    """`save_file(model.state_dict())` has fused experts, as rank files have."""
    in_memory = checkpoints[case] / "raw_state_dict.safetensors"
    assert verify(checkpoints[case], in_memory).equal
    assert verify(in_memory, checkpoints[case]).equal


@pytest.mark.parametrize("name", ["v_head.summary.weight", "q_proj.lora_A.default.weight"])
def test_a_model_folder_may_hold_what_cannot_be_mapped(
    checkpoints: dict[str, Path], tmp_path: Path, name: str
) -> None:
    reference = checkpoints["fsdp2_w2"] / "reference"
    more = planted(reference, tmp_path / "more", lambda t: t.update({name: torch.ones(2)}))
    assert verify(more, more).equal
    assert verify(more, reference).unexpected == [name]
