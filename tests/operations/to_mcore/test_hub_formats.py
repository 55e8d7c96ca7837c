"""`to-mcore` of what the Hub has in fp8 and FP4: each form, and models whose indexer stays wide."""

import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ckpt_tool import MergeOptions, merge_megatron, verify_checkpoint
from ckpt_tool.common.errors import MappingError
from tests.operations.to_mcore.test_inputs import (
    NO_SYNC,
    Tensors,
    assert_same,
    convert,
    loaded,
    rewritten,
)
from tests.real.megatron_models import write_model
from tests.support.merging import load_folder
from tests.support.versions import needs_transformers_5

pytestmark = needs_transformers_5

FP8, EXPONENT = torch.float8_e4m3fn, getattr(torch, "float8_e8m0fnu", torch.uint8)
#: A weight in a form: what a file has of it by the ends of names, and what it is, in float32.
Stored = tuple[dict[str, Tensor], Tensor]
#: Neither divides the sizes of the models.
BLOCK = (24, 40)
WIDE = re.compile(r"norm|embed|head\.|mlp\.gate\.|eh_proj|indexer\.weights_proj")
TABLE = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def random(shape: tuple[int, ...], name: str, end: int = 256) -> Tensor:
    source = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randint(0, end, shape, generator=source, dtype=torch.uint8)


def fill(scales: Tensor, shape: torch.Size, block: tuple[int, int]) -> Tensor:
    spread = scales.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return spread[: shape[0], : shape[1]]


def as_fp8(weight: Tensor, name: str, scales: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Stored:
    rows, columns = (-(-size // step) for size, step in zip(weight.shape, BLOCK, strict=True))
    numbers = random(tuple(weight.shape), name)
    numbers[numbers & 127 == 127] = 0
    stored, factors = scales(random((rows, columns), f"{name} scales", 9) + 120)
    fp8 = numbers.view(FP8)
    return {".weight": fp8, "scale": stored}, fp8.float() * fill(factors, weight.shape, BLOCK)


def as_floats(exponents: Tensor) -> tuple[Tensor, Tensor]:
    factors = exponents.float() * 0.0123
    return factors, factors


def as_exponents(exponents: Tensor) -> tuple[Tensor, Tensor]:
    return exponents, torch.exp2(exponents.float() - 127)


def fp8_of_v3(weight: Tensor, name: str) -> Stored:
    parts, exact = as_fp8(weight, name, as_floats)
    return {".weight": parts[".weight"], ".weight_scale_inv": parts["scale"]}, exact


def fp8_of_v31(weight: Tensor, name: str) -> Stored:
    parts, exact = as_fp8(weight, name, as_exponents)
    return {".weight": parts[".weight"], ".weight_scale_inv": parts["scale"]}, exact


def fp8_of_v4(weight: Tensor, name: str) -> Stored:
    parts, exact = as_fp8(weight, name, as_exponents)
    return {".weight": parts[".weight"], ".scale": parts["scale"].view(EXPONENT)}, exact


def make_fp4(weight: Tensor, name: str, group: int) -> tuple[Tensor, Tensor]:
    """Bytes of two numbers, and these by groups."""
    rows, columns = weight.shape
    codes = random((rows, columns // 2), name)
    numbers = torch.stack((codes & 15, codes >> 4), -1).flatten(1)
    values = TABLE[(numbers & 7).long()] * torch.where(numbers > 7, -1.0, 1.0)
    return codes, values.reshape(rows, columns // group, group)


def fp4_of_v4(weight: Tensor, name: str) -> Stored:
    """Experts alone; the rest is fp8."""
    if ".experts." not in name or weight.shape[1] % 32:
        return fp8_of_v4(weight, name)
    codes, values = make_fp4(weight, name, 32)
    exponents = random(tuple(values.shape[:2]), f"{name} scales", 9) + 120
    exact = values * torch.exp2(exponents.float() - 127)[..., None]
    return {".weight": codes.view(torch.int8), ".scale": exponents.view(EXPONENT)}, exact.flatten(1)


def nvfp4(weight: Tensor, name: str, *, by: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    codes, values = make_fp4(weight, name, 16)
    scales = (random(tuple(values.shape[:2]), f"{name} scales", 100) + 1).view(FP8)
    over = (random((1,), f"{name} over") + 1).float() * 0.0371
    factors = scales.float() / over if by else scales.float() * over
    return codes, scales, over, (values * factors[..., None]).flatten(1)


def nvfp4_of_modelopt(weight: Tensor, name: str) -> Stored:
    codes, scales, over, exact = nvfp4(weight, name, by=False)
    ends = {".weight": codes, ".weight_scale": scales, ".weight_scale_2": over[0]}
    return ends | {".input_scale": torch.tensor(0.5)}, exact


def nvfp4_of_compressed_tensors(weight: Tensor, name: str) -> Stored:
    codes, scales, over, exact = nvfp4(weight, name, by=True)
    ends = {".weight_packed": codes, ".weight_scale": scales, ".weight_global_scale": over}
    return ends | {".input_global_scale": torch.ones(1)}, exact


Form = Callable[[Tensor, str], Stored]
FORMS = {
    form.__name__: form
    for form in (
        fp8_of_v3,
        fp8_of_v31,
        fp8_of_v4,
        fp4_of_v4,
        nvfp4_of_modelopt,
        nvfp4_of_compressed_tensors,
    )
}
METHOD = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": list(BLOCK)}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    names = ("deepseek_v32", "glm_moe_dsa_mtp")
    return {name: write_model(name, tmp_path_factory.mktemp(name)) for name in names}


def write(hf: Path, folder: Path, form: Form) -> tuple[Path, Path]:
    """The model in a form, and as wide as it is then."""
    stored: Tensors = {}
    wide: Tensors = {}
    for name, tensor in load_folder(hf).items():
        has_groups = not form.__name__.startswith("nv") or tensor.shape[-1] % 16 == 0
        if WIDE.search(name) or tensor.ndim < 2 or not has_groups:
            stays = ".k_norm." in name or name.endswith("_bias")
            stored[name] = wide[name] = tensor.float() if stays else tensor.bfloat16()
            continue
        ends, exact = form(tensor, name)
        stem = name.removesuffix(".weight")
        stored |= {stem + end: value.contiguous() for end, value in ends.items()}
        wide[name] = exact.bfloat16()
    raw = json.loads((hf / "config.json").read_text()) | {"dtype": "bfloat16"}
    for place, tensors, more in (
        ("stored", stored, {"quantization_config": METHOD}),
        ("wide", wide, {}),
    ):
        (folder / place).mkdir(parents=True)
        save_file(tensors, folder / place / "model.safetensors", {"format": "pt"})
        (folder / place / "config.json").write_text(json.dumps(raw | more))
    assert len(stored) > len(wide) + 20
    return folder / "stored", folder / "wide"


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_what_it_stands_for(models, tmp_path, form: str) -> None:
    """DeepSeek-V3.2, whose indexer has weights of both kinds and norms in float32."""
    stored, wide = write(models["deepseek_v32"], tmp_path / "hf", FORMS[form])
    convert(stored, tmp_path / "stored")
    convert(wide, tmp_path / "wide")
    assert_same(loaded(tmp_path / "stored"), loaded(tmp_path / "wide"))


def test_a_model_that_shares_indexers_comes_back_wide(models, tmp_path) -> None:
    """GLM-5 in fp8, its layer for multi-token prediction too: to Megatron and back."""
    stored, wide = write(models["glm_moe_dsa_mtp"], tmp_path / "hf", fp8_of_v3)
    convert(stored, tmp_path / "mcore")
    found = loaded(tmp_path / "mcore")
    assert any(name.endswith("core_attention.indexer.linear_wk.weight") for name in found)
    assert any(name.startswith("mtp.") and "indexer" in name for name in found)
    merge_megatron(tmp_path / "mcore", tmp_path / "back", MergeOptions(config=wide, write=NO_SYNC))
    expected = load_folder(wide)
    rounded = {n: t.bfloat16() if ".k_norm." in n else t for n, t in expected.items()}
    assert_same(load_folder(tmp_path / "back"), rounded)
    differing = {each.name for each in verify_checkpoint(tmp_path / "mcore", stored).mismatched}
    assert differing == {name for name in expected if ".k_norm." in name}


@pytest.mark.parametrize("form", ["fp4_of_v4", "nvfp4_of_modelopt"])
def test_forms_are_compared_by_their_values(models, tmp_path, form: str) -> None:
    stored, wide = write(models["deepseek_v32"], tmp_path / "hf", FORMS[form])
    assert verify_checkpoint(stored, wide).equal
    assert verify_checkpoint(stored, stored).equal
    tensors = load_folder(stored)
    name = next(name for name in tensors if name.endswith("experts.3.up_proj.weight"))
    tensors[name] = tensors[name].clone()
    tensors[name].view(torch.uint8)[2, 3] ^= 1
    save_file(tensors, stored / "model.safetensors", {"format": "pt"})
    found = verify_checkpoint(stored, wide)
    assert [each.name for each in found.mismatched] == [name]
    assert found.mismatched[0].stats is not None
    assert found.mismatched[0].stats.num_different == 1


@pytest.mark.parametrize(
    ("form", "end", "said"),
    [
        ("fp8_of_v4", "o_proj.scale", "o_proj.weight: float8_e4m3fn without"),
        ("fp4_of_v4", "experts.3.up_proj.scale", "experts.3.up_proj.weight"),
        ("nvfp4_of_modelopt", "experts.3.up_proj.weight_scale_2", "experts.3.up_proj.weight"),
    ],
)
def test_a_weight_without_scales_is_named(models, tmp_path, form: str, end: str, said) -> None:
    stored, _ = write(models["deepseek_v32"], tmp_path / "hf", FORMS[form])
    tensors = load_folder(stored)
    for name in [name for name in tensors if name.endswith(end)]:
        del tensors[name]
    save_file(tensors, stored / "model.safetensors", {"format": "pt"})
    with pytest.raises(MappingError) as refused:
        convert(stored, tmp_path / "out")
    assert any(said in each for each in refused.value.names), refused.value.names
    assert not (tmp_path / "out").exists()


def test_exponents_of_no_weight_are_named(models, tmp_path) -> None:
    stored, _ = write(models["deepseek_v32"], tmp_path / "hf", fp8_of_v4)
    tensors = load_folder(stored)
    alone = "model.layers.0.input_layernorm.scale"
    tensors[alone] = torch.ones(1, 1).to(EXPONENT)
    save_file(tensors, stored / "model.safetensors", {"format": "pt"})
    with pytest.raises(MappingError) as refused:
        convert(stored, tmp_path / "out")
    assert [each.split(":")[0] for each in refused.value.names] == [alone]


def test_biases_that_are_float32_beside_other_weights_stay_so(tmp_path) -> None:
    """MiniMax-M2's, which its class would have as the rest."""

    def make_narrow(tensors: Tensors) -> None:
        kept = {name: tensors[name] for name in tensors if name.endswith("_bias")}
        tensors |= {name: tensor.bfloat16() for name, tensor in tensors.items()} | kept

    hf = write_model("minimax_m2", tmp_path / "made")
    model = rewritten(hf, tmp_path / "hf", make_narrow, {"dtype": "bfloat16"})
    convert(model, tmp_path / "out")
    biases = [t for n, t in load_folder(model).items() if n.endswith("_bias")]
    stored = loaded(tmp_path / "out")["decoder.layers.mlp.router.expert_bias"]
    assert torch.equal(stored, torch.stack(biases))
    assert stored.dtype == torch.float32
