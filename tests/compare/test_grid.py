"""Names become layers and modules, distances become levels."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.compare.grid import OTHER, list_sections, make_grid
from ckpt_tool.compare.scale import say_briefly
from ckpt_tool.operations.verify import collect_distances
from tests.support.verifications import llama, mismatch, result


@pytest.mark.parametrize(
    ("name", "row", "column"),
    [
        ("model.layers.0.self_attn.q_proj.weight", "model.layers.0", "self_attn.q_proj"),
        ("model.layers.12.self_attn.q_proj.bias", "model.layers.12", "self_attn.q_proj"),
        ("model.layers.3.input_layernorm.weight", "model.layers.3", "input_layernorm"),
        ("model.layers.3.mlp.experts.17.up_proj.weight", "model.layers.3", "mlp.experts.*.up_proj"),
        ("model.layers.3.mlp.experts.gate_up_proj", "model.layers.3", "mlp.experts.gate_up_proj"),
        ("model.layers.3.mlp.down_proj.weight_scale_inv", "model.layers.3", "mlp.down_proj"),
        ("visual.blocks.3.attn.qkv.weight", "visual.blocks.3", "attn.qkv"),
        ("transformer.h.7.attn.c_attn.bias", "transformer.h.7", "attn.c_attn"),
        ("visual.merger.mlp.2.weight", OTHER, "visual.merger.mlp.2"),
        ("model.embed_tokens.weight", OTHER, "embed_tokens"),
        ("lm_head.weight", OTHER, "lm_head"),
        ("weight", OTHER, "weight"),
        ("", OTHER, ""),
    ],
)
def test_a_name_has_one_place(name: str, row: str, column: str) -> None:
    assert make_grid({name: 0.5}).cells == {(row, column): 0.5}


def test_a_cell_is_the_largest_distance_of_its_tensors() -> None:
    base = "model.layers.0.mlp.experts"
    found = make_grid(
        {f"{base}.{n}.up_proj.weight": d for n, d in enumerate((1e-3, math.inf, 0.0))}
    )
    assert found.cells == {("model.layers.0", "mlp.experts.*.up_proj"): math.inf}
    both = make_grid({"layers.0.q.weight": 0.0, "layers.0.q.bias": 0.25})
    assert both.cells == {("layers.0", "q"): 0.25}


def test_rows_are_in_natural_order_with_the_others_last() -> None:
    found = make_grid(
        llama(12) | {"visual.blocks.10.attn.qkv.weight": 0, "visual.blocks.9.norm1.bias": 0}
    )
    assert found.rows[:12] == tuple(f"model.layers.{layer}" for layer in range(12))
    assert found.rows[12:] == ("visual.blocks.9", "visual.blocks.10", OTHER)


def test_columns_follow_the_forward_pass() -> None:
    columns = [
        column for column in make_grid(llama(2)).columns if "." in column or "layernorm" in column
    ]
    assert columns == [
        "input_layernorm", "self_attn.q_norm", "self_attn.q_proj", "self_attn.k_norm",
        "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "post_attention_layernorm",
        "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
    ]  # fmt: skip


def test_sections_have_only_the_columns_of_their_rows() -> None:
    found = make_grid(llama(2) | {"visual.blocks.0.attn.qkv.weight": 0.0})
    layers, blocks, others = list_sections(found)
    assert (layers.title, layers.numbers, len(layers.columns)) == ("model.layers", ("0", "1"), 11)
    assert (blocks.title, blocks.rows, blocks.columns) == (
        "visual.blocks",
        ("visual.blocks.0",),
        ("attn.qkv",),
    )
    assert others.title == OTHER
    assert others.columns == ("embed_tokens", "norm", "lm_head")


PLACES = st.tuples(st.sampled_from(["a", "b.c"]), st.integers(0, 3), st.sampled_from("xyz"))


@given(st.lists(PLACES), st.sets(st.sampled_from(["head", "norm"])))
def test_sections_are_a_part_of_the_grid_each(places, others) -> None:
    names = [f"{part}.layers.{n}.{module}.weight" for part, n, module in places]
    found = make_grid(dict.fromkeys([*names, *others], 0.0))
    for section in list_sections(found):
        inside = {column for row, column in found.cells if row in section.rows}
        assert section.columns == tuple(name for name in found.columns if name in inside)
    assert tuple(row for section in list_sections(found) for row in section.rows) == found.rows


@pytest.mark.slow
def test_very_many_layers_are_cut_into_sections_at_once() -> None:
    names = (f"model.layers.{n}.{module}.weight" for n in range(50_000) for module in "ab")
    (section,) = list_sections(make_grid(dict.fromkeys(names, 0.0)))
    assert (len(section.rows), section.columns) == (50_000, ("a", "b"))


def test_no_tensor_that_differs_is_shown_as_equal() -> None:
    distances = dict.fromkeys(("same", "zeros", "dtype"), 0.0) | {"far": 0.5}
    found = result(
        distances,
        [
            mismatch("shape", kind="shape"),
            mismatch("zeros"),  # 0.0 and -0.0: other bits, no distance
            mismatch("dtype", kind="dtype"),
            mismatch("far"),
        ],
    )
    shown = collect_distances(found)
    assert {name: say_briefly(distance) for name, distance in shown.items()} == {
        "same": "\N{MIDDLE DOT}", "zeros": "~", "dtype": "~", "far": "0.50", "shape": "!",
    }  # fmt: skip
    assert found.distances == distances, "the result itself is as it was"
