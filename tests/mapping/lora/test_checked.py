"""What settings promise of an adapter's tensors, and which way round these make weights lie."""

import json

import pytest
import torch

from ckpt_tool.common.errors import MappingError
from ckpt_tool.mapping.lora.checked import require_promised
from ckpt_tool.mapping.lora.options import LoraOptions
from ckpt_tool.operations.merge import merge_fsdp
from ckpt_tool.operations.options import MergeOptions
from ckpt_tool.plans.options import WriteOptions
from tests.support.merging import TINY, load_folder, values, write_rank

Q = "model.layers.0.self_attn.q_proj"
PARTS = {
    "use_dora": ("lora_magnitude_vector.default.weight", "lora_magnitude_vector"),
    "lora_bias": ("lora_B.default.bias", "lora_B.bias"),
}


def checkpoint(folder, config=TINY, *, part: str | None = None, **settings):
    """One square matrix and its adapter, with one ``part`` more."""
    stem = f"base_model.model.{Q}"
    state = {
        f"{stem}.base_layer.weight": values(8, 8),
        f"{stem}.base_layer.bias": values(8, start=70),
        f"{stem}.lora_A.default.weight": values(2, 8, start=3),
        f"{stem}.lora_B.default.weight": values(8, 2, start=5),
    }
    if part is not None:
        state[f"{stem}.{part}"] = values(8, start=9)
    source = write_rank(folder, state, config)
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, **settings}
    (source / "adapter_config.json").write_text(json.dumps(said))
    return source


def merged(source, out, mode=None):
    options = MergeOptions(
        lora=LoraOptions(mode), write=WriteOptions(fsync=False, check_load=False)
    )
    merge_fsdp([source], out, options)
    return load_folder(out)


@pytest.mark.parametrize("mode", ["fuse", "split", "both"])
@pytest.mark.parametrize("key", PARTS)
def test_what_settings_promise_and_tensors_lack_is_an_error(tmp_path, key, mode):
    with pytest.raises(MappingError, match=f"says {key}: true, and 1 of 1 adapter lack") as refused:
        merged(checkpoint(tmp_path / "in", **{key: True}), tmp_path / "out", mode)
    assert refused.value.names == (Q,)
    assert f"set {key} to false" in refused.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", PARTS)
def test_what_tensors_have_and_settings_deny_is_an_error(tmp_path, key):
    part, said = PARTS[key]
    with pytest.raises(MappingError, match=f"says {key}: false, .* have a {said}") as refused:
        merged(checkpoint(tmp_path / "in", part=part, **{key: False}), tmp_path / "out")
    assert refused.value.names == (Q,)


@pytest.mark.parametrize("key", PARTS)
def test_what_settings_promise_and_tensors_have_is_fused(tmp_path, key):
    part, _ = PARTS[key]
    silent = merged(checkpoint(tmp_path / "silent", part=part), tmp_path / "expected")
    found = merged(checkpoint(tmp_path / "in", part=part, **{key: True}), tmp_path / "out")
    plain = merged(checkpoint(tmp_path / "plain", **{key: False}), tmp_path / "without")
    assert all(torch.equal(found[name], silent[name]) for name in silent)
    assert any(not torch.equal(found[name], plain[name]) for name in silent)


def test_each_adapter_that_lacks_it_is_named():
    modules = {"a": {"use_dora": True}, "b": {"use_dora": False}, "c": {}}
    with pytest.raises(MappingError, match="2 of 3 adapters lack a") as refused:
        require_promised({"use_dora": True, "lora_bias": None}, modules)
    assert refused.value.names == ("b", "c")


@pytest.mark.parametrize(
    ("model_type", "said", "turned"),
    [
        ("qwen2", True, False),  # peft asks the layer, which is a Linear
        ("qwen2", False, False),
        ("gpt2", False, True),  # and this one a Conv1D
        ("of-nobody", True, True),
        ("of-nobody", False, False),
    ],
)
def test_a_square_matrix_lies_as_its_layer_does_whatever_the_settings_say(
    tmp_path, model_type, said, turned
):
    config = TINY | {"model_type": model_type}
    found = merged(checkpoint(tmp_path / "in", config, fan_in_fan_out=said), tmp_path / "out")
    update = values(8, 2, start=5) @ values(2, 8, start=3)
    expected = values(8, 8) + (update.T if turned else update)
    assert torch.allclose(found[f"{Q}.weight"], expected, rtol=1e-6)
