"""Adapters of Megatron-Bridge that were saved without their base: rank files and torch_dist."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from ckpt_tool import open_checkpoint
from ckpt_tool.common.errors import CheckpointError, MappingError, UsageError
from ckpt_tool.mapping.lora.options import LoraOptions
from ckpt_tool.operations.merge import merge_megatron
from ckpt_tool.operations.options import MergeOptions
from ckpt_tool.plans.options import WriteOptions
from tests.real.fill import fill_distinct
from tests.real.megatron_nemotron import CONFIG
from tests.support.merging import assert_same, load_folder
from tests.support.resaving import resaved, tensors_of
from tests.support.versions import needs_transformers_5

FIXTURES = Path(__file__).parents[2] / "fixtures"
#: Base and adapters, of two layers; see `test_merge_megatron_lora`.
WRITTEN = FIXTURES / "bridge0.3_lora_tp2"
#: Modules of Megatron-Bridge on two tensor parallel ranks, saved as verl 0.7 does. Element i of a
#: rank's tensor is i + 1,000,000 * (rank + 1).
RANKS = FIXTURES / "bridge0.3_adapter_ranks"
LAYER = "decoder.layers"


def merge(source: Path, out: Path, base: Path | None, alpha: float = 16.0, mode=None):
    config = None if base is not None else WRITTEN / "huggingface"
    lora = LoraOptions(mode, alpha, base)
    write = WriteOptions(verify=True, check_load=True)
    return merge_megatron(source, out, MergeOptions(lora=lora, config=config, write=write))


def only(part: str):
    """The adapters, or what is below them."""
    wanted = part == "adapters"
    return lambda found: {n: t for n, t in found.items() if (".adapter." in n) == wanted}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """The model that the adapters were made for."""
    folder = tmp_path_factory.mktemp("base")
    source = resaved(WRITTEN, folder / "in", only("base"))
    options = MergeOptions(config=WRITTEN / "huggingface")
    merge_megatron(source, folder / "out", options)
    return folder / "out"


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> dict[str, torch.Tensor]:
    """What base and adapters in one checkpoint are fused to."""
    folder = tmp_path_factory.mktemp("expected")
    merge(WRITTEN, folder / "out", None)
    return load_folder(folder / "out")


def cut(name: str, tensor: torch.Tensor, rank: int, size: int) -> torch.Tensor:
    """One tensor parallel rank's part of a factor, as Megatron-Bridge cuts it."""
    row = "linear_proj" in name or "linear_fc2" in name
    if name.endswith("linear_in.weight"):
        return tensor.chunk(size, 1 if row else 0)[rank]
    if "linear_fc1" in name:  # gate and up are cut each
        return torch.cat([half.chunk(size)[rank] for half in tensor.chunk(2)])
    return tensor.chunk(size)[rank]


def write_ranks(folder: Path, tp: int, pp: int, keep=lambda layer: True) -> Path:
    """The adapters of `WRITTEN` as verl 0.7 saves them: layers counted within their stage."""
    found = only("adapters")(tensors_of(WRITTEN))
    target = folder / "adapter_checkpoint"
    target.mkdir(parents=True)
    for stage in range(pp):
        layers = [layer for layer in range(2) if layer * pp // 2 == stage and keep(layer)]
        for rank in range(tp):
            state = {
                name.replace("layers.", f"layers.{number}.", 1): cut(
                    name, tensor[layer], rank, tp
                ).clone()
                for number, layer in enumerate(layers)
                for name, tensor in found.items()
            }
            file = f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if pp > 1 else "") + "_adapter.pt"
            torch.save({"adapter_state_dict": state}, target / file)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2)])
def test_rank_files_are_fused_into_a_base(tmp_path, base, expected, tp, pp):
    result = merge(write_ranks(tmp_path / "in", tp, pp), tmp_path / "out", base)
    assert result.verified
    assert result.lora is not None
    assert (result.lora.num_modules, result.lora.rank) == (8, 8)
    assert_same(load_folder(tmp_path / "out"), expected)


def number(name: str, layer: int, layout: str) -> str:
    """The name in a layer with a number; a HybridModel counts attention and MLP by themselves."""
    if layout == "hybrid":
        layer = 2 * layer + name.startswith(f"{LAYER}.mlp.")
    return name.replace("layers.", f"layers.{layer}.", 1)


@pytest.mark.parametrize("layout", ["stacked", "per-layer", "hybrid"])
def test_torch_dist_is_fused_into_a_base(tmp_path, base, expected, layout):
    def change(found):
        found = only("adapters")(found)
        if layout == "stacked":
            return found
        return {
            number(name, layer, layout): tensor[layer].clone()
            for name, tensor in found.items()
            for layer in range(2)
        }

    merge(resaved(WRITTEN, tmp_path / "in", change), tmp_path / "out", base)
    assert_same(load_folder(tmp_path / "out"), expected)


def test_layers_of_a_hybrid_model_that_have_none_are_named(tmp_path, base):
    def change(found):
        found = only("adapters")(found)
        return {number(name, 1, "hybrid"): tensor[1].clone() for name, tensor in found.items()}

    with pytest.raises(MappingError, match="adapters of 1 layer, the base has 2") as caught:
        merge(resaved(WRITTEN, tmp_path / "in", change), tmp_path / "out", base)
    assert caught.value.names == (f"{LAYER}.0",)


@needs_transformers_5
def test_adapters_of_some_layers_of_a_nemotron(tmp_path):
    """Its layers are attention, Mamba or an MLP, so that not each has what adapters are of."""
    config = AutoConfig.for_model("nemotron_h", **CONFIG | {"num_nextn_predict_layers": 0})
    model = AutoModelForCausalLM.from_config(config).float()
    fill_distinct(model)
    model.save_pretrained(tmp_path / "base")
    module = f"{LAYER}.3.mlp.linear_fc1"
    rows, columns = CONFIG["intermediate_size"], CONFIG["hidden_size"]
    left, right = torch.randn(rows, 4), torch.randn(4, columns)
    adapters = {
        f"{module}.adapter.linear_in.weight": right,
        f"{module}.adapter.linear_out.weight": left,
    }
    source = resaved(WRITTEN, tmp_path / "in", lambda _: adapters)
    options = MergeOptions(lora=LoraOptions(None, 8.0, tmp_path / "base"))
    result = merge_megatron(source, tmp_path / "out", options)
    assert (result.lora.num_modules, result.lora.rank) == (1, 4)
    expected, found = load_folder(tmp_path / "base"), load_folder(tmp_path / "out")
    name = "backbone.layers.3.mixer.up_proj.weight"
    torch.testing.assert_close(found.pop(name), expected.pop(name) + 2 * left @ right)
    assert_same(found, expected)


def test_a_base_with_a_tied_head(tmp_path, base, expected):
    tied = shutil.copytree(base, tmp_path / "base")
    config = (tied / "config.json").read_text()
    config = config.replace('"tie_word_embeddings": false', '"tie_word_embeddings": true')
    (tied / "config.json").write_text(config)
    state = load_folder(base)
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    save_file(state, tied / "model.safetensors", {"format": "pt"})
    merge(write_ranks(tmp_path / "in", 2, 1), tmp_path / "out", tied)
    wanted = {name: tensor for name, tensor in expected.items() if name != "lm_head.weight"}
    assert_same(load_folder(tmp_path / "out"), wanted)


def test_factors_of_ranks_are_put_together_as_they_were_cut():
    found = open_checkpoint(RANKS)
    assert found.format == "megatron-ranks"

    def of(rank: int, rows: int, columns: int) -> torch.Tensor:
        return (torch.arange(rows * columns) + 1e6 * (rank + 1)).float().reshape(rows, columns)

    for layer in range(4):
        stem = f"{LAYER}.{layer}"
        for name, dim, rows, columns in (
            ("self_attention.linear_qkv.adapter.linear_in", 0, 4, 32),
            ("self_attention.linear_qkv.adapter.linear_out", 0, 32, 8),
            ("self_attention.linear_proj.adapter.linear_in", 1, 8, 16),
            ("self_attention.linear_proj.adapter.linear_out", 0, 16, 8),
            ("mlp.linear_fc2.adapter.linear_in", 1, 8, 24),
        ):
            whole = torch.cat([of(rank, rows, columns) for rank in range(2)], dim)
            assert torch.equal(found[f"{stem}.{name}.weight"].read(), whole), name
        gates, ups = zip(*(of(rank, 48, 8).chunk(2) for rank in range(2)), strict=True)
        whole = torch.cat([*gates, *ups])
        assert torch.equal(found[f"{stem}.mlp.linear_fc1.adapter.linear_out.weight"].read(), whole)


def test_layers_that_verl_did_not_save_are_named(tmp_path, base):
    source = write_ranks(tmp_path / "in", 1, 1, keep=lambda layer: layer == 0)
    with pytest.raises(MappingError, match="adapters of 1 layer, the base has 2") as error:
        merge(source, tmp_path / "out", base)
    assert error.value.names == ("decoder.layers.1",)
    assert "virtual pipeline" in error.value.hint


def test_a_rank_that_is_missing(tmp_path, base):
    source = write_ranks(tmp_path / "in", 2, 2)
    (source / "adapter_checkpoint" / "mp_rank_01_001_adapter.pt").unlink()
    with pytest.raises(CheckpointError) as error:
        merge(source, tmp_path / "out", base)
    assert any("no file of" in str(problem) for problem in error.value.problems)


def test_rank_files_become_an_adapter_for_peft(tmp_path, base):
    out = tmp_path / "out"
    lora = LoraOptions("split", 16.0, base)
    source = write_ranks(tmp_path / "in", 2, 1)
    merge_megatron(source, out, MergeOptions(lora=lora, write=WriteOptions(verify=True)))
    names = {"adapter_config.json", "adapter_model.safetensors", "ckpt_manifest.json"}
    assert {path.name for path in out.iterdir()} == {*names, "README.md"}
    merge(WRITTEN, tmp_path / "whole", None, mode="split")
    assert_same(load_folder(out), load_folder(tmp_path / "whole" / "lora_adapter"))


def test_adapters_without_a_base(tmp_path):
    with pytest.raises(UsageError, match="without their base model"):
        merge(write_ranks(tmp_path / "in", 1, 1), tmp_path / "out", None)


def test_a_base_beside_a_base_is_refused(tmp_path, base):
    with pytest.raises(UsageError, match="has the weights below its adapters itself"):
        merge(WRITTEN, tmp_path / "out", base)
