"""Of families whose experts or names are their own: small configs, and the tensors on the Hub."""

Shapes = dict[str, tuple[int, ...]]

_ROUTED = {"moe_intermediate_size": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1}
_LING = _ROUTED | {"num_experts": 3, "num_shared_experts": 2}
_LATENT = {
    "q_lora_rank": None,
    "kv_lora_rank": 3,
    "qk_nope_head_dim": 2,
    "qk_rope_head_dim": 1,
    "v_head_dim": 4,
}
CONFIGS = {
    "gpt_oss": {"num_local_experts": 3, "num_experts_per_tok": 2, "attention_bias": True},
    "hy_v3": _LING | {"num_nextn_predict_layers": 1},
    "bailing_moe": _LING,
    "bailing_moe_v2": _LING | {"num_nextn_predict_layers": 1, "use_qkv_bias": True},
    "sarvam_moe": _ROUTED | {"n_routed_experts": 3, "n_shared_experts": 2},
    "sarvam_mla": _LING | _LATENT,
    "exaone_moe": _LING | {"num_nextn_predict_layers": 1},
    "mimo_v2_flash": {
        "n_routed_experts": 3,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 4,
        "moe_layer_freq": [0, 1, 1],
        "hybrid_layer_pattern": [0, 1, 1],
        "swa_num_key_value_heads": 4,
        "v_head_dim": 3,
        "num_nextn_predict_layers": 1,
    },
}
PREDICTING = {"hy_v3": 1, "bailing_moe_v2": 1, "exaone_moe": 1, "mimo_v2_flash": 1}
#: After which all layers of a family are of one kind.
ALIKE = {"mimo_v2_flash": {"moe_layer_freq": [1] * 3, "hybrid_layer_pattern": [1] * 3}}
#: Which of the three layers have experts.
MOE = {name: {1, 2} for name in CONFIGS} | {"gpt_oss": {0, 1, 2}}


def list_shapes(family: str, config: dict) -> Shapes:
    """Name -> shape of every tensor."""
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    embedding = "word_embeddings" if _is_stacked(family) else "embed_tokens"
    shapes: Shapes = {
        f"model.{embedding}.weight": (11, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (11, hidden),
    }
    dense = set(range(config.get("first_k_dense_replace", 0)))
    if family == "mimo_v2_flash":
        return shapes | _list_mimo(config)
    for layer in range(layers + config.get("num_nextn_predict_layers", 0)):
        found = _attention(family, hidden) | {
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
        }
        if family == "exaone_moe":
            dense.add(layers)
        found |= _gated("mlp", hidden, 5) if layer in dense else _experts(family, hidden)
        if family == "exaone_moe" and layer >= layers:
            shapes |= {f"mtp.layers.0.{name}": shape for name, shape in found.items()}
            shapes |= {
                f"mtp.pre_fc_norm_{name}.weight": (hidden,) for name in ("embedding", "hidden")
            }
            shapes |= {"mtp.norm.weight": (hidden,), "mtp.fc.weight": (hidden, 2 * hidden)}
            continue
        if layer >= layers:
            found |= {f"{name}.weight": (hidden,) for name in ("enorm", "hnorm", "final_layernorm")}
            found["eh_proj.weight"] = (hidden, 2 * hidden)
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in found.items()}
    return shapes


def _list_mimo(config: dict) -> Shapes:
    """Two key and value heads or four with sinks; values are three wide, keys two."""
    shapes: Shapes = {}
    kinds = zip(config["hybrid_layer_pattern"], config["moe_layer_freq"], strict=True)
    names = [f"model.layers.{layer}" for layer in range(3)] + ["model.mtp.layers.0"]
    for name, (sliding, moe) in zip(names, [*kinds, (1, 0)], strict=True):
        groups = 4 if sliding else 2
        found: Shapes = {
            "input_layernorm.weight": (6,),
            "self_attn.q_proj.weight": (8, 6),
            "self_attn.k_proj.weight": (2 * groups, 6),
            "self_attn.v_proj.weight": (3 * groups, 6),
            "self_attn.o_proj.weight": (6, 12),
        }
        found |= {"self_attn.attention_sink_bias": (4,)} if sliding else {}
        found |= _experts("mimo_v2_flash", 6) if moe else _gated("mlp", 6, 5)
        if ".mtp." in name:
            found |= {f"{part}.weight": (6,) for part in ("enorm", "hnorm", "final_layernorm")}
            found |= {"pre_mlp_layernorm.weight": (6,), "eh_proj.weight": (6, 12)}
        else:
            found["post_attention_layernorm.weight"] = (6,)
        shapes |= {f"{name}.{part}": shape for part, shape in found.items()}
    return shapes


def _is_stacked(family: str) -> bool:
    return family in ("bailing_moe", "bailing_moe_v2", "sarvam_moe")


def _gated(stem: str, hidden: int, width: int) -> Shapes:
    shapes: Shapes = {f"{stem}.{name}_proj.weight": (width, hidden) for name in ("gate", "up")}
    return shapes | {f"{stem}.down_proj.weight": (hidden, width)}


def _attention(family: str, hidden: int) -> Shapes:
    if family == "sarvam_mla":
        return {
            "self_attn.q_proj.weight": (12, hidden),
            "self_attn.kv_a_proj_with_mqa.weight": (4, hidden),
            "self_attn.kv_a_layernorm.weight": (3,),
            "self_attn.kv_b_proj.weight": (24, 3),
            "self_attn.o_proj.weight": (hidden, 16),
        }
    if family == "bailing_moe":  # Ling 1
        return {
            "attention.query_key_value.weight": (16, hidden),
            "attention.dense.weight": (hidden, 8),
        }
    if _is_stacked(family):
        bias = {"attention.query_key_value.bias": (16,)} if family == "bailing_moe_v2" else {}
        return bias | {
            "attention.query_key_value.weight": (16, hidden),
            "attention.query_layernorm.weight": (2,),
            "attention.key_layernorm.weight": (2,),
            "attention.dense.weight": (hidden, 8),
        }
    rows = {"q": 8, "k": 4, "v": 4}
    shapes: Shapes = {f"self_attn.{n}_proj.weight": (size, hidden) for n, size in rows.items()}
    shapes["self_attn.o_proj.weight"] = (hidden, 8)
    if family == "gpt_oss":
        shapes |= {f"self_attn.{n}_proj.bias": (size,) for n, size in rows.items()}
        return shapes | {"self_attn.o_proj.bias": (hidden,), "self_attn.sinks": (4,)}
    return shapes | {f"self_attn.{n}_norm.weight": (2,) for n in "qk"}


def _experts(family: str, hidden: int) -> Shapes:
    if family == "gpt_oss":
        return {
            "mlp.router.weight": (3, hidden),
            "mlp.router.bias": (3,),
            "mlp.experts.gate_up_proj": (3, hidden, 10),
            "mlp.experts.gate_up_proj_bias": (3, 10),
            "mlp.experts.down_proj": (3, 5, hidden),
            "mlp.experts.down_proj_bias": (3, hidden),
        }
    gate, shared, bias = {
        "hy_v3": ("mlp.router.gate", "mlp.shared_mlp", "mlp.expert_bias"),
        "bailing_moe": ("mlp.gate", "mlp.shared_experts", ""),
        "bailing_moe_v2": ("mlp.gate", "mlp.shared_experts", "mlp.gate.expert_bias"),
        "sarvam_moe": ("mlp.gate", "mlp.shared_experts", "mlp.gate.expert_bias"),
        "exaone_moe": ("mlp.gate", "mlp.shared_experts", "mlp.e_score_correction_bias"),
        "mimo_v2_flash": ("mlp.gate", "", "mlp.gate.e_score_correction_bias"),
        "sarvam_mla": ("mlp.gate", "mlp.shared_experts", "mlp.gate.e_score_correction_bias"),
    }[family]
    shapes: Shapes = {f"{gate}.weight": (3, hidden)} | ({bias: (3,)} if bias else {})
    for expert in range(3):
        shapes |= _gated(f"mlp.experts.{expert}", hidden, 4)
    return shapes | (_gated(shared, hidden, 8) if shared else {})
