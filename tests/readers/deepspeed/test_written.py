"""What real DeepSpeed wrote, against its own `zero_to_fp32`, bit for bit.

The fixtures are written by `tests/real/write_deepspeed.py`, which says how.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ckpt_tool.readers import open_checkpoint
from ckpt_tool.readers.deepspeed.model_states import read_model_states
from ckpt_tool.readers.torch_save.archive import TorchArchive
from ckpt_tool.readers.torch_save.names import resolve_run
from ckpt_tool.tensors.chunks import Chunk
from ckpt_tool.tensors.geometry import Box
from ckpt_tool.tensors.lazy import LazyTensor
from tests.real.write_deepspeed import CASES, FIXTURES
from tests.support.backed import same
from tests.support.merging import assert_same

ALL = sorted(CASES)
#: Of stages 1 and 2, whose state dict has, rounded, what partitions have.
ROUNDED = [name for name in ALL if CASES[name].stage in (1, 2) or name == "deepspeed0.14_z0"]
#: Those that zero_to_fp32 has an answer to.
JUDGED = [name for name in ALL if CASES[name].is_judged]


def open_case(name: str) -> dict[str, torch.Tensor]:
    checkpoint = open_checkpoint(FIXTURES / name / "ckpt")
    assert checkpoint.format == "deepspeed"
    assert checkpoint.problems == ()
    assert checkpoint.world_size == CASES[name].world
    assert checkpoint.step == 2
    return {name: tensor.read() for name, tensor in checkpoint.items()}


def test_the_fixtures_are_all_there():
    assert sorted(path.name for path in FIXTURES.glob("deepspeed0*")) == ALL


@pytest.mark.parametrize("name", JUDGED)
def test_every_tensor_is_what_zero_to_fp32_makes_of_it(name):
    """It widens buffers to float32, and in stage 1 leaves out what was not trained."""
    expected = load_file(FIXTURES / name / "expected.safetensors")
    found = open_case(name)
    assert expected.keys() <= found.keys()
    for key, tensor in found.items():
        if tensor.dtype != expected.get(key, tensor).dtype:
            assert key.endswith("scale")
            found[key] = tensor.to(expected[key].dtype)
    more = found.keys() - expected.keys()
    assert not more or CASES[name].stage == 1
    assert_same({key: found[key] for key in expected}, expected)


@pytest.mark.parametrize("name", ROUNDED)
def test_trained_weights_round_to_those_of_the_state_dict(name):
    """A judge of the files' own: also where zero_to_fp32 has no answer."""
    (path,) = (FIXTURES / name / "ckpt").rglob("mp_rank_00_model_states.pt")
    trained = {key for group in read_model_states(path).groups or () for key in group}
    assert trained
    rounded = read_module(path, trained)
    found = open_case(name)
    for key in trained:
        assert same(found[key].to(rounded[key].dtype), rounded[key]), key


def read_module(path: Path, names: set[str]) -> dict[str, torch.Tensor]:
    """Tensors of the state dict in a file of model states."""
    with TorchArchive(path) as archive:
        refs = archive.load(resolve_run)["module"]
        stored = {name: archive.locate_tensor(refs[name], name) for name in names}
    found = {}
    for name, each in stored.items():
        chunk = Chunk(Box((0,) * len(each.shape), each.shape), each.region)
        found[name] = LazyTensor(each.shape, each.dtype, each.dtype, (chunk,)).read()
    return found
