"""What stays float32 is looked up, or asked before a byte is planned; where it need not be, not."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from ckpt_tool.cli.app import app
from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.progress import NoProgress
from ckpt_tool.operations.merge import Job, merge
from ckpt_tool.operations.options import MergeOptions
from ckpt_tool.plans.checks import question
from ckpt_tool.plans.options import WriteOptions, WriteResult
from tests.support.every_class import build_tiny
from tests.support.merging import load_folder, write_rank
from tests.support.tiny_llama import LLAMA, make_llama
from tests.support.tiny_models import build
from tests.support.versions import TRANSFORMERS, needs_transformers_5

GATE = "model.layers.{}.mlp.gate.wg.weight"
WIDE = {GATE.format(0), GATE.format(1)}


class Listener(NoProgress):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def start(self, what: str, total: int | None, unit: str = "bytes") -> None:
        if what.startswith("waiting"):
            self.said.append(what)


@pytest.fixture
def asked(user_cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows with every question that transformers is asked."""
    heard: list[str] = []
    answer = question.answer

    def listen(each):
        heard.append(json.loads(each["config"])["architectures"][0])
        return answer(each)

    monkeypatch.setattr(question, "answer", listen)
    return heard


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    """What a model is built with is imported before tests look whether transformers is."""
    if TRANSFORMERS >= (5, 0):
        build("hunyuan_v1_moe")


def write_hunyuan(folder: Path, dtype: str = "bfloat16") -> Path:
    """A checkpoint in float32 of a class that creates the gates of its experts so."""
    model = build("hunyuan_v1_moe")
    config = model.config.to_dict() | {"architectures": ["HunYuanMoEV1ForCausalLM"]}
    return write_rank(folder, model.state_dict(), json.loads(json.dumps(config)) | {"dtype": dtype})


def run(source: Path, out: Path, progress: NoProgress | None = None, **options) -> WriteResult:
    write = WriteOptions(fsync=False, check_load=options.pop("check_load", None))
    return merge(Job([source], out, "fsdp"), MergeOptions(write=write, **options), progress)


def wide(folder: Path) -> set[str]:
    return {name for name, t in load_folder(folder).items() if t.dtype == torch.float32}


@needs_transformers_5
def test_it_is_asked_once_for_casting_and_for_the_load_check(asked, user_cache, tmp_path):
    source = write_hunyuan(tmp_path / "in")
    result = run(source, tmp_path / "out")
    assert asked == ["HunYuanMoEV1ForCausalLM"]
    assert result.load_check.architecture == "HunYuanMoEV1ForCausalLM"
    assert result.warnings == []
    assert wide(tmp_path / "out") == WIDE
    run(source, tmp_path / "again")
    assert len(asked) == 1
    assert wide(tmp_path / "again") == WIDE
    assert len(list(user_cache.iterdir())) == 1


@needs_transformers_5
def test_another_dtype_is_asked_about_anew(asked, user_cache, tmp_path):
    source = write_hunyuan(tmp_path / "in")
    for dtype in ("bfloat16", "float16"):
        run(source, tmp_path / dtype, dtype=dtype)
        assert wide(tmp_path / dtype) == WIDE
    assert len(asked) == len(list(user_cache.iterdir())) == 2


@needs_transformers_5
def test_an_answer_that_cannot_be_kept_is_handed_on(asked, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    result = run(write_hunyuan(tmp_path / "in"), tmp_path / "out")
    assert len(asked) == 1
    assert result.load_check.architecture == "HunYuanMoEV1ForCausalLM"


@needs_transformers_5
@pytest.mark.parametrize("dtype", ["keep", "float32"])
def test_who_casts_nothing_to_fewer_bits_does_not_ask(dtype, beside, tmp_path):
    source = write_hunyuan(tmp_path / "in")
    run(source, tmp_path / "out", dtype=dtype, check_load=False)
    assert "transformers" not in sys.modules
    assert not beside.exists()


@needs_transformers_5
def test_what_is_in_the_dtype_already_is_not_asked_about(beside, tmp_path):
    source = write_hunyuan(tmp_path / "in")
    file = source / "model_world_size_1_rank_0.pt"
    state = {name: tensor.bfloat16() for name, tensor in torch.load(file).items()}
    torch.save(state, file)
    result = run(source, tmp_path / "out", check_load=False)
    assert result.casts == result.warnings == []
    assert wide(tmp_path / "out") == set()


def test_a_family_whose_row_says_it_is_not_asked_about(beside, tmp_path):
    source = write_rank(tmp_path / "in", make_llama(), LLAMA | {"torch_dtype": "bfloat16"})
    result = run(source, tmp_path / "out", check_load=False)
    assert "transformers" not in sys.modules
    assert not beside.exists()
    assert result.warnings == []
    assert wide(tmp_path / "out") == set()


@needs_transformers_5
def test_who_may_not_ask_says_what_nobody_knows(beside, tmp_path):
    source = write_hunyuan(tmp_path / "in")
    result = run(source, tmp_path / "out", check_load=False)
    (said,) = result.warnings
    assert "HunYuanMoEV1ForCausalLM stay float32" in said
    assert "`write.check_load=False`" in said
    assert wide(tmp_path / "out") == set()
    words = ["merge", "fsdp", str(source), str(tmp_path / "typed"), "--no-check-load", "--no-fsync"]
    typed = CliRunner(env={"COLUMNS": "300"}).invoke(app, words)
    assert typed.exit_code == 0
    assert "with --no-check-load" in typed.stderr


@needs_transformers_5
def test_what_is_kept_is_known_without_asking(user_cache, tmp_path, monkeypatch):
    source = write_hunyuan(tmp_path / "in")
    run(source, tmp_path / "first")
    assert len(list(user_cache.iterdir())) == 1
    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    assert run(source, tmp_path / "out", check_load=False).warnings == []
    assert wide(tmp_path / "out") == WIDE


@needs_transformers_5
def test_tensors_that_are_not_the_classes_are_refused_before_a_byte_is_written(asked, tmp_path):
    source = write_hunyuan(tmp_path / "in")
    file = source / "model_world_size_1_rank_0.pt"
    torch.save(torch.load(file) | {"extra": torch.ones(3)}, file)
    with pytest.raises(MappingError) as refused:
        run(source, tmp_path / "out")
    assert list(refused.value.names) == ["unexpected: extra"]
    assert len(asked) == 1


@pytest.mark.real
@needs_transformers_5
def test_a_process_is_waited_for_and_that_is_said(beside, tmp_path, monkeypatch):
    source = write_hunyuan(tmp_path / "in")
    listener = Listener()
    run(source, tmp_path / "out", listener)
    assert listener.said[0] == "waiting for transformers: what stays float32"
    assert "transformers" not in sys.modules
    assert wide(tmp_path / "out") == WIDE
    monkeypatch.setattr(question, "Child", None)
    listener.said.clear()
    run(source, tmp_path / "again", listener)
    assert not any("waiting" in said for said in listener.said)
    assert wide(tmp_path / "again") == WIDE


@needs_transformers_5
@pytest.mark.skipif(TRANSFORMERS < (5, 24), reason="routers are float32 since 5.24")
def test_layers_that_the_class_leaves_out_are_held_as_the_others(user_cache, tmp_path):
    """Nemotron 3's for multi-token prediction; asked, and looked up."""
    model = build_tiny("nemotron_h", "NemotronHForCausalLM")
    base = tmp_path / "base"
    model.save_pretrained(base)
    tensors = load_folder(base)
    bias = next(name for name in tensors if name.endswith("e_score_correction_bias"))
    ahead = "mtp.layers.1.mixer.gate.e_score_correction_bias"
    tensors[ahead] = tensors[bias].float() + 1 / 3
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    config = json.loads((base / "config.json").read_text()) | {"dtype": "bfloat16"}
    source = write_rank(tmp_path / "in", model.state_dict(), config)
    for out in ("asked", "looked_up"):
        run(source, tmp_path / out, fill_from=base)
        assert {bias, ahead} <= wide(tmp_path / out)
