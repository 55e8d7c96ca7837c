"""The hints of `verify_checkpoint` for one tensor: a cause is planted, and named."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support.merging import TINY, values, write_rank
from tests.support.verifying import Plant, Tensors, planted, the_mismatch, verify

LAYER = "model.layers.0"
Q_PROJ, K_PROJ = f"{LAYER}.self_attn.q_proj.weight", f"{LAYER}.self_attn.k_proj.weight"
GATE, UP = f"{LAYER}.mlp.gate_proj.weight", f"{LAYER}.mlp.up_proj.weight"
NORM = "model.norm.weight"


def hint_of(plant: Plant, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> str:
    """The hint where one tensor is changed."""
    found = the_mismatch(plant(lambda tensors: tensors.update({name: change(tensors[name])})))
    assert found.name == name
    return found.hint


# --- one tensor
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [UP, NORM])
def test_rounded(plant: Plant, name: str, dtype: torch.dtype) -> None:
    said = str(dtype).removeprefix("torch.")
    assert hint_of(plant, name, lambda t: t.to(dtype).float()) == (
        f"rounded to {said}: equal to the reference after rounding that to {said}"
    )


def test_a_reference_that_was_rounded(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    case = checkpoints["fsdp2_w2"]
    other = planted(
        case / "reference", tmp_path / "x", lambda t: t.update({UP: t[UP].bfloat16().float()})
    )
    hint = the_mismatch(verify(case, other)).hint
    assert hint == "the reference is the checkpoint rounded to bfloat16"


def test_zeros(plant: Plant, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    assert hint_of(plant, UP, torch.zeros_like) == "all zeros in the checkpoint"
    case = checkpoints["fsdp2_w2"]
    other = planted(case / "reference", tmp_path / "x", lambda t: t[UP].zero_())
    assert the_mismatch(verify(case, other)).hint == "all zeros in the reference"


def test_transposed(plant: Plant) -> None:
    assert hint_of(plant, Q_PROJ, lambda t: t.T) == "transposed"


def test_transposed_in_shape_too(plant: Plant) -> None:
    assert hint_of(plant, UP, lambda t: t.T) == "transposed: otherwise equal"


def test_another_shape(plant: Plant) -> None:
    assert hint_of(plant, UP, lambda t: t.reshape(-1)) == "the same 1,632 values in another shape"


@pytest.mark.parametrize("factor", [0.125, -2.0, 0.3])
@pytest.mark.parametrize("name", ["model.embed_tokens.weight", UP, NORM])
def test_scaled(plant: Plant, name: str, factor: float) -> None:
    assert hint_of(plant, name, lambda t: t * factor) == f"scaled by {factor:g}"


def test_scaled_by_nearly_one(plant: Plant) -> None:
    assert hint_of(plant, "lm_head.weight", lambda t: t * 1.001) == "scaled by 1.001"


def test_rows_permuted(plant: Plant) -> None:
    order = torch.randperm(51, generator=torch.Generator().manual_seed(0))
    expected = "rows permuted: the same rows in another order"
    assert hint_of(plant, UP, lambda t: t[order]) == expected


def test_rotary_halves_interleaved(plant: Plant) -> None:
    """As in the checkpoints of Meta's Llama: pairs of neighbours in place of two halves."""

    def interleave(tensors: Tensors) -> None:
        weight = tensors[Q_PROJ]  # 4 heads of 8
        tensors[Q_PROJ] = weight.view(4, 2, 4, 32).transpose(1, 2).reshape(32, 32)

    found = the_mismatch(plant(interleave, "fsdp2_vlm_w2"))
    assert found.hint == "rotary halves of each head (head_dim 8) interleaved"


def test_rotary_halves_no_longer_interleaved(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    def interleave(tensors: Tensors) -> None:
        tensors[Q_PROJ] = tensors[Q_PROJ].view(4, 2, 4, 32).transpose(1, 2).reshape(32, 32)

    case = checkpoints["fsdp2_vlm_w2"]
    found = the_mismatch(verify(case, planted(case / "reference", tmp_path / "x", interleave)))
    assert found.hint == "rotary halves of each head (head_dim 8) no longer interleaved"


def test_rotary_halves_of_the_only_head(plant: Plant) -> None:
    def interleave(tensors: Tensors) -> None:
        tensors[K_PROJ] = tensors[K_PROJ].view(1, 2, 4, 32).transpose(1, 2).reshape(8, 32)

    found = the_mismatch(plant(interleave, "fsdp2_vlm_w2"))
    assert found.hint == "rotary halves of each head (head_dim 8) interleaved"


def test_halves_of_what_is_no_gate_and_up(plant: Plant) -> None:
    assert "gate" not in hint_of(plant, Q_PROJ, lambda t: t.roll(16, 0))


def test_whole_heads_permuted(plant: Plant) -> None:
    order = torch.tensor([3, 0, 1, 2, 7, 5, 6, 4])

    def permute(weight: torch.Tensor) -> torch.Tensor:
        return weight.view(8, 4, 32)[order].reshape(32, 32)

    expected = "rows permuted in blocks of 4: whole heads are in another order"
    assert hint_of(plant, Q_PROJ, permute) == expected


def test_fused_projections_grouped_as_megatron_does(tmp_path: Path) -> None:
    """Megatron keeps the queries, key and value of each group together; the Hub has all Q first."""
    heads = TINY | {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 12}
    q, k, v = (values(count * 3, 12, start=start) for count, start in ((4, 1), (2, 500), (2, 900)))
    groups = [torch.cat([q[6 * g : 6 * g + 6], k[3 * g : 3 * g + 3], v[3 * g : 3 * g + 3]])
              for g in range(2)]  # fmt: skip
    name = "model.layers.0.self_attn.qkv_proj.weight"
    hub = write_rank(tmp_path / "hub", {name: torch.cat([q, k, v])}, heads)
    megatron = write_rank(tmp_path / "megatron", {name: torch.cat(groups)}, heads)
    hint = "Q/K/V interleaved by {} query groups, the reference by {}"
    assert the_mismatch(verify(megatron, hub)).hint == hint.format(2, 1)
    assert the_mismatch(verify(hub, megatron)).hint == hint.format(1, 2)


def test_more_rows_of_what_is_no_vocabulary(plant: Plant) -> None:
    hint = hint_of(plant, UP, lambda t: torch.cat([t, torch.zeros(13, 32)]))
    assert "13 more rows" in hint
    assert "vocabulary" not in hint
