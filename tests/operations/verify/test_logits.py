"""What two models say next: the numbers of transformers, and why there are none."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ckpt_tool.common.errors import UsageError
from ckpt_tool.operations import logits as module
from ckpt_tool.operations import logits_child
from ckpt_tool.operations.logits import Logits
from tests.support.verifying import verify

WORDS = "a quick brown fox jumps over lazy dogs".split()
TEXT = "a quick brown fox"
HEAD = "lm_head.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose logits are far apart, with a tokenizer of eight words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("logits") / "model"
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=len(WORDS), max_position_embeddings=1024,
        tie_word_embeddings=False,
    )  # fmt: skip
    whole = LlamaForCausalLM(config)
    with torch.no_grad():
        for each in whole.parameters():
            each.copy_(torch.randn(each.shape) * 0.5)
    whole.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    return folder


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The models are run in this process, which has imported all: another takes four seconds to."""

    def ask(_module: str, _runs: str, request: Mapping[str, Any]) -> SimpleNamespace:
        said: list[str] = []
        asked = json.loads(json.dumps(request))
        monkeypatch.setattr(logits_child, "serve", lambda do: said.append(json.dumps(do(asked))))
        logits_child.main()
        return SimpleNamespace(answer=lambda: json.loads(said[0]), stop=lambda: None)

    monkeypatch.setattr(module, "Child", ask)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def changed(model: Path, out: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """A copy of the model, with what ``change`` does to its tensors."""
    shutil.copytree(model, out)
    tensors = load_file(out / "model.safetensors")
    change(tensors)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out


def of(left: Path, right: Path, text: str = TEXT) -> Logits:
    found = verify(left, right, logits=text, explained=1).logits
    assert found is not None
    return found


def by_transformers(folder: Path, ids: list[int]) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_pretrained(folder).float().eval()
    with torch.inference_mode():
        return whole(input_ids=torch.tensor([ids])).logits[0]


def test_equal_models_say_the_same(model: Path) -> None:
    found = of(model, model)
    assert (found.num_tokens, found.num_agreeing, found.vocabulary) == (4, 4, 8)
    assert (found.max_abs, found.mean_abs, found.num_odd, found.disagreements) == (0, 0, 0, [])
    assert found.library.startswith("transformers ")


def test_numbers_are_those_of_transformers(model: Path, tmp_path: Path) -> None:
    """In a model whose head has its rows the other way round."""

    def turn(tensors: dict[str, torch.Tensor]) -> None:
        tensors[HEAD] = tensors[HEAD].flip(0).contiguous()

    other = changed(model, tmp_path / "other", turn)
    found, ids = of(other, model), [0, 1, 2, 3]
    a, b = by_transformers(other, ids), by_transformers(model, ids)
    distance = (a - b).abs()
    assert found.max_abs == pytest.approx(float(distance.max()), rel=1e-4)
    assert found.mean_abs == pytest.approx(float(distance.mean()), rel=1e-4)
    assert found.position == int(distance.argmax()) // 8
    assert found.num_agreeing == int((a.argmax(1) == b.argmax(1)).sum())
    assert [each.position for each in found.disagreements] == [
        at for at in ids if a[at].argmax() != b[at].argmax()
    ]
    first = found.disagreements[0]
    assert first.after == WORDS[first.position]
    for said, row in ((first.checkpoint, a), (first.reference, b)):
        shares, best = row[first.position].softmax(0).topk(5)
        assert [word for word, _ in said] == [WORDS[at] for at in best]
        assert [share for _, share in said] == pytest.approx(shares.tolist(), rel=1e-4)


@pytest.mark.usefixtures("here")
def test_bfloat16_is_run_in_float32(model: Path, tmp_path: Path) -> None:
    def round_all(tensors: dict[str, torch.Tensor]) -> None:
        tensors |= {name: tensor.bfloat16() for name, tensor in tensors.items()}

    rounded = changed(model, tmp_path / "rounded", round_all)
    config = json.loads((rounded / "config.json").read_text())
    config |= {"dtype": "bfloat16", "torch_dtype": "bfloat16"}
    (rounded / "config.json").write_text(json.dumps(config))
    expected = by_transformers(rounded, [0, 1, 2, 3]) - by_transformers(model, [0, 1, 2, 3])
    found = of(rounded, model)
    assert found.max_abs == pytest.approx(float(expected.abs().max()), rel=1e-3)


@pytest.mark.usefixtures("here")
def test_what_is_not_finite_is_counted(model: Path, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[HEAD][2] = torch.nan

    found = of(changed(model, tmp_path / "spoilt", spoil), model)
    assert (found.num_odd, found.max_abs) == (4, 0)


def drop_head(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[HEAD]


@pytest.mark.usefixtures("here")
def test_a_model_that_misses_weights_is_not_run(model: Path, tmp_path: Path) -> None:
    """Transformers would make some up."""
    with pytest.raises(UsageError, match=r"LlamaForCausalLM misses lm_head\.weight"):
        of(changed(model, tmp_path / "part", drop_head), model)


def without(model: Path, out: Path, *names: str) -> Path:
    shutil.copytree(model, out, ignore=shutil.ignore_patterns(*names))
    return out


def test_what_is_needed_is_said(model: Path, tmp_path: Path) -> None:
    bare = without(model, tmp_path / "bare", "tokenizer*")
    with pytest.raises(UsageError, match="bare has no tokenizer"):
        of(model, bare)
    unknown = without(model, tmp_path / "unknown", "config.json")
    with pytest.raises(UsageError, match="unknown has no config"):
        of(unknown, model)
    with pytest.raises(UsageError, match="is no folder of a Hugging Face model"):
        of(model / "model.safetensors", model)
    with pytest.raises(UsageError, match="the text is empty"):
        of(model, model, "")


@pytest.mark.usefixtures("here")
def test_a_text_that_is_too_long_is_refused(model: Path) -> None:
    with pytest.raises(UsageError, match="the text has 513 tokens, expected 1 to 512"):
        of(model, model, "fox " * 513)


@pytest.mark.usefixtures("here")
def test_other_tokens_are_not_compared(model: Path, tmp_path: Path) -> None:
    other = without(model, tmp_path / "other")
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace('"fox"', '"cat"'))
    with pytest.raises(UsageError, match="the two tokenizers make other tokens"):
        of(other, model)


def test_too_little_memory_is_said_with_the_number(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_available_memory", lambda: 2_000_000_000)
    with pytest.raises(UsageError, match=r"takes 2\.15 GB of memory, 2 GB are available"):
        of(model, model)


def test_no_code_of_a_checkpoint_is_run(model: Path, tmp_path: Path) -> None:
    hostile = without(model, tmp_path / "hostile")
    marker = tmp_path / "was run"
    (hostile / "modeling.py").write_text(f"open({str(marker)!r}, 'w')\nclass M: pass\n")
    config = json.loads((hostile / "config.json").read_text())
    places = ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")
    config |= {"model_type": "no_such_type", "auto_map": dict.fromkeys(places, "modeling.M")}
    (hostile / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="hostile"):
        of(hostile, hostile)
    assert not marker.exists()
