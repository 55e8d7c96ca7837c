"""What a finished merge says of what comes next."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ckpt_tool.cli.app import app
from tests.support.merging import write_rank
from tests.support.tiny_llama import LLAMA, make_llama


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = write_rank(tmp_path / "global_step_7" / "actor", make_llama(), LLAMA)
    (source / "huggingface" / "tokenizer.json").write_text("{}")
    return source


def run(*words: object) -> Result:
    done = CliRunner(env={"COLUMNS": "80"}).invoke(app, [*map(str, words)])
    assert done.exit_code == 0, done.output
    return done


def list_next(done: Result) -> list[str]:
    """The lines that come after the result."""
    before, _, after = done.stdout.partition("\n\n")
    assert before.startswith(("Wrote", "Already complete"))
    return after.splitlines()


def test_each_thing_to_do_is_a_line_to_copy(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "my model"
    assert list_next(run("merge", source, out)) == [
        f"Next, with {out} (float32, 4.44 kB):",
        f'  python   model = transformers.AutoModelForCausalLM.from_pretrained("{out}")',
        f"  serve    vllm serve '{out}'",
        f"  check    ckpt verify '{out}'",
        f"  share    hf upload ORG/NAME '{out}'",
    ]


def test_it_is_said_of_what_was_there_too(source: Path, tmp_path: Path) -> None:
    said = list_next(run("merge", source, tmp_path / "out"))
    assert list_next(run("merge", source, tmp_path / "out", "--resume")) == said
    run("verify", *said[3].split()[-1:])


@pytest.mark.parametrize("words", [["--quiet", "merge"], ["merge", "--json"]])
def test_who_wants_no_words_gets_none(source: Path, tmp_path: Path, words: list[str]) -> None:
    done = run(*words, source, tmp_path / "out")
    assert "hf upload" not in done.stdout + done.stderr
    if "--json" in words:
        json.loads(done.stdout)
    assert "hf upload" not in run("merge", source, tmp_path / "other", "--dry-run").stdout


def test_what_cannot_be_done_is_not_said(source: Path, tmp_path: Path) -> None:
    bare = list_next(run("merge", source, tmp_path / "bare", "--config", "none", "--no-manifest"))
    assert [line.split()[0] for line in bare[1:]] == ["share"]
    (source / "huggingface" / "tokenizer.json").unlink()
    lines = list_next(run("merge", source, tmp_path / "out"))
    assert lines[2].endswith("/out --tokenizer ORG/NAME")
    critic = LLAMA | {"architectures": ["LlamaForTokenClassification"]}
    (source / "huggingface" / "config.json").write_text(json.dumps(critic))
    lines = list_next(run("merge", source, tmp_path / "critic", "--no-check-load"))
    assert [line.split()[0] for line in lines[1:]] == ["python", "check", "share"]
    assert "transformers.AutoModelForTokenClassification" in lines[1]


def test_adapters_are_opened_by_peft(checkpoints, tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    lines = list_next(run("merge", checkpoints["lora_alone_w2"], out))
    assert lines[1] == f'  python   model = peft.PeftModel.from_pretrained(BASE_MODEL, "{out}")'
    assert [line.split()[0] for line in lines[2:]] == ["check", "share"]
    split = list_next(run("merge", checkpoints["lora_w2"], tmp_path / "s", "--lora", "split"))
    wanted = (
        f'  peft     model = peft.PeftModel.from_pretrained(model, "{tmp_path}/s/lora_adapter")'
    )
    assert split[2] == wanted
