"""DeepSeek-V4, of which no released megatron-core has the modules: names, bits, and there and back.

Names are held against Megatron-Bridge's rows in ``mapping/families/test_bridge_rows.py``.
"""

import re
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from ckpt_tool import (
    MergeOptions,
    ToMcoreOptions,
    WriteOptions,
    convert_to_mcore,
    merge_fsdp,
    merge_megatron,
    verify_checkpoint,
)
from ckpt_tool.common.errors import MappingError, UsageError
from tests.operations.to_mcore.test_hub_formats import METHOD, WIDE, fp4_of_v4, fp8_of_v4
from tests.operations.to_mcore.test_inputs import NO_SYNC, Tensors, assert_same, convert, loaded
from tests.support import deepseek_v4 as v4
from tests.support.merging import load_folder, write_rank
from tests.support.versions import TRANSFORMERS

if not hasattr(transformers, "DeepseekV4Config") or TRANSFORMERS < (5, 24):
    pytest.skip("transformers has no DeepSeek-V4, or another", allow_module_level=True)

LAYER = "decoder.layers.2."
CORE = f"{LAYER}self_attention.core_attention."
#: What stays wide in published files: norms, the heads of attention, tables, what streams are.
STAYS = re.compile(rf"{WIDE.pattern}|hc_|ape|attn_sink|tid2eid|\.gate\.|compressor|tok_emb|_bias")

#: What is float32 there, and the integers.
FLOAT32 = re.compile(r"hc_|\.ape$|attn_sink|gate\.bias|tid2eid")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return v4.write_published(tmp_path_factory.mktemp("v4"))


@pytest.fixture(scope="module")
def mcore(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mcore") / "out"
    convert(published, out)
    return out


def merge(mcore: Path, config: Path, out: Path) -> Tensors:
    merge_megatron(mcore, out, MergeOptions(config=config, write=NO_SYNC))
    return load_folder(out)


def test_each_kind_of_tensor_is_where_it_belongs(published, mcore) -> None:
    hf, found = load_folder(published), loaded(mcore)
    same = {
        "decoder.hc_head_fn": "hc_head_fn",
        f"{LAYER}self_attention.linear_o_group_proj": "layers.2.attn.wo_a.weight",
        f"{CORE}attn_sink": "layers.2.attn.attn_sink",
        f"{CORE}indexer.compressor.ape": "layers.2.attn.indexer.compressor.ape",
        f"{LAYER}mlp_hyper_connection.mapping_proj.weight": "layers.2.hc_ffn_fn",
        f"{LAYER}mlp.router.expert_bias": "layers.2.ffn.gate.bias",
        "decoder.layers.1.mlp.router.tid2eid": "layers.1.ffn.gate.tid2eid",
        "mtp.layers.0.e_proj.weight": "mtp.0.e_proj.weight",
        "mtp.layers.0.transformer_layer.input_layernorm.weight": "mtp.0.attn_norm.weight",
        "mtp.layers.0.hc_head_scale": "mtp.0.hc_head_scale",
    }
    for key, name in same.items():
        assert torch.equal(found[key], hf[name]), key
    assert found["decoder.layers.1.mlp.router.tid2eid"].dtype == torch.int64
    scale = hf["layers.2.hc_attn_scale"]
    for at, part in enumerate(("pre", "post", "res")):
        one = found[f"{LAYER}self_attention_hyper_connection.alpha_{part}"]
        assert torch.equal(one, scale[at : at + 1])
    gate, up = (hf[f"layers.2.ffn.experts.3.w{n}.weight"] for n in (1, 3))
    experts = found[f"{LAYER}mlp.experts.experts.linear_fc1.weight"]
    assert torch.equal(experts[3], torch.cat([gate, up]))
    indexers = [name.split(".")[2] for name in found if name.endswith("indexer.linear_wq_b.weight")]
    assert indexers == ["2"]
    assert [n.split(".")[2] for n in found if n.endswith("router.tid2eid")] == ["0", "1"]


def test_there_and_back_is_the_identity(published, mcore, tmp_path) -> None:
    assert_same(merge(mcore, published, tmp_path / "back"), load_folder(published))


def test_what_came_back_is_what_transformers_had(published, mcore, tmp_path) -> None:
    merge(mcore, published, tmp_path / "back")
    models = [
        transformers.DeepseekV4ForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for folder in (published.parent / "saved", tmp_path / "back")
    ]
    tokens = torch.arange(24).reshape(2, 12) % v4.VOCABULARY
    with torch.no_grad():
        one, other = (model.eval()(tokens).logits for model in models)
    assert torch.equal(one, other)


def test_what_transformers_saves_is_read_by_its_names_too(published, mcore, tmp_path) -> None:
    saved = published.parent / "saved"
    found = convert_to_mcore(saved, tmp_path / "out", ToMcoreOptions(write=NO_SYNC))
    assert found.verified
    expected = {name: t for name, t in loaded(mcore).items() if not name.startswith("mtp.")}
    assert_same(loaded(tmp_path / "out"), expected)
    for pair in ((tmp_path / "out", saved), (saved, tmp_path / "out")):
        assert verify_checkpoint(*pair).equal
    back = merge(tmp_path / "out", saved, tmp_path / "back")
    assert back.keys() == {v4.publish_name(name) for name in load_folder(saved)}
    assert verify_checkpoint(saved, tmp_path / "back").equal


def test_two_spellings_of_one_tensor_are_refused(published, tmp_path) -> None:
    tensors = load_folder(published)
    tensors["model.embed_tokens.weight"] = tensors["embed.weight"].clone()
    model = v4.write(tmp_path / "hf", tensors)
    with pytest.raises(MappingError, match="1 tensor gets a name that another") as caught:
        convert(model, tmp_path / "out")
    pair = {"embed.weight", "model.embed_tokens.weight"}
    assert [set(said.split(": also ")) for said in caught.value.names] == [pair]


def quantise(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """As DeepSeek publishes it, experts in FP4 and the rest in fp8; and how wide it is then."""
    stored: Tensors = {}
    wide: Tensors = {}
    for name, tensor in tensors.items():
        if STAYS.search(name) or tensor.ndim < 2:
            stored[name] = wide[name] = tensor if FLOAT32.search(name) else tensor.bfloat16()
            continue
        form = fp4_of_v4 if ".experts." in name else fp8_of_v4
        ends, exact = form(tensor, name)
        stem = name.removesuffix(".weight")
        stored |= {stem + end: value.contiguous() for end, value in ends.items()}
        wide[name] = exact.bfloat16()
    return stored, wide


def test_published_files_are_made_wide(published, tmp_path) -> None:
    stored, wide = quantise(load_folder(published))
    assert {str(t.dtype) for t in stored.values()} >= {"torch.int8", "torch.float8_e4m3fn"}
    said = METHOD | {"scale_fmt": "ue8m0"}
    quantised = v4.write(tmp_path / "stored", stored, "bfloat16", quantization_config=said)
    plain = v4.write(tmp_path / "wide", wide, "bfloat16")
    convert(quantised, tmp_path / "of_stored")
    convert(plain, tmp_path / "of_wide")
    found = loaded(tmp_path / "of_stored")
    assert_same(found, loaded(tmp_path / "of_wide"))
    assert found[f"{LAYER}self_attention_hyper_connection.alpha_res"].dtype == torch.float32
    assert found[f"{LAYER}self_attention.linear_q_up_proj.weight"].dtype == torch.bfloat16
    back = merge(tmp_path / "of_stored", plain, tmp_path / "back")
    assert_same(back, wide)
    assert verify_checkpoint(quantised, plain).equal


#: Along which dimension ranks share a tensor, by the end of its key; all others are whole.
CUT = {
    0: ("word_embeddings.weight", "output_layer.weight", "q_up_proj.weight", "attn_sink"),
    1: ("linear_proj.weight", "linear_fc2.weight"),
}
AHEAD = ("e_proj.weight", "h_proj.weight")


def cut_for(rank: int, name: str, tensor: Tensor) -> Tensor:
    """What one of two ranks has of a tensor."""
    if name.endswith("linear_fc1.weight"):
        return torch.cat([half.chunk(2)[rank] for half in tensor.chunk(2)])
    if name.endswith(CUT[0]) or (name.startswith("mtp.") and name.endswith(AHEAD)):
        return tensor.chunk(2)[rank]
    return tensor.chunk(2, 1)[rank] if name.endswith(CUT[1]) else tensor


def test_files_of_single_ranks_are_joined(published, mcore, tmp_path) -> None:
    """Two ranks, whose names are those of modules: experts each, and what predicts further."""
    whole = loaded(mcore)
    for rank in range(2):
        state = {}
        for name, tensor in whole.items():
            name = name.replace(".transformer_layer.", ".mtp_model_layer.")  # noqa: PLW2901
            stem = name.replace(".experts.experts.", ".experts.")
            each = enumerate(tensor) if stem != name else [("", tensor)]
            state |= {f"{stem}{end}": cut_for(rank, name, one).clone() for end, one in each}
        folder = tmp_path / "ranks" / f"mp_rank_{rank:02d}"
        folder.mkdir(parents=True)
        torch.save({"model": state, "iteration": 1}, folder / "model_optim_rng.pt")
    assert_same(merge(tmp_path / "ranks", published, tmp_path / "back"), load_folder(published))


@pytest.mark.parametrize("kind", ["wide", "quantised"])
def test_what_was_published_fills_what_ranks_did_not_save(published, tmp_path, kind: str) -> None:
    saved = published.parent / "saved"
    model = transformers.DeepseekV4ForCausalLM.from_pretrained(saved, dtype=torch.float32)
    base, whole = published, load_folder(saved)
    if kind == "quantised":
        stored, wide = quantise(load_folder(published))
        base = v4.write(tmp_path / "base", stored, "bfloat16", quantization_config=METHOD)
        model, names = model.bfloat16(), {v4.publish_name(name): name for name in whole}
        whole |= {names[name]: tensor for name, tensor in wide.items() if name in names}
    kept = {n: t for n, t in model.state_dict().items() if ".layers.2." not in n}
    run = write_rank(tmp_path / "run", kept, model.config.to_dict())
    options = MergeOptions(fill_from=base, write=WriteOptions(fsync=False, check_load=False))
    merge_fsdp([run], tmp_path / "out", options)
    found = load_folder(tmp_path / "out")
    filled = {name: tensor for name, tensor in whole.items() if ".layers.2." in name}
    assert len(filled) > 30
    for name, tensor in filled.items():  # some are float32 now, as their class has them
        assert torch.equal(found[name].double(), tensor.double()), name
    assert {name for name in found if not name.startswith("mtp.")} == whole.keys()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers": "hybrid"}, "has hyper-connections, which megatron-core's HybridModel has not"),
        ({"layers": "stacked"}, "some layers have another attention"),
        ({"layout": "megatron-lm"}, "no released Megatron-LM has a deepseek_v4"),
    ],
)
def test_what_no_megatron_has_is_refused(published, tmp_path, options: dict, said: str) -> None:
    with pytest.raises(MappingError, match=said):
        convert(published, tmp_path / "out", **options)


@pytest.mark.real
def test_that_it_cannot_be_built_is_said_first(published, tmp_path) -> None:
    checked = ToMcoreOptions(write=WriteOptions(fsync=False, check_load=True))
    said = r"cannot build this deepseek_v4: no released megatron-core has its compressed attention"
    with pytest.raises(UsageError, match=said):
        convert_to_mcore(published, tmp_path / "out", checked)
    assert not list(tmp_path.iterdir())


def test_a_head_that_differs_in_what_predicts_further_is_refused(published, tmp_path) -> None:
    tensors = load_folder(published)
    tensors["mtp.0.head.weight"][3, 4] += 1
    with pytest.raises(MappingError, match="one embedding and one head") as refused:
        convert(v4.write(tmp_path / "hf", tensors), tmp_path / "out")
    assert list(refused.value.names) == ["mtp.0.head.weight: differs from head.weight"]


def test_a_table_of_experts_that_is_no_table_is_refused(published, tmp_path) -> None:
    tensors = load_folder(published)
    tensors["layers.0.ffn.gate.tid2eid"] = tensors["layers.0.ffn.gate.tid2eid"].float()
    with pytest.raises(MappingError) as refused:
        convert(v4.write(tmp_path / "hf", tensors), tmp_path / "out")
    assert list(refused.value.names) == ["layers.0.ffn.gate.tid2eid: float32"]
