"""Bases of Megatron-Bridge's adapters: layers that are not alike, experts, copies, scales."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ckpt_tool.common.errors import MappingError
from ckpt_tool.mapping.lora.options import LoraOptions
from ckpt_tool.operations.merge import merge_megatron
from ckpt_tool.operations.options import MergeOptions
from ckpt_tool.plans.options import WriteOptions
from tests.support.megatron_models import config_of, hub_tensors
from tests.support.merging import assert_same, load_folder
from tests.support.resaving import save_megatron

Tensors = dict[str, torch.Tensor]
RANK, ALPHA = 2, 8.0
SCALE = ALPHA / RANK
LAYER = "decoder.layers"


def write_base(folder: Path, config: dict, tensors: Tensors) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def rewrite(folder: Path, tensors: Tensors) -> None:
    """In a new file: tensors may lie in the old one."""
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def write_family(folder: Path, family: str, **changes) -> Path:
    tensors = {name: tensor / 64 for name, tensor in hub_tensors(family, **changes).items()}
    return write_base(folder, config_of(family, **changes).raw, tensors)


def factors(rows: int, columns: int, *lead: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(*lead, rows, RANK), torch.randn(*lead, RANK, columns)


def adapter(module: str, left: torch.Tensor, right: torch.Tensor) -> Tensors:
    stem = f"{module}.adapter.linear_"
    return {f"{stem}in.weight": right, f"{stem}out.weight": left}


def merge(folder: Path, adapters: Tensors, base: Path) -> Tensors:
    source = save_megatron(adapters, folder / "adapters")
    write = WriteOptions(fsync=False, verify=True, check_load=False)
    options = MergeOptions(lora=LoraOptions(None, ALPHA, base), write=write)
    merge_megatron(source, folder / "out", options)
    return load_folder(folder / "out")


def check(found: Tensors, base: Tensors, updates: Tensors) -> None:
    for name, update in updates.items():
        torch.testing.assert_close(found.pop(name), base.pop(name) + SCALE * update)
    assert_same(found, base)


def update_outputs(base: Tensors, layers: dict[str, str]) -> tuple[Tensors, Tensors]:
    """Adapters on the output projections of layers, and the updates by their names on the Hub."""
    adapters, updates = {}, {}
    for module, name in layers.items():
        left, right = factors(*base[name].shape)
        adapters |= adapter(f"{module}.self_attention.linear_proj", left, right)
        updates[name] = left @ right
    return adapters, updates


def test_copies_of_embedding_and_head_stay_what_they_are(tmp_path):
    """DeepSeek-V3's layer that predicts further has both once more."""
    base = write_family(tmp_path / "base", "deepseek_v3")
    tensors = load_folder(base)
    ahead = "model.layers.3"
    tensors[f"{ahead}.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors[f"{ahead}.shared_head.head.weight"] = tensors["lm_head.weight"].clone()
    rewrite(base, tensors)
    layers = {f"{LAYER}.{n}": f"model.layers.{n}.self_attn.o_proj.weight" for n in range(3)}
    adapters, updates = update_outputs(tensors, layers)
    check(merge(tmp_path, adapters, base), tensors, updates)


def test_copies_that_differ_are_refused(tmp_path):
    base = write_family(tmp_path / "base", "deepseek_v3")
    tensors = load_folder(base)
    tensors["model.layers.3.embed_tokens.weight"] = tensors["model.embed_tokens.weight"] + 1
    rewrite(base, tensors)
    layers = {f"{LAYER}.{n}": f"model.layers.{n}.self_attn.o_proj.weight" for n in range(3)}
    with pytest.raises(MappingError, match="several that differ"):
        merge(tmp_path, update_outputs(tensors, layers)[0], base)


def test_weights_of_fp8_are_multiplied_with_their_scales_first(tmp_path):
    base = write_family(tmp_path / "base", "qwen3", torch_dtype="float32")
    tensors = load_folder(base)
    names = [f"model.layers.{n}.self_attn.o_proj.weight" for n in range(3)]
    for name in names:
        tensors[name] = torch.randn(tensors[name].shape).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = torch.tensor([[0.5]])
    rewrite(base, tensors)
    plain = {name: t for name, t in tensors.items() if not name.endswith("_scale_inv")}
    plain |= {name: tensors[name].float() / 2 for name in names}
    layers = {f"{LAYER}.{n}": name for n, name in enumerate(names)}
    adapters, updates = update_outputs(plain, layers)
    check(merge(tmp_path, adapters, base), plain, updates)


def test_what_no_model_of_megatron_has_is_the_bases(tmp_path):
    """A talker: Megatron-Bridge trains the thinker alone."""
    text = {**config_of("qwen2").raw, "model_type": "qwen2_5_omni_text"}
    config = {
        "model_type": "qwen2_5_omni",
        "tie_word_embeddings": False,
        "thinker_config": {"text_config": text | {"tie_word_embeddings": False}},
    }
    language = hub_tensors("qwen2", tie_word_embeddings=False)
    tensors = {f"thinker.{name}": tensor / 64 for name, tensor in language.items()}
    for part in ("thinker.visual.merger.ln_q", "thinker.audio_tower.proj", "talker.codec_head"):
        tensors[f"{part}.weight"] = torch.randn(3)
    base = write_base(tmp_path / "base", config, tensors)
    stem = f"thinker.language_model.{LAYER}"
    names = {f"{stem}.{n}": f"thinker.model.layers.{n}.self_attn.o_proj.weight" for n in range(3)}
    adapters, updates = update_outputs(tensors, names)
    check(merge(tmp_path, adapters, base), tensors, updates)


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_5"])
def test_layers_of_a_model_that_sees_have_numbers_too(tmp_path, family):
    base = write_family(tmp_path / "base", family)
    tensors = load_folder(base)
    stem = "model.language_model.layers"
    names = [f"{stem}.{n}.self_attn.o_proj.weight" for n in range(3)]
    layers = {
        f"language_model.{LAYER}.{n}": name for n, name in enumerate(names) if name in tensors
    }
    assert layers
    adapters, updates = update_outputs(tensors, layers)
    check(merge(tmp_path, adapters, base), tensors, updates)


def test_layers_without_what_is_adapted_have_no_adapter(tmp_path):
    """Of Qwen3-Next few layers have full attention, and only these an output projection of it."""
    base = write_family(tmp_path / "base", "qwen3_next")
    tensors = load_folder(base)
    names = {n: f"model.layers.{n}.self_attn.o_proj.weight" for n in range(3)}
    full = {n: name for n, name in names.items() if name in tensors}
    assert 0 < len(full) < 3
    layers = {f"{LAYER}.{n}": name for n, name in full.items()}
    adapters, updates = update_outputs(tensors, layers)
    check(merge(tmp_path, adapters, base), tensors, updates)


@pytest.mark.parametrize("numbered", [True, False])
def test_wrappers_may_be_before_the_names_of_adapters(tmp_path, numbered):
    """As NeMo saves them, whose base is a model of the Hub."""
    base = write_family(tmp_path / "base", "qwen3")
    tensors = load_folder(base)
    layers = {f"module.{LAYER}.{n}": f"model.layers.{n}.self_attn.o_proj.weight" for n in range(3)}
    adapters, updates = update_outputs(tensors, layers)
    if not numbered:
        first = {name: name.replace(".0.", ".") for name in adapters if f"{LAYER}.0." in name}
        adapters = {
            new: torch.stack([adapters[old.replace(".0.", f".{n}.")] for n in range(3)])
            for old, new in first.items()
        }
    check(merge(tmp_path, adapters, base), tensors, updates)


@pytest.mark.parametrize(
    ("one", "other"), [("", "module."), ("module.", "module.module."), ("model.", "module.")]
)
def test_adapters_in_two_wrappers_are_refused_by_all_of_their_names(tmp_path, one, other):
    base = write_family(tmp_path / "base", "qwen3")
    left, right = factors(6, 8)
    module = f"{LAYER}.1.self_attention.linear_proj"
    names = adapter(module, left, right)
    adapters = {wrapper + name: t for wrapper in (one, other) for name, t in names.items()}
    with pytest.raises(MappingError, match="2 tensors get a name that another one has") as caught:
        merge(tmp_path, adapters, base)
    for said, name in zip(caught.value.names, sorted(names), strict=True):
        pair, _, common = said.partition(", both ")
        assert set(pair.split(": also ")) == {one + name, other + name}
        assert common == (name if one else "")


def test_a_layer_that_has_what_is_adapted_is_missed(tmp_path):
    base = write_family(tmp_path / "base", "deepseek_v3")
    left, right = factors(6, 4, 3)
    adapters = adapter(f"{LAYER}.1.mlp.experts.experts.linear_fc2", left, right)
    with pytest.raises(MappingError, match="adapters of 1 layer, the base has 2") as caught:
        merge(tmp_path, adapters, base)
    assert caught.value.names == (f"{LAYER}.2",)


@pytest.mark.parametrize("rank", [None, 0])
def test_factors_that_are_no_matrices_are_named_with_their_shapes(tmp_path, rank):
    base = write_family(tmp_path / "base", "qwen3")
    layers = {f"{LAYER}.{n}": f"model.layers.{n}.self_attn.o_proj.weight" for n in range(3)}
    adapters, _ = update_outputs(load_folder(base), layers)
    module = f"{LAYER}.1.self_attention.linear_proj"
    adapters[f"{module}.adapter.linear_out.weight"] = (
        torch.tensor(1.0) if rank is None else torch.zeros(6, rank)
    )
    with pytest.raises(MappingError, match="1 problem in fusing") as caught:
        merge(tmp_path, adapters, base)
    (said,) = caught.value.names
    assert said.startswith(f"{module}: adapters of shapes [2, 8] and ")


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("shared", ["none", "left", "right", "both"])
def test_experts_may_share_factors(tmp_path, shared, stacked):
    """Megatron-Bridge's `experts_shared_outer_loras`; and its default, as older ones saved it."""
    base = write_family(tmp_path / "base", "qwen3_moe")
    tensors = load_folder(base)
    ways = {"left": ((3,), (3, 3)), "right": ((3, 3), (3,)), "both": ((3,), (3,))}
    of_left, of_right = ways.get(shared, ((3, 3), (3, 3)))
    left, right = torch.randn(*of_left, 6, RANK), torch.randn(*of_right, RANK, 4)
    module = "mlp.experts.experts.linear_fc2"
    adapters = adapter(f"{LAYER}.{module}", left, right)
    if not stacked:
        adapters = {
            name.replace(LAYER, f"{LAYER}.{n}"): tensor[n].clone()
            for n in range(3)
            for name, tensor in adapters.items()
        }
    every = [one if one.dim() == 4 else one[:, None].expand(-1, 3, -1, -1) for one in (left, right)]
    product = every[0] @ every[1]
    updates = {
        f"model.layers.{n}.mlp.experts.{e}.down_proj.weight": product[n, e]
        for n in range(3)
        for e in range(3)
    }
    check(merge(tmp_path, adapters, base), tensors, updates)


def test_experts_of_a_base_come_back_as_it_has_them(tmp_path):
    """Together, where a family's config alone would have them one by one."""
    base = write_family(tmp_path / "base", "qwen3_5_moe_text")
    tensors = load_folder(base)
    for stem in {name.partition(".experts.")[0] for name in tensors if ".experts." in name}:
        experts = [
            [
                tensors.pop(f"{stem}.experts.{n}.{part}_proj.weight")
                for part in ("gate", "up", "down")
            ]
            for n in range(3)
        ]
        together = [torch.cat(each[:2]) for each in experts]
        tensors[f"{stem}.experts.gate_up_proj"] = torch.stack(together)
        tensors[f"{stem}.experts.down_proj"] = torch.stack([each[2] for each in experts])
    rewrite(base, tensors)
    layer = next(n for n in range(3) if f"model.layers.{n}.self_attn.o_proj.weight" in tensors)
    layers = {f"{LAYER}.{layer}": f"model.layers.{layer}.self_attn.o_proj.weight"}
    adapters, updates = update_outputs(tensors, layers)
    check(merge(tmp_path, adapters, base), tensors, updates)
