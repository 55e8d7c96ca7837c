"""Value models: trl's heads, critics and reward models become folders that open as such."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from ckpt_tool import MergeOptions, merge_dcp, merge_fsdp, merge_megatron
from ckpt_tool.common.errors import MappingError, UsageError
from ckpt_tool.operations.merge_plan import make_plan
from ckpt_tool.plans.options import WriteOptions
from tests.real.fsdp_cases import VALUE_HEADS
from tests.real.fsdp_models import ValueHead, WithValueHead
from tests.real.fsdp_reference import logits_of
from tests.support import megatron
from tests.support.merging import TINY, assert_same, load_folder, values, write_rank
from tests.support.resaving import resaved
from tests.support.tiny_models import build
from tests.support.verifying import planted, verify
from tests.support.versions import needs_transformers_5

WEIGHT, BIAS = "v_head.summary.weight", "v_head.summary.bias"
UNSYNCED = WriteOptions(fsync=False)


def merge(source: Path, out: Path, **options):
    return merge_fsdp([source], out, MergeOptions(write=UNSYNCED, **options))


def config_in(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def opened(folder: Path, kind: str):
    """The folder as an Auto class opens it; nothing that it wants may be missing."""
    auto = getattr(transformers, f"AutoModelFor{kind}")
    model, report = auto.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    return model.eval(), set(report["unexpected_keys"])


def head_as_trl_finds_it(folder: Path) -> ValueHead:
    """What trl does with a local folder: the one file, names without `v_head.`, the rest unused."""
    state = load_file(folder / "model.safetensors")
    head = ValueHead(config_in(folder)["hidden_size"])
    found = {name.replace("v_head.", ""): t for name, t in state.items() if "v_head." in name}
    head.load_state_dict(found)
    return head.eval()


@pytest.mark.parametrize("case", VALUE_HEADS)
def test_a_value_head_is_kept_under_both_its_names(checkpoints, tmp_path, case):
    result = merge(checkpoints[case], tmp_path / "out")
    expected = load_folder(checkpoints[case] / "reference")
    expected |= {"score.weight": expected[WEIGHT], "score.bias": expected[BIAS]}
    assert_same(load_folder(tmp_path / "out"), expected)
    assert result.warnings == []
    config = config_in(tmp_path / "out")
    assert config["architectures"] == ["Qwen2ForTokenClassification"]
    assert list(config["id2label"]) == ["0"]
    for side in (checkpoints[case], checkpoints[case] / "reference", tmp_path / "out"):
        assert verify(side, tmp_path / "out").equal
        assert verify(tmp_path / "out", side).equal


@needs_transformers_5
@pytest.mark.parametrize("case", VALUE_HEADS)
def test_one_folder_opens_as_classifier_as_language_model_and_in_trl(checkpoints, tmp_path, case):
    merge(checkpoints[case], tmp_path / "out")
    known = load_file(checkpoints[case] / "logits.safetensors")
    critic, unused = opened(tmp_path / "out", "TokenClassification")
    assert unused == {WEIGHT, BIAS} | (load_folder(tmp_path / "out").keys() & {"lm_head.weight"})
    assert torch.equal(logits_of(critic, known["input_ids"]), known["values"])
    actor, unused = opened(tmp_path / "out", "CausalLM")
    assert unused == {WEIGHT, BIAS, "score.weight", "score.bias"}
    assert torch.equal(logits_of(actor, known["input_ids"]), known["logits"])
    both = WithValueHead(actor)
    both.v_head = head_as_trl_finds_it(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(both.values(known["input_ids"]), known["values"])


@needs_transformers_5
def test_a_head_in_float32_stays_so_beside_a_model_that_is_cast(checkpoints, tmp_path):
    merge(checkpoints["fsdp2_valuehead_w2"], tmp_path / "out", dtype="bfloat16")
    found = load_folder(tmp_path / "out")
    wide = {name for name, tensor in found.items() if tensor.dtype == torch.float32}
    assert wide == {WEIGHT, BIAS, "score.weight", "score.bias"}
    assert config_in(tmp_path / "out")["dtype"] == "bfloat16"


def test_a_head_in_bfloat16_is_widened_with_the_model(tmp_path):
    unchecked = WriteOptions(fsync=False, check_load=False)
    state = {"model.norm.weight": values(8), WEIGHT: values(1, 8), BIAS: values(1)}
    state = {name: tensor.bfloat16() for name, tensor in state.items()}
    for dtype in ("float32", "float16"):
        write_rank(tmp_path / dtype, state, TINY)
        options = MergeOptions(dtype=dtype, write=unchecked)
        merge_fsdp([tmp_path / dtype], tmp_path / f"{dtype}_out", options)
        kept = torch.float32 if dtype == "float32" else torch.bfloat16
        assert load_folder(tmp_path / f"{dtype}_out")[WEIGHT].dtype == kept


@needs_transformers_5
def test_several_files_are_not_what_trl_finds_the_head_in(checkpoints, tmp_path):
    result = merge(checkpoints["fsdp2_valuehead_w2"], tmp_path / "out", max_shard_size="40KB")
    (said,) = result.warnings
    assert "3 files" in said
    assert "`max_shard_size='1GB'`" in said
    first = load_file(tmp_path / "out" / "model-00001-of-00003.safetensors")
    assert first.keys() >= {WEIGHT, BIAS}
    critic, _ = opened(tmp_path / "out", "TokenClassification")
    known = load_file(checkpoints["fsdp2_valuehead_w2"] / "logits.safetensors")
    assert torch.equal(logits_of(critic, known["input_ids"]), known["values"])


def test_without_the_head_it_is_the_language_model(checkpoints, tmp_path):
    folder = checkpoints["fsdp2_valuehead_w2"]
    result = merge(folder, tmp_path / "out", value_model=False, max_shard_size="40KB")
    assert result.dropped.keys() == {WEIGHT, BIAS}
    assert result.warnings == []
    expected = load_folder(folder / "reference")
    del expected[WEIGHT], expected[BIAS]
    assert_same(load_folder(tmp_path / "out"), expected)
    assert config_in(tmp_path / "out")["architectures"] == ["Qwen2ForCausalLM"]


def test_ranks_of_torch_distributed_checkpoint(checkpoints, tmp_path):
    folder = checkpoints["fsdp2_valuehead_tied_w2"]
    config = folder / "actor" / "huggingface"
    for wanted in (None, True, False):
        options = MergeOptions(config=config, value_model=wanted, write=UNSYNCED)
        result = merge_dcp(folder / "dcp", tmp_path / f"{wanted}", options)
        assert (WEIGHT in result.dropped) is (wanted is False)
    merge(folder, tmp_path / "ranks")
    assert_same(load_folder(tmp_path / "None"), load_folder(tmp_path / "ranks"))
    assert_same(load_folder(tmp_path / "True"), load_folder(tmp_path / "ranks"))
    assert verify(folder / "dcp", tmp_path / "ranks").equal


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "gpt_neox"])
def test_the_values_of_other_families(tmp_path, family):
    """Experts are split and heads have other names, and the classifier gives what trl gives."""
    model = WithValueHead(build(family)).eval()
    model.config.save_pretrained(tmp_path / "in" / "huggingface")
    write_rank(tmp_path / "in", model.state_dict())
    options = MergeOptions(write=WriteOptions(fsync=False, check_load=True))
    found = merge_fsdp([tmp_path / "in"], tmp_path / "out", options).load_check
    named = found.architecture.removesuffix("ForTokenClassification")
    assert (found.num_other_heads, found.also) == (3, (f"{named}ForCausalLM",))
    critic, unused = opened(tmp_path / "out", "TokenClassification")
    assert {WEIGHT, BIAS} < unused
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        torch.testing.assert_close(critic(ids).logits, model.values(ids), rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["glm4_moe", "qwen2_5_vl"])
def test_where_no_classifier_exists_trl_alone_reads_the_head(tmp_path, family):
    model = build(family)
    model.config.save_pretrained(tmp_path / "in" / "huggingface")
    hidden = model.config.get_text_config().hidden_size
    head = {WEIGHT: values(1, hidden), BIAS: values(1)}
    write_rank(tmp_path / "in", model.state_dict() | head)
    write = WriteOptions(fsync=False, check_load=True)
    result = merge_fsdp([tmp_path / "in"], tmp_path / "out", MergeOptions(write=write))
    (said,) = [each for each in result.warnings if "multi-token" not in each]
    assert f"no token classification class for model type {family}" in said
    assert (result.load_check.num_other_heads, result.load_check.also) == (2, ())
    found = load_folder(tmp_path / "out")
    assert "score.weight" not in found
    assert_same({name: found[name] for name in head}, head)
    assert config_in(tmp_path / "out")["architectures"] == [type(model).__name__]
    assert verify(tmp_path / "in", tmp_path / "out").equal


@pytest.mark.parametrize("named", ["Qwen2ForTokenClassification", None])
def test_the_config_of_a_wrapped_model_may_name_another_class(checkpoints, tmp_path, named):
    actor = tmp_path / "actor"
    shutil.copytree(checkpoints["fsdp2_valuehead_w2"] / "actor", actor)
    config = config_in(actor / "huggingface") | {"architectures": named and [named]}
    (actor / "huggingface" / "config.json").write_text(json.dumps(config))
    for wanted, kind in ((False, "CausalLM"), (True, "TokenClassification")):
        merge(actor, tmp_path / kind, value_model=wanted)
        assert config_in(tmp_path / kind)["architectures"] == [f"Qwen2For{kind}"]


@needs_transformers_5
@pytest.mark.parametrize("case", ["fsdp2_tokencls_w2", "fsdp2_seqcls_w2"])
def test_critics_and_reward_models_open_with_their_auto_class(checkpoints, tmp_path, case):
    merge(checkpoints[case], tmp_path / "out", value_model=True)
    kind = "Token" if "token" in case else "Sequence"
    model, unused = opened(tmp_path / "out", f"{kind}Classification")
    assert type(model).__name__ == f"Qwen2For{kind}Classification"
    assert unused == set()
    known = load_file(checkpoints[case] / "logits.safetensors")
    assert torch.equal(logits_of(model, known["input_ids"]), known["logits"])
    with pytest.raises(UsageError, match="no language model in it"):
        merge(checkpoints[case], tmp_path / "never", value_model=False)


@pytest.mark.parametrize("named", ["Qwen2ForCausalLM", "Qwen2ForSequenceClassification"])
def test_a_critic_made_of_a_reward_model_is_a_token_classifier(checkpoints, tmp_path, named):
    actor = tmp_path / "actor"
    shutil.copytree(checkpoints["fsdp2_tokencls_w2"] / "actor", actor)
    config = config_in(actor / "huggingface") | {"architectures": [named]}
    (actor / "huggingface" / "config.json").write_text(json.dumps(config))
    merge(actor, tmp_path / "out")
    assert config_in(tmp_path / "out")["architectures"] == ["Qwen2ForTokenClassification"]


def test_a_value_model_that_is_wanted_must_be_there(checkpoints, tmp_path):
    with pytest.raises(UsageError, match=r"no value head; looked for v_head\.summary\.weight"):
        merge(checkpoints["fsdp2_w2"], tmp_path / "out", value_model=True)
    state = {"model.norm.weight": values(8), "score.weight": values(3, 8)}
    write_rank(tmp_path / "in", state, TINY)
    with pytest.raises(UsageError, match=r"score\.weight has 3 rows"):
        merge(tmp_path / "in", tmp_path / "out", value_model=True)
    unchecked = WriteOptions(fsync=False, check_load=False)
    options = MergeOptions(value_model=False, write=unchecked)
    merge_fsdp([tmp_path / "in"], tmp_path / "out", options)
    for wanted in (True, False):
        with pytest.raises(UsageError, match="`keep_names=True`"):
            merge(checkpoints["fsdp2_w2"], tmp_path / "x", value_model=wanted, keep_names=True)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_value_model_of_megatron_is_wanted_or_not(megatron_cases, tmp_path):
    native, config = (
        megatron.native(megatron_cases, "llama", "tp1"),
        megatron.hf(megatron_cases, "llama"),
    )
    score = {"output_layer.weight": torch.arange(1.0, 65.0)[None] / 7}
    critic = resaved(native, tmp_path / "in", lambda tensors: tensors | score)

    def run(source: Path, wanted: bool):
        options = MergeOptions(config=config, value_model=wanted, write=UNSYNCED)
        return merge_megatron(source, tmp_path / f"{source.name}{wanted}", options)

    run(critic, True)
    run(native, False)
    with pytest.raises(UsageError, match="no language model in it"):
        run(critic, False)
    with pytest.raises(UsageError, match="no value head"):
        run(native, True)


def test_names_beside_the_two_parts_are_refused(tmp_path):
    head = {WEIGHT: values(1, 8), BIAS: values(1)}
    state = {"pretrained_model.model.norm.weight": values(8), "extra.weight": values(2), **head}
    write_rank(tmp_path / "in", state, TINY)
    with pytest.raises(MappingError, match="neither to pretrained_model nor to v_head") as refused:
        make_plan(tmp_path / "in", "fsdp")
    assert refused.value.names == ("extra.weight",)


def test_the_reference_of_a_value_model_that_was_changed_is_different(checkpoints, tmp_path):
    folder = checkpoints["fsdp2_valuehead_w2"]
    merge(folder, tmp_path / "out")
    other = planted(folder / "reference", tmp_path / "other", lambda t: t[BIAS].add_(1))
    assert [found.name for found in verify(other, folder).mismatched] == [BIAS]
    result = verify(tmp_path / "out", other)
    assert {found.name for found in result.mismatched} == {BIAS, "score.bias"}
    assert verify(folder, checkpoints["fsdp2_w2"]).unexpected == [WEIGHT, BIAS]
