"""Models whose tensors are not only moved on their way to Megatron-Core.

Widths are those of released models: gpt-oss-20b, Qwen3-Next-80B-A3B, Qwen3-VL-30B-A3B,
NVIDIA-Nemotron-3-Nano-30B-A3B.
"""

from __future__ import annotations

from tests.bench.generate_hf import Family, Model, fit
from tests.bench.values import Shapes

_VOCABULARY = 151936
_PATTERN = "MEMEM*E"


def gpt_oss_model(size: int) -> Model:
    """One like gpt-oss-20b of about ``size`` bytes, in bfloat16."""
    return fit(Family(_make_gpt_oss, 201088, 32, 2), size)


def qwen3_next_model(size: int) -> Model:
    """One like Qwen3-Next-80B-A3B of about ``size`` bytes, without what predicts further."""
    return fit(Family(_make_qwen3_next, _VOCABULARY, 64, 4), size)


def qwen3_vl_moe_model(size: int) -> Model:
    """One like Qwen3-VL-30B-A3B of about ``size`` bytes, with a third of its tower's blocks."""
    return fit(Family(_make_qwen3_vl_moe, _VOCABULARY, 32), size)


def nemotron_model(size: int) -> Model:
    """One like Nemotron 3 Nano of about ``size`` bytes: of its layers the first seven, repeated."""
    return fit(Family(_make_nemotron, 131072, 16, len(_PATTERN)), size)


def _make_gpt_oss(layers: int, experts: int, vocabulary: int) -> Model:
    hidden, width, query, key = 2880, 2880, 64 * 64, 8 * 64
    rows = {"q_proj": (query, hidden), "k_proj": (key, hidden), "v_proj": (key, hidden)}
    layer = _norms(hidden) | {"self_attn.sinks": (64,)}
    for name, shape in (rows | {"o_proj": (hidden, query)}).items():
        layer |= {f"self_attn.{name}.weight": shape, f"self_attn.{name}.bias": shape[:1]}
    layer |= {"mlp.router.weight": (experts, hidden), "mlp.router.bias": (experts,)}
    turned = {"gate_up_proj": (hidden, 2 * width), "down_proj": (width, hidden)}
    for name, shape in turned.items():
        layer[f"mlp.experts.{name}"] = (experts, *shape)
        layer[f"mlp.experts.{name}_bias"] = (experts, shape[1])
    kinds = ["sliding_attention", "full_attention"]
    config = _config("gpt_oss", "GptOssForCausalLM", layers, vocabulary) | {
        "hidden_size": hidden,
        "intermediate_size": width,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "num_local_experts": experts,
        "num_experts_per_tok": 4,
        "attention_bias": True,
        "sliding_window": 128,
        "layer_types": [kinds[number % 2] for number in range(layers)],
        "rope_theta": 150000,
    }
    return Model(_stack([layer] * layers, hidden, vocabulary), config)


def _make_qwen3_next(layers: int, experts: int, vocabulary: int) -> Model:
    hidden, width, key, value, heads = 2048, 512, 16 * 128, 32 * 128, 32
    linear = {
        "in_proj_qkvz.weight": (2 * key + 2 * value, hidden),
        "in_proj_ba.weight": (2 * heads, hidden),
        "conv1d.weight": (2 * key + value, 1, 4),
        "A_log": (heads,),
        "dt_bias": (heads,),
        "norm.weight": (128,),
        "out_proj.weight": (hidden, value),
    }
    full = _attention(hidden, 16 * 256, 2 * 256, 256) | {
        "self_attn.q_proj.weight": (2 * 16 * 256, hidden)
    }
    rest = _norms(hidden) | {"mlp.gate.weight": (experts, hidden)}
    for expert in range(experts):
        rest |= _gated(f"mlp.experts.{expert}", hidden, width)
    rest |= _gated("mlp.shared_expert", hidden, width)
    rest["mlp.shared_expert_gate.weight"] = (1, hidden)
    mixers = [{f"linear_attn.{name}": shape for name, shape in linear.items()}] * 3 + [full]
    config = _config("qwen3_next", "Qwen3NextForCausalLM", layers, vocabulary) | {
        "hidden_size": hidden,
        "intermediate_size": 5120,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": heads,
        "full_attention_interval": 4,
        "partial_rotary_factor": 0.25,
        "rope_theta": 10000000,
        "moe_intermediate_size": width,
        "shared_expert_intermediate_size": width,
        "num_experts": experts,
        "num_experts_per_tok": min(10, experts),
    }
    every = [mixers[number % 4] | rest for number in range(layers)]
    return Model(_stack(every, hidden, vocabulary), config)


def _make_qwen3_vl_moe(layers: int, experts: int, vocabulary: int) -> Model:
    hidden, width = 2048, 768
    layer = _attention(hidden, 32 * 128, 4 * 128, 128) | _norms(hidden)
    layer["mlp.gate.weight"] = (experts, hidden)
    layer["mlp.experts.gate_up_proj"] = (experts, hidden, 2 * width)
    layer["mlp.experts.down_proj"] = (experts, width, hidden)
    text = _config("qwen3_vl_moe_text", "", layers, vocabulary) | {
        "hidden_size": hidden,
        "intermediate_size": 6144,
        "moe_intermediate_size": width,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": experts,
        "num_experts_per_tok": min(8, experts),
        "rope_theta": 5000000,
        "rope_scaling": {
            "mrope_interleaved": True,
            "mrope_section": [24, 20, 20],
            "rope_type": "default",
        },
    }
    tower, vision = _make_tower(hidden)
    config = _config("qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration", layers, vocabulary)
    stacked = _stack([layer] * layers, hidden, vocabulary, "model.language_model.")
    return Model(
        stacked | (tower if layers else {}),
        config | {"text_config": text, "vision_config": vision},
    )


def _make_tower(hidden: int) -> tuple[Shapes, dict[str, object]]:
    blocks, wide, merged, ffn = 9, 1152, 4 * 1152, 4304
    shapes: Shapes = {"pos_embed.weight": (2304, wide)}
    shapes |= _biased("patch_embed.proj", wide, 3, 2, 16, 16)
    for block in range(blocks):
        stem = f"blocks.{block}."
        shapes |= _biased(f"{stem}norm1", wide) | _biased(f"{stem}norm2", wide)
        shapes |= _biased(f"{stem}attn.qkv", 3 * wide, wide)
        shapes |= _biased(f"{stem}attn.proj", wide, wide)
        shapes |= _biased(f"{stem}mlp.linear_fc1", ffn, wide)
        shapes |= _biased(f"{stem}mlp.linear_fc2", wide, ffn)
    mergers = {f"deepstack_merger_list.{number}": merged for number in range(3)} | {"merger": wide}
    for stem, normed in mergers.items():
        shapes |= _biased(f"{stem}.norm", normed)
        shapes |= _biased(f"{stem}.linear_fc1", merged, merged)
        shapes |= _biased(f"{stem}.linear_fc2", hidden, merged)
    config: dict[str, object] = {
        "model_type": "qwen3_vl_moe",
        "depth": blocks,
        "hidden_size": wide,
        "intermediate_size": ffn,
        "num_heads": 16,
        "out_hidden_size": hidden,
        "deepstack_visual_indexes": [2, 5, 8],
    }
    return {f"model.visual.{name}": shape for name, shape in shapes.items()}, config


def _make_nemotron(layers: int, experts: int, vocabulary: int) -> Model:
    hidden, pattern = 2688, (_PATTERN * layers)[:layers]
    full = _attention(hidden, 32 * 128, 2 * 128, 0)
    kinds = {
        "M": _mamba(hidden),
        "E": _ungated_experts(hidden, experts),
        "*": {name.removeprefix("self_attn."): shape for name, shape in full.items()},
    }
    every: list[Shapes] = []
    for kind in pattern:
        mixer = {f"mixer.{name}": shape for name, shape in kinds[kind].items()}
        every.append({"norm.weight": (hidden,)} | mixer)
    config = _config("nemotron_h", "NemotronHForCausalLM", layers, vocabulary) | {
        "hidden_size": hidden,
        "intermediate_size": 1856,
        "hybrid_override_pattern": pattern,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "mamba_num_heads": 64,
        "mamba_head_dim": 64,
        "n_groups": 8,
        "ssm_state_size": 128,
        "conv_kernel": 4,
        "n_routed_experts": experts,
        "n_shared_experts": 1,
        "moe_intermediate_size": 1856,
        "moe_shared_expert_intermediate_size": 3712,
        "num_experts_per_tok": min(6, experts),
    }
    shapes = _stack(every, hidden, vocabulary, "backbone.")
    ends = {"embed_tokens.": "embeddings.", "backbone.norm.": "backbone.norm_f."}
    for old, new in ends.items():
        shapes = {name.replace(old, new): shape for name, shape in shapes.items()}
    return Model(shapes, config)


def _mamba(hidden: int) -> Shapes:
    heads, inner, state = 64, 64 * 64, 8 * 128
    convolved = inner + 2 * state
    return {
        "in_proj.weight": (inner + convolved + heads, hidden),
        "conv1d.weight": (convolved, 1, 4),
        "conv1d.bias": (convolved,),
        **dict.fromkeys(("A_log", "D", "dt_bias"), (heads,)),
        "norm.weight": (inner,),
        "out_proj.weight": (hidden, inner),
    }


def _ungated_experts(hidden: int, experts: int) -> Shapes:
    shapes: Shapes = {
        "gate.weight": (experts, hidden),
        "gate.e_score_correction_bias": (experts,),
    }
    widths = {f"experts.{expert}": 1856 for expert in range(experts)} | {"shared_experts": 3712}
    for stem, width in widths.items():
        shapes[f"{stem}.up_proj.weight"] = (width, hidden)
        shapes[f"{stem}.down_proj.weight"] = (hidden, width)
    return shapes


def _config(kind: str, model: str, layers: int, vocabulary: int) -> dict[str, object]:
    return {
        **({"architectures": [model]} if model else {}),
        "model_type": kind,
        "num_hidden_layers": layers,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def _stack(layers: list[Shapes], hidden: int, vocabulary: int, trunk: str = "model.") -> Shapes:
    table = (vocabulary, hidden)
    shapes: Shapes = {f"{trunk}embed_tokens.weight": table}
    for number, layer in enumerate(layers):
        shapes |= {f"{trunk}layers.{number}.{name}": shape for name, shape in layer.items()}
    return shapes | {f"{trunk}norm.weight": (hidden,), "lm_head.weight": table}


def _norms(hidden: int) -> Shapes:
    return {f"{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}


def _attention(hidden: int, query: int, key: int, normed: int) -> Shapes:
    rows = {"q": query, "k": key, "v": key}
    shapes: Shapes = {f"self_attn.{name}_proj.weight": (rows[name], hidden) for name in rows}
    shapes["self_attn.o_proj.weight"] = (hidden, query)
    if normed:
        shapes |= {f"self_attn.{name}_norm.weight": (normed,) for name in "qk"}
    return shapes


def _gated(stem: str, hidden: int, width: int) -> Shapes:
    shapes: Shapes = {f"{stem}.{name}_proj.weight": (width, hidden) for name in ("gate", "up")}
    return shapes | {f"{stem}.down_proj.weight": (hidden, width)}


def _biased(stem: str, *shape: int) -> Shapes:
    return {f"{stem}.weight": shape, f"{stem}.bias": shape[:1]}
