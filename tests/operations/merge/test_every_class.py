"""Every class of the installed transformers: as ``save_pretrained`` writes it, and it opens.

Two ranks of FSDP2 save each, its embeddings tied and untied; what is merged has the names and bits
of what transformers saves itself, opens without a key too many or too few, and gives the same
outputs. `make test` looks at those in ``SHARE`` only.
"""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ckpt_tool.operations.merge import merge_fsdp
from ckpt_tool.operations.options import MergeOptions
from ckpt_tool.operations.verify import verify_checkpoint
from ckpt_tool.plans.options import WriteOptions
from tests.support.every_class import build_tiny, list_classes, list_ways
from tests.support.forwarding import compute
from tests.support.merging import load_folder
from tests.support.sweep_limits import NOT_RUN, UNBUILT
from tests.support.sweep_summary import PROPERTY, summarise
from tests.support.two_ranks import write_two_ranks
from tests.support.versions import TRANSFORMERS, needs_transformers_5

pytestmark = [
    pytest.mark.slow,
    needs_transformers_5,
    pytest.mark.filterwarnings("ignore"),
]
FAULTS = ("missing_keys", "unexpected_keys", "mismatched_keys")
CLASSES = list_classes() if TRANSFORMERS >= (5, 0) else []
#: One for each way to be named, tied, or given to do: what `make test` looks at.
SHARE = {
    ("llama", "LlamaForCausalLM"), ("gpt2", "GPT2LMHeadModel"), ("gpt_neox", "GPTNeoXForCausalLM"),
    ("qwen3_moe", "Qwen3MoeForCausalLM"), ("mixtral", "MixtralForCausalLM"),
    ("deepseek_v3", "DeepseekV3ForCausalLM"), ("mamba", "MambaForCausalLM"),
    ("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration"),
    ("gemma3", "Gemma3ForConditionalGeneration"), ("t5", "T5ForConditionalGeneration"),
    ("bert", "BertForMaskedLM"), ("llama", "LlamaForSequenceClassification"),
    ("funnel", "FunnelForTokenClassification"), ("vit", "ViTForImageClassification"),
}  # fmt: skip

#: The Hub has other prefixes than ``save_pretrained`` of a model that was not loaded from there,
#: and experts of some families in another form: that they are right is seen when they are opened.
PREFIXES = {"model", "vision_model", "language_model", "ultrabert"}
EXPERTS = re.compile(r"\.mlp\.experts\.")


class UnbuiltError(Exception):
    """Not about the weights: transformers does not build, or open again, what it saved itself."""


def build(folder: Path, model_type: str, class_name: str, tied: bool | None):
    """The model, and the folder that it is saved in."""
    try:
        model = build_tiny(model_type, class_name, tied)
        model.save_pretrained(folder)
        _, report = type(model).from_pretrained(folder, output_loading_info=True)
    except Exception as error:
        raise UnbuiltError(repr(error)) from error
    if any(report[key] for key in FAULTS):
        raise UnbuiltError(f"what transformers saved does not open in it: {report}")
    return model


def is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    raw = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return (one.dtype, one.shape) == (other.dtype, other.shape) and torch.equal(*raw)


def strip(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors by their names without the prefixes of parts, and no experts."""
    kept = {name: tensor for name, tensor in tensors.items() if not EXPERTS.search(name)}
    stripped = {
        ".".join(part for part in name.split(".") if part not in PREFIXES): tensor
        for name, tensor in kept.items()
    }
    assert len(stripped) == len(kept)
    return stripped


def require_saved(found: dict[str, torch.Tensor], saved: dict[str, torch.Tensor]) -> bool:
    """What is merged is what transformers saves. Returns whether by the very same names."""
    if found.keys() == saved.keys() and all(is_same(found[n], saved[n]) for n in found):
        return True
    ours, theirs = strip(found), strip(saved)
    assert ours.keys() == theirs.keys()
    assert not [name for name in ours if not is_same(ours[name], theirs[name])]
    return False


def require_opened(model, state: dict[str, torch.Tensor], folder: Path):
    """What the folder opens as, with every bit of ``state`` but what its class computes."""
    opened, report = type(model).from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in FAULTS), report
    again = opened.eval().state_dict()
    assert again.keys() == state.keys()
    computed = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    assert not [n for n in state if n not in computed and not is_same(again[n], state[n])]
    return opened


def require_outputs(model, opened) -> str:
    """The same outputs, bit for bit; why there are none where the class is not run."""
    name = type(model).__name__
    try:
        expected = compute(model)
    except Exception:
        if name in NOT_RUN:
            return NOT_RUN[name]
        raise
    found = compute(opened)
    assert expected
    assert all(tensor.isfinite().all() for tensor in expected)
    assert len(found) == len(expected)
    assert all(map(is_same, found, expected))
    return ""


def look(folder: Path, model) -> str:
    """Shard, merge, compare, open, run, verify; why it was not run, empty where it was."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ranks, out, saved = folder / "ranks", folder / "out", folder / "saved"
    write_two_ranks(model, ranks)
    (ranks / "huggingface").mkdir()
    shutil.copy(saved / "config.json", ranks / "huggingface")
    merge_fsdp([ranks], out, MergeOptions(write=WriteOptions(fsync=False, check_load=True)))
    as_saved = require_saved(load_folder(out), load_folder(saved))
    opened = require_opened(model, state, out)
    assert verify_checkpoint(ranks, out).equal
    assert verify_checkpoint(out, ranks).equal
    if as_saved:
        assert verify_checkpoint(saved, ranks).equal
    return require_outputs(model, opened)


def try_build(folder: Path, model_type: str, class_name: str, tied: bool | None):
    """The model; None where it is known not to be built."""
    way = {None: "", True: " tied", False: " untied"}[tied]
    try:
        return build(folder / "saved", model_type, class_name, tied)
    except UnbuiltError:
        if f"{model_type} {class_name}{way}" not in UNBUILT:
            raise
    return None


def list_shapes(model) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def look_at_every_way(folder: Path, model_type: str, class_name: str, found: dict) -> None:
    """Each way to tie embeddings; ``found`` says how many hold, and of how many the outputs.

    A head that has other rows than the embedding is not tied to it: that would be another model.
    """
    ways: list[bool | None] = [None]
    shapes: dict[str, torch.Size] = {}
    while ways:
        tied = ways.pop()
        model = try_build(folder / str(tied), model_type, class_name, tied)
        if model is None and tied is None:
            found["unbuilt"] = UNBUILT[f"{model_type} {class_name}"]
            return
        if tied is None:
            ways, shapes = list(list_ways(model)), list_shapes(model)
        if model is not None and list_shapes(model) == shapes:
            found["why"] = look(folder / str(tied), model)
            found["held"] += 1
            found["run"] += not found["why"]
        shutil.rmtree(folder / str(tied), ignore_errors=True)


@pytest.mark.parametrize(
    ("model_type", "class_name"),
    [pytest.param(*each, marks=() if each in SHARE else pytest.mark.sweep) for each in CLASSES],
)
def test_two_ranks_of_it_are_merged_whole(model_type, class_name, tmp_path, record_property):
    found = {"failed": True, "held": 0, "run": 0, "why": ""}
    record_property(PROPERTY, found)
    look_at_every_way(tmp_path, model_type, class_name, found)
    del found["failed"]
    if "unbuilt" in found:
        pytest.skip(found["unbuilt"])


def test_there_are_classes_to_look_at():
    assert len(CLASSES) > 600
    assert set(CLASSES) >= SHARE


def test_at_the_end_it_is_said_what_holds_and_what_was_not_tried():
    held = {"held": 2, "run": 2, "why": ""}
    found = [
        held,
        held | {"run": 0, "why": "no input"},
        {"held": 0, "run": 0, "why": "", "unbuilt": "no timm"},
        {"held": 1, "run": 1, "why": "", "failed": True},
    ]
    reports = [SimpleNamespace(user_properties=[(PROPERTY, each)]) for each in found]
    assert summarise(reports) == [
        "2 of 4 classes hold: 4 models, tied and untied, of which 2 give the same outputs",
        "1 not built: no timm",
        "1 not run: no input",
    ]
    assert summarise([SimpleNamespace(user_properties=[])]) == []
