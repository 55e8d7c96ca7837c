"""`to-mcore`: the forms in which a model may be given, and what becomes of tensors that are odd."""

import json
import pickle
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata
from transformers import LlamaConfig, LlamaForCausalLM

from ckpt_tool import ToMcoreOptions, WriteOptions, convert_to_mcore, verify_checkpoint
from ckpt_tool.common.errors import MappingError
from ckpt_tool.plans.options import WriteResult
from tests.real.fill import fill_distinct
from tests.real.megatron_models import write_model
from tests.support.merging import load_folder, values
from tests.support.versions import TRANSFORMERS

Tensors = dict[str, Tensor]
#: What stays where nothing was loaded, by whether it is a float.
UNSET = {True: torch.nan, False: -1}
NO_SYNC = WriteOptions(verify=True, fsync=False)


def loaded(folder: Path) -> Tensors:
    """Every tensor of a checkpoint, as torch.distributed.checkpoint itself loads it."""
    metadata: Metadata = pickle.loads((folder / ".metadata").read_bytes())
    state = {
        name: torch.full(entry.size, UNSET[kind.is_floating_point], dtype=kind)
        for name, entry in metadata.state_dict_metadata.items()
        if not isinstance(entry, BytesStorageMetadata) and (kind := entry.properties.dtype)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no process group
        dcp.load(state, storage_reader=dcp.FileSystemReader(folder))
    return state


def archives(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*.distcp")}


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Same names, dtypes, shapes and bits."""
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        bits = [t.flatten().view(torch.uint8) for t in (found[name], tensor)]
        assert torch.equal(*bits), name


def rewritten(
    hf: Path,
    folder: Path,
    change: Callable[[Tensors], object] = lambda tensors: None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """The model `hf` as one safetensors file in `folder`, its tensors changed by `change`."""
    tensors = load_folder(hf)
    change(tensors)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    raw = json.loads((hf / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, **(config or {})}))
    return folder


def convert(model: Path, out: Path, **options: Any) -> WriteResult:
    result = convert_to_mcore(model, out, ToMcoreOptions(write=NO_SYNC, **options))
    assert result.verified is True
    return result


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("models")
    names = ("llama", "qwen2", "qwen3_moe", "deepseek_v3", "deepseek_v3_mtp")
    return {name: write_model(name, out / name) for name in names}


def write_bins(tensors: Tensors, path: Path) -> None:
    folder, places = path.parent, {}
    for number in (1, 2, 3):
        name = f"pytorch_model-{number:05}-of-00003.bin"
        part = dict(sorted(tensors.items())[number - 1 :: 3])
        torch.save(part, folder / name)
        places.update(dict.fromkeys(part, name))
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


FORMS = [(name, "") for name in ("model.safetensors", "pytorch_model.bin", "several .bin")]
FORMS.append(("weights.safetensors",) * 2)
FORMS.append(("pytorch_model.bin",) * 2)


@pytest.mark.slow
@pytest.mark.parametrize(("form", "given"), FORMS)
def test_the_form_of_the_model_leaves_no_trace(models, tmp_path, form, given):
    (tmp_path / "hf").mkdir()
    shutil.copy(models["qwen3_moe"] / "config.json", tmp_path / "hf")
    tensors = load_folder(models["qwen3_moe"])
    save = save_file if form.endswith(".safetensors") else torch.save
    write = write_bins if form == "several .bin" else save
    write(tensors, tmp_path / "hf" / form)
    convert(tmp_path / "hf" / given, tmp_path / "out")
    convert(models["qwen3_moe"], tmp_path / "reference")
    assert archives(tmp_path / "out") == archives(tmp_path / "reference")


@pytest.mark.parametrize("change", [0, 1])
def test_a_tied_head_that_is_stored_too(models, tmp_path, change):
    def store(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["lm_head.weight"][-1, -1] += change

    model = rewritten(models["qwen2"], tmp_path / "hf", store)
    if change:
        with pytest.raises(MappingError, match="but they differ"):
            convert(model, tmp_path / "out")
        return
    result = convert(model, tmp_path / "out")
    assert "model.embed_tokens.weight" in result.dropped["lm_head.weight"]
    convert(models["qwen2"], tmp_path / "reference")
    assert archives(tmp_path / "out") == archives(tmp_path / "reference")


def test_frequencies_that_old_files_hold_are_dropped_and_said(models, tmp_path):
    names = [f"model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in range(4)]

    def store(tensors: Tensors) -> None:
        tensors.update({name: values(8, start=n) for n, name in enumerate(names)})

    result = convert(rewritten(models["llama"], tmp_path / "hf", store), tmp_path / "out")
    assert result.dropped == {"*.inv_freq (4)": "computed from the config"}
    convert(models["llama"], tmp_path / "reference")
    assert archives(tmp_path / "out") == archives(tmp_path / "reference")


@pytest.mark.parametrize(
    "names",
    [
        ("k_scale", "v_scale"),
        ("k_proj.k_scale", "v_proj.v_scale"),
        ("kv_scale",),
        ("attn.q_scale",),
    ],
    ids=["of attention", "of layers", "in one", "of queries"],
)
def test_scales_of_a_servers_cache_are_dropped_and_said(models, tmp_path, names):
    """As compressed-tensors, ModelOpt and AutoFP8 have them, here beside weights of 32 bits."""
    layers = [f"model.layers.{layer}.self_attn.{name}" for name in names for layer in range(4)]

    def store(tensors: Tensors) -> None:
        tensors.update({name: values(1, start=n)[0] for n, name in enumerate(layers)})

    model = rewritten(models["llama"], tmp_path / "hf", store)
    result = convert(model, tmp_path / "out")
    assert result.dropped == {
        f"*.{name.rpartition('.')[2]} (4)": "a scale for the fp8 cache of a server, no weight"
        for name in names
    }
    convert(models["llama"], tmp_path / "reference")
    assert archives(tmp_path / "out") == archives(tmp_path / "reference")


def test_a_comparison_leaves_them_out_beside_megatron_alone(models, tmp_path):
    """A Hugging Face model without them is another one."""

    def store(tensors: Tensors) -> None:
        tensors["model.layers.0.self_attn.k_scale"] = values(1)[0]

    model = rewritten(models["llama"], tmp_path / "hf", store)
    convert(model, tmp_path / "out")
    for sides in ((tmp_path / "out", model), (model, tmp_path / "out")):
        result = verify_checkpoint(*sides)
        assert result.equal
        (left_out,) = [said for side in (result.left, result.right) for said in side.warnings]
        assert left_out.startswith(f"{model}: left out model.layers.0.self_attn.k_scale (a scale")
    assert verify_checkpoint(models["llama"], model).missing == ["model.layers.0.self_attn.k_scale"]


def test_what_is_called_like_such_a_scale_and_is_none_is_unexpected(models, tmp_path):
    def store(tensors: Tensors) -> None:
        tensors["model.layers.0.mlp.k_scale"] = values(1)
        tensors["model.layers.0.self_attn.k_scale"] = values(2, 2)

    with pytest.raises(MappingError) as refused:
        convert(rewritten(models["llama"], tmp_path / "hf", store), tmp_path / "out")
    assert {name.rpartition(": ")[2] for name in refused.value.names} == {
        "model.layers.0.mlp.k_scale",
        "model.layers.0.self_attn.k_scale",
    }


def test_experts_as_transformers_5_holds_them_in_memory(models, tmp_path):
    def fuse(tensors: Tensors) -> None:
        for layer in range(4):
            prefix = f"model.layers.{layer}.mlp.experts."
            parts: dict[str, list[Tensor]] = {
                part: [tensors.pop(f"{prefix}{e}.{part}_proj.weight") for e in range(4)]
                for part in ("gate", "up", "down")
            }
            both = zip(parts["gate"], parts["up"], strict=True)
            tensors[f"{prefix}gate_up_proj"] = torch.stack([torch.cat(pair) for pair in both])
            tensors[f"{prefix}down_proj"] = torch.stack(parts["down"])

    convert(rewritten(models["qwen3_moe"], tmp_path / "hf", fuse), tmp_path / "out")
    convert(models["qwen3_moe"], tmp_path / "reference")
    assert archives(tmp_path / "out") == archives(tmp_path / "reference")


def test_biases_of_attention_and_mlp(models, tmp_path):
    config = json.loads((models["llama"] / "config.json").read_text())
    model = LlamaForCausalLM(LlamaConfig(**{**config, "attention_bias": True, "mlp_bias": True}))
    fill_distinct(model)
    model.save_pretrained(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "out")
    found, hf = loaded(tmp_path / "out"), model.state_dict()
    for layer in range(4):
        old = f"model.layers.{layer}."
        q, k, v = (hf[f"{old}self_attn.{x}_proj.bias"] for x in "qkv")
        # 4 heads of 16 in 2 groups: each has its two query heads, its key, its value
        expected = {
            "self_attention.linear_qkv": [q[:32], k[:16], v[:16], q[32:], k[16:], v[16:]],
            "self_attention.linear_proj": [hf[f"{old}self_attn.o_proj.bias"]],
            "mlp.linear_fc1": [hf[f"{old}mlp.{x}_proj.bias"] for x in ("gate", "up")],
            "mlp.linear_fc2": [hf[f"{old}mlp.down_proj.bias"]],
        }
        for name, parts in expected.items():
            bias = found[f"decoder.layers.{name}.bias"][layer]
            assert torch.equal(bias, torch.cat(parts)), name


MTP = "model.layers.4."


@pytest.mark.parametrize("repeat", [f"{MTP}shared_head.head.weight", f"{MTP}embed_tokens.weight"])
def test_a_prediction_head_that_differs_is_refused(models, tmp_path, repeat):
    model = rewritten(
        models["deepseek_v3_mtp"], tmp_path / "hf", lambda t: t[repeat][-1, -1].add_(1)
    )
    with pytest.raises(MappingError) as refused:
        convert(model, tmp_path / "out")
    assert [name.split(":")[0] for name in refused.value.names] == [repeat]
    assert not (tmp_path / "out").exists()
    dropped = convert(models["deepseek_v3_mtp"], tmp_path / "same").dropped
    assert set(dropped) == {f"{MTP}shared_head.head.weight", f"{MTP}embed_tokens.weight"}


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_the_bias_of_the_experts_is_float32(models, tmp_path, stored):
    def store(tensors: Tensors) -> None:
        own = [name for name in tensors if name.endswith("e_score_correction_bias")]
        tensors.update({name: tensors[name].to(stored) for name in own})

    model = rewritten(models["deepseek_v3"], tmp_path / "hf", store)
    convert(model, tmp_path / "out", dtype="bfloat16")
    found, hf = loaded(tmp_path / "out"), load_folder(model)
    biases = {name: t for name, t in found.items() if name.endswith("expert_bias")}
    expected = {
        f"decoder.layers.{n}.mlp.router.expert_bias": hf[
            f"model.layers.{n}.mlp.gate.e_score_correction_bias"
        ].float()
        for n in (1, 2, 3)
    }
    assert_same(biases, expected)
    assert {t.dtype for name, t in found.items() if name not in biases} == {torch.bfloat16}


def test_mimo_has_the_halves_of_its_projection_the_other_way_round(models, tmp_path):
    own = "model.mtp_layers.0."
    norms = ("token_layernorm", "hidden_layernorm", "final_layernorm")

    def add(tensors: Tensors) -> None:
        last = "model.layers.3."
        layer = {n.replace(last, own): t * 2 for n, t in tensors.items() if n.startswith(last)}
        tensors.update(layer)
        tensors.update({f"{own}{n}.weight": values(64, start=i) for i, n in enumerate(norms, 1)})
        tensors[f"{own}input_proj.weight"] = values(64, 128, start=100)

    said = {"model_type": "mimo", "num_nextn_predict_layers": 1}
    model = rewritten(models["qwen2"], tmp_path / "hf", add, said)
    convert(model, tmp_path / "out")
    found, hf = loaded(tmp_path / "out"), load_folder(model)
    mtp = {n.removeprefix("mtp.layers.0."): t for n, t in found.items() if n.startswith("mtp.")}
    projection = hf[f"{own}input_proj.weight"]
    mlp = [hf[f"{own}mlp.{part}_proj.weight"] for part in ("gate", "up")]
    expected = {
        "eh_proj.weight": torch.cat([projection[:, 64:], projection[:, :64]], 1),
        "enorm.weight": hf[f"{own}token_layernorm.weight"],
        "hnorm.weight": hf[f"{own}hidden_layernorm.weight"],
        "final_layernorm.weight": hf[f"{own}final_layernorm.weight"],
        "transformer_layer.mlp.linear_fc1.weight": torch.cat(mlp),
    }
    assert_same({name: mtp[name] for name in expected}, expected)
    layer = {n.removeprefix("transformer_layer.") for n in mtp if n.startswith("transformer")}
    assert layer == {
        n.removeprefix("decoder.layers.") for n in found if n.startswith("decoder.layers.")
    }


@pytest.mark.parametrize("part", ["base_layer", "lora_A.default"])
def test_adapters_are_to_be_merged_first(models, tmp_path, part):
    name = f"model.layers.0.self_attn.q_proj.{part}.weight"
    model = rewritten(models["llama"], tmp_path / "in", lambda t: t.update({name: values(2, 2)}))
    with pytest.raises(MappingError, match="a model with LoRA adapters: 1 of") as refused:
        convert_to_mcore(model, tmp_path / "out")
    assert refused.value.names == (name,)
    assert "ckpt merge" in refused.value.hint


@pytest.mark.skipif(TRANSFORMERS < (5, 0), reason="transformers 4 has no such model")
def test_layers_ahead_of_ernie_are_left_out_and_said(tmp_path):
    model = write_model("ernie4_5_moe", tmp_path / "model")
    convert_to_mcore(model, tmp_path / "without", ToMcoreOptions(write=NO_SYNC))
    ahead = {"model.mtp_block.0.input_layernorm.weight": torch.ones(32)}
    tensors = load_folder(model) | ahead
    for path in [*model.glob("*.safetensors"), *model.glob("*.index.json")]:
        path.unlink()
    save_file(tensors, model / "model.safetensors")
    result = convert_to_mcore(model, tmp_path / "with", ToMcoreOptions(write=NO_SYNC))
    assert result.dropped.keys() == ahead.keys()
    assert archives(tmp_path / "with") == archives(tmp_path / "without")
