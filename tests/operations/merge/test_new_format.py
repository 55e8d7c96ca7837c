"""A format and a family are a row each: with those, and nothing else, both merge and verify."""

import json
from dataclasses import replace

import pytest

from ckpt_tool import MergeOptions, UsageError, verify_checkpoint
from ckpt_tool.mapping.families.family import Family
from ckpt_tool.mapping.families.hub_rules import Rename
from ckpt_tool.mapping.families.table import FAMILIES
from ckpt_tool.operations.merge import Job, merge
from ckpt_tool.readers import formats
from tests.readers.test_formats import TENSORS, tape
from tests.support.merging import assert_same, load_folder
from tests.support.saved import write_config

__all__ = ["tape"]


@pytest.fixture
def invented(tmp_path, monkeypatch):
    """The config of a family that calls ``first`` something else on the Hub."""
    row = Family("InventedForCausalLM", hub=(Rename("first", "model.first", start=True),))
    monkeypatch.setitem(FAMILIES, "invented", row)
    return write_config(tmp_path / "config", model_type="invented").folder


def test_an_invented_format_of_an_invented_family(tape, invented, tmp_path):
    result = merge(Job(tape, tmp_path / "out", "tape"), MergeOptions(config=invented))
    assert result.format == "tape"
    expected = {"model.first": TENSORS["first"], "second": TENSORS["second"]}
    assert_same(load_folder(tmp_path / "out"), expected)
    found = verify_checkpoint(tape, tmp_path / "out")
    assert found.equal
    assert found.num_compared == 2


def test_other_commands_say_which_one_it_is_for(tape, tmp_path):
    with pytest.raises(UsageError, match="this is a Tape; expected: FSDP checkpoint") as refused:
        merge(Job(tape, tmp_path / "out", "fsdp"), MergeOptions(keep_names=True))
    assert refused.value.hint == f"Merge it with: ckpt merge tape {tape} OUT"


def test_state_of_training_is_left_out_whatever_a_reader_can(tape, tmp_path, monkeypatch):
    """A reader that cannot leave tensors alone opens them all: the merge leaves them out."""
    row = formats.FORMATS[-1]
    plain = replace(row, open_wanted=None)
    monkeypatch.setattr(formats, "FORMATS", (*formats.FORMATS[:-1], plain))
    places = json.loads((tape / "tape.json").read_text())
    places["optimizer.first"] = places.pop("second")
    (tape / "tape.json").write_text(json.dumps(places))
    result = merge(Job(tape, tmp_path / "out", "tape"), MergeOptions(keep_names=True))
    assert list(load_folder(tmp_path / "out")) == ["first"]
    assert list(result.dropped) == ["optimizer.*"]
