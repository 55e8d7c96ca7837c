"""`merge megatron` of what real runs leave behind: heads, prefixes, folders, what is beside."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers

from ckpt_tool import MergeOptions, ToMcoreOptions, WriteOptions, convert_to_mcore, merge_megatron
from ckpt_tool.common.errors import CheckpointError, FormatError, MappingError, UsageError
from tests.real.fill import fill_distinct
from tests.support import megatron
from tests.support.merging import assert_same, load_folder
from tests.support.resaving import resaved, save_dcp, save_megatron, tensors_of

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

UNSYNCED = WriteOptions(fsync=False)
HEAD, EMBEDDING = "output_layer.weight", "embedding.word_embeddings.weight"


def merge(source: Path, out: Path, config: Path | None = None, **options):
    return merge_megatron(source, out, MergeOptions(config=config, write=UNSYNCED, **options))


def config_in(out: Path) -> dict:
    return json.loads((out / "config.json").read_text())


@pytest.fixture
def native(megatron_cases):
    return lambda name: megatron.native(megatron_cases, name, "tp1")


@pytest.fixture
def hf(megatron_cases):
    return lambda name: megatron.hf(megatron_cases, name)


@pytest.mark.parametrize("bias", [False, True])
def test_a_head_of_one_row_is_a_value_model_s(native, hf, tmp_path, bias):
    score = torch.arange(1.0, 65.0)[None] / 7
    head = {HEAD: score} | ({"output_layer.bias": torch.tensor([0.25])} if bias else {})
    source = resaved(native("llama"), tmp_path / "in", lambda tensors: tensors | head)
    merge(source, tmp_path / "out", hf("llama"))
    found = load_folder(tmp_path / "out")
    assert torch.equal(found["score.weight"], score)
    kind = "Token" if bias else "Sequence"
    assert config_in(tmp_path / "out")["architectures"] == [f"LlamaFor{kind}Classification"]
    model_class = getattr(transformers, f"LlamaFor{kind}Classification")
    model, report = model_class.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(model.score.weight, score)


@pytest.mark.parametrize("bias", [False, True])
def test_a_head_of_several_labels_is_called_what_it_is(native, hf, tmp_path, bias):
    """As ms-swift trains with ``--task_type seq_cls``."""
    head = {HEAD: torch.ones(3, 64)} | ({"output_layer.bias": torch.ones(3)} if bias else {})
    source = resaved(native("llama"), tmp_path / "in", lambda tensors: tensors | head)
    with pytest.raises(MappingError, match="has 3 rows, as a classifier's with 3 labels") as error:
        merge(source, tmp_path / "out", hf("llama"))
    assert f"{hf('llama')}/config.json has a vocabulary of " in error.value.message
    assert "`keep_names=True`" in error.value.hint
    merge(source, tmp_path / "out", keep_names=True)
    assert load_folder(tmp_path / "out")[HEAD].shape == (3, 64)


def test_a_classifier_of_several_labels_has_no_place_in_megatron(tmp_path):
    config = transformers.Qwen2Config(
        vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_labels=3,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    transformers.Qwen2ForSequenceClassification(config).save_pretrained(tmp_path / "hf")
    with pytest.raises(MappingError) as error:
        convert_to_mcore(tmp_path / "hf", tmp_path / "out", ToMcoreOptions(write=UNSYNCED))
    assert error.value.names == ("score.weight: [3, 16], expected [1, 16]",)
    assert "classifier, with one for each label" in error.value.hint


@pytest.mark.parametrize("kind", ["Sequence", "Token"])
def test_value_models_go_there_and_back(tmp_path, kind):
    model_class = getattr(transformers, f"Qwen2For{kind}Classification")
    config = model_class.config_class(
        vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_labels=1,
        num_attention_heads=4, num_key_value_heads=2, architectures=[model_class.__name__],
    )  # fmt: skip
    model = model_class(config)
    fill_distinct(model)
    model.save_pretrained(tmp_path / "hf")
    convert_to_mcore(tmp_path / "hf", tmp_path / "there", ToMcoreOptions(write=UNSYNCED))
    head = tensors_of(tmp_path / "there")[HEAD]
    assert head.shape == (1, 16)
    merge(tmp_path / "there", tmp_path / "back", tmp_path / "hf")
    assert_same(load_folder(tmp_path / "back"), load_folder(tmp_path / "hf"))


@pytest.mark.parametrize("prefix", ["module.", "model.", "language_model.", "model.module."])
def test_prefixes_that_frameworks_put_before_names(native, hf, tmp_path, prefix):
    def under(tensors):
        return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}

    source = resaved(native("qwen3_moe"), tmp_path / "in", under)
    merge(source, tmp_path / "out", hf("qwen3_moe"))
    assert_same(load_folder(tmp_path / "out"), load_folder(hf("qwen3_moe")))


def test_prediction_layers_by_their_name_in_development(native, hf, tmp_path):
    def newer(tensors):
        return {
            name.replace(".transformer_layer.", ".mtp_model_layer."): tensor
            for name, tensor in tensors.items()
        }

    source = resaved(native("deepseek_v3_mtp"), tmp_path / "in", newer)
    merge(source, tmp_path / "out", hf("deepseek_v3_mtp"))
    assert_same(load_folder(tmp_path / "out"), load_folder(hf("deepseek_v3_mtp")))


def test_training_state_beside_the_model_is_left_out_and_said(native, hf, tmp_path):
    def trained(tensors):
        state = {f"optimizer.state.exp_avg.{name}": tensor for name, tensor in tensors.items()}
        return tensors | state | {"rng_state/shard_0_1": {"seed": 1}}

    source = resaved(native("mistral"), tmp_path / "in", trained)
    result = merge(source, tmp_path / "out", hf("mistral"))
    assert_same(load_folder(tmp_path / "out"), load_folder(hf("mistral")))
    (name,) = result.dropped
    assert name == "optimizer.*"
    assert "state of training: 9 tensors" in result.dropped[name]
    manifest = json.loads((tmp_path / "out" / "ckpt_manifest.json").read_text())
    assert manifest["dropped"] == result.dropped


def test_rows_that_pad_the_vocabulary_are_said(megatron_cases, hf, tmp_path):
    source = megatron.saved(megatron_cases, "mistral", "vpp2")
    result = merge(source, tmp_path / "out", hf("mistral"))
    assert set(result.dropped) == {f"{EMBEDDING}[251:288]", f"{HEAD}[251:288]"}
    assert "37 rows of padding" in result.dropped[f"{HEAD}[251:288]"]


def test_weights_alone_keep_their_names(native, tmp_path):
    merge(native("mistral"), tmp_path / "out", keep_names=True)
    assert_same(load_folder(tmp_path / "out"), tensors_of(native("mistral")))
    assert not (tmp_path / "out" / "config.json").exists()


def lay_out(source: Path, config: Path, root: Path, where: str, beside: str) -> Path:
    """A checkpoint and the config beside it, where a framework would have them."""
    shutil.copytree(source, root / where)
    (root / beside).mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "generation_config.json"):
        shutil.copy(config / name, root / beside)
    return root


@pytest.mark.parametrize(
    ("where", "beside"),
    [
        ("global_step_5/actor/dist_ckpt", "global_step_5/actor/huggingface"),
        ("global_step_5/actor/model/dist_ckpt", "global_step_5/actor/model/huggingface"),
        ("iter_0000005", "iter_0000005"),
        (".", "."),
    ],
)
def test_folders_as_frameworks_leave_them(native, hf, tmp_path, where, beside):
    root = lay_out(native("qwen3"), hf("qwen3"), tmp_path / "run", where, beside)
    (root / "latest_checkpointed_iteration.txt").write_text("5")
    merge(root, tmp_path / "out")
    assert_same(load_folder(tmp_path / "out"), load_folder(hf("qwen3")))
    assert (tmp_path / "out" / "generation_config.json").exists()


def test_a_tied_head_that_is_saved_too_is_dropped_where_it_is_equal(native, hf, tmp_path):
    def repeated(tensors):
        return tensors | {HEAD: tensors[EMBEDDING].clone()}

    source = resaved(native("qwen2"), tmp_path / "in", repeated)
    result = merge(source, tmp_path / "out", hf("qwen2"))
    assert_same(load_folder(tmp_path / "out"), load_folder(hf("qwen2")))
    assert list(result.dropped) == ["lm_head.weight"]

    other = resaved(native("qwen2"), tmp_path / "other", lambda t: t | {HEAD: t[EMBEDDING] + 1})
    with pytest.raises(MappingError, match="but they differ"):
        merge(other, tmp_path / "never", hf("qwen2"))
    merge(other, tmp_path / "both", hf("qwen2"), tie_word_embeddings=False)
    assert "lm_head.weight" in load_folder(tmp_path / "both")
    assert config_in(tmp_path / "both")["tie_word_embeddings"] is False


def test_a_head_that_is_tied_against_the_config(native, hf, tmp_path):
    def headless(tensors):
        return {name: tensor for name, tensor in tensors.items() if name != HEAD}

    source = resaved(native("llama"), tmp_path / "in", headless)
    with pytest.raises(MappingError, match="1 missing") as refused:
        merge(source, tmp_path / "out", hf("llama"))
    assert "does not tie" in refused.value.hint
    merge(source, tmp_path / "out", hf("llama"), tie_word_embeddings=True)
    assert config_in(tmp_path / "out")["tie_word_embeddings"] is True


def optimizer_only(folder: Path) -> Path:
    return save_megatron({"optimizer.state.exp_avg.decoder": torch.ones(3)}, folder)


def test_where_verl_with_mbridge_has_the_weights(hf, tmp_path):
    optimizer_only(tmp_path / "actor" / "dist_ckpt")
    shutil.copytree(hf("llama"), tmp_path / "actor" / "huggingface")
    with pytest.raises(CheckpointError, match="state of training: 1 tensor") as refused:
        merge(tmp_path / "actor", tmp_path / "out")
    assert str(tmp_path / "actor" / "huggingface") in refused.value.hint


def test_a_folder_that_mbridge_left_nothing_else_in(hf, tmp_path):
    shutil.copytree(hf("llama"), tmp_path / "actor" / "huggingface")
    with pytest.raises(UsageError, match="this is a Hugging Face model") as refused:
        merge(tmp_path / "actor", tmp_path / "out")
    assert str(refused.value).startswith(f"{tmp_path / 'actor' / 'huggingface'}: ")
    assert "There is nothing to merge" in refused.value.hint


def test_where_verl_has_the_model_of_an_optimizer_s_folder(tmp_path):
    optimizer = optimizer_only(tmp_path / "actor" / "optimizer" / "dist_ckpt")
    (tmp_path / "actor" / "model" / "dist_ckpt").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="no weights") as refused:
        merge(optimizer, tmp_path / "out")
    assert f"name {tmp_path / 'actor'} instead" in refused.value.hint


def test_other_formats_are_named_with_what_merges_them(checkpoints, hf, tmp_path):
    with pytest.raises(UsageError, match="this is an FSDP checkpoint") as refused:
        merge(checkpoints["fsdp2_w2"], tmp_path / "out")
    assert "ckpt merge fsdp" in refused.value.hint
    with pytest.raises(UsageError, match="this is a Hugging Face model"):
        merge(hf("llama"), tmp_path / "out")
    plain = save_dcp({"model.embed_tokens.weight": torch.ones(2, 2)}, tmp_path / "plain")
    with pytest.raises(UsageError, match="not named as megatron") as refused:
        merge(plain, tmp_path / "out")
    assert "ckpt merge dcp" in refused.value.hint
    (tmp_path / "zarr").mkdir()
    (tmp_path / "zarr" / "metadata.json").write_text('{"sharded_backend": "zarr"}')
    with pytest.raises(FormatError, match="zarr"):
        merge(tmp_path / "zarr", tmp_path / "out")


def test_a_folder_that_lost_its_metadata_json_is_still_megatron_s(native, hf, tmp_path):
    shutil.copytree(native("llama"), tmp_path / "in")
    for name in ("metadata.json", "common.pt"):
        (tmp_path / "in" / name).unlink(missing_ok=True)  # no common.pt since 0.19
    merge(tmp_path / "in", tmp_path / "out", hf("llama"))
    assert_same(load_folder(tmp_path / "out"), load_folder(hf("llama")))
