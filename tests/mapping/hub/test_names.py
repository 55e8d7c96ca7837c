"""Names and layouts of the families that are spelled out, against ``save_pretrained``."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import transformers

from ckpt_tool.common.errors import MappingError
from ckpt_tool.mapping.families.table import FAMILIES, find_family
from ckpt_tool.mapping.hub.names import rename_for_hub, split_fused, unwrap_all
from ckpt_tool.tensors.dtypes import FLOAT32
from ckpt_tool.tensors.lazy import LazyTensor
from tests.support.merging import assert_same, load_folder
from tests.support.saved import (
    assert_equal,
    save_both,
    to_hub,
    write_config,
    write_shapes,
    write_tensors,
)
from tests.support.tiny_models import MODELS, build, filled

RENAMING = sorted(name for name, family in FAMILIES.items() if family.hub)
# Kimi K2 is DeepSeek-V3's model under another name, with its code on the Hub.
NOT_IN_TRANSFORMERS = {"kimi_k2"}
SPELLED_OUT = [name for name in MODELS if find_family(name).hub is not None]
MIXTURES = [family for family in RENAMING if family in MODELS and not family.endswith("_vl")]


#: Their experts are fused on the Hub; ``save_pretrained`` of a new model splits them.
FUSED = {"qwen3_5_moe"}


def hub_form(family: str, hub: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the Hub has: ``save_pretrained`` leaves Qwen3-VL-MoE's experts as they are in memory."""
    if family != "qwen3_vl_moe":
        return dict(hub)
    return {n: t.transpose(1, 2) if ".mlp.experts." in n else t for n, t in hub.items()}


def test_every_family_whose_names_change_is_compared_with_transformers():
    assert set(RENAMING) - NOT_IN_TRANSFORMERS <= set(MODELS)


@pytest.mark.parametrize("family", SPELLED_OUT)
def test_names_shapes_and_values_are_those_of_save_pretrained(family, saved):
    model = saved(family)
    form = to_hub(model.memory, model.config)
    split = split_fused(form.tensors, model.config)
    assert (split.keys() != form.tensors.keys()) == (family in FUSED)
    assert_equal(split, hub_form(family, model.hub))
    assert form.warnings == ()


@pytest.mark.parametrize("family", sorted(FUSED))
def test_experts_that_are_fused_on_the_hub_are_so_again_when_such_a_model_is_saved(
    family, saved, tmp_path
):
    model = saved(family)
    form = {
        name: tensor.read() for name, tensor in to_hub(model.memory, model.config).tensors.items()
    }
    (tmp_path / "hub").mkdir()
    write_tensors(tmp_path / "hub" / "model.safetensors", form)
    (tmp_path / "hub" / "config.json").write_bytes(model.config.to_bytes())
    opened = getattr(transformers, model.config.architecture).from_pretrained(tmp_path / "hub")
    opened.save_pretrained(tmp_path / "again")
    assert_same(load_folder(tmp_path / "again"), form)


@pytest.mark.parametrize("family", MIXTURES)
def test_names_of_transformers_4_pass_unchanged(family, saved, tmp_path):
    on_hub = hub_form(family, saved(family).hub)
    checkpoint = write_tensors(tmp_path / "hub.safetensors", on_hub)
    assert_equal(to_hub(checkpoint, saved(family).config).tensors, on_hub)


def test_kimi_k2_is_mapped_as_deepseek_v3(saved, tmp_path):
    model = saved("deepseek_v3")
    config = write_config(tmp_path, **(model.config.raw | {"model_type": "kimi_k2"}))
    assert_equal(to_hub(model.memory, config).tensors, model.hub)


@pytest.mark.parametrize("model_class", ["Qwen3MoeModel", "Qwen3MoeForTokenClassification"])
def test_experts_of_other_classes_of_a_family_are_split_too(model_class, tmp_path):
    config = transformers.Qwen3MoeConfig(**MODELS["qwen3_moe"].settings, num_labels=1)
    model = save_both(filled(getattr(transformers, model_class), config), tmp_path)
    assert_equal(to_hub(model.memory, model.config).tensors, model.hub)


def test_dtype_of_split_experts_is_kept(tmp_path):
    model = save_both(build("qwen3_moe").to(torch.bfloat16), tmp_path)
    form = to_hub(model.memory, model.config)
    assert_equal(form.tensors, model.hub)
    assert {tensor.dtype.name for tensor in form.tensors.values()} == {"bfloat16"}


@pytest.mark.parametrize(("hidden", "width"), [(24, 12), (24, 24), (24, 48), (24, 7)])
@pytest.mark.parametrize("on_hub", [False, True])
def test_layout_of_qwen3_vl_moe_experts_is_told_by_both_shapes(hidden, width, on_hub, tmp_path):
    gate_up, down = (3, 2 * width, hidden), (3, hidden, width)
    if on_hub:
        gate_up, down = (3, hidden, 2 * width), (3, width, hidden)
    stem = "model.language_model.layers.0.mlp.experts"
    shapes = {f"{stem}.gate_up_proj": gate_up, f"{stem}.down_proj": down}
    checkpoint = write_shapes(tmp_path / "x.safetensors", shapes)
    form = to_hub(checkpoint, write_config(tmp_path, model_type="qwen3_vl_moe"))
    assert form.tensors[f"{stem}.gate_up_proj"].shape == (3, hidden, 2 * width)
    assert form.tensors[f"{stem}.down_proj"].shape == (3, width, hidden)
    for name, tensor in form.tensors.items():
        expected = checkpoint[name].read()
        assert torch.equal(tensor.read(), expected if on_hub else expected.transpose(1, 2))


@pytest.mark.parametrize(
    ("family", "shapes"),
    [
        ("qwen3_vl_moe", {"gate_up_proj": (3, 20, 8), "down_proj": (3, 9, 8)}),
        ("qwen3_vl_moe", {"gate_up_proj": (20, 8), "down_proj": (8, 10)}),
        ("qwen3_vl_moe", {"gate_up_proj": (3, 20, 8)}),
        ("qwen3_vl_moe", {"down_proj": (3, 20, 8)}),
        ("qwen3_moe", {"gate_up_proj": (3, 15, 8), "down_proj": (3, 8, 7)}),
        ("qwen3_moe", {"gate_up_proj": (20, 8), "down_proj": (8, 10)}),
        ("qwen3_moe", {"gate_up_proj": (3, 20, 8), "down_proj": (2, 8, 10)}),
        ("qwen3_moe", {"gate_up_proj": (3, 8, 20), "down_proj": (3, 10, 8)}),
        ("qwen3_moe", {"gate_up_proj": (3, 20, 8)}),
        ("mixtral", {"down_proj": (3, 8, 10)}),
    ],
    ids=str,
)
def test_experts_of_impossible_shape_are_refused(family, shapes, tmp_path):
    stem = "model.layers.0.mlp.experts"
    named = {f"{stem}.{kind}": shape for kind, shape in shapes.items()}
    checkpoint = write_shapes(tmp_path / "x.safetensors", named)
    with pytest.raises(MappingError, match=stem):
        to_hub(checkpoint, write_config(tmp_path, model_type=family))


@pytest.mark.parametrize("wrapper", ["_fsdp_wrapped_module", "_orig_mod"])
def test_names_of_wrappers_are_removed_everywhere(wrapper, saved, tmp_path):
    model = saved("qwen3_moe")
    wrapped = {}
    for name, tensor in model.memory.items():
        inner = name.replace(".layers.0.", f".layers.0.{wrapper}._checkpoint_wrapped_module.")
        wrapped[f"{wrapper}.{inner.replace('.mlp.', f'.{wrapper}.mlp.')}"] = tensor.read()
    checkpoint = write_tensors(tmp_path / "wrapped.safetensors", wrapped)
    assert_equal(to_hub(checkpoint, model.config).tensors, model.hub)


def test_names_that_meet_without_their_wrappers_are_refused(tmp_path):
    shapes = {"a.weight": (2,), "_orig_mod.a.weight": (2,), "_fsdp_wrapped_module.b": (2,)}
    checkpoint = write_shapes(tmp_path / "x.safetensors", shapes)
    with pytest.raises(MappingError) as refused:
        to_hub(checkpoint, write_config(tmp_path, model_type="llama"))
    assert refused.value.names == ("a.weight: also _orig_mod.a.weight",)


def test_fused_experts_beside_the_same_experts_split_are_refused(tmp_path):
    stem = "model.layers.0.mlp.experts"
    fused = {f"{stem}.gate_up_proj": (2, 8, 3), f"{stem}.down_proj": (2, 3, 4)}
    shapes = {**fused, f"{stem}.1.down_proj.weight": (3, 4)}
    checkpoint = write_shapes(tmp_path / "x.safetensors", shapes)
    with pytest.raises(MappingError) as refused:
        to_hub(checkpoint, write_config(tmp_path, model_type="qwen3_moe"))
    assert refused.value.names == (f"{stem}.1.down_proj.weight",)


@pytest.mark.parametrize(
    ("family", "name", "expected"),
    [
        (
            "mixtral",
            "model.layers.3.mlp.gate.weight",
            "model.layers.3.block_sparse_moe.gate.weight",
        ),
        ("qwen2_5_vl", "model.visual.blocks.0.attn.qkv.weight", "visual.blocks.0.attn.qkv.weight"),
        ("qwen2_5_vl", "model.language_model.norm.weight", "model.norm.weight"),
        ("gpt_neox", "lm_head.weight", "embed_out.weight"),
        ("gpt_neox", "score.lm_head.weight", "score.lm_head.weight"),
        ("qwen3_moe", "model.layers.0.mlp.experts.gate_up_proj", ""),
        ("no_such_family", "model.visual.norm.weight", ""),
    ],
)
def test_a_name_alone_is_brought_to_the_hub(family, name, expected, tmp_path):
    assert rename_for_hub(name, write_config(tmp_path, model_type=family)) == (expected or name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", ["qwen3", "olmoe", "phimoe", "gemma3", "qwen2_5_vl", "qwen3_5_moe"]
)
def test_missing_architecture_is_filled_in(family, saved, tmp_path):
    model = saved(family)
    raw = {key: value for key, value in model.config.raw.items() if key != "architectures"}
    form = to_hub(model.memory, write_config(tmp_path, **raw))
    assert form.config.architecture == MODELS[family].model_class
    assert sorted(form.tensors) == sorted(to_hub(model.memory, model.config).tensors)


def test_named_architecture_stays(saved):
    config = saved("llama").config
    other = dataclasses.replace(config, raw=config.raw | {"architectures": ["MyLlamaForCausalLM"]})
    assert to_hub(saved("llama").memory, other).config == other


def score_model(path: Path, *names: str, labels: int):
    shapes = {"model.embed_tokens.weight": (8, 4), "score.weight": (labels, 4)}
    return write_shapes(path / "x.safetensors", shapes | dict.fromkeys(names, (labels,)))


@pytest.mark.parametrize("named", [{"architectures": ["Qwen2ForCausalLM"]}, {}])
@pytest.mark.parametrize(("bias", "kind"), [(["score.bias"], "Token"), ([], "Sequence")])
def test_score_head_makes_a_classifier(bias, kind, named, tmp_path):
    config = write_config(tmp_path, model_type="qwen2", **named)
    changed = to_hub(score_model(tmp_path, *bias, labels=1), config).config
    assert changed.architecture == f"Qwen2For{kind}Classification"
    assert changed.changes["id2label"] == {"0": "LABEL_0"}
    assert changed.changes["label2id"] == {"LABEL_0": 0}


@pytest.mark.parametrize(
    ("labels", "named", "changed"),
    [
        (2, None, False),
        (3, None, True),
        (2, {"0": "bad", "1": "good"}, False),
        (1, {"0": "reward"}, False),
        (1, {"0": "bad", "1": "good"}, True),
    ],
)
def test_labels_are_written_where_the_config_has_another_number(labels, named, changed, tmp_path):
    config = write_config(tmp_path, model_type="qwen2", id2label=named)
    form = to_hub(score_model(tmp_path, "score.bias", labels=labels), config)
    assert ("id2label" in form.config.changes) == changed
    assert len(form.config.changes.get("id2label", range(labels))) == labels


def test_model_with_both_heads_stays_a_language_model(tmp_path):
    config = write_config(tmp_path, model_type="qwen2")
    checkpoint = score_model(tmp_path, "lm_head.weight", labels=1)
    assert to_hub(checkpoint, config).config.architecture == "Qwen2ForCausalLM"


@pytest.mark.parametrize(
    ("names", "plain"),
    [
        (["module.a.w", "module._orig_mod.b.w"], {"a.w", "b.w"}),
        (["_orig_mod.module.module.a.w"], {"a.w"}),
        (["module.a.w", "b.w"], {"module.a.w", "b.w"}),
        (["_fsdp_wrapped_module.a.module.w"], {"a.module.w"}),
    ],
)
def test_what_is_before_every_name_goes(names, plain):
    tensors = {name: LazyTensor((1,), FLOAT32, FLOAT32, ()) for name in names}
    assert unwrap_all(tensors).keys() == plain


def stacked(memory: Mapping[str, LazyTensor]) -> dict[str, torch.Tensor]:
    """As VeOmni 0.1.4 has experts in memory: gate and up of all of them apart."""
    found = {}
    for name, tensor in memory.items():
        if name.endswith(".experts.gate_up_proj"):
            stem = name.removesuffix("gate_up_proj")
            found[f"{stem}gate_proj"], found[f"{stem}up_proj"] = tensor.read().chunk(2, 1)
        else:
            found[name] = tensor.read()
    return found


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "mixtral", "qwen3_5_moe"])
def test_gate_and_up_of_all_experts_may_be_apart(family, saved, tmp_path):
    model = saved(family)
    tensors = stacked(model.memory)
    assert any(name.endswith(".experts.up_proj") for name in tensors)
    checkpoint = write_tensors(tmp_path / "stacked.safetensors", tensors)
    together, apart = (to_hub(each, model.config).tensors for each in (model.memory, checkpoint))
    assert_equal(apart, {name: tensor.read() for name, tensor in together.items()})


@pytest.mark.parametrize(
    "shapes",
    [
        {"gate_proj": (3, 10, 8), "down_proj": (3, 8, 10)},
        {"gate_proj": (3, 10, 8), "up_proj": (3, 10, 8)},
        {"gate_proj": (3, 10, 8), "up_proj": (3, 9, 8), "down_proj": (3, 8, 10)},
        {"gate_proj": (3, 10, 8), "up_proj": (3, 10, 8), "down_proj": (2, 8, 10)},
        {"gate_proj": (10, 8), "up_proj": (10, 8), "down_proj": (8, 10)},
        dict.fromkeys(("gate_proj", "up_proj", "gate_up_proj"), (3, 4, 4))
        | {"down_proj": (3,) * 3},
    ],
    ids=str,
)
def test_stacks_of_experts_that_do_not_belong_together(shapes, tmp_path):
    stem = "model.layers.0.mlp.experts"
    named = {f"{stem}.{kind}": shape for kind, shape in shapes.items()}
    checkpoint = write_shapes(tmp_path / "x.safetensors", named)
    with pytest.raises(MappingError, match="do not belong together") as refused:
        to_hub(checkpoint, write_config(tmp_path, model_type="qwen3_moe"))
    assert refused.value.names[0].startswith(stem)


def test_stacks_of_experts_of_two_dtypes(tmp_path):
    stem = "model.layers.0.mlp.experts"
    kinds = {"gate_proj": (3, 4, 2), "up_proj": (3, 4, 2), "down_proj": (3, 2, 4)}
    tensors = {f"{stem}.{kind}": torch.ones(shape) for kind, shape in kinds.items()}
    tensors[f"{stem}.up_proj"] = tensors[f"{stem}.up_proj"].half()
    checkpoint = write_tensors(tmp_path / "x.safetensors", tensors)
    with pytest.raises(MappingError, match="of one dtype"):
        to_hub(checkpoint, write_config(tmp_path, model_type="qwen3_moe"))
