"""`to-mcore` of models in block-quantised fp8, as DeepSeek publishes them."""

import json
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from ckpt_tool import verify_checkpoint
from ckpt_tool.common.errors import MappingError, UsageError
from tests.operations.to_mcore.test_inputs import Tensors, assert_same, convert, loaded
from tests.real.fill import fill_distinct
from tests.real.megatron_models import write_model
from tests.support.merging import load_folder
from tests.support.versions import needs_transformers_5

LAYERS, EXPERTS, DENSE = 3, 8, 1  # the first layer has no experts
#: No size is a multiple of 128, and most have several blocks.
SIZES = {
    "hidden_size": 200,
    "intermediate_size": 300,
    "moe_intermediate_size": 136,
    "q_lora_rank": 130,
    "kv_lora_rank": 140,
    "num_hidden_layers": LAYERS,
}
SCALE = "_scale_inv"


def is_linear(name: str) -> bool:
    return name.endswith("_proj.weight") or name.endswith("_with_mqa.weight")


def quantised(weight: Tensor, name: str, block: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """fp8 values of all magnitudes, and a different scale for every block."""
    rows, columns = (-(-size // step) for size, step in zip(weight.shape, block, strict=True))
    order = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    scales = (torch.randperm(rows * columns, generator=order) + 1) * 0.0123
    assert len(scales.unique()) == rows * columns
    stored = (weight / weight.abs().max() * 448).to(torch.float8_e4m3fn)
    assert len(stored.view(torch.uint8).unique()) > 100
    return stored, scales.reshape(rows, columns)


def product(weight: Tensor, scales: Tensor, block: tuple[int, int]) -> Tensor:
    spread = scales.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return weight.float() * spread[: weight.shape[0], : weight.shape[1]]


def write_fp8(
    folder: Path, plain: Tensors, config: dict, block: tuple[int, int], *, said: bool = True
) -> Path:
    tensors: Tensors = {}
    for name, tensor in plain.items():
        if is_linear(name):
            tensors[name], tensors[name + SCALE] = quantised(tensor, name, block)
        else:
            tensors[name] = tensor if name.endswith("_bias") else tensor.bfloat16()
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    sizes = {"weight_block_size": list(block)} if said else {}
    method = {"quant_method": "fp8", "fmt": "e4m3", **sizes}
    raw = {**config, "dtype": "bfloat16", "quantization_config": method}
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensors, dict]:
    tiny = write_model("deepseek_v3", tmp_path_factory.mktemp("tiny"))
    raw = json.loads((tiny / "config.json").read_text()) | SIZES
    model = DeepseekV3ForCausalLM(DeepseekV3Config(**raw))
    fill_distinct(model)
    model.save_pretrained(tiny.parent / "wide")
    tensors = load_folder(tiny.parent / "wide")
    assert sum(map(is_linear, tensors)) == LAYERS * 5 + 3 * (DENSE + 2 * (EXPERTS + 1))
    return tensors, raw


@pytest.fixture(scope="module")
def fp8(plain: tuple[Tensors, dict], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fp8(tmp_path_factory.mktemp("fp8") / "hf", *plain, (128, 128))


def dequantised(model: Path, block: tuple[int, int], dtype: torch.dtype) -> Tensors:
    stored = load_folder(model)
    wide = {
        name: product(tensor, stored[name + SCALE], block) if is_linear(name) else tensor
        for name, tensor in stored.items()
        if not name.endswith(SCALE)
    }
    return {n: t if n.endswith("_bias") else t.to(dtype) for n, t in wide.items()}


RENAMED = {
    "input_layernorm": "input_layernorm",
    "self_attn.q_a_proj": "self_attention.linear_q_down_proj",
    "self_attn.q_b_proj": "self_attention.linear_q_up_proj",
    "self_attn.kv_a_proj_with_mqa": "self_attention.linear_kv_down_proj",
    "self_attn.kv_b_proj": "self_attention.linear_kv_up_proj",
    "self_attn.o_proj": "self_attention.linear_proj",
}
LAYER_NORMS = {
    "self_attn.q_a_layernorm": "self_attention.linear_q_up_proj",
    "self_attn.kv_a_layernorm": "self_attention.linear_kv_up_proj",
}


def by_hand(hf: Tensors) -> Tensors:
    """megatron-core's tensors, written down here once more."""
    found = {
        "embedding.word_embeddings.weight": hf["model.embed_tokens.weight"],
        "decoder.final_layernorm.weight": hf["model.norm.weight"],
        "output_layer.weight": hf["lm_head.weight"],
    }
    for layer in range(LAYERS):
        old, new = f"model.layers.{layer}.", f"decoder.layers.{layer}."
        found |= {f"{new}{b}.weight": hf[f"{old}{a}.weight"] for a, b in RENAMED.items()}
        found |= {
            f"{new}{b}.layer_norm_weight": hf[f"{old}{a}.weight"] for a, b in LAYER_NORMS.items()
        }
        norm = "mlp.linear_fc1.layer_norm_weight" if layer < DENSE else "pre_mlp_layernorm.weight"
        found[new + norm] = hf[f"{old}post_attention_layernorm.weight"]
        if layer < DENSE:
            found |= _mlp(hf, f"{old}mlp.", f"{new}mlp.")
            continue
        found[f"{new}mlp.router.weight"] = hf[f"{old}mlp.gate.weight"]
        bias = hf[f"{old}mlp.gate.e_score_correction_bias"]
        found[f"{new}mlp.router.expert_bias"] = bias
        found |= _mlp(hf, f"{old}mlp.shared_experts.", f"{new}mlp.shared_experts.")
        each = [_mlp(hf, f"{old}mlp.experts.{e}.", "") for e in range(EXPERTS)]
        for name in each[0]:
            found[f"{new}mlp.experts.experts.{name}"] = torch.stack([one[name] for one in each])
    return found


def _mlp(hf: Tensors, old: str, new: str) -> Tensors:
    both = torch.cat([hf[f"{old}gate_proj.weight"], hf[f"{old}up_proj.weight"]])
    return {
        f"{new}linear_fc1.weight": both,
        f"{new}linear_fc2.weight": hf[f"{old}down_proj.weight"],
    }


@pytest.mark.slow
@pytest.mark.parametrize("block", [(128, 128), (64, 32), (24, 136)])
def test_weights_are_their_products_bit_for_bit(plain, tmp_path, block):
    model = write_fp8(tmp_path / "hf", *plain, block)
    convert(model, tmp_path / "out")
    expected = by_hand(dequantised(model, block, torch.bfloat16))
    assert_same(loaded(tmp_path / "out"), expected)


@pytest.mark.slow
def test_blocks_are_of_128_where_the_config_does_not_say(plain, fp8, tmp_path):
    model = write_fp8(tmp_path / "hf", *plain, (128, 128), said=False)
    convert(model, tmp_path / "out")
    convert(fp8, tmp_path / "reference")
    assert_same(loaded(tmp_path / "out"), loaded(tmp_path / "reference"))


def test_float32_is_the_product_itself(fp8, tmp_path):
    convert(fp8, tmp_path / "out", dtype="float32")
    expected = by_hand(dequantised(fp8, (128, 128), torch.float32))
    assert_same(loaded(tmp_path / "out"), expected)
    rounded = expected["decoder.layers.1.self_attention.linear_proj.weight"].bfloat16().float()
    assert not torch.equal(rounded, expected["decoder.layers.1.self_attention.linear_proj.weight"])


@pytest.mark.slow
@needs_transformers_5
def test_scales_in_bfloat16_are_read_too(plain, tmp_path):
    model = write_fp8(tmp_path / "hf", *plain, (128, 128))
    stored = load_folder(model)
    stored = {n: t.bfloat16() if n.endswith(SCALE) else t for n, t in stored.items()}
    save_file(stored, model / "model.safetensors")
    convert(model, tmp_path / "out")
    wide = {n: t.float() if n.endswith(SCALE) else t for n, t in stored.items()}
    save_file(wide, model / "model.safetensors")
    expected = by_hand(dequantised(model, (128, 128), torch.bfloat16))
    assert_same(loaded(tmp_path / "out"), expected)


@pytest.mark.parametrize("kind", ["Mistral", "compressed-tensors"])
@needs_transformers_5
def test_scales_of_matrices_and_of_rows_are_read_too(plain, fp8, tmp_path, kind):
    """As Ministral 3 and GLM-4.5 are released in fp8: with scales of what goes in as well."""
    stored: Tensors = {}
    wide: Tensors = {}
    for name, tensor in load_folder(fp8).items():
        if not is_linear(name):
            stored |= {} if name.endswith(SCALE) else {name: tensor}
            wide |= {} if name.endswith(SCALE) else {name: tensor}
            continue
        rows = len(tensor)
        scales = (torch.arange(rows)[:, None] + zlib.crc32(name.encode()) % 91 + 1).bfloat16() / 64
        stored[name] = tensor
        if kind == "Mistral":
            scales = scales[:1].expand(rows, 1)
            stored[f"{name}{SCALE}"] = scales[0, 0].clone()
            stored[name.replace(".weight", ".activation_scale")] = torch.tensor(7.0)
        else:
            stored[f"{name}_scale"] = scales
            stored[name.replace(".weight", ".input_scale")] = torch.ones(1)
        wide[name] = (tensor.float() * scales.float()).bfloat16()
    cache = "model.layers.1.self_attn.k_scale"
    stored[cache] = torch.tensor(0.5)
    said = {"weight_block_size": None} if kind == "Mistral" else {"format": "float-quantized"}
    raw = json.loads((fp8 / "config.json").read_text()) | {"quantization_config": said}
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/config.json").write_text(json.dumps(raw))
    save_file(stored, tmp_path / "hf/model.safetensors", {"format": "pt"})
    assert convert(tmp_path / "hf", tmp_path / "out").dropped.keys() == {cache}
    assert_same(loaded(tmp_path / "out"), by_hand(wide))
    assert verify_checkpoint(tmp_path / "out", tmp_path / "hf").equal


def test_every_fault_is_listed_at_once(plain, tmp_path):
    model = write_fp8(tmp_path / "hf", *plain, (128, 128))
    stored = load_folder(model)
    first = "model.layers.0.self_attn."
    del stored[f"{first}o_proj.weight{SCALE}"]
    alone = f"model.layers.1.input_layernorm.weight{SCALE}"
    stored[alone] = torch.ones(1, 1)
    wrong = f"{first}q_a_proj.weight"
    stored[wrong + SCALE] = stored[wrong + SCALE].T.contiguous()[:1]
    save_file(stored, model / "model.safetensors")
    with pytest.raises(MappingError) as refused:
        convert(model, tmp_path / "out")
    names = sorted(name.split(":")[0] for name in refused.value.names)
    assert names == sorted([f"{first}o_proj.weight", alone, wrong])
    assert not (tmp_path / "out").exists()


def test_scales_that_are_fp8_themselves_are_refused_as_what_they_are(fp8, tmp_path):
    stored = load_folder(fp8)
    name = next(name for name in stored if is_linear(name))
    scales = stored.pop(name + SCALE)
    stored[name] = torch.zeros(len(stored[name]), 8, dtype=torch.uint8)
    stored[f"{name}_scale"] = scales.to(torch.float8_e4m3fn)
    (tmp_path / "hf").mkdir()
    save_file(stored, tmp_path / "hf/model.safetensors")
    (tmp_path / "hf/config.json").write_bytes((fp8 / "config.json").read_bytes())
    with pytest.raises(MappingError) as refused:
        convert(tmp_path / "hf", tmp_path / "out")
    assert refused.value.names == (
        f"{name}_scale: scales that are float8_e4m3fn, as of NVFP4: part of none",
    )


def test_fp8_cannot_be_kept(fp8, tmp_path):
    with pytest.raises(UsageError, match="`dtype='keep'`"):
        convert(fp8, tmp_path / "out", dtype="keep")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_model_it_was_made_of_verifies(fp8, tmp_path):
    convert(fp8, tmp_path / "out")
    assert verify_checkpoint(tmp_path / "out", fp8).equal
