"""Families that are not spelled out: names on the Hub through transformers' own tables."""

import dataclasses
from pathlib import Path

import pytest
import torch

from ckpt_tool.common.errors import MappingError
from ckpt_tool.mapping.families.table import find_family
from ckpt_tool.mapping.hub.form import HubModel
from tests.support.backed import same
from tests.support.saved import (
    Saved,
    assert_equal,
    save_both,
    to_hub,
    write_config,
    write_tensors,
)
from tests.support.tiny_models import build

TEXT = [
    "phimoe",
    "granitemoe",
    "lfm2_moe",
    "qwen3_5_moe_text",
    "flint",
    "inkling2_text",
]
# transformers 5 saves a model that was not loaded from the Hub without `vision_model.`, and 4.57
# then loads it with a random tower. This is what 4.57 itself writes.
VISION = {
    "gemma3": [
        "vision_tower.vision_model.embeddings.patch_embedding.weight",
        "vision_tower.vision_model.encoder.layers.1.self_attn.q_proj.bias",
        "vision_tower.vision_model.post_layernorm.weight",
        "multi_modal_projector.mm_input_projection_weight",
        "language_model.model.embed_tokens.weight",
        "language_model.model.layers.1.mlp.down_proj.weight",
        "language_model.lm_head.weight",
    ],
    "llava": [
        "vision_tower.vision_model.embeddings.class_embedding",
        "vision_tower.vision_model.encoder.layers.1.layer_norm2.bias",
        "vision_tower.vision_model.pre_layrnorm.weight",
        "multi_modal_projector.linear_1.weight",
        "language_model.model.norm.weight",
        "language_model.lm_head.weight",
    ],
}


def with_vision_model(model: Saved) -> dict:
    tower = "vision_tower."
    return {n.replace(tower, f"{tower}vision_model."): t for n, t in model.hub.items()}


def assert_kept(form: HubModel, checkpoint, reason: str) -> None:
    """Every tensor under the name it came with, and a warning that says why."""
    assert form.tensors == dict(checkpoint)
    (warning,) = form.warnings
    assert reason in warning
    assert "keep the names" in warning


@pytest.mark.parametrize("family", TEXT)
def test_names_shapes_and_values_are_those_of_save_pretrained(family, saved):
    assert find_family(family).hub is None
    model = saved(family)
    form = to_hub(model.memory, model.config)
    assert model.memory.keys() != model.hub.keys()
    assert_equal(form.tensors, model.hub)
    assert form.warnings == ()


@pytest.mark.parametrize("family", list(VISION))
def test_vision_towers_get_the_prefix_they_have_on_the_hub(family, saved):
    model = saved(family)
    form = to_hub(model.memory, model.config)
    assert_equal(form.tensors, with_vision_model(model))
    assert set(VISION[family]) <= form.tensors.keys()
    assert form.warnings == ()


@pytest.mark.parametrize("family", [*TEXT, *VISION])
def test_tensors_that_have_hub_names_already_stay(family, saved, tmp_path):
    model = saved(family)
    on_hub = with_vision_model(model) if family in VISION else model.hub
    checkpoint = write_tensors(tmp_path / "hub.safetensors", on_hub)
    form = to_hub(checkpoint, model.config)
    assert form.tensors == dict(checkpoint)
    assert form.warnings == ()


def test_head_that_only_the_command_line_ties_may_be_absent(tmp_path):
    model = save_both(build("phimoe", tie_word_embeddings=True), tmp_path)
    assert "lm_head.weight" not in model.memory
    assert_equal(to_hub(model.memory, model.config).tensors, model.hub)
    untied = dataclasses.replace(
        model.config, raw=model.config.raw | {"tie_word_embeddings": False}
    )
    assert_equal(to_hub(model.memory, untied.with_tied(True)).tensors, model.hub)


@pytest.mark.parametrize("raw", [{"model_type": "no_such_family"}, {}, {"model_type": 7}])
def test_unknown_family_keeps_its_names_with_a_warning(raw, saved, tmp_path):
    checkpoint = saved("phimoe").memory
    form = to_hub(checkpoint, write_config(tmp_path, **raw))
    assert_kept(form, checkpoint, str(raw.get("model_type", "(none)")))


def test_unknown_class_of_a_known_family_keeps_its_names(saved, tmp_path):
    model = saved("phimoe")
    raw = model.config.raw | {"architectures": ["MyPhimoeForCausalLM"]}
    form = to_hub(model.memory, write_config(tmp_path, **raw))
    assert_kept(form, model.memory, "MyPhimoeForCausalLM")


@pytest.mark.parametrize("names", ["in memory", "on the Hub"])
def test_tensors_that_are_not_the_models_are_refused_by_name(names, saved, tmp_path):
    model = saved("phimoe")
    tensors = dict(model.hub)
    if names == "in memory":
        tensors = {name: tensor.read() for name, tensor in model.memory.items()}
    tensors["model.extra.weight"] = tensors.pop("model.norm.weight")
    checkpoint = write_tensors(tmp_path / "x.safetensors", tensors)
    with pytest.raises(MappingError, match="not the tensors of PhimoeForCausalLM") as refused:
        to_hub(checkpoint, model.config)
    faults = refused.value.names
    assert {"missing: model.norm.weight", "unexpected: model.extra.weight"} <= set(faults)
    assert (len(faults) == 2) is (names == "on the Hub")
    assert "`keep_names=True`" in refused.value.hint


def with_remote_code(folder: Path, raw: dict):
    """A folder whose code, if it were imported, would leave the file ``ran`` behind."""
    config = write_config(
        folder,
        **raw,
        auto_map={
            "AutoConfig": "configuration_own.OwnConfig",
            "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
        },
    )
    code = f"open({str(folder / 'ran')!r}, 'w').close()\n"
    (folder / "configuration_own.py").write_text(
        f"{code}from transformers import PretrainedConfig\n"
        "class OwnConfig(PretrainedConfig):\n    model_type = 'own'\n"
    )
    (folder / "modeling_own.py").write_text(f"{code}class OwnForCausalLM: pass\n")
    return config


def test_remote_code_of_an_unknown_family_is_never_run(saved, tmp_path):
    raw = {"model_type": "own", "architectures": ["OwnForCausalLM"]}
    config = with_remote_code(tmp_path, raw)
    checkpoint = saved("phimoe").memory
    assert_kept(to_hub(checkpoint, config), checkpoint, "own")
    assert not (tmp_path / "ran").exists()


def test_remote_code_of_a_known_family_is_never_run(saved, tmp_path):
    model = saved("phimoe")
    config = with_remote_code(tmp_path, model.config.raw)
    assert_equal(to_hub(model.memory, config).tensors, model.hub)
    assert not (tmp_path / "ran").exists()


def test_what_no_geometry_gives_is_refused(saved, monkeypatch):
    model = saved("inkling2_text")
    flipped = lambda _, parts, **__: {"x": torch.flip(next(iter(parts.values()))[0], [0])}  # noqa: E731
    monkeypatch.setattr("transformers.core_model_loading.Interleave.convert", flipped)
    with pytest.raises(MappingError, match=r"inkling2_text.*are rearranged \(flip\)") as refused:
        to_hub(model.memory, model.config)
    assert "`keep_names=True`" in refused.value.hint


def test_what_would_not_come_back_is_refused_by_name(saved, monkeypatch):
    from transformers.core_model_loading import Interleave

    model = saved("inkling2_text")
    backwards = property(lambda found: Interleave(found.dim, inverse=found.inverse))
    monkeypatch.setattr(Interleave, "reverse_op", backwards)  # the same way twice: 2 x 24 rows
    with pytest.raises(MappingError, match="does not bring them back as they were") as refused:
        to_hub(model.memory, model.config)
    changed = [name.partition(": would be loaded")[0] for name in refused.value.names]
    experts = "mlp.experts.gate_up_proj"
    assert sorted(changed) == [f"model.layers.{layer}.{experts}" for layer in (0, 1)]


def test_reverting_reads_no_bytes(saved, tmp_path):
    model = saved("phimoe")
    form = to_hub(model.memory, model.config)
    name = "model.layers.0.block_sparse_moe.experts.1.w3.weight"
    fused = model.memory["model.layers.0.mlp.experts.gate_up_proj"]
    (chunk,) = form.tensors[name].chunks
    assert chunk.region.path == fused.chunks[0].region.path
    assert same(form.tensors[name].read(), fused.read()[1, fused.shape[1] // 2 :])
