"""Links beside the weights: copied where they stay in what was named, refused by name elsewhere."""

import json
import os
from pathlib import Path

import pytest

from ckpt_tool.common.errors import CheckpointError
from ckpt_tool.mapping.config import load_config
from ckpt_tool.mapping.lora.settings import read_settings
from ckpt_tool.mapping.side_files import SideFiles, gather_side_files
from tests.mapping.test_side_files import CODE, write


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """What a link must not reach: a folder that has what every link below looks for."""
    folder = write(tmp_path / "home", tokenizer__json={"secret": 1}, modeling__py="secret")
    write(folder, module___layers__py="secret", chat__jinja="secret")
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(tmp_path / "run" / "model", a__json={})


def gather(model: Path, *tokenizers: Path, named: tuple[Path, ...] = ()) -> SideFiles:
    config = load_config(model, named)
    return gather_side_files(config, [*tokenizers, model], quantised=False, named=named)


SINGLE = ["vocab.txt", "tokenizer.json", "chat_template.jinja", "modeling_own.py", "LICENSE",
          "generation_config.json", "tokenizer_config.json", "modules.json", "spk_dict.pt",
          "additional_chat_templates/x.jinja"]  # fmt: skip


@pytest.mark.parametrize("name", SINGLE)
def test_a_file_that_is_a_link_out_is_refused_by_name(model: Path, secret: Path, name: str) -> None:
    path = model / name
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(secret / "tokenizer.json")
    with pytest.raises(CheckpointError, match="1 file leads out of it") as error:
        gather(model)
    (problem,) = error.value.problems
    assert problem.where == str(path)
    assert str(secret / "tokenizer.json") in problem.message


@pytest.mark.parametrize("name", SINGLE)
def test_one_that_stays_in_what_was_named_is_copied(model: Path, name: str) -> None:
    (model.parent / "shared").write_text("{}")
    path = model / name
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(model.parent / "shared")
    assert dict(gather(model, named=(model.parent,)).read())[name] == b"{}"
    with pytest.raises(CheckpointError):
        gather(model)


def test_the_config_itself(model: Path, secret: Path) -> None:
    (model / "config.json").unlink()
    (model / "config.json").symlink_to(secret / "config.json")
    with pytest.raises(CheckpointError, match="1 file leads out of it"):
        load_config(model)
    assert load_config(model, [model, secret]).model_type == "llama"


def test_the_folder_of_the_config(model: Path, secret: Path) -> None:
    linked = model.parent / "huggingface"
    linked.symlink_to(secret)
    with pytest.raises(CheckpointError, match="1 file leads out of it"):
        gather(linked, named=(model.parent,))
    assert "tokenizer.json" in gather(linked).files  # named itself


def link_folder(model: Path, secret: Path) -> None:
    (model / "additional_chat_templates").symlink_to(secret)


def link_layer(model: Path, secret: Path) -> None:
    write(model, modules__json=[{"path": "1_Pooling"}])
    (model / "1_Pooling").symlink_to(secret)


def link_above_a_layer(model: Path, secret: Path) -> None:
    write(model, modules__json=[{"path": "x/module"}])
    (model / "x").symlink_to(secret)


def link_in_a_layer(model: Path, secret: Path) -> None:
    write(model, modules__json=[{"path": "1_Pooling"}], **{"1_Pooling___config__json": {}})
    (model / "1_Pooling" / "model.safetensors").symlink_to(secret / "tokenizer.json")


def link_code(model: Path, secret: Path) -> None:
    write(model, config__json={"auto_map": CODE}, configuration_own__py="x")
    (secret / "sub").mkdir()
    (secret / "sub" / "modeling.py").touch()
    (model / "sub").symlink_to(secret / "sub")


def link_in_code(model: Path, secret: Path) -> None:
    write(model, config__json={"auto_map": CODE}, configuration_own__py="x", sub___modeling__py="x")
    (model / "sub" / "deep").symlink_to(secret)


LINKED = [link_folder, link_layer, link_above_a_layer, link_in_a_layer, link_code, link_in_code]


@pytest.mark.parametrize("link", LINKED)
def test_folders_that_lead_out_are_refused_by_name(model: Path, secret: Path, link) -> None:
    link(model, secret)
    with pytest.raises(CheckpointError, match="out of it") as error:
        gather(model)
    assert all(problem.where.startswith(str(model)) for problem in error.value.problems)
    assert all(str(secret) in problem.message for problem in error.value.problems)


@pytest.mark.parametrize("link", LINKED)
def test_those_that_stay_are_followed(model: Path, secret: Path, link) -> None:
    link(model, secret)
    found = gather(model, named=(model.parent.parent,))
    assert len(found.files) > 1
    assert all(content is not None for _, content in found.read())


NAMES = ["..etc.passwd.X", ".etc.X", "a..b.X", "...X", "/etc/passwd.X", "../up.X", "x\0y.X", ".X"]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_code_stay_in_the_folder(model: Path, tmp_path: Path, name: str) -> None:
    write(tmp_path / "run", up__py="secret")
    write(model, config__json={"auto_map": {"AutoModel": name}})
    found = gather(model)
    assert found.files.keys() == {"a.json"}


@pytest.mark.parametrize(
    "path", ["../home", "/etc", "a/../../home", "..", ".", "./", "x\0y", "gone"]
)
def test_paths_of_layers_stay_in_the_folder(model: Path, secret: Path, path: str) -> None:
    write(model, modules__json=[{"path": path}])
    assert gather(model).files.keys() == {"a.json", "modules.json"}


def test_the_tokenizer_of_another_folder_stays_there(model: Path, secret: Path) -> None:
    run = write(model.parent / "step", tokenizer__json={"mine": 1})
    (run / "vocab.json").symlink_to(secret / "tokenizer.json")
    named = (model, run)
    with pytest.raises(CheckpointError) as error:
        gather(model, run, named=named)
    assert error.value.problems[0].where == str(run / "vocab.json")
    (run / "vocab.json").unlink()
    (model / "vocab.json").symlink_to(secret / "tokenizer.json")  # is not copied, nor read
    found = gather(model, run, named=named)
    assert found.files.keys() == {"a.json", "tokenizer.json"}
    assert "which has another" in found.warnings[0]


def test_settings_of_adapters(model: Path, secret: Path) -> None:
    settings = {"peft_type": "LORA", "r": 8, "lora_alpha": 16}
    (secret / "adapter_config.json").write_text(json.dumps(settings))
    (model / "adapter_config.json").symlink_to(secret / "adapter_config.json")
    with pytest.raises(CheckpointError, match="out of it"):
        read_settings([model], None)
    assert read_settings([model], None, [model, secret]).alpha == 16
    (model / "adapter_config.json").unlink()
    (model / "lora_adapter").symlink_to(secret)
    with pytest.raises(CheckpointError, match="out of it"):
        read_settings([model], None)


def test_a_hard_link_is_a_file_like_others(model: Path, secret: Path) -> None:
    os.link(secret / "tokenizer.json", model / "tokenizer.json")
    assert "tokenizer.json" in gather(model).files


def test_a_snapshot_of_the_hubs_cache_is_a_model(tmp_path: Path) -> None:
    rows = [{"path": "1_Pooling"}]
    blobs = write(tmp_path / "models--a--b" / "blobs", modules__json=rows, b__json={})
    snapshot = tmp_path / "models--a--b" / "snapshots" / "abc"
    (snapshot / "1_Pooling").mkdir(parents=True)
    for name in ("config.json", "modules.json", "b.json"):
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    (snapshot / "1_Pooling" / "config.json").symlink_to("../../../blobs/b.json")
    assert gather(snapshot).files.keys() == {"modules.json", "b.json", "1_Pooling/config.json"}
    linked = tmp_path / "model"
    linked.symlink_to(snapshot)
    assert gather(linked).files.keys() == {"modules.json", "b.json", "1_Pooling/config.json"}
    assert blobs.is_dir()
