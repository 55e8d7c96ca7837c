"""A small config of every family, and by hand the tensors that such a model has on the Hub."""

from pathlib import Path

import torch

from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.megatron.rules import Rules, make_rules
from ckpt_tool.tensors.geometry import check_coverage
from ckpt_tool.tensors.tiled import TiledTensor
from tests.support import megatron_routed as routed

_DECODER = {
    "hidden_size": 6,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 2,
    "intermediate_size": 5,
    "vocab_size": 11,
    "tie_word_embeddings": False,
}
_EXPERTS = {"num_experts": 3, "moe_intermediate_size": 4, "num_experts_per_tok": 2}
_BIASED = {
    "n_routed_experts": 3,
    "n_shared_experts": 2,
    "moe_intermediate_size": 4,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 1,
}
_LATENT = {
    "q_lora_rank": 5,
    "kv_lora_rank": 3,
    "qk_nope_head_dim": 2,
    "qk_rope_head_dim": 1,
    "v_head_dim": 4,
}
_INDEXER = {"index_n_heads": 2, "index_head_dim": 2}
_LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 3,
    "linear_value_head_dim": 2,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 2,
}
_QWEN3_5_MOE = {
    **_EXPERTS,
    **_LINEAR,
    "shared_expert_intermediate_size": 5,
    "mtp_num_hidden_layers": 1,
}
_VISION_3 = {"vision_config": {"depth": 2, "num_heads": 2}}
_VISION = {"vision_config": {"depth": 2, "num_heads": 2}}

CONFIGS = {
    "llama": _DECODER | {"attention_bias": True, "mlp_bias": True},
    "mistral": _DECODER,
    "qwen2": _DECODER | {"tie_word_embeddings": True},
    "qwen3": _DECODER,
    "qwen2_moe": _DECODER
    | _EXPERTS
    | {"shared_expert_intermediate_size": 5, "mlp_only_layers": [1]},
    "qwen3_moe": _DECODER | _EXPERTS,
    "mixtral": _DECODER | {"num_local_experts": 3, "num_experts_per_tok": 2},
    "deepseek_v3": _DECODER | _LATENT | _BIASED,
    "kimi_k2": _DECODER | _LATENT | _BIASED | {"q_lora_rank": None, "n_shared_experts": 0},
    "glm4_moe": _DECODER | _BIASED | {"attention_bias": True, "use_qk_norm": True},
    "glm4_moe_lite": _DECODER
    | _LATENT
    | _BIASED
    | {"mlp_layer_types": ["dense", "sparse", "sparse"], "first_k_dense_replace": 0},
    "deepseek_v2": _DECODER | _LATENT | _BIASED,
    "deepseek_v32": _DECODER | _LATENT | _BIASED | _INDEXER,
    "glm_moe_dsa": _DECODER
    | _LATENT
    | _BIASED
    | _INDEXER
    | {"indexer_types": ["full", "shared", "full"]},
    "dots1": _DECODER | _BIASED,
    "ernie4_5_moe": _DECODER
    | {
        "moe_num_experts": 3,
        "moe_num_shared_experts": 2,
        "moe_intermediate_size": 4,
        "moe_k": 2,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": -1,
        "moe_layer_interval": 1,
    },
    "olmoe": _DECODER | {"num_experts": 3, "num_experts_per_tok": 2},
    "minimax_m2": _DECODER | {"num_local_experts": 3, "num_experts_per_tok": 2},
    "ministral3": _DECODER,
    "qwen3_next": _DECODER
    | _EXPERTS
    | _LINEAR
    | {"shared_expert_intermediate_size": 5, "mlp_only_layers": [1]}
    | {"num_nextn_predict_layers": 1},
    "qwen3_5_text": _DECODER | _LINEAR | {"mtp_num_hidden_layers": 1},
    "qwen3_5_moe_text": _DECODER | _QWEN3_5_MOE,
    "qwen3_5": _DECODER | _LINEAR | {"mtp_num_hidden_layers": 1} | _VISION_3,
    "qwen3_5_moe": _DECODER | _QWEN3_5_MOE | _VISION_3,
    "mimo": _DECODER | {"num_nextn_predict_layers": 2},
    "gemma": _DECODER | {"tie_word_embeddings": True},
    "gemma2": _DECODER | {"tie_word_embeddings": True},
    "gemma3_text": _DECODER | {"tie_word_embeddings": True},
    "exaone4": _DECODER,
    "exaone4_5": _DECODER
    | {
        "num_nextn_predict_layers": 1,
        "vision_config": {"depth": 2, "num_heads": 2, "num_key_value_heads": 1, "hidden_size": 4},
    },
    "nemotron": _DECODER,
    "qwen2_5_vl": _DECODER | _VISION,
    "qwen2_vl": _DECODER,
    "qwen3_vl": _DECODER
    | {"vision_config": {"depth": 2, "num_heads": 2, "deepstack_visual_indexes": [0, 1]}},
    "qwen3_vl_moe": _DECODER
    | _EXPERTS
    | {"vision_config": {"depth": 2, "num_heads": 2, "deepstack_visual_indexes": [0, 1]}},
    "mistral3": _DECODER,
    "glm4": _DECODER,
    "llama4_text": _DECODER
    | {
        "num_local_experts": 3,
        "num_experts_per_tok": 1,
        "intermediate_size": 4,
        "intermediate_size_mlp": 5,
        "interleave_moe_layer_step": 2,
    },
    "gemma3": _DECODER | {"tie_word_embeddings": True, "vision_config": {"hidden_size": 4}},
    **{name: _DECODER | config for name, config in routed.CONFIGS.items()},
}
FAMILIES = tuple(CONFIGS)
CENTRED = ("gemma2", "gemma3_text", "gemma3", "exaone4", "exaone4_5", "nemotron")
SPARSE = ("deepseek_v32", "glm_moe_dsa")
LATENT = ("deepseek_v2", "deepseek_v3", "kimi_k2", "glm4_moe_lite", "sarvam_mla", *SPARSE)
#: The layers that they have for multi-token prediction.
PREDICTING = {"deepseek_v3": 1, "kimi_k2": 1, "glm4_moe": 1, "glm4_moe_lite": 1, "mimo": 2}
PREDICTING["exaone4_5"] = 1
PREDICTING |= dict.fromkeys(SPARSE, 1) | routed.PREDICTING
PREDICTING |= {"qwen3_next": 1, "qwen3_5_text": 1, "qwen3_5_moe_text": 1}
PREDICTING |= {"qwen3_5": 1, "qwen3_5_moe": 1}
#: Which of the three layers have experts.
MOE = {
    "qwen2_moe": {0, 2},
    "qwen3_moe": {0, 1, 2},
    "mixtral": {0, 1, 2},
    "deepseek_v3": {1, 2},
    "kimi_k2": {1, 2},
    "glm4_moe": {1, 2},
    "glm4_moe_lite": {1, 2},
    "deepseek_v2": {1, 2},
    "deepseek_v32": {1, 2},
    "glm_moe_dsa": {1, 2},
    "dots1": {1, 2},
    "ernie4_5_moe": {1, 2},
    "olmoe": {0, 1, 2},
    "minimax_m2": {0, 1, 2},
    "qwen3_vl_moe": {0, 1, 2},
    "llama4_text": {1},
    **routed.MOE,
    "qwen3_next": {0, 2},
    "qwen3_5_moe_text": {0, 1, 2},
    "qwen3_5_moe": {0, 1, 2},
}
#: Of three layers the second one has full attention.
GATED = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "qwen3_5", "qwen3_5_moe")


def config_of(family: str, **changes) -> ModelConfig:
    raw = {"model_type": family, **CONFIGS[family], **changes}
    return ModelConfig(Path("model"), raw, {})


def alike(family: str) -> dict:
    """Changes after which all layers of a family are of one kind, so that they can be stacked."""
    uneven = 0 < len(MOE.get(family, ())) < 3
    every = {
        "mlp_only_layers": [],
        "first_k_dense_replace": 0,
        "mlp_layer_types": None,
        "moe_layer_start_index": 0,
        "interleave_moe_layer_step": 1,
        "indexer_types": ["full"] * 3,
    }
    gated = {"layer_types": ["full_attention"] * 3} if family in GATED else {}
    return (every if uneven else {}) | gated | routed.ALIKE.get(family, {})


#: Family, layout, changes of its config: as it is, and with all layers alike.
CASES = [(family, "per-layer", {}) for family in FAMILIES]
CASES += [(family, "per-layer", alike(family)) for family in FAMILIES if alike(family)]
CASES += [(family, "stacked", alike(family)) for family in FAMILIES]
SEEING = ("qwen2_5_vl", "qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "mistral3", "gemma3", "exaone4_5")
SEEING += ("qwen3_5", "qwen3_5_moe")
#: Those whose towers have rows.
WITH_BLOCKS = ("qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "exaone4_5", "qwen3_5", "qwen3_5_moe")
#: Experts of a layer are one tensor on the Hub too.
PACKED = ("qwen3_vl_moe", "llama4_text", "qwen3_5_moe")
#: A HybridModel has no vision tower, and no norms beside attention and MLP.
CASES += [(family, "hybrid", {}) for family in FAMILIES if family not in (*SEEING, "glm4")]


#: Towers that are the same on both sides, of no shape that a config says.
TOWERS = {
    "qwen2_vl": {
        "visual.blocks.0.attn.qkv.weight": (12, 4),
        "visual.blocks.0.attn.qkv.bias": (12,),
    },
    "gemma3": {
        "vision_tower.embeddings.patch_embedding.weight": (4, 3, 2, 2),
        "multi_modal_projector.mm_input_projection_weight": (4, 6),
        "multi_modal_projector.mm_soft_emb_norm.weight": (4,),
    },
    "mistral3": {
        "vision_tower.patch_conv.weight": (4, 3, 2, 2),
        "multi_modal_projector.linear_1.weight": (5, 4),
    },
}


def rules_of(family: str, layout: str = "", vocab_multiple: int = 1, **changes) -> Rules:
    config = config_of(family, **changes)
    return make_rules(config, hub_shapes(family, **changes), layout, vocab_multiple)


def hub_shapes(family: str, **changes) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor; nothing here comes from the tables."""
    config = CONFIGS[family] | changes
    if family in routed.CONFIGS:
        return routed.list_shapes(family, config)
    hidden, vocab, layers = (config[k] for k in ("hidden_size", "vocab_size", "num_hidden_layers"))
    moe = set(range(layers)) if changes.get("first_k_dense_replace") == 0 else MOE.get(family, ())
    ahead = (
        config.get("num_nextn_predict_layers", int(family in GATED)) if family in PREDICTING else 0
    )
    shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if family == "nemotron":
        shapes["model.norm.bias"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    for layer in range(layers):
        linear = family in GATED and layer != 1 and "layer_types" not in changes
        found = _layer(family, config, layer in moe, linear=linear)
        if config.get("indexer_types", ["full"] * layers)[layer] == "shared":
            found = {name: shape for name, shape in found.items() if "indexer" not in name}
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in found.items()}
    for number in range(ahead):
        shapes |= _mtp(family, config, number, layers - 1 in moe)
    if family in ("mistral3", "gemma3"):
        shapes = {f"language_model.{name}": shape for name, shape in shapes.items()}
    if family == "qwen3_5_moe":
        shapes = _pack(shapes, hidden)
    if family.startswith("qwen3_vl") or family in ("qwen3_5", "qwen3_5_moe"):
        trunk = "model.language_model."
        shapes = {name.replace("model.", trunk, 1): shape for name, shape in shapes.items()}
        vision = _qwen3_vision(hidden)
        if family in GATED:
            vision = {name: shape for name, shape in vision.items() if "deepstack" not in name}
        return shapes | vision
    if family == "exaone4_5":
        trunk = "model.language_model."
        shapes = {name.replace("model.", trunk, 1): shape for name, shape in shapes.items()}
        tower = {f"model.{name}": shape for name, shape in _vision(hidden).items()}
        cut = {name: (8, *tower[name][1:]) for name in tower if ".qkv." in name}  # one key head
        return shapes | tower | cut
    return shapes | (_vision(hidden) if family == "qwen2_5_vl" else TOWERS.get(family, {}))


def hub_tensors(family: str, **changes) -> dict[str, torch.Tensor]:
    """The tensors, all elements of which differ, also from those of every other tensor."""
    at, tensors = 1, {}
    for name, shape in hub_shapes(family, **changes).items():
        size = torch.Size(shape).numel()
        tensors[name] = torch.arange(at, at + size, dtype=torch.float32).reshape(shape)
        at += size
    return tensors


def whole(sharded: TiledTensor) -> torch.Tensor:
    """A Megatron tensor put together from its blocks, which must tile it."""
    assert check_coverage(sharded.shape, [block.box for block in sharded.blocks])
    result = torch.empty(sharded.shape, dtype=getattr(torch, sharded.dtype.name))
    for block in sharded.blocks:
        spans = zip(block.box.offsets, block.box.sizes, strict=True)
        part = block.tensor.read().reshape(block.box.sizes)
        result[tuple(slice(at, at + size) for at, size in spans)] = part
    return result


def _layer(
    family: str, config: dict, moe: bool, *, linear: bool = False
) -> dict[str, tuple[int, ...]]:
    hidden, width = config["hidden_size"], config["intermediate_size"]
    shapes = {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
    if family in _OTHERS:
        return shapes | _OTHERS[family](config, moe) | _grouped(family, config)
    shapes |= _linear(family, hidden) if linear else _attention(family, config)
    if family in CENTRED:
        return _centred(family, shapes, hidden, width)
    if not moe:
        shapes |= _gated("mlp", hidden, width)
        if config.get("mlp_bias"):
            shapes |= {f"mlp.{name}_proj.bias": (width,) for name in ("gate", "up")}
            shapes["mlp.down_proj.bias"] = (hidden,)
        return shapes
    bias = {"block_sparse_moe.e_score_correction_bias": (3,)}
    shapes |= bias if family == "minimax_m2" else {}
    if family in ("mixtral", "minimax_m2"):
        shapes["block_sparse_moe.gate.weight"] = (3, hidden)
        for expert in range(3):
            stem = f"block_sparse_moe.experts.{expert}"
            shapes |= {f"{stem}.w{n}.weight": (width, hidden) for n in (1, 3)}
            shapes[f"{stem}.w2.weight"] = (hidden, width)
        return shapes
    shapes["mlp.gate.weight"] = (3, hidden)
    shapes |= _routed(family, hidden, config.get("moe_intermediate_size", width))
    if family in ("qwen2_moe", *GATED):
        shapes["mlp.shared_expert_gate.weight"] = (1, hidden)
        shapes |= _gated("mlp.shared_expert", hidden, config["shared_expert_intermediate_size"])
    if family == "ernie4_5_moe":
        shapes["mlp.moe_statics.e_score_correction_bias"] = (1, 3)
    if "n_routed_experts" in config and family != "deepseek_v2":
        shapes["mlp.gate.e_score_correction_bias"] = (3,)
    if config.get("n_shared_experts") or family == "ernie4_5_moe":
        shapes |= _gated("mlp.shared_experts", hidden, 8)
    return shapes


def _centred(family: str, shapes: dict, hidden: int, width: int) -> dict[str, tuple[int, ...]]:
    """Other norms, or more of them; Nemotron's have a bias, and its MLP no gate."""
    if family == "nemotron":
        shapes |= {name.replace("weight", "bias"): (hidden,) for name in shapes if "norm" in name}
        return shapes | {
            "mlp.up_proj.weight": (width, hidden),
            "mlp.down_proj.weight": (hidden, width),
        }
    shapes["post_feedforward_layernorm.weight"] = (hidden,)
    if family.startswith("exaone4"):
        del shapes["input_layernorm.weight"]
    else:
        shapes["pre_feedforward_layernorm.weight"] = (hidden,)
    return shapes | _gated("mlp", hidden, width)


def _routed(family: str, hidden: int, width: int) -> dict[str, tuple[int, ...]]:
    if family in PACKED and family not in GATED:
        packed = {"gate_up_proj": (3, hidden, 2 * width), "down_proj": (3, width, hidden)}
        return {f"mlp.experts.{name}": shape for name, shape in packed.items()}
    every = (_gated(f"mlp.experts.{expert}", hidden, width) for expert in range(3))
    return {name: shape for shapes in every for name, shape in shapes.items()}


def _glm4(config: dict, moe: bool) -> dict[str, tuple[int, ...]]:
    hidden, width = config["hidden_size"], config["intermediate_size"]
    shapes = {f"post_{part}_layernorm.weight": (hidden,) for part in ("self_attn", "mlp")}
    shapes["mlp.gate_up_proj.weight"] = (2 * width, hidden)
    return shapes | {"mlp.down_proj.weight": (hidden, width)}


def _llama4(config: dict, moe: bool) -> dict[str, tuple[int, ...]]:
    hidden, width = config["hidden_size"], config["intermediate_size"]
    if not moe:
        return _gated("feed_forward", hidden, config["intermediate_size_mlp"])
    shapes = _routed("llama4_text", hidden, width) | _gated("mlp.shared_expert", hidden, width)
    shapes["mlp.router.weight"] = (3, hidden)
    return {name.replace("mlp.", "feed_forward."): shape for name, shape in shapes.items()}


_OTHERS = {"glm4": _glm4, "llama4_text": _llama4}


def _gated(stem: str, hidden: int, width: int) -> dict[str, tuple[int, ...]]:
    shapes = {f"{stem}.{name}_proj.weight": (width, hidden) for name in ("gate", "up")}
    return shapes | {f"{stem}.down_proj.weight": (hidden, width)}


def _attention(family: str, config: dict) -> dict[str, tuple[int, ...]]:
    return _latent(config) if family in LATENT else _grouped(family, config)


def _grouped(family: str, config: dict) -> dict[str, tuple[int, ...]]:
    hidden, rows = config["hidden_size"], {"q": 8, "k": 4, "v": 4}
    shapes = {f"self_attn.{n}_proj.weight": (size, hidden) for n, size in rows.items()}
    shapes["self_attn.o_proj.weight"] = (hidden, 8)
    if family in (
        "llama",
        "qwen2",
        "qwen2_moe",
        "glm4_moe",
        "mimo",
        "qwen2_5_vl",
        "qwen2_vl",
        "glm4",
    ):
        shapes |= {f"self_attn.{n}_proj.bias": (size,) for n, size in rows.items()}
    if family == "llama":
        shapes["self_attn.o_proj.bias"] = (hidden,)
    if family in GATED:
        shapes["self_attn.q_proj.weight"] = (16, hidden)
    if family in ("olmoe", "minimax_m2"):
        shapes |= {"self_attn.q_norm.weight": (8,), "self_attn.k_norm.weight": (4,)}
    normed = (
        "qwen3",
        "qwen3_moe",
        "qwen3_vl",
        "qwen3_vl_moe",
        "glm4_moe",
        "dots1",
        "gemma3_text",
        "gemma3",
        "exaone4",
        "exaone4_5",
        *GATED,
    )
    if family in normed:
        shapes |= {f"self_attn.{n}_norm.weight": (2,) for n in "qk"}
    return shapes


_INDEXER_SHAPES = {
    "wq_b.weight": (4, 5),
    "wk.weight": (2, 6),
    "k_norm.weight": (2,),
    "k_norm.bias": (2,),
    "weights_proj.weight": (2, 6),
}


def _pack(shapes: dict[str, tuple[int, ...]], hidden: int) -> dict[str, tuple[int, ...]]:
    """With the experts of each layer in one tensor, but for those of what predicts further."""
    found = {
        name: shape
        for name, shape in shapes.items()
        if ".mlp.experts." not in name or name.startswith("mtp.")
    }
    for layer in range(3):
        stem = f"model.layers.{layer}.mlp.experts."
        found |= {f"{stem}gate_up_proj": (3, 8, hidden), f"{stem}down_proj": (3, hidden, 4)}
    return found


def _linear(family: str, hidden: int) -> dict[str, tuple[int, ...]]:
    """Gated DeltaNet of two key heads of three, and four value heads of two."""
    names = {"A_log": (4,), "dt_bias": (4,), "norm.weight": (2,), "out_proj.weight": (hidden, 8)}
    apart = {"qkv": 20, "z": 8, "b": 4, "a": 4}
    rows = {"qkvz": 28, "ba": 8} if family == "qwen3_next" else apart
    names |= {f"in_proj_{name}.weight": (count, hidden) for name, count in rows.items()}
    names["conv1d.weight"] = (20, 1, 4)
    return {f"linear_attn.{name}": shape for name, shape in names.items()}


def _latent(config: dict) -> dict[str, tuple[int, ...]]:
    hidden, rank = config["hidden_size"], config["q_lora_rank"]
    indexer = _INDEXER_SHAPES if "index_n_heads" in config else {}
    shapes = {f"self_attn.indexer.{name}": shape for name, shape in indexer.items()} | {
        "self_attn.kv_a_proj_with_mqa.weight": (4, hidden),
        "self_attn.kv_a_layernorm.weight": (3,),
        "self_attn.kv_b_proj.weight": (24, 3),
        "self_attn.o_proj.weight": (hidden, 16),
    }
    if rank is None:
        return shapes | {"self_attn.q_proj.weight": (12, hidden)}
    return shapes | {
        "self_attn.q_a_proj.weight": (rank, hidden),
        "self_attn.q_a_layernorm.weight": (rank,),
        "self_attn.q_b_proj.weight": (12, rank),
    }


_BEFORE_FC = ("pre_fc_norm_embedding", "pre_fc_norm_hidden")


def _mtp(family: str, config: dict, number: int, moe: bool) -> dict[str, tuple[int, ...]]:
    hidden = config["hidden_size"]
    if family in GATED:
        names = ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm")
        shapes = {f"mtp.{name}.weight": (hidden,) for name in names}
        layer = _layer(family, config, moe)
        shapes |= {f"mtp.layers.0.{name}": shape for name, shape in layer.items()}
        return shapes | {"mtp.fc.weight": (hidden, 2 * hidden)}
    names = ("enorm", "hnorm", "shared_head.norm", "eh_proj")
    prefix = f"model.layers.{config['num_hidden_layers'] + number}."
    if family == "exaone4_5":
        top = {f"mtp.{name}.weight": (hidden,) for name in ("norm", *_BEFORE_FC)}
        layer = {f"mtp.layers.0.{n}": shape for n, shape in _layer(family, config, moe).items()}
        return {**top, "mtp.fc.weight": (hidden, 2 * hidden), **layer}
    if family == "mimo":
        names = ("token_layernorm", "hidden_layernorm", "final_layernorm", "input_proj")
        prefix = f"model.mtp_layers.{number}."
    shapes = {f"{name}.weight": (hidden,) for name in names[:3]}
    shapes |= {f"{names[3]}.weight": (hidden, 2 * hidden), **_layer(family, config, moe)}
    return {prefix + name: shape for name, shape in shapes.items()}


def _vision(hidden: int) -> dict[str, tuple[int, ...]]:
    shapes = {
        "visual.patch_embed.proj.weight": (4, 3, 2, 2, 2),
        "visual.merger.ln_q.weight": (4,),
        "visual.merger.mlp.0.weight": (16, 16),
        "visual.merger.mlp.0.bias": (16,),
        "visual.merger.mlp.2.weight": (hidden, 16),
        "visual.merger.mlp.2.bias": (hidden,),
    }
    block = {"norm1.weight": (4,), "norm2.weight": (4,), **_gated("mlp", 4, 7)}
    block |= {"mlp.gate_proj.bias": (7,), "mlp.up_proj.bias": (7,), "mlp.down_proj.bias": (4,)}
    block |= {"attn.qkv.weight": (12, 4), "attn.qkv.bias": (12,)}
    block |= {"attn.proj.weight": (4, 4), "attn.proj.bias": (4,)}
    for layer in range(2):
        shapes |= {f"visual.blocks.{layer}.{name}": shape for name, shape in block.items()}
    return shapes


def _qwen3_vision(hidden: int) -> dict[str, tuple[int, ...]]:
    merger = {"linear_fc1.weight": (16, 16), "linear_fc1.bias": (16,)}
    merger |= {"linear_fc2.weight": (hidden, 16), "linear_fc2.bias": (hidden,)}
    norms = [f"{name}.{kind}" for name in ("norm1", "norm2") for kind in ("weight", "bias")]
    block = dict.fromkeys(norms, (4,)) | {
        "attn.qkv.weight": (12, 4),
        "attn.qkv.bias": (12,),
        "attn.proj.weight": (4, 4),
        "attn.proj.bias": (4,),
        "mlp.linear_fc1.weight": (7, 4),
        "mlp.linear_fc1.bias": (7,),
        "mlp.linear_fc2.weight": (4, 7),
        "mlp.linear_fc2.bias": (4,),
    }
    shapes = {
        "patch_embed.proj.weight": (4, 3, 2, 2, 2),
        "patch_embed.proj.bias": (4,),
        "pos_embed.weight": (9, 4),
    }
    for part, norm in (
        ("merger", 4),
        ("deepstack_merger_list.0", 16),
        ("deepstack_merger_list.1", 16),
    ):
        found = merger | {"norm.weight": (norm,), "norm.bias": (norm,)}
        shapes |= {f"{part}.{name}": shape for name, shape in found.items()}
    for layer in range(2):
        shapes |= {f"blocks.{layer}.{name}": shape for name, shape in block.items()}
    return {f"model.visual.{name}": shape for name, shape in shapes.items()}
