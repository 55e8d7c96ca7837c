"""Nemotron models that see and hear: RADIO's tower and projections around a Nemotron-H."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from ckpt_tool import (
    MappingError,
    MergeOptions,
    ToMcoreOptions,
    VerifyOptions,
    WriteOptions,
    convert_to_mcore,
    merge_megatron,
    open_checkpoint,
    verify_checkpoint,
)
from ckpt_tool.mapping.config import load_config
from ckpt_tool.mapping.megatron.convert import restore_model
from tests.real.fill import fill_distinct
from tests.real.megatron_has import MIXED_EXPERTS, TRITON
from tests.real.megatron_nemotron import CONFIG
from tests.support.merging import assert_same, load_folder
from tests.support.saved import assert_equal, write_tensors
from tests.support.versions import needs_transformers_5

pytestmark = needs_transformers_5
UNSYNCED = WriteOptions(fsync=False, check_load=False)
FAMILIES = ("NemotronH_Nano_VL_V2", "NemotronH_Nano_Omni_Reasoning_V3")
every_family = pytest.mark.parametrize("family", FAMILIES)
RADIO = "vision_model.radio_model.model."
#: The base one has 12 layers of 12 heads; here they are as wide as one another.
LAYERS, WIDTH = 12, 24

#: What Megatron-Bridge 0.6.2 calls what is around the language model, and the Hub.
BRIDGE = """
vision_model.class_token | patch_generator.cls_token.token
vision_model.position_embeddings | patch_generator.pos_embed
vision_model.embedder.weight | patch_generator.embedder.weight
vision_model.decoder.layers.*.self_attention.linear_proj.weight | blocks.*.attn.proj.weight
vision_model.decoder.layers.*.self_attention.linear_proj.bias | blocks.*.attn.proj.bias
vision_model.decoder.layers.*.self_attention.linear_qkv.layer_norm_weight | blocks.*.norm1.weight
vision_model.decoder.layers.*.self_attention.linear_qkv.layer_norm_bias | blocks.*.norm1.bias
vision_model.decoder.layers.*.mlp.linear_fc1.layer_norm_weight | blocks.*.norm2.weight
vision_model.decoder.layers.*.mlp.linear_fc1.layer_norm_bias | blocks.*.norm2.bias
vision_model.decoder.layers.*.mlp.linear_fc1.weight | blocks.*.mlp.fc1.weight
vision_model.decoder.layers.*.mlp.linear_fc1.bias | blocks.*.mlp.fc1.bias
vision_model.decoder.layers.*.mlp.linear_fc2.weight | blocks.*.mlp.fc2.weight
vision_model.decoder.layers.*.mlp.linear_fc2.bias | blocks.*.mlp.fc2.bias
vision_model.decoder.layers.*.self_attention.linear_qkv.weight | blocks.*.attn.qkv.weight
vision_model.decoder.layers.*.self_attention.linear_qkv.bias | blocks.*.attn.qkv.bias
vision_projection.encoder.linear_fc1.layer_norm_weight | mlp1.0.weight
vision_projection.encoder.linear_fc1.weight | mlp1.1.weight
vision_projection.encoder.linear_fc2.weight | mlp1.3.weight
"""
HEARD = """
vision_model.video_embedder.weight | patch_generator.video_embedder.weight
sound_projection.encoder.linear_fc1.layer_norm_weight | sound_projection.norm.weight
sound_projection.encoder.linear_fc1.weight | sound_projection.linear1.weight
sound_projection.encoder.linear_fc2.weight | sound_projection.linear2.weight
sound_model.encoder.layers.0.conv.bias | sound_encoder.encoder.layers.0.conv.bias
"""


def list_rows(family: str) -> list[str]:
    """What of it the family has."""
    return (BRIDGE.strip() + (HEARD if family == FAMILIES[1] else "")).strip().splitlines()


def around(family: str) -> dict[str, tuple[int, ...]]:
    """Names on the Hub, and shapes, of all but the language model."""
    block = {"attn.qkv": 3 * WIDTH, "attn.proj": WIDTH, "mlp.fc1": 2 * WIDTH, "mlp.fc2": WIDTH}
    shapes: dict[str, tuple[int, ...]] = {
        f"{RADIO}patch_generator.cls_token.token": (10, WIDTH),
        f"{RADIO}patch_generator.pos_embed": (1, 16, WIDTH),
        f"{RADIO}patch_generator.embedder.weight": (WIDTH, 12),
        "mlp1.0.weight": (4 * WIDTH,),
        "mlp1.1.weight": (30, 4 * WIDTH),
        "mlp1.3.weight": (CONFIG["hidden_size"], 30),
        "vision_model.radio_model.input_conditioner.norm_mean": (3, 1, 1),
    }
    for layer in range(LAYERS):
        stem = f"{RADIO}blocks.{layer}."
        for name, rows in block.items():
            columns = 2 * WIDTH if name == "mlp.fc2" else WIDTH
            shapes |= {f"{stem}{name}.weight": (rows, columns), f"{stem}{name}.bias": (rows,)}
        for name in ("norm1", "norm2"):
            shapes |= {f"{stem}{name}.{kind}": (WIDTH,) for kind in ("weight", "bias")}
    if family == FAMILIES[1]:
        shapes |= {
            f"{RADIO}patch_generator.video_embedder.weight": (WIDTH, 24),
            "sound_projection.norm.weight": (20,),
            "sound_projection.linear1.weight": (30, 20),
            "sound_projection.linear2.weight": (CONFIG["hidden_size"], 30),
            "sound_encoder.encoder.layers.0.conv.bias": (20,),
            "sound_encoder.feature_extractor.featurizer.fb": (1, 8, 9),
        }
    return shapes


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """The language model alone."""
    said = {key: value for key, value in CONFIG.items() if not key.startswith("mtp_")}
    config = AutoConfig.for_model("nemotron_h", **said | {"num_nextn_predict_layers": 0})
    model = AutoModelForCausalLM.from_config(config)
    fill_distinct(model)
    model.float().save_pretrained(tmp_path / "text")
    return tmp_path / "text"


@pytest.fixture
def model(family: str, text: Path, tmp_path: Path) -> Path:
    tensors = {f"language_model.{name}": tensor for name, tensor in load_folder(text).items()}
    at = 1000
    for name, shape in around(family).items():
        size = torch.Size(shape).numel()
        tensors[name] = torch.arange(at, at + size, dtype=torch.float32).reshape(shape)
        at += size
    vision = {"args": {"model": "vit_base_patch16_224"}}
    vision |= {"separate_video_embedder": True} if family == FAMILIES[1] else {}
    inner = json.loads((text / "config.json").read_text())
    folder = tmp_path / "hf"
    folder.mkdir()
    said = {"model_type": family, "llm_config": inner, "vision_config": vision}
    (folder / "config.json").write_text(json.dumps(said | {"tie_word_embeddings": False}))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def read(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.read() for name, tensor in open_checkpoint(folder).items()}


@every_family
def test_the_language_model_is_nemotrons_and_what_is_around_it_has_the_names_of_megatron_bridge(
    model, text, family, tmp_path
):
    result = convert_to_mcore(model, tmp_path / "out", ToMcoreOptions(write=UNSYNCED))
    convert_to_mcore(text, tmp_path / "other", ToMcoreOptions(write=UNSYNCED))
    found = {name.removeprefix("llava_model."): t for name, t in read(tmp_path / "out").items()}
    inner = {f"language_model.{name}": t for name, t in read(tmp_path / "other").items()}
    assert_same({name: t for name, t in found.items() if name in inner}, inner)
    rows = list_rows(family)
    names = {row.partition(" | ")[0].replace("layers.*.", "layers.") for row in rows}
    assert found.keys() - inner.keys() == names
    assert set(result.dropped) == {n for n in around(family) if re.search("conditioner|extrac", n)}


@every_family
def test_what_is_around_it_stays_the_same_but_for_heads_that_are_interleaved(
    model, family, tmp_path
):
    convert_to_mcore(model, tmp_path / "out", ToMcoreOptions(write=UNSYNCED))
    found, hub = read(tmp_path / "out"), load_folder(model)
    rows = list_rows(family)
    for row in rows:
        megatron, _, name = row.partition(" | ")
        name = name if name in hub else RADIO + name
        every = [hub[name.replace("*", str(layer))] for layer in range(LAYERS)]
        if "qkv" in name:  # three for each head of two
            every = [part.unflatten(0, (3, 12, 2)).transpose(0, 1).flatten(0, 2) for part in every]
        expected = torch.stack(every) if "*" in name else every[0]
        key = f"llava_model.{megatron.replace('layers.*.', 'layers.')}"
        assert torch.equal(found[key], expected), key


@every_family
def test_there_and_back_is_the_identity(model, family, tmp_path):
    there = ToMcoreOptions(layout="megatron-lm", vocab_multiple=64, write=UNSYNCED)
    convert_to_mcore(model, tmp_path / "there", there)
    back = MergeOptions(config=model, write=UNSYNCED, fill_from=model)
    merge_megatron(tmp_path / "there", tmp_path / "back", back)
    assert_same(load_folder(tmp_path / "back"), load_folder(model))


@every_family
def test_layers_of_the_tower_may_have_keys_of_their_own_and_mixers_be_whole(
    model, family, tmp_path
):
    convert_to_mcore(model, tmp_path / "out", ToMcoreOptions(write=UNSYNCED))
    found, stem = read(tmp_path / "out"), "llava_model.vision_model.decoder.layers."
    for name in [name for name in found if name.startswith(stem)]:
        for layer, tensor in enumerate(found.pop(name)):
            found[f"{stem}{layer}.{name.removeprefix(stem)}"] = tensor.clone()
    mixer = "llava_model.language_model.decoder.layers.0.mixer.in_proj.weight"
    found[mixer] = torch.cat([found.pop(f"{mixer}.{part}") for part in ("z", "x", "B", "C", "dt")])
    found = {f"module.{name}": tensor for name, tensor in found.items()}
    restored = restore_model(write_tensors(tmp_path / "m.safetensors", found), load_config(model))
    hub = load_folder(model)
    assert_equal(dict(restored.tensors), {n: t for n, t in hub.items() if n in restored.tensors})
    assert {n for n in hub if re.search("conditioner|extractor", n)} == hub.keys() - set(
        restored.tensors
    )


@pytest.mark.skipif(not (MIXED_EXPERTS and TRITON), reason="it has no such layers, or no triton")
@pytest.mark.real
@pytest.mark.parametrize("family", FAMILIES[1:])
def test_megatron_core_loads_the_language_model(model, family, tmp_path):
    checked = WriteOptions(fsync=False, check_load=True)
    result = convert_to_mcore(model, tmp_path / "out", ToMcoreOptions(write=checked))
    assert result.load_check.architecture == "HybridModel (without the towers)"
    assert verify_checkpoint(tmp_path / "out", model, VerifyOptions(fill_from=model)).equal


@pytest.mark.parametrize("family", FAMILIES[:1])
@pytest.mark.parametrize("vision", [{}, {"args": {"model": "vit_giant"}}, {"args": {}}])
def test_a_tower_of_unknown_size_is_refused(model, family, vision, tmp_path):
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vision_config": vision}))
    with pytest.raises(MappingError, match=r"vision_config\.args\.model is .*expected one of vit_"):
        convert_to_mcore(model, tmp_path / "out", ToMcoreOptions(write=UNSYNCED))
