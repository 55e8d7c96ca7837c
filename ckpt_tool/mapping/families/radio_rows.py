"""Rows of Nemotron models that see and hear: RADIO, projections, and Nemotron-H inside.

Source: ``nemotron_vl/`` and ``nemotron_omni/`` of Megatron-Bridge 0.6.2, whose vision tower is
``models/vision/radio.py`` of megatron-core, in its ``LLaVAModel``.
"""

from __future__ import annotations

from dataclasses import replace

from ckpt_tool.mapping.families.megatron_form import Around, MegatronRows, Row, Rows, Vision

_OUTSIDE = "llava_model."
_PATCHES = "patch_generator."


def _both(hf: str, megatron: str, op: str = "same") -> Rows:
    """A weight and a bias."""
    return tuple(Row(f"{hf}.{kind}", f"{megatron}{kind}", op) for kind in ("weight", "bias"))


_RADIO = Vision(
    prefix="vision_model.radio_model.model.",
    always=True,
    rows=(
        Row(f"{_PATCHES}cls_token.token", "vision_model.class_token"),
        Row(f"{_PATCHES}pos_embed", "vision_model.position_embeddings"),
        Row(f"{_PATCHES}embedder.weight", "vision_model.embedder.weight"),
        Row(
            f"{_PATCHES}video_embedder.weight",
            "vision_model.video_embedder.weight",
            when="video_embedder",
        ),
    ),
    block=(
        *_both("norm1", "self_attention.linear_qkv.layer_norm_"),
        *_both("attn.qkv", "self_attention.linear_qkv.", "stacked_qkv"),
        *_both("attn.proj", "self_attention.linear_proj."),
        *_both("norm2", "mlp.linear_fc1.layer_norm_"),
        *_both("mlp.fc1", "mlp.linear_fc1."),
        *_both("mlp.fc2", "mlp.linear_fc2."),
    ),
)


def _project(names: tuple[str, str, str], megatron: str) -> Rows:
    """A norm and two linear layers, whose inputs the norm is of."""
    norm, first, second = names
    encoder = f"{_OUTSIDE}{megatron}.encoder."
    return (
        Row(f"{norm}.weight", f"{encoder}linear_fc1.layer_norm_weight"),
        Row(f"{first}.weight", f"{encoder}linear_fc1.weight"),
        Row(f"{second}.weight", f"{encoder}linear_fc2.weight"),
    )


_SEEN = _project(("mlp1.0", "mlp1.1", "mlp1.3"), "vision_projection")
_HEARD = _project(
    ("sound_projection.norm", "sound_projection.linear1", "sound_projection.linear2"),
    "sound_projection",
)
#: What comes before the tower has numbers on the Hub, and none in Megatron.
_PREPARED = ("vision_model.radio_model.input_conditioner.",)
NEMOTRON_VL = MegatronRows(
    (),
    (),
    around=Around(
        trunk="language_model.backbone.",
        head="language_model.",
        outside=_OUTSIDE,
        vision=_RADIO,
        beside=_SEEN,
        absent=_PREPARED,
        inner=True,
    ),
)
NEMOTRON_OMNI = replace(
    NEMOTRON_VL,
    around=replace(
        NEMOTRON_VL.around,
        towers=("sound_encoder.encoder.",),
        moved={"sound_encoder.encoder.": f"{_OUTSIDE}sound_model.encoder."},
        beside=_SEEN + _HEARD,
        absent=(*_PREPARED, "sound_encoder.feature_extractor."),
    ),
)
