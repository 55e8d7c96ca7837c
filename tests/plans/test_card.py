"""The model card of a merged folder: the Hub reads its settings, and its Python opens it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from ckpt_tool import LoraOptions, MergeOptions, check_folder, merge_fsdp
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.lora.options import AdapterFiles
from ckpt_tool.plans.options import WriteOptions, WriteResult
from ckpt_tool.plans.usage import name_repository, use_adapter, use_model
from tests.operations.merge.test_lora import logits
from tests.support.merging import load_folder, write_rank
from tests.support.tiny_llama import LLAMA, make_llama


def merge(tmp_path: Path, out: str = "out", **changes: Any) -> WriteResult:
    step = tmp_path / "run" / "global_step_7" / "actor"
    write_rank(step, make_llama(), LLAMA | changes)
    return merge_fsdp(step, tmp_path / out)


def read(folder: Path) -> ModelCard:
    return ModelCard.load(folder / "README.md")


def run_python(folder: Path, *replaced: tuple[str, str]) -> dict[str, Any]:
    """What the card's Python leaves, run in the folder as it says."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    for old, new in replaced:
        assert old in code
        code = code.replace(old, new)
    left: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(code, left)
    return left


def test_the_hub_reads_its_settings(tmp_path: Path) -> None:
    merge(tmp_path, _name_or_path="ada/tiny-llama")
    card = read(tmp_path / "out")
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "base_model": "ada/tiny-llama",
        "tags": ["ckpt-tool", "fsdp"],
    }
    assert card.text.startswith("\n# LlamaForCausalLM, step 7\n")
    for row in (
        "| Base model | [ada/tiny-llama](https://huggingface.co/ada/tiny-llama) |",
        "| Trained | to step 7 (actor) |",
        "| Merged from | FSDP checkpoint of 1 rank |",
        "| Weights | 12 tensors, 4.44 kB, float32 |",
    ):
        assert f"{row}\n" in card.text, card.text


def test_its_python_opens_the_model(tmp_path: Path) -> None:
    merge(tmp_path)
    model = run_python(tmp_path / "out")["model"]
    assert type(model).__name__ == "LlamaForCausalLM"
    expected = load_folder(tmp_path / "out")
    assert torch.equal(model.lm_head.weight, expected["lm_head.weight"])


def test_its_python_opens_an_adapter_beside_its_base(checkpoints, tmp_path: Path) -> None:
    case, out = checkpoints["lora_w2"], tmp_path / "out"
    result = merge_fsdp(case, out, MergeOptions(lora=LoraOptions("split")))
    assert "modules in lora_adapter/ |\n" in read(out).text
    eager = ("(folder)", '(folder, attn_implementation="eager")')
    tokenizer = ("tokenizer = AutoTokenizer.from_pretrained(folder)\n", "")  # there is no real one
    found, expected = logits(case, run_python(out, tokenizer, eager)["model"])
    assert torch.equal(found, expected)
    assert result.usage is not None
    assert not (out / "lora_adapter" / "README.md").exists()


def test_its_python_opens_adapters_alone(checkpoints, tmp_path: Path) -> None:
    case, out = checkpoints["lora_alone_w2"], tmp_path / "out"
    merge_fsdp(case, out)
    card = read(out)
    assert (card.data.library_name, card.data.base_model) == ("peft", None)
    assert card.text.startswith("\n# LoRA adapter")
    base = checkpoints["lora_w2"] / "base"
    eager = ('"BASE_MODEL"', f'"{base}", attn_implementation="eager"')
    found, expected = logits(case, run_python(out, eager)["model"])
    assert torch.equal(found, expected)


@pytest.mark.parametrize("of_config", ["", "ada/config"])
def test_an_adapter_names_its_base(of_config: str) -> None:
    adapter = AdapterFiles("lora_adapter", {}, {"base_model_name_or_path": "ada/base"})
    assert use_adapter(adapter).base_model == "ada/base"
    config = ModelConfig(Path(), LLAMA | {"_name_or_path": of_config}, {})
    beside = use_model(config, "float32", has_tokenizer=False, adapter=adapter)
    assert beside.base_model == (of_config or "ada/base")
    assert use_model(config, "", has_tokenizer=False, adapter=None).base_model == of_config


def test_it_is_a_file_of_the_folder_like_others(tmp_path: Path) -> None:
    merge(tmp_path)
    whole = check_folder(tmp_path / "out")
    assert (whole.equal, whole.num_files) == (True, 3)
    (tmp_path / "out" / "README.md").write_text("by hand")
    assert list(check_folder(tmp_path / "out").different) == ["README.md"]


def test_a_complete_folder_without_one_is_another(tmp_path: Path) -> None:
    merge(tmp_path)
    step = tmp_path / "run" / "global_step_7"
    resumed = MergeOptions(write=WriteOptions(resume=True))
    assert merge_fsdp(step, tmp_path / "out", resumed).already_complete
    bare = MergeOptions(card=False, write=WriteOptions(resume=True))
    with pytest.raises(Exception, match=r"README\.md is no part of it"):
        merge_fsdp(step, tmp_path / "out", bare)
    merge_fsdp(step, tmp_path / "bare", bare)
    assert not (tmp_path / "bare" / "README.md").exists()
    assert check_folder(tmp_path / "bare").num_files == 2


def test_weights_alone_have_none(tmp_path: Path) -> None:
    step = write_rank(tmp_path / "in", make_llama())
    result = merge_fsdp(step, tmp_path / "out", MergeOptions(keep_names=True))
    assert result.usage is None
    assert not (tmp_path / "out" / "README.md").exists()


def test_what_a_config_says_is_no_markup(tmp_path: Path) -> None:
    """Nor YAML, nor Python: a name is one, or is left out."""
    step = write_rank(tmp_path / "in", make_llama())
    config = LLAMA | {"architectures": ['X"\n```\n# injected'], "_name_or_path": "a/b\ntags: [x]"}
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.json").write_text(json.dumps(config))
    options = MergeOptions(config=tmp_path / "config", write=WriteOptions(check_load=False))
    merge_fsdp(step, tmp_path / "out", options)
    card = read(tmp_path / "out")
    assert "injected" not in card.content
    assert card.data.to_dict() == {"library_name": "transformers", "tags": ["ckpt-tool", "fsdp"]}
    assert run_python(tmp_path / "out", ("AutoModel", "AutoModelForCausalLM"))


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        ("/models/Qwen3", ""),
        ("./Qwen3/base", ""),
        ("../Qwen3", ""),
        ("a/b/c", ""),
        ("gpt2", ""),
        ("/cache/hub/models--Qwen--Qwen3-0.6B/snapshots/c1899de2", "Qwen/Qwen3-0.6B"),
        ("/cache/hub/models--gpt2/snapshots/607a30d7", ""),
        ("", ""),
        (None, ""),
        (7, ""),
        ("a/b\n", ""),
        ("a/b: c", ""),
    ],
)
def test_a_base_is_a_repository_or_nothing(said: object, name: str) -> None:
    assert name_repository(said) == name
