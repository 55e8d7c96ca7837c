"""How tensor parallelism cuts Megatron's parameters: numbers worked out by hand, and any at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.readers.megatron.cuts import STACKED, WHOLE, Cut, find_cut
from ckpt_tool.tensors.geometry import Box, check_coverage

LAYER = "decoder.layers.3."
ATTENTION, MLP = f"{LAYER}self_attention.", f"{LAYER}mlp."
ROWS, COLUMNS, GATED = Cut(0), Cut(1), Cut(0, halves=True)

#: Name, its local shape, what is beside it, how it is cut.
PARAMETERS = [
    ("embedding.word_embeddings.weight", (128, 8), {}, ROWS),
    ("language_model.embedding.word_embeddings.weight", (128, 8), {}, ROWS),
    ("output_layer.weight", (128, 8), {}, ROWS),
    ("output_layer.weight", (1, 8), {}, WHOLE),
    ("output_layer.bias", (1,), {}, WHOLE),
    ("decoder.final_layernorm.weight", (8,), {}, WHOLE),
    (f"{ATTENTION}linear_qkv.weight", (12, 8), {}, ROWS),
    (f"{ATTENTION}linear_qkv.bias", (12,), {}, ROWS),
    (f"{ATTENTION}linear_qkv.layer_norm_weight", (8,), {}, WHOLE),
    (f"{ATTENTION}q_layernorm.weight", (4,), {}, WHOLE),
    ("visual.blocks.0.mlp.down_proj.weight", (8, 4), {}, WHOLE),
    ("module.vision_tower.layers.0.o_proj.weight", (8, 4), {}, WHOLE),
    ("thinker.visual.blocks.0.mlp.down_proj.weight", (8, 4), {}, WHOLE),
    ("module.thinker.audio_model.layers.0.linear_fc1.weight", (8, 4), {}, WHOLE),
    ("audio_tower.layers.0.o_proj.weight", (8, 4), {}, WHOLE),
    ("multi_modal_projector.proj.weight", (8, 4), {}, ROWS),
    ("embed_audio.embedding_projection.weight", (8, 4), {}, WHOLE),
    ("module.per_layer_embedding.weight", (64, 8), {}, ROWS),
    ("language_model.per_layer_model_proj.weight", (12, 8), {}, ROWS),
    ("decoder.layers.0.per_layer_projection.weight", (8, 2), {}, WHOLE),
    ("decoder.layers.0.per_layer_input_gate.weight", (2, 8), {}, WHOLE),
    ("mm_projector.linear_fc1.weight", (8, 4), {}, WHOLE),
    ("vision_model.model.layers.0.self_attn.o_proj.weight", (8, 4), {}, WHOLE),
    ("vision_model.encoder.layers.0.mlp.down_proj.weight", (8, 4), {}, WHOLE),
    ("vision_model.merger.linear_fc1.weight", (8, 4), {}, ROWS),
    ("vision_model.transformer.resblocks.0.attn.out_proj.weight", (8, 4), {}, WHOLE),
    ("image_insert_embedding.align_projector.weight", (8, 4), {}, WHOLE),
    ("resampler_model.spatial_linear.fc1.weight", (8, 4), {}, WHOLE),
    ("thinker.language_model.decoder.layers.0.mlp.linear_fc2.weight", (8, 5), {}, COLUMNS),
    (f"{ATTENTION}linear_proj.weight", (8, 4), {}, COLUMNS),
    (f"{ATTENTION}linear_proj.bias", (8,), {}, WHOLE),
    # Of DeepSeek-V4, whose one head of keys and matrices of groups every rank has whole.
    (f"{ATTENTION}core_attention.attn_sink", (2,), {}, ROWS),
    (f"{ATTENTION}linear_kv_proj.weight", (8, 8), {}, WHOLE),
    (f"{ATTENTION}linear_o_group_proj", (8, 8), {}, WHOLE),
    (f"{ATTENTION}core_attention.indexer.linear_wq_b.weight", (8, 8), {}, WHOLE),
    ("mtp.layers.0.e_proj.weight", (4, 8), {}, ROWS),
    ("mtp.layers.0.h_proj.weight", (4, 8), {}, ROWS),
    (f"{LAYER}mlp_hyper_connection.mapping_proj.weight", (8, 8), {}, WHOLE),
    (f"{MLP}linear_fc1.weight", (10, 8), {f"{MLP}linear_fc2.weight": (8, 5)}, GATED),
    (f"{MLP}linear_fc1.weight", (10, 8), {f"{MLP}linear_fc2.weight": (8, 10)}, ROWS),
    (f"{MLP}linear_fc1.weight", (10, 8), {}, ROWS),
    (f"{MLP}linear_fc1.bias", (10,), {f"{MLP}linear_fc2.weight": (8, 5)}, GATED),
    (f"{MLP}linear_fc1.layer_norm_weight", (8,), {}, WHOLE),
    (f"{MLP}linear_fc2.weight", (8, 5), {}, COLUMNS),
    (f"{MLP}linear_fc2.bias", (8,), {}, WHOLE),
    (f"{MLP}router.weight", (4, 8), {}, WHOLE),
    (f"{MLP}router.expert_bias", (4,), {}, WHOLE),
    (f"{MLP}shared_experts.gate_weight", (1, 8), {}, WHOLE),
    (
        f"{MLP}shared_experts.linear_fc1.weight",
        (6, 8),
        {f"{MLP}shared_experts.linear_fc2.weight": (8, 3)},
        GATED,
    ),
    # B of an adapter: by the second layer beside it, or the A of that one's adapter.
    (f"{MLP}linear_fc1.adapter.linear_out.weight", (10, 4), {}, GATED),
    (
        f"{MLP}linear_fc1.adapter.linear_out.weight",
        (10, 4),
        {f"{MLP}linear_fc2.weight": (8, 5)},
        GATED,
    ),
    (
        f"{MLP}linear_fc1.adapter.linear_out.weight",
        (10, 4),
        {f"{MLP}linear_fc2.weight": (8, 10)},
        ROWS,
    ),
    (
        f"{MLP}linear_fc1.adapter.linear_out.weight",
        (10, 4),
        {f"{MLP}linear_fc2.adapter.linear_in.weight": (4, 10)},
        ROWS,
    ),
    (
        f"{LAYER}mixer.in_proj.adapter.linear_out.weight",
        (26, 4),
        {f"{LAYER}mixer.A_log": (2,), f"{LAYER}mixer.out_proj.weight": (8, 8)},
        Cut(0, sections=(8, 8, 4, 4, 2)),
    ),
    (f"{ATTENTION}in_proj.weight.query", (4, 8), {}, ROWS),
    (f"{ATTENTION}conv1d.weight.value", (4, 1, 4), {}, ROWS),
    (f"{ATTENTION}A_log", (2,), {}, ROWS),
    (f"{ATTENTION}dt_bias", (2,), {}, ROWS),
    (f"{ATTENTION}out_norm.weight", (5,), {}, WHOLE),
    (f"{ATTENTION}out_proj.weight", (8, 10), {}, COLUMNS),
    (f"{ATTENTION}linear_attn.in_proj_z.weight", (4, 8), {}, WHOLE),  # slime's
    (f"{ATTENTION}linear_attn.out_proj.weight", (8, 10), {}, WHOLE),
    ("mtp.layers.0.eh_proj.weight", (4, 16), {}, ROWS),
    ("mtp.layers.0.enorm.weight", (8,), {}, WHOLE),
    ("vision_model.patch_embed.proj.weight", (4, 3, 2, 14, 14), {}, WHOLE),
    ("vision_model.projection.encoder.linear_fc2.weight", (8, 8), {}, COLUMNS),
    (f"{ATTENTION}linear_q_up_proj.weight", (20, 24), {}, ROWS),
    (f"{ATTENTION}linear_kv_up_proj.weight", (20, 16), {}, ROWS),
    (f"{ATTENTION}linear_q_proj.weight", (20, 8), {}, ROWS),
    (f"{ATTENTION}linear_k_up_proj.weight", (20, 16), {}, ROWS),  # absorbed, of 0.17 and 0.18
    (f"{ATTENTION}linear_v_up_proj.weight", (20, 16), {}, ROWS),
    (f"{ATTENTION}wq_b.weight", (128, 16), {}, WHOLE),  # slime's
    (f"{ATTENTION}weights_proj.weight", (2, 8), {}, WHOLE),
    ("model.layers.0.self_attn.qkv_proj.weight", (12, 8), {}, STACKED),
    ("model.layers.0.self_attn.qkv_proj.bias", (12,), {}, STACKED),
    ("model.layers.0.self_attn.o_proj.weight", (8, 4), {}, COLUMNS),
    ("model.layers.0.mlp.gate_up_proj.weight", (10, 8), {}, GATED),
    ("model.layers.0.mlp.down_proj.weight", (8, 5), {}, COLUMNS),
    ("model.embed_tokens.weight", (128, 8), {}, ROWS),
    ("lm_head.weight", (1, 8), {}, WHOLE),
    ("model.norm.weight", (8,), {}, WHOLE),
    ("a_scalar.weight", (), {}, WHOLE),
    ("output_layer.weight", (), {}, WHOLE),
]


@pytest.mark.parametrize(("name", "shape", "beside", "expected"), PARAMETERS, ids=str)
def test_each_parameter_has_its_rule(name, shape, beside, expected):
    assert find_cut(name, {name: shape, **beside}) == expected


@pytest.mark.parametrize(
    ("kind", "rows", "rank", "expected"),
    [
        ("q", 24, 24, WHOLE),  # DeepSeek's: the query's rank whole, and cut in two
        ("q", 12, 24, ROWS),
        ("kv", 24, 16, WHOLE),  # the keys' rank and the rotary part, 16 + 8
        ("kv", 12, 16, ROWS),
    ],
)
def test_latent_down_projections_are_cut_where_they_have_too_few_rows(kind, rows, rank, expected):
    name = f"{ATTENTION}linear_{kind}_down_proj.weight"
    up = f"{ATTENTION}linear_{kind}_up_proj.weight"
    assert find_cut(name, {name: (rows, 64), up: (40, rank)}) == expected
    assert find_cut(name, {name: (rows, 64)}) == WHOLE
    if kind == "kv":
        keys = f"{ATTENTION}linear_k_up_proj.weight"
        assert find_cut(name, {name: (rows, 64), keys: (40, rank)}) == expected


def boxes(cut, local, part, parts):
    return [(start, box.offsets, box.sizes) for start, box in cut.pieces(local, part, parts)]


def test_rows_of_a_rank():
    assert ROWS.whole((3, 8), 4) == (12, 8)
    assert boxes(ROWS, (3, 8), 2, 4) == [(0, (6, 0), (3, 8))]


def test_columns_of_a_rank():
    assert COLUMNS.whole((8, 3), 4) == (8, 12)
    assert boxes(COLUMNS, (8, 3), 2, 4) == [(0, (0, 6), (8, 3))]


def test_gate_and_up_of_a_rank():
    """Of 16 rows, gate has 0 to 8 and up 8 to 16; rank 1 of 2 has 4 to 8 and 12 to 16."""
    assert GATED.whole((8, 5), 2) == (16, 5)
    assert boxes(GATED, (8, 5), 1, 2) == [(0, (4, 0), (4, 5)), (4, (12, 0), (4, 5))]
    assert boxes(GATED, (8,), 0, 2) == [(0, (0,), (4,)), (4, (8,), (4,))]


def test_what_every_rank_has():
    assert WHOLE.whole((3, 8), 4) == (3, 8)
    assert boxes(WHOLE, (3, 8), 2, 4) == [(0, (0, 0), (3, 8))]


def test_what_is_a_ranks_own():
    assert STACKED.whole((3, 8), 4) == (4, 3, 8)
    assert boxes(STACKED, (3, 8), 2, 4) == [(0, (2, 0, 0), (1, 3, 8))]


def test_placements_name_the_dimension_of_the_whole():
    assert [cut.text() for cut in (ROWS, GATED, WHOLE, STACKED)] == [
        "Shard(0)",
        "Shard(0), gated",
        "replicated",
        "stacked",
    ]
    assert COLUMNS.text(1) == "Shard(2)"


@given(
    st.lists(st.integers(1, 6), min_size=2, max_size=3),
    st.integers(1, 5),
    st.sampled_from([ROWS, COLUMNS, GATED, STACKED]),
)
def test_the_pieces_of_all_ranks_tile_the_whole(local, parts, cut):
    if cut.halves:
        local[0] *= 2
    whole = cut.whole(tuple(local), parts)
    found: list[Box] = []
    for part in range(parts):
        pieces = list(cut.pieces(tuple(local), part, parts))
        found += [box for _, box in pieces]
        at = 0
        for start, box in pieces:  # they are the rank's tensor, one after the other
            assert start == at
            at += box.sizes[cut.dim or 0] if not cut.stacked else 0
        assert cut.stacked or at == local[cut.dim or 0]
    assert check_coverage(whole, found)
