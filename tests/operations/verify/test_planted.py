"""`verify_checkpoint` on real checkpoints with one thing changed: name, kind, numbers and place."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ckpt_tool.operations.verify import VerifyResult
from tests.support.merging import TINY, load_folder, values, write_rank
from tests.support.verifying import Tensors, judge, read_block, the_mismatch, verify, write_block
from tests.support.versions import needs_safetensors_0_5

UP = "model.layers.1.mlp.up_proj.weight"
NORM = "model.norm.weight"

Plant = Callable[[Callable[[Tensors], object]], VerifyResult]


@pytest.fixture
def plant(checkpoints: dict[str, Path], tmp_path: Path) -> Plant:
    return lambda change: judge(checkpoints["fsdp2_w2"], tmp_path / "planted", change)


# --- kinds
def test_missing(plant: Plant) -> None:
    result = plant(lambda tensors: tensors.pop(UP))
    assert (result.equal, result.missing, result.unexpected) == (False, [UP], [])
    assert (result.num_compared, result.num_equal, result.mismatched) == (26, 26, [])


def test_unexpected(plant: Plant) -> None:
    extra = "model.layers.2.mlp.up_proj.weight"
    result = plant(lambda tensors: tensors.update({extra: torch.ones(2)}))
    assert (result.equal, result.missing, result.unexpected) == (False, [], [extra])
    assert (result.num_compared, result.num_equal, result.mismatched) == (27, 27, [])


def test_shape(plant: Plant) -> None:
    result = plant(lambda tensors: tensors.update({UP: tensors[UP][:, :31]}))
    found = the_mismatch(result)
    assert (found.name, found.kind, found.stats, found.first_index) == (UP, "shape", None, None)
    assert (found.left, found.right) == ("float32 [51, 31]", "float32 [51, 32]")
    assert Path(found.source).name == "model.safetensors"
    assert found.hint == ""
    assert (result.equal, result.num_equal) == (False, 26)


@needs_safetensors_0_5
@pytest.mark.parametrize("dtype", ["float64", "int32", "complex64", "float8_e4m3fn"])
def test_dtype(plant: Plant, dtype: str) -> None:
    result = plant(lambda t: t.update({NORM: t[NORM].to(getattr(torch, dtype))}))
    found = the_mismatch(result)
    assert (found.name, found.kind) == (NORM, "dtype")
    assert (found.left, found.right) == (f"{dtype} [32]", "float32 [32]")
    assert result.num_equal == 26


def test_values(plant: Plant) -> None:
    def change(tensors: Tensors) -> None:
        tensors[UP][7, 30] += 0.25
        tensors[UP][50, 1] -= 0.5

    result = plant(change)
    found = the_mismatch(result)
    assert (found.name, found.kind, found.first_index) == (UP, "values", (7, 30))
    assert found.stats is not None
    assert (found.stats.num_different, found.stats.num_elements) == (2, 51 * 32)
    assert found.stats.max_abs == pytest.approx(0.5)
    assert (found.hint, found.rank) == ("", None)
    assert {name for name, distance in result.distances.items() if distance} == {UP}


def test_everything_that_differs_is_listed_in_the_order_of_the_reference(
    plant: Plant, checkpoints: dict[str, Path]
) -> None:
    result = plant(lambda tensors: [tensor.add_(1) for tensor in tensors.values()])
    assert (result.num_equal, result.num_compared) == (0, 27)
    reference = [m.name for m in result.mismatched]
    assert sorted(reference) == sorted(load_folder(checkpoints["fsdp2_w2"] / "reference"))
    assert reference == list(result.right.tensors)


FUSED = "model.language_model.layers.0.mlp.experts.down_proj"


def test_a_fused_expert_tensor_that_a_model_folder_lacks_is_missing(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    case = checkpoints["fsdp2_qwen3vlmoe_w2"]
    result = judge(case, tmp_path / "planted", lambda tensors: tensors.pop(FUSED))
    assert (result.missing, result.unexpected, result.mismatched) == ([FUSED], [], [])


@pytest.mark.parametrize(
    ("change", "hint"),
    [(lambda t: t[:, :20], ""), (lambda t: t.transpose(1, 2), "transposed: otherwise equal")],
    ids=["cut", "transposed"],
)
def test_fused_experts_of_another_shape(
    checkpoints: dict[str, Path], tmp_path: Path, change: Callable, hint: str
) -> None:
    case = checkpoints["fsdp2_qwen3vlmoe_w2"]
    found = the_mismatch(
        judge(case, tmp_path / "planted", lambda t: t.update({FUSED: change(t[FUSED])}))
    )
    assert (found.name, found.kind, found.hint) == (FUSED, "shape", hint)


# --- numbers
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_are_those_that_torch_computes(tmp_path: Path, dtype: torch.dtype) -> None:
    noise = torch.Generator().manual_seed(1)
    right = torch.randn(300, 700, generator=noise).to(dtype)
    left = right.clone()
    left[100:, ::3] += 0.01 * torch.randn(200, 234, generator=noise).to(dtype)
    write_rank(tmp_path / "a", {"a.weight": left}, TINY)
    write_rank(tmp_path / "b", {"a.weight": right}, TINY)
    stats = the_mismatch(verify(tmp_path / "a", tmp_path / "b")).stats
    assert stats is not None
    a, b = left.double().flatten(), right.double().flatten()
    gap = (a - b).abs()
    different = gap.nonzero().flatten()
    assert stats.num_different == len(different)
    assert stats.first_index == different[0]
    assert stats.first_values == (a[different[0]], b[different[0]])
    assert stats.max_abs == gap.max()
    assert stats.max_rel == pytest.approx((gap / b.abs())[b != 0].max().item(), rel=1e-12)
    assert stats.mean_abs == pytest.approx(gap.mean().item(), rel=1e-12)
    assert stats.cosine == pytest.approx(torch.cosine_similarity(a, b, dim=0).item(), rel=1e-12)
    assert stats.relative_norm == pytest.approx(((a - b).norm() / b.norm()).item(), rel=1e-12)
    assert sum(stats.exponents.values()) == len(different)
    assert (stats.num_nan, stats.num_inf) == ((0, 0), (0, 0))


def test_nan_and_infinity_are_counted_and_kept_out_of_the_sums(tmp_path: Path) -> None:
    left, right = values(10), values(10)
    left[2], left[3], right[5], left[7], right[7] = torch.nan, torch.inf, -torch.inf, 0, torch.nan
    left[8] = right[8] = torch.nan
    right[0] += 0.5
    write_rank(tmp_path / "a", {"a.weight": left}, TINY)
    write_rank(tmp_path / "b", {"a.weight": right}, TINY)
    stats = the_mismatch(verify(tmp_path / "a", tmp_path / "b")).stats
    assert stats is not None
    assert (stats.num_nan, stats.num_inf) == ((2, 2), (1, 1))
    assert stats.num_different == 5  # the NaN that both have is no difference
    assert stats.max_abs == pytest.approx(0.5)
    assert stats.mean_abs == pytest.approx(0.05)
    assert stats.cosine is not None
    assert 0.9 < stats.cosine < 1


def test_large_integers_are_not_close_because_float64_rounds_them(tmp_path: Path) -> None:
    for side, value in (("a", 2**60), ("b", 2**60 + 1)):
        write_rank(tmp_path / side, {"steps": torch.tensor([value])}, TINY)
    assert not verify(tmp_path / "a", tmp_path / "b", atol=0.5).equal


# --- places
@pytest.mark.parametrize("case", ["fsdp2_w3", "fsdp1_nomesh_w3"])
def test_the_rank_and_file_of_the_first_difference_are_named(
    checkpoints: dict[str, Path], tmp_path: Path, case: str
) -> None:
    actor = tmp_path / "actor"
    shutil.copytree(checkpoints[case] / "actor", actor)
    for rank in (2, 1):
        block = read_block(actor, UP, rank)
        block[1, 3] *= 3
        write_block(actor, UP, rank, block)
        found = the_mismatch(verify(actor, checkpoints[case] / "reference"))
        assert (found.name, found.rank, found.first_index) == (UP, rank, (17 * rank + 1, 3))
        assert Path(found.source) == actor / f"model_world_size_3_rank_{rank}.pt"
    assert found.stats is not None
    assert found.stats.num_different == 2
    # The rank is one of the checkpoint that is judged, never one of the reference.
    reverse = the_mismatch(verify(checkpoints[case] / "reference", actor))
    assert (reverse.rank, Path(reverse.source).name) == (None, "model.safetensors")
