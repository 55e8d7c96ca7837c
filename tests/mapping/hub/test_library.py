"""transformers that is absent, broken, older than a model, or left as it was found."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from transformers.utils import logging

from ckpt_tool.common.errors import MappingError
from ckpt_tool.mapping.hub.architecture import name_architecture
from ckpt_tool.mapping.hub.form import HubModel
from ckpt_tool.mapping.hub.names import to_hub as to_hub_model
from ckpt_tool.mapping.hub.value_head import put_value_head, take_value_head
from ckpt_tool.operations.merge_plan import make_plan
from tests.support.loading import check_load
from tests.support.merging import TINY, load_folder, values, write_rank
from tests.support.saved import assert_equal, to_hub, write_config, write_shapes, write_tensors

STATE = {"model.embed_tokens.weight": (16, 8), "model.norm.weight": (8,)}
HEAD = {"v_head.summary.weight": (1, 8), "v_head.summary.bias": (1,)}


@pytest.fixture
def remove(monkeypatch):
    """A function after which transformers cannot be imported, nor anything in it."""

    def run() -> None:
        for name in [name for name in sys.modules if name.split(".")[0] == "transformers"]:
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setitem(sys.modules, "transformers", None)

    return run


def refused(tensors, config) -> MappingError:
    with pytest.raises(MappingError) as error:
        to_hub(tensors, config)
    assert "`keep_names=True`" in error.value.hint
    return error.value


def test_names_that_only_transformers_knows_are_not_known_without_it(saved, remove):
    model = saved("phimoe")
    remove()
    error = refused(model.memory, model.config)
    assert "phimoe" in error.message
    assert "cannot be imported" in error.message
    assert "transformers" in error.message


def test_families_with_a_row_need_no_transformers(saved, remove):
    models = [saved(family) for family in ("qwen3_moe", "llama")]
    remove()
    for model in models:
        assert_equal(to_hub(model.memory, model.config).tensors, model.hub)


def test_the_class_of_a_critic_is_not_known_without_it(tmp_path, remove):
    tensors = write_shapes(tmp_path / "x.safetensors", STATE | {"score.weight": (1, 8)})
    remove()
    with pytest.raises(MappingError, match="the classes of model type llama"):
        name_architecture(tensors, write_config(tmp_path, **TINY))


def test_what_opens_a_value_head_is_not_known_without_it(tmp_path, remove):
    tensors = write_shapes(tmp_path / "x.safetensors", STATE | HEAD)
    remove()
    model = HubModel(dict(tensors), write_config(tmp_path, **TINY))
    named = to_hub_model(take_value_head(model))
    with pytest.raises(MappingError, match="cannot be imported"):
        put_value_head(named, None)


def test_loading_is_not_checked_without_it(tmp_path, remove, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    remove()
    with pytest.raises(MappingError, match=r"`write\.check_load`: transformers cannot be imported"):
        check_load(write_config(tmp_path, **TINY), {})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_attention_heads": 0}, "cannot build PhimoeForCausalLM"),
        ({"hidden_size": "wide"}, "cannot build PhimoeForCausalLM"),
    ],
    ids=str,
)
def test_a_model_that_cannot_be_built_is_an_error(saved, tmp_path, change, said):
    model = saved("phimoe")
    config = write_config(tmp_path, **(model.config.raw | change))
    assert said in refused(model.memory, config).message


def test_a_package_that_building_needs_is_named(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    model = saved("phimoe")
    assert "accelerate" in refused(model.memory, model.config).message


@pytest.fixture
def before_5(monkeypatch):
    """transformers as before release 5: it has no tables of conversions."""
    monkeypatch.setitem(sys.modules, "transformers.core_model_loading", None)


def test_without_tables_names_are_kept_only_if_they_are_the_classes(saved, before_5, tmp_path):
    model = saved("phimoe")
    (said,) = to_hub(model.memory, model.config).warnings
    assert "transformers before 5" in said
    on_hub = write_tensors(tmp_path / "hub.safetensors", model.hub)
    assert "not the tensors of PhimoeForCausalLM" in refused(on_hub, model.config).message


def ckpt(*arguments: object, path: Path) -> subprocess.CompletedProcess[str]:
    """The command, with the packages in `path` before all others."""
    places = os.pathsep.join([str(path), *sys.path])
    return subprocess.run(
        [sys.executable, "-m", "ckpt_tool", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": places},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_broken_transformers_ends_the_command_and_weights_alone_are_the_way_out(tmp_path):
    (tmp_path / "broken" / "transformers").mkdir(parents=True)
    code = "raise RuntimeError('operator torchvision::nms does not exist')\n"
    (tmp_path / "broken" / "transformers" / "__init__.py").write_text(code)
    state = {name: values(*shape) for name, shape in STATE.items()}
    config = TINY | {"model_type": "phimoe", "architectures": ["PhimoeForCausalLM"]}
    source = write_rank(tmp_path / "in", state, config)
    arguments = ("merge", "fsdp", source, tmp_path / "out")
    failed = ckpt(*arguments, path=tmp_path / "broken")
    assert failed.returncode == 2
    said = " ".join(failed.stderr.split())
    assert "operator torchvision::nms does not exist" in said
    assert "--config none" in said
    assert not (tmp_path / "out").exists()
    alone = ckpt(*arguments, "--config", "none", path=tmp_path / "broken")
    assert alone.returncode == 0, alone.stderr
    assert load_folder(tmp_path / "out").keys() == state.keys()


@pytest.fixture
def settings():
    """transformers' verbosity and bars are put back after a test that changes them."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hidden = are_progress_bars_disabled()
    yield
    logging.set_verbosity(verbosity)
    (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
    (disable_progress_bars if hidden else enable_progress_bars)()


def state_of_library() -> tuple[int, bool, bool]:
    bars = logging.is_progress_bar_enabled()
    return logging.get_verbosity(), bars, not are_progress_bars_disabled()


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize("bars", [True, False])
@pytest.mark.parametrize(
    ("hub_bars", "verbosity"),
    [(True, logging.INFO), (False, logging.INFO), (True, logging.CRITICAL)],
)
def test_verbosity_and_bars_are_what_they_were(saved, tmp_path, verbosity, bars, hub_bars):
    model = saved("phimoe")
    source = write_rank(tmp_path / "in", {name: t.read() for name, t in model.memory.items()})
    (source / "huggingface").mkdir()
    (source / "huggingface" / "config.json").write_text(json.dumps(model.config.raw))
    logging.set_verbosity(verbosity)
    (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
    (enable_progress_bars if hub_bars else disable_progress_bars)()
    before = state_of_library()
    assert before == (verbosity, bars, hub_bars)
    plan = make_plan(source, "fsdp")
    assert state_of_library() == before
    found = check_load(plan.config, {name: t.shape for name, t in plan.tensors.items()})
    assert found.library == f"transformers {transformers.__version__}"
    assert state_of_library() == before


@pytest.mark.usefixtures("settings")
def test_they_are_what_they_were_after_an_error(saved, tmp_path):
    logging.set_verbosity_info()
    logging.enable_progress_bar()
    before = state_of_library()
    model = saved("phimoe")
    refused(model.memory, write_config(tmp_path, **(model.config.raw | {"hidden_size": "wide"})))
    with pytest.raises(MappingError):
        check_load(model.config, {})
    assert state_of_library() == before
