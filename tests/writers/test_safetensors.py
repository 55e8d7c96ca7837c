"""What is planned can be read: names, and a header that readers take."""

import pytest

from ckpt_tool.common.errors import MappingError, OutputError
from ckpt_tool.tensors.dtypes import FLOAT32
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.writers import safetensors
from ckpt_tool.writers.safetensors import plan_file, plan_files

EMPTY = LazyTensor((0,), FLOAT32, FLOAT32, ())


def test_names_that_no_file_can_have_are_refused_all_at_once():
    wrong = ["", "__metadata__", "a\0b", "a.\ud800.weight"]
    named = dict.fromkeys(["model.norm.weight", *wrong, "ü.weight"], EMPTY)
    with pytest.raises(MappingError, match="4 names that no tensor of a safetensors") as refused:
        plan_files(named, 1000)
    assert refused.value.names == tuple(map(ascii, wrong))
    assert "names.rename" in refused.value.hint


def test_a_header_that_readers_do_not_take_is_refused(monkeypatch):
    named = {f"layers.{number}.weight": EMPTY for number in range(20)}
    length = len(plan_file("model.safetensors", named).items[0]) - 8
    monkeypatch.setattr(safetensors, "MAX_SAFETENSORS_HEADER", length)
    assert plan_file("model.safetensors", named).names == tuple(named)
    monkeypatch.setattr(safetensors, "MAX_SAFETENSORS_HEADER", length - 1)
    with pytest.raises(
        OutputError, match=r"model\.safetensors: a header of [\d,]+ bytes for 20"
    ) as e:
        plan_file("model.safetensors", named)
    assert "max_shard_size" in e.value.hint
