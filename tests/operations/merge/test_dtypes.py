"""``--dtype``: the dtypes, and the bits, that ``from_pretrained`` and ``save_pretrained`` give."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from ckpt_tool.operations.merge import merge_fsdp
from ckpt_tool.operations.options import MergeOptions
from ckpt_tool.plans.options import WriteOptions, WriteResult
from tests.support.every_class import GENERATING, build_tiny, list_classes, list_wide
from tests.support.merging import assert_same, load_folder
from tests.support.tiny_models import build
from tests.support.versions import TRANSFORMERS

pytestmark = [
    pytest.mark.skipif(TRANSFORMERS < (5, 0), reason="transformers 4 has no tables of names"),
    pytest.mark.filterwarnings("ignore"),
]
CLASSES = list_classes(GENERATING) if TRANSFORMERS >= (5, 0) else []
#: Routers of DeepSeek's kind are float32 since 5.24.
ROUTERS = ["mlp.gate.weight"] if TRANSFORMERS >= (5, 24) else []
FAULTS = ("missing_keys", "unexpected_keys", "mismatched_keys")
QUICK = WriteOptions(fsync=False)


def write_all(model, folder: Path, dtype: str) -> list[str]:
    """``saved``, as it is; ``expected``, as transformers casts it; ``ranks``, to be merged.

    Returns what transformers does not find of what it saved.
    """
    model.save_pretrained(folder / "saved")
    loaded, report = type(model).from_pretrained(
        folder / "saved", dtype=getattr(torch, dtype), output_loading_info=True
    )
    loaded.save_pretrained(folder / "expected")
    (folder / "ranks" / "huggingface").mkdir(parents=True)
    said = json.loads((folder / "saved" / "config.json").read_text()) | {"dtype": dtype}
    (folder / "ranks" / "huggingface" / "config.json").write_text(json.dumps(said))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.save(state, folder / "ranks" / "model_world_size_1_rank_0.pt")
    return [name for key in FAULTS for name in report[key]]


def merge(folder: Path, write: WriteOptions = QUICK) -> WriteResult:
    return merge_fsdp([folder / "ranks"], folder / "out", MergeOptions(write=write))


def assert_as_transformers(folder: Path, dtype: str) -> dict[str, torch.Tensor]:
    """Names, dtypes and bits; and the config says the dtype that was asked for."""
    found = load_folder(folder / "out")
    assert_same(found, load_folder(folder / "expected"))
    assert json.loads((folder / "out" / "config.json").read_text())["dtype"] == dtype
    return found


def make_reformer():
    from transformers import ReformerConfig, ReformerModelWithLMHead

    config = ReformerConfig(
        is_decoder=True,
        vocab_size=48,
        hidden_size=32,
        attention_head_size=8,
        num_attention_heads=4,
        feed_forward_size=40,
        attn_layers=["local", "lsh"],
        axial_pos_shape=(4, 8),
        axial_pos_embds_dim=(8, 24),
        max_position_embeddings=32,
        num_buckets=2,
    )
    return ReformerModelWithLMHead(config)


@pytest.mark.sweep
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("model_type", "class_name"), CLASSES)
def test_every_class_that_holds_float32(model_type, class_name, dtype, tmp_path):
    if not list_wide(model_type, class_name, dtype):
        pytest.skip("its config, made small, gives a model of one dtype")
    try:
        model = build_tiny(model_type, class_name)
        faults = write_all(model, tmp_path, dtype)
    except Exception as error:
        pytest.skip(f"transformers itself cannot: {error}")
    if faults:
        pytest.skip("not even what transformers saved opens: its config, made small, is not whole")
    merge(tmp_path)
    wide = [t for t in assert_as_transformers(tmp_path, dtype).values() if t.dtype == torch.float32]
    assert wide


@pytest.mark.sweep
@pytest.mark.slow
def test_there_are_classes_that_hold_float32():
    assert len([row for row in CLASSES if list_wide(*row, "bfloat16")]) > 25


#: What own rules name on the Hub, what transformers' tables do, and what is all a list's.
@pytest.mark.parametrize(
    ("model_type", "wide"),
    [
        ("hunyuan_v1_moe", {"mlp.gate.wg.weight"}),
        ("flint", {"mlp.gate.weight", "self_attn.softmax_offset"}),
        ("ernie4_5_moe", {"mlp.gate.weight", "mlp.moe_statics.e_score_correction_bias"}),
        ("deepseek_v3", {"mlp.gate.e_score_correction_bias", *ROUTERS}),
    ],
)
def test_a_class_that_holds_float32(model_type, wide, tmp_path):
    assert write_all(build(model_type), tmp_path, "bfloat16") == []
    merge(tmp_path)
    found = assert_as_transformers(tmp_path, "bfloat16")
    kept = {name for name, tensor in found.items() if tensor.dtype == torch.float32}
    assert {name.split(".", 3)[3] for name in kept} == wide


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_tensors_of_a_list_stay_float32(dtype, tmp_path):
    assert write_all(make_reformer(), tmp_path, dtype) == []
    merge(tmp_path)
    found = assert_as_transformers(tmp_path, dtype)
    kept = {name for name, tensor in found.items() if tensor.dtype == torch.float32}
    assert kept == {f"reformer.embeddings.position_embeddings.weights.{n}" for n in (0, 1)}


def test_what_is_in_the_dtype_already_stays_and_the_rest_becomes_what_the_class_holds(tmp_path):
    model = build("hunyuan_v1_moe")
    write_all(model, tmp_path, "bfloat16")
    state = {name: tensor.half() for name, tensor in model.state_dict().items()}
    first, second = (f"model.layers.{layer}.mlp.gate.wg.weight" for layer in (0, 1))
    state[first] = state[first].bfloat16()
    torch.save(state, tmp_path / "ranks" / "model_world_size_1_rank_0.pt")
    merge(tmp_path)
    found = load_folder(tmp_path / "out")
    assert found[first].dtype == torch.bfloat16
    assert found[second].dtype == torch.float32
    assert torch.equal(found[second], state[second].float())


def test_a_family_without_a_class_keeps_the_biases_of_routers_and_says_so(tmp_path):
    write_all(build("deepseek_v3"), tmp_path, "bfloat16")
    config = tmp_path / "ranks" / "huggingface" / "config.json"
    said = json.loads(config.read_text()) | {
        "model_type": "own",
        "architectures": ["OwnForCausalLM"],
    }
    config.write_text(json.dumps(said))
    result = merge(tmp_path)
    about = [text for text in result.warnings if "stay float32" in text]
    assert len(about) == 1
    assert f"transformers {transformers.__version__} does not know it" in about[0]
    wide = {n for n, t in load_folder(tmp_path / "out").items() if t.dtype == torch.float32}
    assert wide == {"model.layers.1.mlp.gate.e_score_correction_bias"}
