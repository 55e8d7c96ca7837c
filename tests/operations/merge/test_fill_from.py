"""What a checkpoint lacks of its model, from the model that it was trained from."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from ckpt_tool.cli.app import app
from ckpt_tool.common.errors import MappingError, UsageError
from ckpt_tool.operations.merge import merge_fsdp
from ckpt_tool.operations.options import MergeOptions, VerifyOptions
from ckpt_tool.operations.verify import verify_checkpoint
from ckpt_tool.plans.options import WriteOptions
from tests.support.every_class import build_tiny
from tests.support.merging import assert_same, load_folder, write_rank
from tests.support.tiny_llama import HEAD, LLAMA, make_llama
from tests.support.tiny_models import build
from tests.support.versions import needs_transformers_5

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
WRITE = WriteOptions(fsync=False)
RUNNER = CliRunner(env={"COLUMNS": "100"})


def save_base(folder: Path, family: str, **settings):
    """The base as its class saves it, and its config."""
    model = build(family, **settings)
    model.save_pretrained(folder)
    return model, json.loads((folder / "config.json").read_text())


def train(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor + 1 for name, tensor in state.items()}


def merge(source: Path, out: Path, base: Path | None, **more):
    return merge_fsdp([source], out, MergeOptions(fill_from=base, write=WRITE, **more))


def opened(folder: Path, model_class: type) -> dict[str, torch.Tensor]:
    model, report = model_class.from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.state_dict()


def is_vision(name: str) -> bool:
    return any(part in name for part in ("visual", "vision", "projector"))


VLMS = ["qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "gemma3", "llava"]


@pytest.mark.parametrize("family", VLMS)
def test_a_tower_that_was_not_saved(family, tmp_path):
    model, config = save_base(tmp_path / "base", family)
    before = model.state_dict()
    state = train({name: t for name, t in before.items() if not is_vision(name)})
    source = write_rank(tmp_path / "in", state, config)
    with pytest.raises(MappingError) as error:
        merge(source, tmp_path / "out", None)
    assert "`fill_from=BASE`" in error.value.hint
    result = merge(source, tmp_path / "out", tmp_path / "base")
    found = opened(tmp_path / "out", type(model))
    assert_same(found, before | state)
    assert result.filled
    assert all(map(is_vision, result.filled))
    manifest = json.loads((tmp_path / "out" / "ckpt_manifest.json").read_text())
    assert manifest["filled"] == result.filled
    assert "model.safetensors" in {file["name"] for file in manifest["source"]["files"]}
    options = VerifyOptions(fill_from=tmp_path / "base")
    assert verify_checkpoint(source, tmp_path / "out", options).equal
    assert not verify_checkpoint(source, tmp_path / "base", options).equal


@pytest.mark.parametrize("family", VLMS)
def test_the_text_model_alone_becomes_the_whole_one(family, tmp_path):
    """As trainers of text save it, whose class is a language model's: model.layers.0 ..."""
    model, config = save_base(tmp_path / "base", family)
    before = model.state_dict()
    trained = train({name: t for name, t in before.items() if not is_vision(name)})
    text = {name.replace("model.language_model.", "model."): t for name, t in trained.items()}
    source = write_rank(tmp_path / "in", text, config)
    with pytest.raises(MappingError, match="multimodal model's") as error:
        merge(source, tmp_path / "out", None)
    assert "`fill_from=BASE`" in error.value.hint
    result = merge(source, tmp_path / "out", tmp_path / "base")
    assert_same(opened(tmp_path / "out", type(model)), before | trained)
    assert all(map(is_vision, result.filled))


@needs_transformers_5
def test_a_thinker_becomes_the_whole_omni_model(tmp_path):
    model = build_tiny("qwen3_omni_moe", "Qwen3OmniMoeForConditionalGeneration")
    model.save_pretrained(tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    before = model.state_dict()
    trained = train({n: t for n, t in before.items() if n.startswith("thinker.")})
    thinker = {name.removeprefix("thinker."): tensor for name, tensor in trained.items()}
    source = write_rank(tmp_path / "in", thinker, config)
    merge(source, tmp_path / "out", tmp_path / "base")
    assert_same(opened(tmp_path / "out", type(model)), before | trained)


def add_prediction_layer(base: Path, names: Callable[[str], str]) -> dict[str, torch.Tensor]:
    """A base with a layer for multi-token prediction, which its class does not open."""
    layer = {names("proj.weight"): torch.randn(32, 64), names("norm.weight"): torch.randn(32)}
    weights = load_file(base / "model.safetensors")
    save_file(weights | layer, base / "model.safetensors", {"format": "pt"})
    return layer


@pytest.mark.parametrize(
    ("family", "settings", "names"),
    [
        ("deepseek_v3", {"num_nextn_predict_layers": 1}, "model.layers.2.{}"),
        ("qwen3_next", {"mtp_num_hidden_layers": 1}, "mtp.{}"),
        ("glm4_moe", {"mtp_num_layers": 1}, "model.layers.2.{}"),
    ],
)
def test_layers_for_prediction_that_training_dropped(family, settings, names, tmp_path):
    model, config = save_base(tmp_path / "base", family, **settings)
    layer = add_prediction_layer(tmp_path / "base", names.format)
    state = train(model.state_dict())
    source = write_rank(tmp_path / "in", state, config | settings)
    plain = merge(source, tmp_path / "plain", None)
    assert any("`fill_from=BASE`" in warning for warning in plain.warnings)
    result = merge(source, tmp_path / "out", tmp_path / "base")
    assert result.filled == sorted(layer)
    assert result.load_check.num_ignored == len(layer)
    assert not any("prediction" in warning for warning in result.warnings)
    assert_same(load_folder(tmp_path / "out"), load_folder(tmp_path / "plain") | layer)


@pytest.mark.parametrize("main", [torch.bfloat16, torch.float32])
def test_what_is_float32_beside_a_model_in_bfloat16_stays_so(tmp_path, main):
    """As the vocoder of Qwen2.5-Omni; where all of the model is float32, nothing is special."""
    model, config = save_base(tmp_path / "base", "qwen3_next")
    base = {name: t.to(main) for name, t in load_folder(tmp_path / "base").items()}
    save_file(base, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    layer = add_prediction_layer(tmp_path / "base", "mtp.{}".format)
    source = write_rank(tmp_path / "in", model.state_dict(), config)
    merge(source, tmp_path / "out", tmp_path / "base", dtype="bfloat16")
    found = load_folder(tmp_path / "out")
    kept = torch.float32 if main == torch.bfloat16 else torch.bfloat16
    assert_same({name: found[name] for name in layer}, {n: t.to(kept) for n, t in layer.items()})
    assert {t.dtype for n, t in found.items() if n not in layer} == {torch.bfloat16}


def test_fp8_layers_are_multiplied_with_their_scales(tmp_path):
    model, config = save_base(tmp_path / "base", "deepseek_v3", num_nextn_predict_layers=1)
    name = "model.layers.2.proj.weight"
    weight = torch.randn(32, 64).to(torch.float8_e4m3fn)
    layer = {name: weight, f"{name}_scale_inv": torch.full((1, 1), 0.5)}
    weights = load_file(tmp_path / "base" / "model.safetensors")
    save_file(weights | layer, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    source = write_rank(tmp_path / "in", model.state_dict(), config)
    result = merge(source, tmp_path / "out", tmp_path / "base", dtype="float32")
    assert result.filled == [name]
    assert torch.equal(load_folder(tmp_path / "out")[name], weight.float() * 0.5)


def test_a_critic_gets_no_head_and_a_tied_one_neither(tmp_path):
    base, _ = save_base(tmp_path / "base", "llama")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    state = {n: t for n, t in base.state_dict().items() if n != HEAD and ".layers.1." not in n}
    critic = write_rank(tmp_path / "critic", state | {"score.weight": torch.ones(1, 32)}, config)
    result = merge(critic, tmp_path / "out", tmp_path / "base")
    assert result.filled
    assert all(".layers.1." in name for name in result.filled)
    tied = write_rank(tmp_path / "tied", state, config | {"tie_word_embeddings": True})
    assert HEAD not in merge(tied, tmp_path / "out2", tmp_path / "base").filled
    untied = write_rank(tmp_path / "untied", state, config)
    assert HEAD in merge(untied, tmp_path / "out3", tmp_path / "base").filled


def test_a_family_without_rules_and_one_in_the_form_of_the_hub(tmp_path):
    model, config = save_base(tmp_path / "base", "phi3")
    state = train({n: t for n, t in model.state_dict().items() if ".layers.1." not in n})
    source = write_rank(tmp_path / "in", state, config)
    merge(source, tmp_path / "out", tmp_path / "base")
    assert_same(opened(tmp_path / "out", type(model)), model.state_dict() | state)
    _, config = save_base(tmp_path / "moe", "mixtral")
    saved = load_folder(tmp_path / "moe")
    state = train({n: t for n, t in saved.items() if ".layers.1." not in n})
    source = write_rank(tmp_path / "in4", state, config)  # as transformers 4 has them in memory
    result = merge(source, tmp_path / "out4", tmp_path / "moe")
    assert set(result.filled) == saved.keys() - state.keys()
    assert_same(load_folder(tmp_path / "out4"), saved | state)


def write_llama(folder: Path, *, lacks: str = "", vocab: int = 16) -> Path:
    state = {name: t for name, t in make_llama(vocab).items() if not lacks or lacks not in name}
    return write_rank(folder, state, LLAMA)


def write_base(folder: Path, state: dict[str, torch.Tensor], **changes) -> Path:
    folder.mkdir()
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(LLAMA | changes))
    return folder


def test_rows_may_have_been_added_to_an_embedding(tmp_path):
    source = write_llama(tmp_path / "in", lacks="mlp.up_proj", vocab=18)
    base = write_base(tmp_path / "base", make_llama())
    result = merge(source, tmp_path / "out", base)
    assert result.filled == ["model.layers.0.mlp.up_proj.weight"]
    assert load_folder(tmp_path / "out")[HEAD].shape == (18, 8)


def test_another_model_is_refused_with_all_that_differs(tmp_path):
    source = write_llama(tmp_path / "in", lacks="mlp.up_proj")
    other = dict(make_llama())
    other["model.layers.0.mlp.down_proj.weight"] = torch.ones(8, 16)
    broken = write_base(tmp_path / "broken", other)
    with pytest.raises(MappingError, match="not what its config says") as error:
        merge(source, tmp_path / "out", broken)
    assert error.value.names == (
        "model.layers.0.mlp.down_proj.weight: shape [8, 16], expected [8, 12]",
    )
    for name in ("mlp.gate_proj", "mlp.up_proj"):
        other[f"model.layers.0.{name}.weight"] = torch.ones(16, 8)
    with pytest.raises(MappingError, match="another model than this one") as error:
        merge(source, tmp_path / "out", write_base(tmp_path / "w", other, intermediate_size=16))
    assert error.value.names == (
        "model.layers.0.mlp.down_proj.weight: shape [8, 12], and [8, 16] there",
    )
    kind = write_base(tmp_path / "kind", make_llama(), model_type="mistral")
    with pytest.raises(
        MappingError,
        match=r"kind.config\.json says model_type mistral, and .*config\.json says llama",
    ):
        merge(source, tmp_path / "out", kind)
    assert not (tmp_path / "out").exists()


def test_requests_that_cannot_be_carried_out(tmp_path):
    source = write_llama(tmp_path / "in")
    base = write_base(tmp_path / "base", make_llama())
    with pytest.raises(UsageError, match="no Hugging Face model folder"):
        merge(source, tmp_path / "out", tmp_path / "in")
    with pytest.raises(UsageError, match="cannot go with `keep_names=True`"):
        merge(source, tmp_path / "out", base, keep_names=True)
    with pytest.raises(UsageError, match="both are Hugging Face models"):
        verify_checkpoint(base, base, VerifyOptions(fill_from=base))


def test_the_command_says_what_was_filled(tmp_path):
    source = write_llama(tmp_path / "in", lacks="mlp.")
    base = write_base(tmp_path / "base", make_llama())
    command = ["merge", "fsdp", str(source), str(tmp_path / "out"), "--fill-from", str(base)]
    dry = RUNNER.invoke(app, [*command, "--dry-run", "--json"])
    assert len(json.loads(dry.stdout)["filled"]) == 3
    done = RUNNER.invoke(app, command)
    assert "fill     model.layers.0.* (3 tensors)" in done.stdout
    sides = [str(source), str(tmp_path / "out")]
    verified = RUNNER.invoke(app, ["verify", *sides, "--fill-from", str(base)])
    assert verified.exit_code == 0
