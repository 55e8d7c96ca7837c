"""Pieces of Megatron's optimizer put together: by hand, and there and back for any cut."""

import itertools
from math import prod
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.common.errors import MappingError
from ckpt_tool.mapping.megatron.masters import is_bucket, is_master, join_pieces, take_masters
from ckpt_tool.tensors.lazy import LazyTensor
from tests.mapping.megatron.test_convert import converted
from tests.support.megatron_models import config_of, hub_tensors, rules_of
from tests.support.saved import assert_equal, write_tensors

#: A tower of transformers, of which no rule has sizes.
_TOWER = {
    "layers.0.weight": torch.arange(12.0).reshape(3, 4),
    "layers.0.bias": torch.arange(3.0),
    "conv.weight": torch.arange(16.0).reshape(2, 2, 2, 2),
}


def save_lazily(folder: Path, tensor: torch.Tensor) -> LazyTensor:
    return write_tensors(folder / "x.safetensors", {"x": tensor})["x"]


@pytest.mark.parametrize(
    ("name", "master", "bucket"),
    [
        ("optimizer.state.fp32_param.decoder.layers.mlp.linear_fc2.weight", True, False),
        ("chained_1.optimizer.state.param.output_layer.weight", True, False),
        ("optimizer.state.exp_avg.output_layer.weight", False, False),
        ("optimizer.state.fp32_params.output_layer.weight", False, False),
        ("my_optimizer.state.param.x", False, False),
        ("optimizer.distributed.dp_group_idx_0.gbuf_idx_0.bucket_idx_0.param", False, True),
        ("decoder.layers.0.mlp.linear_fc1.weight", False, False),
    ],
)
def test_names(name, master, bucket):
    assert (is_master(name), is_bucket(name)) == (master, bucket)


def test_rows_and_columns_by_hand(tmp_path):
    """A [4, 6] matrix in two pieces of rows and two of columns, each flat."""
    whole = torch.arange(24.0).reshape(4, 6)
    pieces = torch.stack(
        [torch.stack([half.reshape(-1) for half in rows.chunk(2, 1)]) for rows in whole.chunk(2)]
    )
    assert pieces.shape == (2, 2, 6)
    assert pieces[1, 0].tolist() == [12, 13, 14, 18, 19, 20]
    lazy = save_lazily(tmp_path, pieces)
    for wanted in ((4, 6), (None, 6), (4, None)):
        assert torch.equal(join_pieces(lazy, wanted).read(), whole)


@pytest.mark.parametrize(
    "wanted", [(4, 5), (4, 7), (3, 8), (None, None), (24,), (2, 2, 3, 2), (0, 6), (None, 5)]
)
def test_what_it_is_no_pieces_of(tmp_path, wanted):
    lazy = save_lazily(tmp_path, torch.zeros(2, 2, 6))
    with pytest.raises(ValueError, match=r"\[2, 2, 6\]"):
        join_pieces(lazy, wanted)


def test_what_is_no_piece_of_the_model_is_said_with_the_config_that_says_otherwise(tmp_path):
    name = "optimizer.state.fp32_param.embedding.word_embeddings.weight"
    masters = write_tensors(tmp_path / "x.safetensors", {name: torch.zeros(2, 2, 5)})
    config = config_of("llama", hidden_size=8)
    with pytest.raises(MappingError) as refused:
        take_masters(masters, config)
    said = f"the optimizer's state: 1 weight is not what {config.path} says"
    assert refused.value.message == said
    assert refused.value.names == (
        "embedding.word_embeddings.weight: [2, 2, 5] is not [?, 8] in pieces",
    )


def test_a_whole_tensor_is_itself(tmp_path):
    lazy = save_lazily(tmp_path, torch.zeros(2, 6))
    assert join_pieces(lazy, (None, 6)) is lazy


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=3),
    st.data(),
)
def test_any_cut_there_and_back(tmp_path_factory, cuts, data):
    pieces, local = zip(*cuts, strict=True)
    shape = tuple(f * n for f, n in cuts)
    whole = torch.arange(float(prod(shape))).reshape(shape)
    flat = torch.empty(*pieces, prod(local))
    for index in itertools.product(*map(range, pieces)):
        box = tuple(slice(i * n, (i + 1) * n) for i, n in zip(index, local, strict=True))
        flat[index] = whole[box].reshape(-1)
    lazy = save_lazily(tmp_path_factory.mktemp("cut"), flat)
    unknown = data.draw(st.sampled_from([None, *range(len(shape))]))
    wanted = tuple(None if at == unknown else size for at, size in enumerate(shape))
    assert torch.equal(join_pieces(lazy, wanted).read(), whole)


@pytest.mark.parametrize(
    ("family", "frozen"),
    [
        ("qwen3_moe", "mlp.router.weight"),
        ("deepseek_v3", "linear_kv_down_proj.weight"),
        ("glm_moe_dsa", "core_attention.indexer"),
        ("qwen3_next", "self_attention.A_log"),
    ],
)
def test_what_layers_are_is_said_by_what_was_not_trained_too(family, frozen, tmp_path):
    """Else norms beside a frozen router would be those of a dense layer."""
    there = converted(tmp_path, hub_tensors(family), rules_of(family, "per-layer"))
    finer = {name: tensor.float() * 3 for name, tensor in there.items()}
    trained = {name: tensor for name, tensor in finer.items() if frozen not in name}
    masters = {f"optimizer.state.param.{name}": tensor for name, tensor in trained.items()}
    both = {f"module.{name}": tensor for name, tensor in there.items()} | masters
    taken = take_masters(write_tensors(tmp_path / "both.safetensors", both), config_of(family))
    assert_equal(taken.tensors, there | trained)
    assert taken.kept
    assert all(frozen in name for name in taken.kept)


@pytest.mark.parametrize("beside", [True, False])
def test_pieces_of_towers_want_the_model_beside_them(beside, tmp_path):
    """No rule says how large transformers' towers are: pieces would be taken for the whole."""
    tower = {f"vision_tower.{name}": t for name, t in _TOWER.items()}
    there = converted(tmp_path, hub_tensors("mistral3"), rules_of("mistral3", "per-layer"))
    own = {name: t for name, t in there.items() if not name.startswith("vision_tower.")} | tower
    masters = {
        f"optimizer.state.fp32_param.{name}": t.reshape(*([1] * t.dim()), -1) * 3
        for name, t in own.items()
    }
    stored = write_tensors(tmp_path / "both.safetensors", masters | (own if beside else {}))
    config = config_of("mistral3")
    if beside:
        taken = take_masters(stored, config)
        assert_equal(taken.tensors, {name: t * 3 for name, t in own.items()})
        return
    with pytest.raises(MappingError, match="of shapes that nothing says") as caught:
        take_masters(stored, config)
    assert set(tower) <= set(caught.value.names)


def test_weights_of_another_shape_than_the_models_own_are_refused(tmp_path):
    """Of a tower's nothing else says it."""
    name = "vision_tower.conv.weight"
    there = converted(tmp_path, hub_tensors("mistral3"), rules_of("mistral3", "per-layer"))
    other = {f"optimizer.state.param.{name}": torch.ones(2, 2, 2, 1)}
    stored = write_tensors(
        tmp_path / "both.safetensors", there | {name: _TOWER["conv.weight"]} | other
    )
    with pytest.raises(MappingError, match="1 weight is not of the shape") as caught:
        take_masters(stored, config_of("mistral3"))
    assert caught.value.names == (f"{name}: [2, 2, 2, 1], expected [2, 2, 2, 2]",)
