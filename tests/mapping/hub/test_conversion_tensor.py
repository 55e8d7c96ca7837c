"""Transformers' conversions, run on stand-ins: they give what they give for tensors."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.mapping.hub.conversion_tensor import ConversionTensor
from ckpt_tool.tensors.dtypes import BFLOAT16, FLOAT32
from tests.support.backed import backed, distinct, same, tilings
from tests.support.versions import needs_transformers_5

pytestmark = needs_transformers_5
try:
    from transformers import core_model_loading as ops
except ImportError:
    ops = None

CONFIG = SimpleNamespace(
    num_attention_heads=2, vision_config=SimpleNamespace(num_attention_heads=3)
)
QKV = ["q_proj", "k_proj", "v_proj"]

#: Operations of the way from the Hub, with their options, and shapes that they take.
SINGLE = [
    ("Interleave", {"dim": 0}, [(8,), (6, 4)]),
    ("Interleave", {"dim": 1}, [(3, 8, 2), (2, 6)]),
    ("PermuteForRope", {}, [(12, 3), (8,), (8, 1)]),
    ("PermuteForRope", {"subconfig_key": "vision_config"}, [(12, 3), (18,)]),
    ("Transpose", {"dim0": 1, "dim1": 2}, [(2, 4, 3)]),
    ("Conv3dToLinear", {"in_channels": 2, "kernel_size": (1, 2, 2)}, [(3, 2, 1, 2, 2)]),
]
CASES = [(name, options, shape) for name, options, shapes in SINGLE for shape in shapes]


def make(name: str, **options):
    if not hasattr(ops, name):
        pytest.skip(f"this transformers has no {name}")
    return getattr(ops, name)(**options)


def convert(operation, tensor):
    found = operation.convert(
        {"a": [tensor]}, source_patterns=["a"], target_patterns=["b"], config=CONFIG
    )
    return found["b"]


def stand_in(path, tensor: torch.Tensor, boxes=None) -> ConversionTensor:
    return ConversionTensor(backed(path, tensor, boxes))


@pytest.mark.parametrize(("name", "options", "shape"), CASES)
@given(data=st.data())
def test_an_operation_and_the_way_back(tmp_path_factory, name, options, shape, data):
    path, values = tmp_path_factory.mktemp("op") / "x", distinct(shape)
    operation = make(name, **options)
    in_memory = convert(operation, values)
    boxes = data.draw(tilings(tuple(in_memory.shape)))
    on_hub = convert(operation.reverse_op, stand_in(path, in_memory, boxes))
    assert same(on_hub.tensor.read(), convert(operation.reverse_op, in_memory).contiguous())
    assert same(on_hub.tensor.read(), values)
    assert same(convert(operation, on_hub).tensor.read(), in_memory)


@given(data=st.data())
def test_heads_that_are_fused_and_permuted(tmp_path_factory, data):
    folder, shape = tmp_path_factory.mktemp("qkv"), (12, 2)
    chain = [make("Chunk", dim=0), make("PermuteForRope", permute_layer_names=QKV[:2])]
    memory = {name: distinct(shape) * (at + 1) for at, name in enumerate(QKV)}

    def fuse(parts):
        for operation in reversed(chain):
            parts = operation.reverse_op.convert(
                parts, source_patterns=QKV, target_patterns=["qkv"], config=CONFIG
            )
        return parts["qkv"]

    lazy = {n: stand_in(folder / n, t, data.draw(tilings(shape))) for n, t in memory.items()}
    fused = fuse({name: [each] for name, each in lazy.items()})
    assert same(fused.tensor.read(), fuse({name: [each] for name, each in memory.items()}))
    parts = {"qkv": fused}
    for operation in chain:
        parts = operation.convert(
            parts, source_patterns=["qkv"], target_patterns=QKV, config=CONFIG
        )
    assert all(same(parts[name].tensor.read(), memory[name]) for name in QKV)


@given(data=st.data())
def test_parts_of_dimensions_and_others_joined(tmp_path_factory, data):
    values = distinct((4, 5, 3))
    boxes = data.draw(tilings((4, 5, 3)))
    tensor = stand_in(tmp_path_factory.mktemp("parts") / "x", values, boxes)
    assert tensor[0] is tensor
    for index in (slice(1, 3), slice(3, 1), (slice(None), [0, 3]), ([2, 0, 2], slice(4), [1])):
        expected = values
        for dim, part in enumerate(index if isinstance(index, tuple) else (index,)):
            places = torch.arange(expected.shape[dim])[part]
            expected = expected.index_select(dim, places)
        assert same(tensor[index].tensor.read(), expected)
    assert same(tensor.flatten(0, 1).tensor.read(), values.flatten(0, 1))
    assert same(tensor[:, [0, 3]].flatten().tensor.read(), values[:, [0, 3]].flatten())
    assert same(tensor.unflatten(0, (-1, 2)).tensor.read(), values.unflatten(0, (-1, 2)))


@pytest.mark.parametrize("rows", [0, 2])
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_rows_of_zeros_are_added_also_to_what_is_cast(tmp_path, rows, dtype):
    values = distinct((4, 3))
    tensor = ConversionTensor(backed(tmp_path / "x", values).to(dtype))
    padded = torch.cat([tensor, tensor.new_zeros(rows, 3)], dim=0)
    expected = torch.cat([values, torch.zeros(rows, 3)]).to(getattr(torch, dtype.name))
    assert same(padded.tensor.read(), expected)


def test_what_is_no_geometry_is_refused(tmp_path):
    tensor = stand_in(tmp_path / "x", distinct((4, 3)))
    with pytest.raises(NotImplementedError, match="flip"):
        torch.flip(tensor, [0])
    for index in (slice(0, 4, 2), 1, [], [-1], (slice(0, 2), torch.tensor([0]))):
        with pytest.raises(NotImplementedError):
            tensor[index]
