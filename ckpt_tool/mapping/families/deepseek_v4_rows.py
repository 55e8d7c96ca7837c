"""The rows of DeepSeek-V4: attention to compressed keys, and residuals in several streams.

Names on the Hub are DeepSeek's own. What a layer has beside the rows of all is by its kind, which
says how keys are compressed, and whether tokens choose their experts by a table. Released versions
of megatron-core, 0.19 among them, have no modules of it. Sources: ``deepseek_v4_bridge.py`` of
Megatron-Bridge 0.6.2; ``hyper_connection.py`` of megatron-core's repository.
"""

from __future__ import annotations

from ckpt_tool.mapping.families.megatron_form import Ahead, Around, MegatronRows, Row, Rows

_CORE = "self_attention.core_attention."
_EXPERT = "mlp.experts.experts.{e}."


def _make_streams(hf: str, module: str) -> Rows:
    """How streams are mixed before a module and after it: one vector is three numbers there."""
    scales = f"{module}.{{alpha_pre,alpha_post,alpha_res}}"
    return (
        Row(
            f"hc_{hf}_fn",
            f"{module}.mapping_proj.weight",
            dtype="float32",
            shape="streams_out,streams_in",
        ),
        Row(f"hc_{hf}_base", f"{module}.bias", dtype="float32", shape="streams_out"),
        Row(f"hc_{hf}_scale", scales, "rows", dtype="float32", shape="three", whole="one one one"),
    )


def _make_end(start: str = "") -> Rows:
    """What becomes of the streams behind the last layer."""
    return tuple(
        Row(f"hc_head_{part}", f"{start}hc_head_{part}", dtype="float32", shape=shape)
        for part, shape in (("fn", "streams,streams_in"), ("base", "streams"), ("scale", "one"))
    )


def _make_compressor(hf: str, megatron: str, shapes: tuple[str, str]) -> Rows:
    """What makes one key of several tokens: ``shapes`` of a table of positions, of a matrix."""
    table, matrix = shapes
    width = "index_head" if "indexer" in megatron else "head"
    return (
        Row(f"{hf}.wkv.weight", f"{megatron}.linear_wkv.weight", shape=matrix),
        Row(f"{hf}.wgate.weight", f"{megatron}.linear_wgate.weight", shape=matrix),
        Row(f"{hf}.ape", f"{megatron}.ape", dtype="float32", shape=table),
        Row(f"{hf}.norm.weight", f"{megatron}.norm.weight", shape=width),
    )


_ATTENTION: Rows = (
    Row("attn_norm.weight", "input_layernorm.weight", shape="hidden"),
    Row("attn.wq_a.weight", "self_attention.linear_q_down_proj.weight", shape="query_rank,hidden"),
    Row("attn.q_norm.weight", "self_attention.q_layernorm.weight", shape="query_rank"),
    Row("attn.wq_b.weight", "self_attention.linear_q_up_proj.weight", shape="query,query_rank"),
    Row("attn.wkv.weight", "self_attention.linear_kv_proj.weight", shape="head,hidden"),
    Row("attn.kv_norm.weight", "self_attention.kv_layernorm.weight", shape="head"),
    Row("attn.wo_a.weight", "self_attention.linear_o_group_proj", shape="out_rank,out_group"),
    Row("attn.wo_b.weight", "self_attention.linear_proj.weight", shape="hidden,out_rank"),
    Row("attn.attn_sink", f"{_CORE}attn_sink", dtype="float32", shape="heads"),
    *_make_streams("attn", "self_attention_hyper_connection"),
    *_make_streams("ffn", "mlp_hyper_connection"),
)
_SPARSE: Rows = (
    *_make_compressor(
        "attn.compressor", f"{_CORE}compressor", ("csa_rate,two_head", "two_head,hidden")
    ),
    Row(
        "attn.indexer.wq_b.weight",
        f"{_CORE}indexer.linear_wq_b.weight",
        shape="index_query,query_rank",
    ),
    Row(
        "attn.indexer.weights_proj.weight",
        f"{_CORE}indexer.linear_weights_proj.weight",
        shape="index_heads,hidden",
    ),
    *_make_compressor(
        "attn.indexer.compressor",
        f"{_CORE}indexer.compressor",
        ("csa_rate,two_index_head", "two_index_head,hidden"),
    ),
)
_HEAVY = _make_compressor("attn.compressor", f"{_CORE}compressor", ("hca_rate,head", "head,hidden"))
_COMPRESSED: dict[str, Rows] = {
    "sliding_attention": (),
    "compressed_sparse_attention": _SPARSE,
    "heavily_compressed_attention": _HEAVY,
}
_SCORED: Rows = (Row("ffn.gate.bias", "mlp.router.expert_bias", dtype="float32", shape="experts"),)
_HASHED: Rows = (
    Row("ffn.gate.tid2eid", "mlp.router.tid2eid", "integers", shape="vocab,experts_chosen"),
)
_MOE: Rows = (
    Row("ffn_norm.weight", "pre_mlp_layernorm.weight", shape="hidden"),
    Row("ffn.gate.weight", "mlp.router.weight", shape="experts,hidden"),
    Row(
        "ffn.experts.{e}.{w1,w3}.weight",
        f"{_EXPERT}linear_fc1.weight",
        "gate_up",
        shape="expert_ffn,hidden",
    ),
    Row("ffn.experts.{e}.w2.weight", f"{_EXPERT}linear_fc2.weight", shape="hidden,expert_ffn"),
    Row(
        "ffn.shared_experts.{w1,w3}.weight",
        "mlp.shared_experts.linear_fc1.weight",
        "gate_up",
        shape="shared_ffn,hidden",
    ),
    Row(
        "ffn.shared_experts.w2.weight",
        "mlp.shared_experts.linear_fc2.weight",
        shape="hidden,shared_ffn",
    ),
)
_MTP: Rows = (
    Row("e_proj.weight", "e_proj.weight", shape="hidden,hidden"),
    Row("h_proj.weight", "h_proj.weight", shape="hidden,hidden"),
    Row("enorm.weight", "enorm.weight", shape="hidden"),
    Row("hnorm.weight", "hnorm.weight", shape="hidden"),
    Row("norm.weight", "final_layernorm.weight", shape="hidden"),
    *_make_end(),
)
#: Names as transformers 5.24 saves them, and what they are where DeepSeek has published them.
_SAVED = (
    (r"^model\.embed_tokens\.", "embed."),
    (r"^model\.hc_head\.hc_", "hc_head_"),
    (r"^model\.(?=norm\.|layers\.|mtp\.)", ""),
    (r"\.attn\.norm\.", ".attn.kv_norm."),
    (r"\.indexer\.scorer\.weights_proj\.", ".indexer.weights_proj."),
)

DEEPSEEK_V4 = MegatronRows(
    _ATTENTION + _SCORED,
    (),
    _MOE,
    Ahead(_MTP, prefix="mtp.{number}.", copies=("emb.tok_emb.weight", "head.weight")),
    Around(
        trunk="",
        ends={"embed_tokens": "embed", "lm_head": "head"},
        beside=_make_end("decoder."),
        saved=_SAVED,
    ),
    attentions={
        hashed + kind: _ATTENTION + rows + (_HASHED if hashed else _SCORED)
        for kind, rows in _COMPRESSED.items()
        for hashed in ("", "hash, ")
    },
    kinds_by="compress_ratios",
    flags={"streams": True, "expert_bias": True},
    differing=True,
    defaults={"num_nextn_predict_layers": 1, "hc_mult": 4, "n_shared_experts": 1},
)
