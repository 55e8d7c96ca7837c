"""What would be copied and is not whole: refused by name, all at once, before a byte is written."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from ckpt_tool.common.errors import CheckpointError, Problem, UsageError
from ckpt_tool.mapping import side_checks
from ckpt_tool.mapping.config import load_config
from ckpt_tool.mapping.lora.settings import read_settings
from ckpt_tool.mapping.side_files import gather_side_files
from tests.mapping.test_side_files import CODE, gather, write


def refused(folder: Path, *tokenizers: Path) -> dict[str, Problem]:
    """What is wrong, by the relative name of what it is about."""
    with pytest.raises(CheckpointError) as error:
        gather(folder, *tokenizers)
    assert error.value.hint
    return {Path(p.where).relative_to(folder).as_posix(): p for p in error.value.problems}


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        os.chdir(path.parent)  # names of sockets are short
        made.bind(path.name)


#: What is in place of a file, and what is said of it.
SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (os.mkfifo, "a named pipe"),
    "socket": (make_socket, "a socket"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "a device"),
    "dangling": (lambda path: path.symlink_to("../../blobs/abc"), "a link to ../../blobs/abc"),
    "loop": (lambda path: path.symlink_to(path.name), "leads back to itself"),
    "through a file": (lambda path: path.symlink_to("a.json/x"), "not to be reached"),
    "folder": (Path.mkdir, "a folder"),
}
NAMES = ["tokenizer.json", "tokenizer.model", "vocab.txt", "chat_template.jinja", "own.py"]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write(tmp_path / "model", a__json={})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", SPOILT)
def test_what_is_no_file_is_refused_by_what_it_is(model: Path, name: str, kind: str) -> None:
    spoil, said = SPOILT[kind]
    spoil(model / name)
    found = refused(model)
    assert found.keys() == {name}
    assert found[name].kind == "no-file"
    assert said in found[name].message


@pytest.mark.parametrize("kind", [kind for kind in SPOILT if kind != "folder"])
def test_so_is_what_has_no_ending_but_a_folder(model: Path, kind: str) -> None:
    SPOILT[kind][0](model / "LICENSE")
    assert refused(model).keys() == {"LICENSE"}


def test_folders_that_are_nothing_of_the_model_stay_where_they_are(model: Path) -> None:
    for name in ("tokenizer", "original", "runs", "v1.0"):
        (model / name).mkdir()
    (model / "linked").symlink_to("original")
    (model / "model.safetensors").symlink_to("gone")  # weights, which their reader opens
    assert gather(model).files.keys() == {"a.json"}


def test_a_snapshot_that_was_copied_without_its_blobs_lists_every_link(tmp_path: Path) -> None:
    model = write(tmp_path)
    names = {"tokenizer.json", "tokenizer_config.json", "merges.txt", "generation_config.json"}
    for name in names:
        (model / name).symlink_to(f"../../blobs/{name}")
    with pytest.raises(CheckpointError, match="4 of the files that go along") as error:
        gather(model)
    assert {Path(problem.where).name for problem in error.value.problems} == names
    assert "cp -rL" in error.value.hint


JSON = ["tokenizer.json", "vocab.json", "generation_config.json", "special_tokens_map.json",
        "tokenizer_config.json", "processor_config.json", "modules.json", "of_somebody.json",
        "additional_chat_templates/x.json"]  # fmt: skip


@pytest.mark.parametrize("name", JSON)
@pytest.mark.parametrize("content", ['{"a": ', "[" * 100_000, "\ufeff{}", "{}{}", " "])
def test_json_is_json(model: Path, name: str, content: str) -> None:
    write(model, **{name.replace("/", "___").replace(".", "__"): content})
    found = refused(model)
    assert found.keys() == {name}
    assert "not JSON" in found[name].message


LONG = '{"model": {"vocab": {' + ",".join(f'"token {n}": {n}' for n in range(60_000)) + "}}}\n"


def test_of_long_json_the_ends_are_looked_at(model: Path) -> None:
    write(model, tokenizer__json=LONG, vocab__json="[" + LONG + "]")
    assert gather(model).files["tokenizer.json"]
    zeros = LONG[:-4096] + "\0" * 4096
    for content in (LONG[:-4], LONG[1:], LONG[:-5000], zeros, "\0" * 2_000_000):
        write(model, tokenizer__json=content)
        assert "not JSON" in refused(model)["tokenizer.json"].message


@pytest.mark.parametrize("name", [*JSON[:1], *JSON[2:6]])
@pytest.mark.parametrize("content", ["[]", "null", "1"])
def test_it_is_an_object_where_nothing_else_is_read(model: Path, name: str, content: str) -> None:
    write(model, **{name.replace(".", "__"): content})
    assert refused(model)[name].message == "not a JSON object"


EMPTY = [*JSON, "tokenizer.model", "merges.txt", "vocab.txt", "vocab", "spiece.model", "x.tiktoken",
         "chat_template.jinja", "spk_dict.pt", "additional_chat_templates/x.jinja"]  # fmt: skip


@pytest.mark.parametrize("name", EMPTY)
def test_what_a_model_is_opened_with_has_bytes(model: Path, name: str) -> None:
    path = model / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    found = refused(model)
    assert (found.keys(), found[name].message) == ({name}, "has no bytes")


SILENT = ["__init__.py", "tokenization_own.py", "own.pyi", "py.typed", "notes.md", "LICENSE",
          "LICENSE.txt", "NOTICE", "requirements.txt"]  # fmt: skip


@pytest.mark.parametrize("name", SILENT)
def test_code_and_texts_for_people_may_have_none(model: Path, name: str) -> None:
    (model / name).touch()
    assert dict(gather(model).read())[name] == b""


@pytest.mark.parametrize("content", ["{}", '{"eos_token_id": NaN}', '{"\\ud83d": 1}', "  [1]\n"])
def test_json_that_python_reads_is_copied_as_it_is(model: Path, content: str) -> None:
    write(model, vocab__json=content, added_tokens__json="{}")
    assert dict(gather(model).read())["vocab.json"] == content.encode()


def test_layers_and_folders_of_code_are_looked_at_as_well(model: Path) -> None:
    write(
        model,
        config__json={"auto_map": CODE},
        modules__json=[{"path": "1_Pooling"}, {"path": "2_Dense"}],
        configuration_own__py="x",
        sub___notes__md="",
        **{"1_Pooling___config__json": "{", "1_Pooling___model__safetensors": ""},
    )
    (model / "sub" / "__init__.py").touch()
    os.mkfifo(model / "sub" / "modeling.py")
    (model / "2_Dense").symlink_to("gone")
    found = refused(model)
    assert {name: problem.kind for name, problem in found.items()} == {
        "1_Pooling/config.json": "damaged",
        "1_Pooling/model.safetensors": "damaged",
        "2_Dense": "no-file",
        "sub/modeling.py": "no-file",
    }


def test_all_that_is_wrong_is_said_at_once(model: Path) -> None:
    home = write(model.parent / "home", secret__json={})
    (model / "merges.txt").symlink_to(home / "secret.json")
    write(model, vocab__json="", tokenizer_config__json="[]")
    os.mkfifo(model / "tokenizer.json")
    found = refused(model)
    kinds = {"merges.txt": "link", "vocab.json": "damaged", "tokenizer_config.json": "damaged",
             "tokenizer.json": "no-file"}  # fmt: skip
    assert {name: problem.kind for name, problem in found.items()} == kinds


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json", "LICENSE", "own.py"])
def test_what_cannot_be_read_is_known_when_the_plan_is_made(
    model: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model / name).write_text("{}")
    real = side_checks.read_regular

    def read(path: Path, most: int) -> bytes:
        if path == model / name:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, most)

    monkeypatch.setattr(side_checks, "read_regular", read)
    found = refused(model)
    assert (found.keys(), found[name].kind) == ({name}, "unreadable")
    assert "Permission denied" in found[name].message


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_modes_are_a_reason(model: Path) -> None:
    (model / "tokenizer.model").write_text("x")
    (model / "tokenizer.model").chmod(0)
    assert refused(model)["tokenizer.model"].kind == "unreadable"


def test_what_is_not_copied_may_be_anything(model: Path) -> None:
    """The tokenizer of another folder is taken: of this one's, nothing is opened."""
    run = write(model.parent / "run", tokenizer__json={})
    os.mkfifo(model / "tokenizer.json")
    found = gather_side_files(load_config(model), [run, model], quantised=False)
    assert found.files == {"a.json": model / "a.json", "tokenizer.json": run / "tokenizer.json"}
    assert "which has another" in found.warnings[0]


def test_the_tokenizer_of_a_run_is_not_replaced_by_another_where_it_is_broken(model: Path) -> None:
    run = write(model.parent / "run")
    (run / "tokenizer.json").symlink_to("gone")
    write(model, tokenizer__json={})
    with pytest.raises(CheckpointError) as error:
        gather(model, run)
    assert [problem.where for problem in error.value.problems] == [str(run / "tokenizer.json")]


@pytest.mark.parametrize("kind", SPOILT)
def test_a_config_that_is_no_file_is_not_said_to_be_missing(model: Path, kind: str) -> None:
    spoil, said = SPOILT[kind]
    (model / "config.json").unlink()
    spoil(model / "config.json")
    with pytest.raises(CheckpointError, match="expected a file") as error:
        load_config(model)
    assert said in str(error.value)
    assert str(model / "config.json") in str(error.value)


@pytest.mark.parametrize("name", ["lora_train_meta.json", "adapter_config.json"])
@pytest.mark.parametrize("kind", SPOILT)
def test_nor_are_settings_of_adapters(model: Path, name: str, kind: str) -> None:
    spoil, said = SPOILT[kind]
    with pytest.raises(UsageError, match="neither"):
        read_settings([model], None)
    spoil(model / name)
    with pytest.raises(CheckpointError, match="expected a file") as error:
        read_settings([model], 16.0)
    assert said in str(error.value)
