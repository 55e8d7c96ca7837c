"""Kimi-K2.5 as transformers saves it, whose layers are not called as those that were released."""

from pathlib import Path

import pytest
import transformers

from ckpt_tool import (
    MergeOptions,
    ToMcoreOptions,
    WriteOptions,
    convert_to_mcore,
    merge_megatron,
    verify_checkpoint,
)
from tests.real.fill import fill_distinct
from tests.support.every_class import make_config
from tests.support.merging import load_folder

pytest.importorskip("transformers.models.kimi_k25")

UNSYNCED = WriteOptions(fsync=False)
RELEASED = {"language_model.model.blocks.": "language_model.model.layers.", "model.mm_": "mm_"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = make_config("kimi_k25", transformers.Kimi_K25ForConditionalGeneration)
    config.get_text_config().num_nextn_predict_layers = 0
    model = transformers.Kimi_K25ForConditionalGeneration(config)
    fill_distinct(model)
    folder = tmp_path_factory.mktemp("kimi") / "saved"
    model.save_pretrained(folder)
    return folder


def release(name: str) -> str:
    for old, new in RELEASED.items():
        name = new + name.removeprefix(old) if name.startswith(old) else name
    return name


def test_what_transformers_saves_comes_back_as_it_was_released(saved: Path, tmp_path: Path) -> None:
    known = load_folder(saved)
    assert {name for name in known if release(name) != name}
    mcore, back = tmp_path / "mcore", tmp_path / "back"
    convert_to_mcore(
        saved, mcore, ToMcoreOptions(write=WriteOptions(fsync=False, check_load=False))
    )
    assert verify_checkpoint(mcore, saved).equal
    merge_megatron(mcore, back, MergeOptions(config=saved, write=UNSYNCED))
    assert load_folder(back).keys() == {release(name) for name in known}
    assert verify_checkpoint(saved, back).equal
    for name, tensor in load_folder(back).items():
        twin = next(known[old] for old in known if release(old) == name)
        assert tensor.equal(twin), name
