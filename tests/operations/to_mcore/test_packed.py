"""Models whose experts have four bits: to Megatron, compared with wide ones, and as what fills."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from ckpt_tool import MergeOptions, merge_fsdp, verify_checkpoint
from ckpt_tool.common.errors import FormatError, MappingError, UsageError
from tests.operations.to_mcore.test_inputs import NO_SYNC, Tensors, assert_same, convert, loaded
from tests.real.fill import fill_distinct
from tests.real.megatron_models import write_model
from tests.support.merging import load_folder, write_rank
from tests.support.tiny_models import build
from tests.support.versions import needs_transformers_5

GROUP = 16
INT4 = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 4, "type": "int", "symmetric": True, "group_size": GROUP},
        }
    },
}


def is_expert(name: str) -> bool:
    return ".mlp.experts." in name


def pack(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """A weight as compressed-tensors has it, of scales that are all different, and what it is."""
    rows, columns = weight.shape
    groups = weight.reshape(rows, -1, GROUP)
    scales = (groups.abs().amax(-1) / 7).bfloat16()
    numbers = (
        (groups / scales.float()[..., None]).round().clamp(-8, 7).long().reshape(rows, columns)
    )
    codes = (numbers + 8).reshape(rows, -1, 8)
    words = (codes << torch.arange(0, 32, 4)).sum(-1)
    words = torch.where(words < 2**31, words, words - 2**32).int()
    wide = (numbers.reshape(rows, -1, GROUP) * scales.float()[..., None]).bfloat16()
    found = {"packed": words, "scale": scales, "shape": torch.tensor([rows, columns])}
    return found, wide.reshape(rows, columns)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Kimi-K2-Thinking's kind, tiny: packed as it is published, and wide."""
    folder = tmp_path_factory.mktemp("kimi")
    tiny = write_model("deepseek_v3", folder)
    raw = json.loads((tiny / "config.json").read_text())
    raw |= {"hidden_size": 32, "moe_intermediate_size": 48, "num_hidden_layers": 2}
    model = DeepseekV3ForCausalLM(DeepseekV3Config(**raw)).bfloat16()
    fill_distinct(model)
    model.save_pretrained(folder / "plain")
    packed: Tensors = {}
    wide: Tensors = {}
    for name, tensor in load_folder(folder / "plain").items():
        if is_expert(name):
            parts, wide[name] = pack(tensor.float())
            packed |= {f"{name}_{end}": value for end, value in parts.items()}
        else:
            packed[name] = wide[name] = tensor
    assert sum(name.endswith("_packed") for name in packed) == 3 * raw["n_routed_experts"]
    raw |= {"model_type": "kimi_k2", "dtype": "bfloat16"}
    for name, tensors, more in (
        ("packed", packed, {"quantization_config": INT4}),
        ("wide", wide, {}),
    ):
        (folder / name).mkdir()
        save_file(tensors, folder / name / "model.safetensors", {"format": "pt"})
        (folder / name / "config.json").write_text(json.dumps(raw | more))
    return folder / "packed", folder / "wide"


def test_packed_experts_become_megatrons(models, tmp_path) -> None:
    packed, wide = models
    result = convert(packed, tmp_path / "packed")
    convert(wide, tmp_path / "wide")
    assert_same(loaded(tmp_path / "packed"), loaded(tmp_path / "wide"))
    assert result.verified


def test_a_shape_is_of_32_bits_too(models, tmp_path) -> None:
    """As Kimi-K2-Thinking is released; compressed-tensors itself writes 64."""
    packed, wide = models
    tensors = load_folder(packed)
    assert {t.dtype for n, t in tensors.items() if n.endswith("_shape")} == {torch.int64}
    short = {n: t.int() if n.endswith("_shape") else t for n, t in tensors.items()}
    changed = write_changed(packed, short, tmp_path)
    assert verify_checkpoint(changed, wide).equal
    name = next(name for name in short if name.endswith("_shape"))
    short[name][1] += 1
    with pytest.raises(FormatError, match="its weight_shape says"):
        verify_checkpoint(write_changed(packed, short, tmp_path), wide)


def test_packed_and_wide_are_compared_by_their_values(models) -> None:
    packed, wide = models
    for pair in ((packed, wide), (wide, packed)):
        found = verify_checkpoint(*pair)
        assert found.equal, found
        said = [*found.left.warnings, *found.right.warnings]
        assert sum("quantised weights are compared as bfloat16" in each for each in said) == 1
    assert verify_checkpoint(packed, packed).equal


def test_a_changed_scale_is_found(models, tmp_path) -> None:
    packed, wide = models
    tensors = load_folder(packed)
    name = next(name for name in tensors if name.endswith("_scale"))
    tensors[name][0, 0] *= 2
    changed = write_changed(packed, tensors, tmp_path)
    found = verify_checkpoint(changed, wide)
    assert [each.name for each in found.mismatched] == [name.removesuffix("_scale")]
    assert found.mismatched[0].stats is not None
    assert found.mismatched[0].stats.num_different <= GROUP


def write_changed(packed: Path, tensors: Tensors, folder: Path) -> Path:
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text((packed / "config.json").read_text())
    return folder


def drop(end: str) -> Callable[[Tensors, str], object]:
    return lambda tensors, name: tensors.pop(f"{name}_{end}")


def add_zeros(tensors: Tensors, name: str) -> None:
    tensors[f"{name}_zero_point"] = torch.zeros(1, dtype=torch.int32)


def add_itself(tensors: Tensors, name: str) -> None:
    tensors[name] = torch.zeros(2, 2)


def cut_scales(tensors: Tensors, name: str) -> None:
    tensors[f"{name}_scale"] = tensors[f"{name}_scale"][:, :-1].clone()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (add_itself, "packed, and as it is"),
        (cut_scales, "groups of (24|32|48), and config.json says 16"),
    ],
)
def test_what_is_wrong_with_a_packed_weight_is_named(
    models, tmp_path, change: Callable[[Tensors, str], object], said: str
) -> None:
    packed, wide = models
    changed, name = spoil(packed, tmp_path, change)
    with pytest.raises(MappingError, match="1 quantised weight cannot be read") as caught:
        verify_checkpoint(changed, wide)
    (fault,) = caught.value.names
    assert name in fault
    assert re.search(said, fault)


def spoil(packed: Path, folder: Path, change: Callable[[Tensors, str], object]) -> tuple[Path, str]:
    tensors = load_folder(packed)
    name = next(n for n in tensors if n.endswith("_packed")).removesuffix("_packed")
    change(tensors, name)
    return write_changed(packed, tensors, folder), name


@pytest.mark.parametrize("change", [drop("scale"), drop("shape"), add_zeros])
def test_what_is_no_whole_set_stays_what_it_is(
    models, tmp_path, change: Callable[[Tensors, str], object]
) -> None:
    packed, wide = models
    changed, name = spoil(packed, tmp_path, change)
    found = verify_checkpoint(changed, wide)
    assert found.missing == [name]
    assert f"{name}_packed" in found.unexpected
    with pytest.raises(MappingError) as caught:
        convert(changed, tmp_path / "out")
    assert any(name in each for each in caught.value.names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8])
@pytest.mark.parametrize("kind", ["fp8", "wide"])
def test_names_alone_make_nothing_packed(tmp_path, dtype: torch.dtype, kind: str) -> None:
    """A tensor called so on both sides, or on one, is a tensor."""
    plain = {
        "model.norm.weight": torch.ones(8),
        "model.layers.0.attn_blocks": torch.ones(3, 3, dtype=dtype),
        "lm_head.weight": torch.full((128, 128), 2.0, dtype=torch.bfloat16),
    }
    other = dict(plain)
    if kind == "fp8":
        other["lm_head.weight"] = torch.ones(128, 128).to(torch.float8_e4m3fn)
        other["lm_head.weight_scale_inv"] = torch.full((1, 1), 2.0)
    for name, tensors in (("plain", plain), ("other", other)):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors", {"format": "pt"})
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "unheard_of"}))
    assert verify_checkpoint(tmp_path / "other", tmp_path / "plain").equal
    del plain["model.layers.0.attn_blocks"]
    save_file(plain, tmp_path / "plain" / "model.safetensors", {"format": "pt"})
    found = verify_checkpoint(tmp_path / "other", tmp_path / "plain")
    assert (found.mismatched, list(found.unexpected)) == ([], ["model.layers.0.attn_blocks"])


def test_numbers_that_are_not_around_zero_are_refused(models, tmp_path) -> None:
    packed, wide = models
    changed = write_changed(packed, load_folder(packed), tmp_path)
    said = (changed / "config.json").read_text().replace('"symmetric": true', '"symmetric": false')
    (changed / "config.json").write_text(said)
    with pytest.raises(MappingError, match="group_0 has numbers of INT4 that are not around zero"):
        verify_checkpoint(changed, wide)


def test_a_shape_that_the_file_does_not_say_is_an_error_when_it_is_read(models, tmp_path) -> None:
    packed, _ = models
    tensors = load_folder(packed)
    name = next(name for name in tensors if name.endswith("_shape"))
    tensors[name][1] += 1
    changed = write_changed(packed, tensors, tmp_path)
    with pytest.raises(FormatError, match="weight_shape says"):
        convert(changed, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_packed_weights_stay_packed_nowhere_in_megatron(models, tmp_path) -> None:
    with pytest.raises(UsageError, match="does not load quantised weights"):
        convert(models[0], tmp_path / "out", dtype="keep")


@needs_transformers_5
def test_a_part_of_gpt_oss_is_filled_from_mxfp4(tmp_path) -> None:
    """What was not saved comes from the Hub's folder, unpacked and turned."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    model = build("gpt_oss", hidden_size=32, intermediate_size=32)
    model.bfloat16().save_pretrained(tmp_path / "plain")
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    packed, wide = {}, {}
    source = torch.Generator().manual_seed(1)
    for name, tensor in load_folder(tmp_path / "plain").items():
        if name.endswith(("gate_up_proj", "down_proj")):
            count, columns, rows = tensor.shape
            blocks = torch.randint(
                0, 256, (count, rows, columns // 32, 16), generator=source, dtype=torch.uint8
            )
            scales = torch.randint(110, 130, blocks.shape[:-1], generator=source, dtype=torch.uint8)
            packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            wide[name] = convert_moe_packed_tensors(blocks, scales)
        else:
            packed[name] = wide[name] = tensor
    assert any(name.endswith("_blocks") for name in packed)
    base = tmp_path / "base"
    base.mkdir()
    save_file(packed, base / "model.safetensors", {"format": "pt"})
    method = {"quantization_config": {"quant_method": "mxfp4"}}
    (base / "config.json").write_text(json.dumps(config | method))
    kept = {name: tensor for name, tensor in wide.items() if ".experts." not in name}
    run = write_rank(tmp_path / "run", kept, config)
    merge_fsdp([run], tmp_path / "out", MergeOptions(fill_from=base, write=NO_SYNC))
    assert_same(load_folder(tmp_path / "out"), wide)
    assert verify_checkpoint(base, tmp_path / "out").equal


def put_around(folder: Path, out: Path) -> Path:
    """A model as the language model of a Kimi-K2.5, whose config says how it is quantised."""
    towers = ("vision_tower.encoder.blocks.0.wqkv.weight", "mm_projector.proj.0.weight")
    tensors = {f"language_model.{name}": tensor for name, tensor in load_folder(folder).items()}
    tensors |= {name: torch.arange(12.0).reshape(3, 4).bfloat16() for name in towers}
    raw = json.loads((folder / "config.json").read_text())
    out.mkdir()
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    (out / "config.json").write_text(json.dumps({"model_type": "kimi_k25", "text_config": raw}))
    return out


def test_packed_experts_inside_of_a_model_that_sees(models, tmp_path) -> None:
    packed, wide = (put_around(each, tmp_path / each.name) for each in models)
    convert(packed, tmp_path / "of_packed")
    convert(wide, tmp_path / "of_wide")
    found = loaded(tmp_path / "of_packed")
    assert_same(found, loaded(tmp_path / "of_wide"))
    assert {name.partition(".")[0] for name in found} == {
        "language_model",
        "vision_tower",
        "mm_projector",
    }
    convert(models[0], tmp_path / "alone")
    alone = {
        f"language_model.{name}": tensor for name, tensor in loaded(tmp_path / "alone").items()
    }
    assert_same({n: t for n, t in found.items() if n in alone}, alone)
