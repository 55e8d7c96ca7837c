"""Weights that the Hub has with rows in another order: as ``save_pretrained`` writes them."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ckpt_tool.operations.merge import merge_fsdp
from ckpt_tool.operations.merge_plan import make_plan
from ckpt_tool.operations.options import MergeOptions
from ckpt_tool.operations.verify import verify_checkpoint
from ckpt_tool.plans.options import WriteOptions
from ckpt_tool.tensors.reshaped import Reshaped
from tests.real.fill import fill_distinct
from tests.support.every_class import build_tiny
from tests.support.merging import assert_same, load_folder
from tests.support.versions import needs_transformers_5

pytestmark = [needs_transformers_5, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


#: Model type and class.
MODELS = [
    ("kimi_k25", "Kimi_K25ForConditionalGeneration"),
    ("step3p7", "Step3p7ForConditionalGeneration"),
    ("mistral_large4", "MistralLarge4ForConditionalGeneration"),
    ("inkling2_text", "Inkling2ForCausalLM"),
    ("inkling2", "Inkling2ForConditionalGeneration"),
    pytest.param(
        "inkling_mm_model",
        "InklingForConditionalGeneration",
        marks=pytest.mark.skipif(find_spec("scipy") is None, reason="it needs scipy"),
    ),
]
models = pytest.mark.parametrize(("model_type", "class_name"), MODELS)


def write_ranks(model, folder: Path) -> dict[str, torch.Tensor]:
    """``saved``, as transformers saves it, and ``ranks``; the state dict in these."""
    fill_distinct(model)
    model.save_pretrained(folder / "saved")
    (folder / "ranks" / "huggingface").mkdir(parents=True)
    shutil.copy(folder / "saved" / "config.json", folder / "ranks" / "huggingface")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.save(state, folder / "ranks" / "model_world_size_1_rank_0.pt")
    return state


def count_rearranged(folder: Path) -> int:
    tensors = make_plan(folder / "ranks", "fsdp").tensors.values()
    return sum(
        any(isinstance(chunk.region.computed, Reshaped) for chunk in tensor.chunks)
        for tensor in tensors
    )


@models
def test_it_comes_out_as_transformers_saves_it_and_goes_in_again(model_type, class_name, tmp_path):
    model = build_tiny(model_type, class_name)
    state = write_ranks(model, tmp_path)
    assert count_rearranged(tmp_path) > 0
    options = MergeOptions(write=WriteOptions(fsync=False, check_load=True, verify=True))
    result = merge_fsdp([tmp_path / "ranks"], tmp_path / "out", options)
    assert result.verified
    assert_same(load_folder(tmp_path / "out"), load_folder(tmp_path / "saved"))
    again, report = type(model).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert_same(again.state_dict(), state)
    for one, other in (("ranks", "saved"), ("saved", "ranks"), ("ranks", "out")):
        assert verify_checkpoint(tmp_path / one, tmp_path / other).equal


@models
def test_rows_in_another_order_are_a_difference(model_type, class_name, tmp_path):
    model = build_tiny(model_type, class_name)
    write_ranks(model, tmp_path)
    plan = make_plan(tmp_path / "ranks", "fsdp")
    name = next(
        name
        for name, tensor in plan.tensors.items()
        if any(isinstance(chunk.region.computed, Reshaped) for chunk in tensor.chunks)
    )
    hub = load_folder(tmp_path / "saved")
    hub[name] = hub[name].roll(1, 0 if hub[name].dim() < 3 else 1)
    for file in (tmp_path / "saved").glob("*.safetensors"):
        file.unlink()
    save_file(hub, tmp_path / "saved" / "model.safetensors", {"format": "pt"})
    found = verify_checkpoint(tmp_path / "ranks", tmp_path / "saved")
    (mismatch,) = found.mismatched
    assert (mismatch.name, mismatch.rank) == (name, 0)
    assert mismatch.source == str(tmp_path / "ranks" / "model_world_size_1_rank_0.pt")
