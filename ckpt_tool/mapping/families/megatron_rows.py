"""Which Hugging Face tensors make which megatron-core tensor: what a family's layers are made of.

Names are those of the Hub and those that the Transformer-Engine spec of megatron-core 0.11 to 0.19
writes. ``{q,k,v}`` in a name stands for several tensors, ``{e}`` for the number of an expert. A row
with ``when`` is there only where the family's flag of that name, or the config key that the flag
names, says so. Sources: the model classes of transformers, ``GPTModel.sharded_state_dict`` of
megatron-core, both compared by experiment.
"""

from __future__ import annotations

from dataclasses import replace

from ckpt_tool.mapping.families.megatron_form import Ahead, Row

TOP = (
    Row(
        "model.embed_tokens.weight",
        "embedding.word_embeddings.weight",
        "vocabulary",
        shape="vocab,hidden",
    ),
    Row("model.norm.weight", "decoder.final_layernorm.weight", shape="hidden"),
    Row("model.norm.bias", "decoder.final_layernorm.bias", when="layer_norm", shape="hidden"),
    Row("lm_head.weight", "output_layer.weight", "vocabulary", "untied", shape="vocab,hidden"),
    Row("score.weight", "output_layer.weight", when="value", shape="one,hidden"),
    Row("score.bias", "output_layer.bias", when="value_bias", shape="one"),
)

GROUPED = (
    Row("input_layernorm.weight", "self_attention.linear_qkv.layer_norm_weight", shape="hidden"),
    Row(
        "self_attn.{q,k,v}_proj.weight",
        "self_attention.linear_qkv.weight",
        "qkv",
        shape="query,hidden key,hidden key,hidden",
    ),
    Row(
        "self_attn.{q,k,v}_proj.bias",
        "self_attention.linear_qkv.bias",
        "qkv",
        "qkv_bias",
        shape="query key key",
    ),
    Row(
        "self_attn.q_norm.weight", "self_attention.q_layernorm.weight", when="qk_norm", shape="head"
    ),
    Row(
        "self_attn.k_norm.weight", "self_attention.k_layernorm.weight", when="qk_norm", shape="head"
    ),
    Row("self_attn.o_proj.weight", "self_attention.linear_proj.weight", shape="hidden,query"),
    Row(
        "self_attn.o_proj.bias",
        "self_attention.linear_proj.bias",
        when="output_bias",
        shape="hidden",
    ),
)
#: Of all heads together, in place of the norms of each head. megatron-core has no such modules:
#: trainers bring their own.
WIDE_NORMS = (
    Row("self_attn.q_norm.weight", "self_attention.q_layernorm.weight", shape="query"),
    Row("self_attn.k_norm.weight", "self_attention.k_layernorm.weight", shape="key"),
)
LATENT = (
    Row("input_layernorm.weight", "input_layernorm.weight", shape="hidden"),
    Row(
        "self_attn.q_proj.weight",
        "self_attention.linear_q_proj.weight",
        when="plain_query",
        shape="latent_query,hidden",
    ),
    Row(
        "self_attn.q_a_proj.weight",
        "self_attention.linear_q_down_proj.weight",
        when="low_query",
        shape="query_rank,hidden",
    ),
    Row(
        "self_attn.q_a_layernorm.weight",
        "self_attention.linear_q_up_proj.layer_norm_weight",
        when="low_query",
        shape="query_rank",
    ),
    Row(
        "self_attn.q_b_proj.weight",
        "self_attention.linear_q_up_proj.weight",
        when="low_query",
        shape="latent_query,query_rank",
    ),
    Row(
        "self_attn.kv_a_proj_with_mqa.weight",
        "self_attention.linear_kv_down_proj.weight",
        shape="kv_down,hidden",
    ),
    Row(
        "self_attn.kv_a_layernorm.weight",
        "self_attention.linear_kv_up_proj.layer_norm_weight",
        shape="kv_rank",
    ),
    Row(
        "self_attn.kv_b_proj.weight",
        "self_attention.linear_kv_up_proj.weight",
        shape="kv_up,kv_rank",
    ),
    Row("self_attn.o_proj.weight", "self_attention.linear_proj.weight", shape="hidden,latent_out"),
)
_GATED = (
    Row("mlp.{gate,up}_proj.weight", "mlp.linear_fc1.weight", "gate_up", shape="ffn,hidden"),
    Row("mlp.{gate,up}_proj.bias", "mlp.linear_fc1.bias", "gate_up", "mlp_bias", shape="ffn"),
    Row("mlp.down_proj.weight", "mlp.linear_fc2.weight", shape="hidden,ffn"),
    Row("mlp.down_proj.bias", "mlp.linear_fc2.bias", when="mlp_bias", shape="hidden"),
)
DENSE = (
    Row("post_attention_layernorm.weight", "mlp.linear_fc1.layer_norm_weight", shape="hidden"),
    *_GATED,
)
_FC1 = "mlp.experts.experts.{e}.linear_fc1.weight"
_FC2 = "mlp.experts.experts.{e}.linear_fc2.weight"
MOE = (
    Row("post_attention_layernorm.weight", "pre_mlp_layernorm.weight", shape="hidden"),
    Row("mlp.gate.weight", "mlp.router.weight", shape="experts,hidden"),
    Row("mlp.experts.{e}.{gate,up}_proj.weight", _FC1, "gate_up", shape="expert_ffn,hidden"),
    Row("mlp.experts.{e}.down_proj.weight", _FC2, shape="hidden,expert_ffn"),
)
MIXTRAL = (
    Row("post_attention_layernorm.weight", "pre_mlp_layernorm.weight", shape="hidden"),
    Row("block_sparse_moe.gate.weight", "mlp.router.weight", shape="experts,hidden"),
    Row("block_sparse_moe.experts.{e}.{w1,w3}.weight", _FC1, "gate_up", shape="expert_ffn,hidden"),
    Row("block_sparse_moe.experts.{e}.w2.weight", _FC2, shape="hidden,expert_ffn"),
)
SHARED_GATE = (
    Row(
        "mlp.shared_expert.{gate,up}_proj.weight",
        "mlp.shared_experts.linear_fc1.weight",
        "gate_up",
        shape="shared_ffn,hidden",
    ),
    Row(
        "mlp.shared_expert.down_proj.weight",
        "mlp.shared_experts.linear_fc2.weight",
        shape="hidden,shared_ffn",
    ),
    Row("mlp.shared_expert_gate.weight", "mlp.shared_experts.gate_weight", shape="one,hidden"),
)
SHARED = (
    Row(
        "mlp.shared_experts.{gate,up}_proj.weight",
        "mlp.shared_experts.linear_fc1.weight",
        "gate_up",
        "shared_experts",
        shape="shared_ffn,hidden",
    ),
    Row(
        "mlp.shared_experts.down_proj.weight",
        "mlp.shared_experts.linear_fc2.weight",
        when="shared_experts",
        shape="hidden,shared_ffn",
    ),
)
#: Of routers that choose by scores with a bias, and weigh by those without.
ROUTER_BIAS = (
    Row(
        "mlp.gate.e_score_correction_bias",
        "mlp.router.expert_bias",
        dtype="float32",
        shape="experts",
    ),
)
MIXTRAL_BIAS = (replace(ROUTER_BIAS[0], hf="block_sparse_moe.e_score_correction_bias"),)
#: Of ERNIE, whose routers have a table of one row.
ERNIE_BIAS = (
    Row(
        "mlp.moe_statics.e_score_correction_bias",
        "mlp.router.expert_bias",
        "one_row",
        dtype="float32",
        shape="one,experts",
    ),
)
MTP = (
    Row("enorm.weight", "enorm.weight", shape="hidden"),
    Row("hnorm.weight", "hnorm.weight", shape="hidden"),
    Row("eh_proj.weight", "eh_proj.weight", shape="hidden,two_hidden"),
    Row("shared_head.norm.weight", "final_layernorm.weight", shape="hidden"),
)
MIMO_MTP = (
    Row("token_layernorm.weight", "enorm.weight", shape="hidden"),
    Row("hidden_layernorm.weight", "hnorm.weight", shape="hidden"),
    Row("input_proj.weight", "eh_proj.weight", "swap_halves", shape="hidden,two_hidden"),
    Row("final_layernorm.weight", "final_layernorm.weight", shape="hidden"),
)
#: As transformers' own classes have it: beside the layer, not in it.
TRANSFORMERS_MTP = Ahead(
    (
        Row("pre_fc_norm_embedding.weight", "enorm.weight", shape="hidden"),
        Row("pre_fc_norm_hidden.weight", "hnorm.weight", shape="hidden"),
        Row("fc.weight", "eh_proj.weight", shape="hidden,two_hidden"),
        Row("norm.weight", "final_layernorm.weight", shape="hidden"),
    ),
    prefix="mtp.layers.{number}.",
    repeats=False,
    top="mtp.",
)
