"""Adapters of Megatron-Bridge on weights in parts, or with gates, or without: by hand."""

import json
from pathlib import Path

import peft
import pytest
import torch
import transformers

from ckpt_tool.common.errors import MappingError
from ckpt_tool.mapping.lora.options import LoraOptions
from ckpt_tool.operations.merge import merge_megatron
from ckpt_tool.operations.options import MergeOptions
from ckpt_tool.plans.options import WriteOptions
from tests.real.fill import fill_distinct
from tests.real.megatron_nemotron import CONFIG
from tests.support.merging import assert_same, load_folder
from tests.support.rank_rows import Shards
from tests.support.resaving import save_megatron
from tests.support.tiny_models import build
from tests.support.versions import needs_transformers_5

Tensors = dict[str, torch.Tensor]
RANK, ALPHA = 4, 8.0
SCALE = ALPHA / RANK
pytestmark = needs_transformers_5


def make_factors(parts: dict[str, int], columns: int) -> tuple[Tensors, torch.Tensor]:
    return {name: torch.randn(rows, RANK) for name, rows in parts.items()}, torch.randn(
        RANK, columns
    )


def adapter(module: str, left: torch.Tensor, right: torch.Tensor) -> Tensors:
    stem = f"decoder.layers.{module}.adapter.linear_"
    return {f"{stem}in.weight": right, f"{stem}out.weight": left}


def write_ranks(folder: Path, ranks: list[Tensors]) -> Path:
    """As verl saves adapters alone, one file for each tensor-parallel rank."""
    target = folder / "adapter_checkpoint"
    target.mkdir(parents=True)
    for rank, state in enumerate(ranks):
        own = {name: tensor.clone() for name, tensor in state.items()}
        torch.save({"adapter_state_dict": own}, target / f"mp_rank_{rank:02d}_adapter.pt")
    return folder


def share(parts: Tensors, ranks: int, rank: int) -> torch.Tensor:
    """A rank's rows of every part, one after the other."""
    return torch.cat([part.chunk(ranks)[rank] for part in parts.values()])


def merge(source: Path, out: Path, base: Path, mode: str | None = None):
    write = WriteOptions(fsync=False, verify=True)
    options = MergeOptions(lora=LoraOptions(mode, ALPHA, base), write=write)
    return merge_megatron(source, out, options)


def save(model: torch.nn.Module, folder: Path) -> Path:
    fill_distinct(model)
    model.save_pretrained(folder)
    return folder


def check(out: Path, base: Path, updates: Tensors) -> None:
    """The base, with these updates [rows, columns]."""
    expected, found = load_folder(base), load_folder(out)
    for name, update in updates.items():
        wanted = expected.pop(name) + SCALE * update
        torch.testing.assert_close(found.pop(name), wanted, rtol=1e-5, atol=1e-4)
    assert_same(found, expected)


DELTA_NET = {"query": 16, "key": 16, "value": 32, "z": 32, "beta": 4, "alpha": 4}


@pytest.fixture(scope="module")
def gated(tmp_path_factory) -> Path:
    """Qwen3-Next of a layer with gated DeltaNet, two key heads, and one with gated attention."""
    return save(build("qwen3_next"), tmp_path_factory.mktemp("gated") / "hf")


def make_gated() -> tuple[Tensors, torch.Tensor, torch.Tensor, torch.Tensor]:
    parts, right = make_factors(DELTA_NET, 32)
    (query,), other = make_factors({"qkv": 96}, 32)[0].values(), torch.randn(RANK, 32)
    return parts, right, query, other


def update_gated(parts: Tensors, right, query, other) -> Tensors:
    """Of the weights on the Hub: by key head; and of each query head its gate after it."""
    by_head = {name: part.unflatten(0, (2, -1)) for name, part in parts.items()}
    each = query.unflatten(0, (2, 6, 8))
    heads = torch.stack([each[:, :2], each[:, 2:4]], 2)
    linear, full = "model.layers.0.linear_attn.in_proj_", "model.layers.1.self_attn."
    both = {
        "qkvz": [by_head[name] for name in ("query", "key", "value", "z")],
        "ba": [by_head[name] for name in ("beta", "alpha")],
    }
    found = {
        f"{linear}{name}.weight": torch.cat(rows, 1).flatten(0, 1) @ right
        for name, rows in both.items()
    }
    apart = {"q": heads.flatten(0, 3), "k": each[:, 4].flatten(0, 1), "v": each[:, 5].flatten(0, 1)}
    return found | {f"{full}{name}_proj.weight": rows @ other for name, rows in apart.items()}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("form", ["torch_dist", "rank files"])
def test_gated_delta_net_and_gated_attention(gated, form, ranks, tmp_path):
    """In torch_dist B of DeltaNet has the shares of one rank after the other."""
    parts, right, query, other = make_gated()
    names = ("0.self_attention.in_proj", "1.self_attention.linear_qkv")
    if form == "rank files":
        states = [
            adapter(names[0], share(parts, ranks, rank), right.chunk(ranks)[rank])
            | adapter(names[1], query.chunk(ranks)[rank], other.chunk(ranks)[rank])
            for rank in range(ranks)
        ]
        source = write_ranks(tmp_path / "in", states)
    else:
        shards = Shards.of([share(parts, ranks, rank) for rank in range(ranks)])
        whole = adapter(names[0], shards, right)
        source = save_megatron(whole | adapter(names[1], query, other), tmp_path / "in")
    result = merge(source, tmp_path / "out", gated)
    assert (result.lora.num_modules, result.lora.rank) == (2, RANK)
    check(tmp_path / "out", gated, update_gated(parts, right, query, other))


@pytest.mark.parametrize("apart", [False, True], ids=["in one", "apart"])
def test_ms_swift_has_both_by_head(gated, apart, tmp_path):
    """Adapters alone, by its names; its projection of DeltaNet in one or in two."""
    parts, right, query, other = make_gated()
    by_head = {name: part.unflatten(0, (2, -1)) for name, part in parts.items()}
    both = ("query", "key", "value", "z"), ("beta", "alpha")
    groups = {"_qkvz": both[0], "_ba": both[1]} if apart else {"": both[0] + both[1]}
    each = query.unflatten(0, (2, 6, 8))
    heads = torch.stack([each[:, :2], each[:, 2:4]], 2).flatten(1, 2)
    rows = torch.cat([heads, each[:, 4:]], 1).flatten(0, 2)
    state = adapter("1.self_attention.linear_qkv", rows, other)
    for end, names in groups.items():
        left = torch.cat([by_head[name] for name in names], 1).flatten(0, 1)
        state |= adapter(f"0.self_attention.in_proj{end}", left, right)
    swift = {"adapter.linear_in": "lora_A.default", "adapter.linear_out": "lora_B.default"}
    theirs = {
        n.replace(old, new): t for n, t in state.items() for old, new in swift.items() if old in n
    }
    merge(save_megatron(theirs, tmp_path / "in"), tmp_path / "out", gated)
    check(tmp_path / "out", gated, update_gated(parts, right, query, other))


def test_parts_become_adapters_for_peft(gated, tmp_path):
    parts, right, query, other = make_gated()
    whole = adapter("0.self_attention.in_proj", torch.cat(list(parts.values())), right)
    whole |= adapter("1.self_attention.linear_qkv", query, other)
    source = save_megatron(whole, tmp_path / "in")
    for mode in ("fuse", "split"):
        merge(source, tmp_path / mode, gated, mode)
    config = json.loads((tmp_path / "split" / "adapter_config.json").read_text())
    assert {"in_proj_qkvz", "in_proj_ba", "q_proj"} <= set(config["target_modules"])
    kind = transformers.AutoModelForCausalLM
    model = kind.from_pretrained(gated)
    adapted = peft.PeftModel.from_pretrained(model, tmp_path / "split").merge_and_unload()
    fused = kind.from_pretrained(tmp_path / "fuse").state_dict()
    for name, tensor in adapted.state_dict().items():
        torch.testing.assert_close(tensor, fused[name], rtol=1e-5, atol=1e-4)


MAMBA = {"z": 32, "x": 32, "B": 12, "C": 12, "dt": 4}


@pytest.fixture(scope="module")
def nemotron(tmp_path_factory) -> Path:
    config = transformers.AutoConfig.for_model(
        "nemotron_h", **CONFIG | {"num_nextn_predict_layers": 0}
    )
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    return save(model, tmp_path_factory.mktemp("nemotron") / "hf")


@pytest.mark.parametrize("ranks", [0, 2])
def test_mamba(nemotron, ranks, tmp_path):
    """In torch_dist Megatron-Bridge has B in the parts that the weight has."""
    layer = CONFIG["layers_block_type"].index("linear_attention")
    parts, right = make_factors(MAMBA, CONFIG["hidden_size"])
    module = f"{layer}.mixer.in_proj"
    if ranks:
        states = [
            adapter(module, share(parts, ranks, rank), right.chunk(ranks)[rank])
            for rank in range(ranks)
        ]
        source = write_ranks(tmp_path / "in", states)
    else:
        whole = adapter(module, right, right)
        whole.pop(f"decoder.layers.{module}.adapter.linear_out.weight")
        pieces = {
            f"decoder.layers.{module}.adapter.linear_out.weight.{name}": part
            for name, part in parts.items()
        }
        source = save_megatron(whole | pieces, tmp_path / "in")
    merge(source, tmp_path / "out", nemotron)
    update = torch.cat(list(parts.values())) @ right
    check(tmp_path / "out", nemotron, {f"backbone.layers.{layer}.mixer.in_proj.weight": update})


def test_layers_without_adapters_behind_a_stage_are_not_guessed(nemotron, tmp_path):
    """Each of two stages calls its first layer 0: those of the second could be any layers."""
    parts, right = make_factors(MAMBA, CONFIG["hidden_size"])
    state = adapter("0.mixer.in_proj", torch.cat(list(parts.values())), right)
    folder = write_ranks(tmp_path / "in", []) / "adapter_checkpoint"
    for stage in range(2):
        path = folder / f"mp_rank_00_{stage:03d}_adapter.pt"
        torch.save({"adapter_state_dict": state}, path)
    with pytest.raises(MappingError, match=r"adapters of 2 of 4 layers.* several pipeline stages"):
        merge(tmp_path / "in", tmp_path / "out", nemotron)


def test_a_part_that_is_not_there(nemotron, tmp_path):
    layer = CONFIG["layers_block_type"].index("linear_attention")
    stem = f"decoder.layers.{layer}.mixer.in_proj.adapter.linear_"
    parts, right = make_factors(MAMBA, CONFIG["hidden_size"])
    pieces = {f"{stem}out.weight.{name}": part for name, part in parts.items() if name != "dt"}
    source = save_megatron(pieces | {f"{stem}in.weight": right}, tmp_path / "in")
    with pytest.raises(MappingError, match="1 problem in fusing") as caught:
        merge(source, tmp_path / "out", nemotron)
    assert "expected .z, .x, .B, .C, .dt" in caught.value.names[0]


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "with the second layer's"])
def test_a_first_layer_without_a_gate(nemotron, beside, tmp_path):
    """Files of two ranks do not say by themselves that there is no gate."""
    layer = CONFIG["layers_block_type"].index("mlp")
    hidden, width = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    left, right = torch.randn(width, RANK), torch.randn(RANK, hidden)
    down, up = torch.randn(hidden, RANK), torch.randn(RANK, width)
    states = []
    for rank in range(2):
        state = adapter(f"{layer}.mlp.linear_fc1", left.chunk(2)[rank], right.chunk(2)[rank])
        if beside:
            second = f"{layer}.mlp.linear_fc2"
            state |= adapter(second, down.chunk(2)[rank], up.chunk(2, 1)[rank])
        states.append(state)
    merge(write_ranks(tmp_path / "in", states), tmp_path / "out", nemotron)
    stem = f"backbone.layers.{layer}.mixer."
    updates = {f"{stem}up_proj.weight": left @ right}
    check(
        tmp_path / "out",
        nemotron,
        updates | ({f"{stem}down_proj.weight": down @ up} if beside else {}),
    )
