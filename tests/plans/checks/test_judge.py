"""Every merge is held against its class: in a process beside it, or from what is known already."""

import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import transformers
from typer.testing import CliRunner

from ckpt_tool.cli.app import app
from ckpt_tool.common.errors import MappingError, OutputError, UsageError
from ckpt_tool.mapping.config import ModelConfig, load_config
from ckpt_tool.mapping.hub.form import View
from ckpt_tool.operations.merge import Job, merge, preview_merge
from ckpt_tool.operations.options import MergeOptions
from ckpt_tool.plans.checks import cache, question
from ckpt_tool.plans.checks.child import Child
from ckpt_tool.plans.checks.question import Question
from ckpt_tool.plans.checks.safetensors import require_readable
from ckpt_tool.plans.checks.transformers import TransformersJudge
from ckpt_tool.plans.checks.wanted import Wanted
from ckpt_tool.plans.options import WriteOptions, WriteResult
from ckpt_tool.readers.huggingface import open_sound_model
from ckpt_tool.writers.safetensors import plan_file
from tests.support.merging import values, write_rank
from tests.support.tiny_llama import LAYER, LLAMA, SHAPES, make_llama
from tests.support.versions import needs_transformers_5


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody may be asked."""

    def refuse(*_: object) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(question, "Child", refuse)
    monkeypatch.setattr(question, "answer", refuse)


def config_of(folder: Path, **changes: object) -> ModelConfig:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA | changes))
    return load_config(folder)


def run(source: Path, out: Path, **options: object) -> WriteResult:
    job = Job([source], out, "fsdp")
    return merge(job, MergeOptions(write=WriteOptions(fsync=False, **options)))


def ask(config: ModelConfig, planned: dict[str, tuple[int, ...]], *, must: bool = True) -> object:
    judge = TransformersJudge([Question.of(View(config, frozenset()), planned)], {}, must=must)
    try:
        judge.start()
        return judge.finish(None)
    finally:
        judge.stop()


@pytest.mark.real
@needs_transformers_5
def test_a_process_is_asked_once_and_never_again(beside, tmp_path, monkeypatch):
    source = write_rank(tmp_path / "in", make_llama(), LLAMA)
    first = run(source, tmp_path / "first").load_check
    assert (first.architecture, first.num_tensors) == ("LlamaForCausalLM", len(SHAPES))
    assert first.library == f"transformers {transformers.__version__}"
    assert len(list(beside.iterdir())) == 1
    monkeypatch.setattr(question, "Child", None)
    assert run(source, tmp_path / "second").load_check == first
    assert "transformers" not in sys.modules


@pytest.mark.real
def test_what_is_wrong_is_found_while_bytes_are_moved(beside, tmp_path, monkeypatch):
    state = make_llama() | {"model.layers.1.mlp.up_proj.weight": values(12, 8)}
    source = write_rank(tmp_path / "in", state, LLAMA)
    monkeypatch.setattr(Child, "is_done", property(lambda child: child._talk.join() or True))
    with pytest.raises(MappingError, match=r"config\.json says LlamaForCausalLM") as refused:
        run(source, tmp_path / "out")
    assert list(refused.value.names) == ["unexpected: model.layers.1.mlp.up_proj.weight"]
    assert "`config=DIR`" in refused.value.hint
    assert "`write.check_load=False`" in refused.value.hint
    assert "write.resume" not in refused.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@needs_transformers_5
@pytest.mark.parametrize("gone", ["lm_head.weight", "model.layers.0.mlp.up_proj.weight"])
def test_a_whole_tensor_that_is_missing_is_named(user_cache, tmp_path, gone):
    state = make_llama()
    del state[gone]
    source = write_rank(tmp_path / "in", state, LLAMA)
    with pytest.raises(MappingError) as refused:
        run(source, tmp_path / "out")
    assert list(refused.value.names) == [f"missing: {gone} {list(SHAPES[gone])}"]
    assert run(source, tmp_path / "out", check_load=False).load_check is None
    assert not user_cache.exists()


@needs_transformers_5
def test_a_layer_that_is_missing_is_named_tensor_by_tensor(user_cache, tmp_path):
    source = write_rank(tmp_path / "in", make_llama(), LLAMA | {"num_hidden_layers": 2})
    with pytest.raises(MappingError) as refused:
        preview_merge(Job([source], tmp_path / "out", "fsdp"))
    assert sorted(refused.value.names) == sorted(
        f"missing: model.layers.1.{name}.weight {list(shape)}" for name, shape in LAYER.items()
    )


@needs_transformers_5
@pytest.mark.usefixtures("user_cache")
def test_what_is_known_finds_faults_before_a_byte_is_written(tmp_path, request):
    config = config_of(tmp_path / "model")
    ask(config, SHAPES)
    request.getfixturevalue("alone")
    assert ask(config, SHAPES).check.num_tensors == len(SHAPES)
    planned = SHAPES | {"lm_head.weight": (15, 8)}
    judge = TransformersJudge([Question.of(View(config, frozenset()), planned)], {}, must=False)
    with pytest.raises(MappingError) as refused:
        judge.start()
    assert list(refused.value.names) == ["mismatched: lm_head.weight: [15, 8], expected [16, 8]"]


@needs_transformers_5
@pytest.mark.parametrize(
    "changes",
    [{"vocab_size": 17}, {"architectures": ["LlamaForSequenceClassification"]}],
    ids=["config", "class"],
)
def test_another_model_is_asked_about_anew(user_cache, tmp_path, changes):
    ask(config_of(tmp_path / "one"), SHAPES)
    with pytest.raises(MappingError):
        ask(config_of(tmp_path / "other", **changes), SHAPES)
    assert len(list(user_cache.iterdir())) == 1


def test_another_library_is_asked_anew(monkeypatch):
    before = cache.make_key(b"{}", "A")
    assert cache.make_key(b"{}", "A") == before
    monkeypatch.setattr(cache, "_PACKAGES", (*cache._PACKAGES, "numpy"))
    assert cache.make_key(b"{}", "A") != before


KEY = "0" * 64
ENTRY = Wanted(
    "A", "transformers 5", {"a": (2, 3), "b": ()}, {"c": (1,)}, {"b": "float32"}, ("^mtp",)
)


def test_an_entry_is_what_was_kept(user_cache):
    assert cache.read_wanted(KEY) is None
    cache.keep_wanted(KEY, ENTRY)
    assert cache.read_wanted(KEY) == ENTRY
    assert user_cache.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in user_cache.iterdir()] == [f"{KEY}.json"]


def damaged(content: bytes) -> Iterator[bytes]:
    yield b""
    yield content[:-1]
    yield content.replace(b"[2,3]", b"[2,4]")
    yield from (bytes([*content[:at], content[at] ^ 1, *content[at + 1 :]]) for at in (0, 64, 70))


def test_a_damaged_entry_is_none(user_cache):
    cache.keep_wanted(KEY, ENTRY)
    (path,) = user_cache.iterdir()
    kept = path.read_bytes()
    for content in damaged(kept):
        path.write_bytes(content)
        assert cache.read_wanted(KEY) is None
    path.write_bytes(kept)
    assert cache.read_wanted(KEY) == ENTRY


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"shapes": 3}', b"1" * 5000])
def test_what_is_no_entry_is_none(user_cache, body):
    cache.keep_wanted(KEY, ENTRY)
    (path,) = user_cache.iterdir()
    path.write_bytes(cache.hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    assert cache.read_wanted(KEY) is None


def test_the_oldest_entries_go(user_cache, monkeypatch):
    monkeypatch.setattr(cache, "_MOST_ENTRIES", 3)
    for number in range(5):
        cache.keep_wanted(f"{number:064}", ENTRY)
        os.utime(user_cache / f"{number:064}.json", (number + 1, number + 1))
    assert sorted(path.stem for path in user_cache.iterdir()) == [f"{n:064}" for n in (2, 3, 4)]


@needs_transformers_5
def test_a_cache_that_cannot_be_written_is_no_reason_to_fail(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert ask(config_of(tmp_path / "model"), SHAPES).check.num_tensors == len(SHAPES)


@pytest.mark.slow
def test_on_the_command_line(user_cache, tmp_path):
    unknown = {"model_type": "own", "architectures": ["OwnForCausalLM"]}
    source = write_rank(tmp_path / "in", make_llama(), LLAMA | unknown)

    def command(*words: object):
        arguments = ["merge", "fsdp", "--no-fsync", *map(str, words)]
        return CliRunner(env={"COLUMNS": "300"}).invoke(app, arguments)

    said = "not held against the architecture of its config"
    plain = command(source, tmp_path / "plain")
    assert plain.exit_code == 0
    assert said in plain.stderr
    off = command(source, tmp_path / "off", "--no-check-load")
    assert off.exit_code == 0
    assert said not in off.stderr
    must = command(source, tmp_path / "must", "--check-load")
    assert must.exit_code == 2
    assert "--no-check-load" in must.stderr
    assert not (tmp_path / "must").exists()
    shown = command(source, tmp_path / "dry", "--dry-run", "--json")
    assert json.loads(shown.stdout)["load_check"] is None
    assert said in "".join(json.loads(shown.stdout)["warnings"])
    assert not user_cache.exists()


def test_without_a_config_there_is_nothing_to_hold_it_against(tmp_path):
    source = write_rank(tmp_path / "in", make_llama())
    job = Job([source], tmp_path / "out", "fsdp")
    assert merge(job, MergeOptions(keep_names=True)).load_check is None
    asked = MergeOptions(keep_names=True, write=WriteOptions(check_load=True))
    with pytest.raises(UsageError, match="needs a config"):
        merge(Job([source], tmp_path / "other", "fsdp"), asked)


def test_safetensors_finds_what_was_planned_and_nothing_else(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": values(3), "b": values(2)}, tmp_path / "model.safetensors")
    tensors = dict(open_sound_model(tmp_path))
    require_readable(plan_file("x", tensors), tmp_path / "model.safetensors")
    for planned in (
        {"a": tensors["a"]},
        tensors | {"b": tensors["a"]},
        tensors | {"c": tensors["a"]},
    ):
        with pytest.raises(OutputError, match="x: the safetensors library finds something else"):
            require_readable(plan_file("x", planned), tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(OutputError, match="does not open what was written"):
        require_readable(plan_file("x", tensors), tmp_path / "model.safetensors")


def test_what_a_class_leaves_alone_is_no_fault_and_is_counted():
    wanted = dataclasses.replace(ENTRY, overlooked=(r"^mtp\.", "position_ids"))
    planned = {"a": (2, 3), "b": (), "mtp.layers.0.w": (1,), "x.mtp.w": (1,)}
    assert wanted.list_faults(planned) == ["unexpected: x.mtp.w"]
    assert wanted.count_overlooked(planned) == 1


def test_an_entry_whose_expressions_are_none_is_as_good_as_none(user_cache):
    cache.keep_wanted(KEY, dataclasses.replace(ENTRY, overlooked=("(",)))
    assert (user_cache / f"{KEY}.json").exists()
    assert cache.read_wanted(KEY) is None
