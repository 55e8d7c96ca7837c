"""Of what tiny models are made, by hand: the parts of their layers by their names on the Hub.

Layers are 6 wide. There are 4 query heads and 2 key and value heads of 2, MLPs of 5, and 3 experts
of 4 (some of 5). Only latent attention has other heads: 3 for queries and keys, 4 for values.
"""

from dataclasses import dataclass, field

Shapes = dict[str, tuple[int, ...]]

DECODER = {
    "hidden_size": 6,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 2,
    "intermediate_size": 5,
    "vocab_size": 11,
    "tie_word_embeddings": False,
}
TIED = DECODER | {"tie_word_embeddings": True}


@dataclass(frozen=True)
class Ahead:
    """Layers that predict further.

    ``layer`` and ``joint`` are where the layer lies and where what joins it with the model does
    (beside it unless said): ``{at}`` counts on from the model's layers, ``{number}`` from zero.
    ``before`` and ``after`` are what joins it, in front of the layer and behind it. ``of`` are the
    layer's own tensors, where they are not those of the model's last layer.
    """

    layer: str
    joint: str = ""
    before: Shapes = field(default_factory=dict)
    after: Shapes = field(default_factory=dict)
    of: Shapes = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """All that a family is: its config, and the tensors of its three layers and around them.

    ``alike`` are changes of the config after which all layers are of one kind, so that they can be
    stacked: ``even`` if it is given, else as the last one. ``ahead`` is of as many layers as the
    config has. ``tower`` is what sees, with its whole names: either it has rows, or it is the same
    on both sides, of no shape that a config says. A HybridModel has no place for a tower, and not
    for all norms (``can_be_hybrid``).
    """

    config: dict
    layers: tuple[Shapes, ...]
    alike: dict = field(default_factory=dict)
    even: Shapes = field(default_factory=dict)
    ahead: Ahead | None = None
    trunk: str = "model."
    embedding: str = "embed_tokens"
    final: Shapes = field(default_factory=lambda: vectors("norm"))
    head: str = "lm_head.weight"
    tower: Shapes = field(default_factory=dict)
    tower_has_rows: bool = False
    can_be_hybrid: bool = True


def under(prefix: str, shapes: Shapes) -> Shapes:
    """The same tensors, with longer names."""
    return {prefix + name: shape for name, shape in shapes.items()}


def vectors(*names: str) -> Shapes:
    """Weights as wide as a layer: norms."""
    return {f"{name}.weight": (6,) for name in names}


def gated(stem: str, width: int, hidden: int = 6) -> Shapes:
    """An MLP with a gate."""
    shapes: Shapes = {f"{stem}.{name}_proj.weight": (width, hidden) for name in ("gate", "up")}
    return shapes | {f"{stem}.down_proj.weight": (hidden, width)}


def experts(width: int = 4) -> Shapes:
    """Each expert by itself."""
    every = (gated(f"mlp.experts.{expert}", width) for expert in range(3))
    return {name: shape for shapes in every for name, shape in shapes.items()}


def after_first(attention: Shapes, mlp: Shapes, moe: Shapes) -> tuple[Shapes, ...]:
    """Three layers of which all but the first have experts."""
    return (attention | mlp, attention | moe, attention | moe)


#: After these all layers have experts, in whichever way a family says which have.
ALIKE = {
    "mlp_only_layers": [],
    "first_k_dense_replace": 0,
    "mlp_layer_types": None,
    "moe_layer_start_index": 0,
    "interleave_moe_layer_step": 1,
    "indexer_types": ["full"] * 3,
}

NORMS = vectors("input_layernorm", "post_attention_layernorm")

# Grouped-query attention.
GROUPED: Shapes = {
    "self_attn.q_proj.weight": (8, 6),
    "self_attn.k_proj.weight": (4, 6),
    "self_attn.v_proj.weight": (4, 6),
    "self_attn.o_proj.weight": (6, 8),
}
QKV_BIAS: Shapes = {
    "self_attn.q_proj.bias": (8,),
    "self_attn.k_proj.bias": (4,),
    "self_attn.v_proj.bias": (4,),
}
OUTPUT_BIAS: Shapes = {"self_attn.o_proj.bias": (6,)}
#: Of each head, and of all rows at once.
HEAD_NORMS: Shapes = {"self_attn.q_norm.weight": (2,), "self_attn.k_norm.weight": (2,)}
WHOLE_NORMS: Shapes = {"self_attn.q_norm.weight": (8,), "self_attn.k_norm.weight": (4,)}

# Latent attention: keys and values, then queries that are plain or of low rank.
LATENT = {
    "q_lora_rank": 5,
    "kv_lora_rank": 3,
    "qk_nope_head_dim": 2,
    "qk_rope_head_dim": 1,
    "v_head_dim": 4,
}
LATENT_KEYS: Shapes = {
    "self_attn.kv_a_proj_with_mqa.weight": (4, 6),
    "self_attn.kv_a_layernorm.weight": (3,),
    "self_attn.kv_b_proj.weight": (24, 3),
    "self_attn.o_proj.weight": (6, 16),
}
PLAIN_QUERY: Shapes = {"self_attn.q_proj.weight": (12, 6)}
LOW_QUERY: Shapes = {
    "self_attn.q_a_proj.weight": (5, 6),
    "self_attn.q_a_layernorm.weight": (5,),
    "self_attn.q_b_proj.weight": (12, 5),
}
INDEXER: Shapes = {
    "self_attn.indexer.wq_b.weight": (4, 5),
    "self_attn.indexer.wk.weight": (2, 6),
    "self_attn.indexer.k_norm.weight": (2,),
    "self_attn.indexer.k_norm.bias": (2,),
    "self_attn.indexer.weights_proj.weight": (2, 6),
}

# What follows attention: an MLP, or a router, experts, and what all tokens go through.
MLP = gated("mlp", 5)
ROUTER: Shapes = {"mlp.gate.weight": (3, 6)}
ROUTED = ROUTER | experts()
SHARED = gated("mlp.shared_experts", 8)
SHARED_WITH_GATE: Shapes = {"mlp.shared_expert_gate.weight": (1, 6)}
SHARED_WITH_GATE |= gated("mlp.shared_expert", 5)
SCORE_BIAS: Shapes = {"mlp.gate.e_score_correction_bias": (3,)}
PACKED: Shapes = {"mlp.experts.gate_up_proj": (3, 6, 8), "mlp.experts.down_proj": (3, 4, 6)}

# What joins a layer that predicts further with the model.
JOINED_FC: Shapes = {"fc.weight": (6, 12)}
JOINED: Shapes = {"eh_proj.weight": (6, 12)}
BEFORE_FC = vectors("pre_fc_norm_embedding", "pre_fc_norm_hidden")
