"""Ling 2.5 to Megatron and back: as AReaL calls it, files of its ranks, and what is refused.

That real ranks load and save it is in `test_to_mcore.py` and `merge/test_megatron.py`, its names in
`mapping/megatron/test_lightning.py`.
"""

from pathlib import Path

import pytest
import torch
import transformers

from ckpt_tool import MergeOptions, WriteOptions, merge_megatron
from ckpt_tool.common.errors import MappingError
from tests.mapping.megatron.test_lightning import as_areal
from tests.operations.to_mcore.test_inputs import Tensors, assert_same, convert, loaded, rewritten
from tests.real.megatron_models import write_model
from tests.support.merging import load_folder
from tests.support.versions import TRANSFORMERS

#: transformers has no class of it that could be asked.
UNASKED = WriteOptions(fsync=False, check_load=False)
#: Along which dimension tensor-parallel ranks of AReaL share what attention has beside latent ones.
CUT = {
    "linear_gate.weight": 0,
    "gate_norm.weight": 0,
    "linear_qkv.weight": 0,
    "linear_q_up_proj.weight": 0,
    "linear_kv_up_proj.weight": 0,
    "word_embeddings.weight": 0,
    "output_layer.weight": 0,
    "eh_proj.weight": 0,
    "linear_proj.weight": 1,
    "linear_fc2.weight": 1,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    hf = write_model("bailing_hybrid", tmp_path_factory.mktemp("ling"))
    changes = {"vocab_size": 100}  # which two ranks share

    def cut(tensors: Tensors) -> None:
        for name in ("model.word_embeddings.weight", "lm_head.weight"):
            tensors[name] = tensors[name][:100].clone()

    return rewritten(hf, hf.parent / "even", cut, changes)


@pytest.fixture(scope="module")
def mcore(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mcore") / "out"
    convert(model, out)
    return out


def cut_for(rank: int, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """What one of two ranks has of a tensor."""
    if name.endswith("linear_fc1.weight"):
        return torch.cat([half.chunk(2)[rank] for half in tensor.chunk(2)])
    dim = next((dim for end, dim in CUT.items() if name.endswith(end)), None)
    return tensor if dim is None else tensor.chunk(2, dim)[rank]


def test_files_of_ranks_of_areal_are_joined(model, mcore, tmp_path):
    whole = as_areal(loaded(mcore))
    for rank in range(2):
        state = {}
        for name, tensor in whole.items():
            stem = name.replace(".experts.experts.", ".experts.")
            each = enumerate(tensor) if stem != name else [("", tensor)]
            state |= {f"{stem}{end}": cut_for(rank, name, one).clone() for end, one in each}
        folder = tmp_path / "ranks" / f"mp_rank_{rank:02d}"
        folder.mkdir(parents=True)
        torch.save({"model": state, "iteration": 1}, folder / "model_optim_rng.pt")
    options = MergeOptions(config=model, write=UNASKED, check_replicas=True)
    merge_megatron(tmp_path / "ranks", tmp_path / "back", options)
    assert_same(load_folder(tmp_path / "back"), load_folder(model))


def test_weights_are_cast_and_biases_of_routers_are_not(model, tmp_path):
    convert(model, tmp_path / "there", dtype="bfloat16")
    found = loaded(tmp_path / "there")
    wide = {name for name, tensor in found.items() if tensor.dtype == torch.float32}
    assert {name.rpartition("router.")[2] for name in wide} == {"expert_bias"}
    options = MergeOptions(config=model, dtype="bfloat16", write=UNASKED)
    done = merge_megatron(tmp_path / "there", tmp_path / "back", options)
    assert (
        "only the biases of routers do" in done.warnings[0]
    )  # of a class that transformers has not
    hub = load_folder(model)
    expected = {name: t if "expert_bias" in name else t.bfloat16() for name, t in hub.items()}
    assert_same(load_folder(tmp_path / "back"), expected)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ("hybrid", "has lightning attention, which megatron-core's HybridModel has not"),
        ("stacked", "have experts and some have not"),
    ],
)
def test_layouts_that_it_has_not_are_refused(model, tmp_path, layers: str, said: str):
    with pytest.raises(MappingError, match=said):
        convert(model, tmp_path / "out", layers=layers)


@pytest.mark.skipif(TRANSFORMERS < (5, 24), reason="the first that has Ling 3")
def test_ling_3_is_refused_before_anything_is_written(tmp_path):
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 24,
        "moe_intermediate_size": 12,
        "num_hidden_layers": 2,
        "layer_group_size": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "num_local_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 16,
        "head_dim": 8,
        "num_mtp_layers": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }
    config = transformers.BailingHybridConfig(**sizes)
    transformers.BailingHybridForCausalLM(config).save_pretrained(tmp_path / "hf")
    with pytest.raises(MappingError, match="is of Ling 3") as refused:
        convert(tmp_path / "hf", tmp_path / "out")
    assert "Ling 2.5" in refused.value.hint
    assert not (tmp_path / "out").exists()
