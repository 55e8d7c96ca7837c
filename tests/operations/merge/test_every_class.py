"""Every class of the installed transformers: as ``save_pretrained`` writes it, and it opens."""

import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers

from ckpt_tool.common.errors import MappingError
from ckpt_tool.operations.merge import merge_fsdp
from ckpt_tool.operations.options import MergeOptions
from ckpt_tool.operations.verify import verify_checkpoint
from ckpt_tool.plans.options import WriteOptions
from tests.support.every_class import build_tiny, list_classes
from tests.support.merging import load_folder
from tests.support.versions import TRANSFORMERS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(TRANSFORMERS < (5, 0), reason="transformers 4 has no tables of names"),
    pytest.mark.filterwarnings("ignore"),
]
FAULTS = ("missing_keys", "unexpected_keys", "mismatched_keys")
CLASSES = list_classes() if TRANSFORMERS >= (5, 0) else []

#: Their weights are on the Hub in another shape, which is refused by name.
REARRANGED: set[str] = set()
#: The Hub has another form than ``save_pretrained`` of a model that was not loaded from there:
#: prefixes of a vision model or of a language model, fused experts, fused experts turned.
OTHER_FORM = re.compile(
    r"vision_model\.|language_model\.model\.|mlp\.experts\.(gate_up|down)_proj$"
)


def build(folder: Path, model_type: str, class_name: str):
    """The model, and the folder that it is saved in; skips what cannot be built tiny."""
    try:
        model = build_tiny(model_type, class_name)
        model.save_pretrained(folder)
        transformers.AutoConfig.from_pretrained(folder)
        _, report = type(model).from_pretrained(folder, output_loading_info=True)
    except Exception:
        pytest.skip("its config cannot be made small by rules that know nothing of it")
    if any(report[key] for key in FAULTS):
        pytest.skip("not even what transformers saved opens: its config, made small, is not whole")
    return model


def is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    raw = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return (one.dtype, one.shape) == (other.dtype, other.shape) and torch.equal(*raw)


@pytest.mark.parametrize(("model_type", "class_name"), CLASSES)
def test_it_is_what_save_pretrained_writes_and_opens_whole(model_type, class_name, tmp_path):
    model = build(tmp_path / "saved", model_type, class_name)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ranks = tmp_path / "ranks"
    (ranks / "huggingface").mkdir(parents=True)
    shutil.copy(tmp_path / "saved" / "config.json", ranks / "huggingface")
    torch.save(state, ranks / "model_world_size_1_rank_0.pt")
    options = MergeOptions(write=WriteOptions(fsync=False, check_load=True))
    if model_type in REARRANGED:
        with pytest.raises(MappingError, match="rearranged"):
            merge_fsdp([ranks], tmp_path / "out", options)
        return
    merge_fsdp([ranks], tmp_path / "out", options)
    found, saved = load_folder(tmp_path / "out"), load_folder(tmp_path / "saved")
    other = {
        name for name in found.keys() | saved.keys()
        if name not in found or name not in saved or not is_same(found[name], saved[name])
    }  # fmt: skip
    if other:
        assert any(OTHER_FORM.search(name) for name in other), sorted(other)[:8]
    opened, report = type(model).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report[key] for key in FAULTS)
    again = opened.state_dict()
    assert again.keys() == state.keys()
    computed = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    differing = [n for n in state if n not in computed and not is_same(again[n], state[n])]
    assert not differing
    assert verify_checkpoint(ranks, tmp_path / "out").equal
    if not other:
        assert verify_checkpoint(tmp_path / "saved", ranks).equal


def test_there_are_classes_to_look_at():
    assert len(CLASSES) > 250
