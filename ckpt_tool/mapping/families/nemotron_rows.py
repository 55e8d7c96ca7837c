"""The rows of families with Mamba: Nemotron-H and Nemotron 3, and Falcon-H1.

The ones have Mamba, attention, an MLP or experts in a layer each, the other all but experts in
every layer. Sources: ``nemotron_h`` and ``falcon_h1`` of transformers 5.24;
``megatron/core/ssm/mamba_mixer.py`` and ``models/hybrid/`` of 0.19; Megatron-Bridge's
``nemotronh/nemotron_h_bridge.py`` and ``falcon_h1/`` of 0.6.2.
"""

from __future__ import annotations

from dataclasses import replace

from ckpt_tool.mapping.families.megatron_form import Ahead, Around, MegatronRows, Row, Rows
from ckpt_tool.mapping.families.megatron_rows import DENSE, GROUPED, MTP, ROUTER_BIAS

_CONVOLVED = (
    "mamba_inner,one,mamba_kernel mamba_state,one,mamba_kernel mamba_state,one,mamba_kernel"
)


def _make_mamba(hf: str, megatron: str, norm: str = "") -> Rows:
    """A Mamba mixer, the prefixes of whose names are ``hf`` and ``megatron``.

    Parts of a tensor: gate, input, B, C and time steps. No bias but the convolution's. ``norm``:
    the flag without which there is none behind the scan.
    """
    return (
        Row(
            f"{hf}in_proj.weight",
            f"{megatron}in_proj.weight.{{z,x,B,C,dt}}",
            "rows",
            shape="mamba_in,hidden",
            whole="mamba_inner,hidden mamba_inner,hidden mamba_state,hidden mamba_state,hidden"
            " mamba_heads,hidden",
        ),
        Row(
            f"{hf}conv1d.weight",
            f"{megatron}conv1d.weight.{{x,B,C}}",
            "rows",
            shape="mamba_conv,one,mamba_kernel",
            whole=_CONVOLVED,
        ),
        Row(
            f"{hf}conv1d.bias",
            f"{megatron}conv1d.bias.{{x,B,C}}",
            "rows",
            shape="mamba_conv",
            whole="mamba_inner mamba_state mamba_state",
        ),
        Row(f"{hf}A_log", f"{megatron}A_log", shape="mamba_heads"),
        Row(f"{hf}D", f"{megatron}D", shape="mamba_heads"),
        Row(f"{hf}dt_bias", f"{megatron}dt_bias", shape="mamba_heads"),
        Row(f"{hf}norm.weight", f"{megatron}norm.weight", when=norm, shape="mamba_inner"),
        Row(f"{hf}out_proj.weight", f"{megatron}out_proj.weight", shape="hidden,mamba_inner"),
    )


_MAMBA = (
    Row("norm.weight", "mixer.in_proj.layer_norm_weight", shape="hidden"),
    *_make_mamba("mixer.", "mixer."),
)
_ATTENTION = tuple(
    replace(row, hf=row.hf.replace("input_layernorm", "norm").replace("self_attn.", "mixer."))
    for row in GROUPED
    if not row.when
)
_MLP = (
    Row("norm.weight", "mlp.linear_fc1.layer_norm_weight", shape="hidden"),
    Row("mixer.up_proj.weight", "mlp.linear_fc1.weight", shape="ffn,hidden"),
    Row("mixer.down_proj.weight", "mlp.linear_fc2.weight", shape="hidden,ffn"),
)
_EXPERTS = (
    Row("norm.weight", "pre_mlp_layernorm.weight", shape="hidden"),
    Row("mixer.gate.weight", "mlp.router.weight", shape="experts,hidden"),
    replace(ROUTER_BIAS[0], hf="mixer.gate.e_score_correction_bias"),
    Row(
        "mixer.experts.{e}.up_proj.weight",
        "mlp.experts.experts.{e}.linear_fc1.weight",
        shape="expert_ffn,expert_hidden",
    ),
    Row(
        "mixer.experts.{e}.down_proj.weight",
        "mlp.experts.experts.{e}.linear_fc2.weight",
        shape="expert_hidden,expert_ffn",
    ),
    Row(
        "mixer.shared_experts.up_proj.weight",
        "mlp.shared_experts.linear_fc1.weight",
        when="shared_experts",
        shape="shared_ffn,hidden",
    ),
    Row(
        "mixer.shared_experts.down_proj.weight",
        "mlp.shared_experts.linear_fc2.weight",
        when="shared_experts",
        shape="hidden,shared_ffn",
    ),
    Row(
        "mixer.fc1_latent_proj.weight",
        "mlp.fc1_latent_proj.weight",
        when="latent_experts",
        shape="expert_hidden,hidden",
    ),
    Row(
        "mixer.fc2_latent_proj.weight",
        "mlp.fc2_latent_proj.weight",
        when="latent_experts",
        shape="hidden,expert_hidden",
    ),
)

NEMOTRON_H = MegatronRows(
    _ATTENTION,
    (),
    _EXPERTS,
    Ahead(
        tuple(row for row in MTP if not row.hf.startswith("shared_head")),
        prefix="mtp.layers.{first}.",
        repeats=False,
        end=(Row("final_layernorm.weight", "final_layernorm.weight", shape="hidden"),),
    ),
    around=Around(trunk="backbone.", ends={"embed_tokens": "embeddings", "norm": "norm_f"}),
    flags={
        "patterned": True,
        "no_positions": True,
        "ungated": True,
        "latent_experts": ("moe_latent_size", False),
    },
    attentions={"M": _MAMBA, "*": _ATTENTION, "-": _MLP, "E": ()},
    defaults={"attention_head_dim": 128},
)

FALCON_H1 = MegatronRows(
    (
        # Mamba and attention have one norm, so that it is in no linear layer.
        Row("input_layernorm.weight", "norm.weight", shape="hidden"),
        *_make_mamba("mamba.", "mamba_mixer.", "mamba_norm"),
        *(row for row in GROUPED if row.hf.startswith("self_attn.") and not row.when),
    ),
    tuple(
        replace(
            row,
            hf=row.hf.replace("post_attention_layernorm", "pre_ff_layernorm").replace(
                "mlp.", "feed_forward."
            ),
        )
        for row in DENSE
        if not row.when
    ),
    flags={"patterned": True, "mamba_norm": ("mamba_rms_norm", False)},
    around=Around(ends={"norm": "final_layernorm"}),
)
