"""Step-3.5 on the Hub, by plain names, and in megatron-core.

transformers has it as the language model of Step-3.7 alone, from which it is taken here. The layers
for multi-token prediction are decoder layers of its, the last ones, with what they have beside.
megatron-core has gates, but no layers that differ in heads: trainers bring these, and so it is here
(`vary_heads`). Source: `stepfun/step35_provider.py` of Megatron-Bridge 0.6.2.
"""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .fill import fill_distinct
from .fsdp_reference import logits_of
from .old_transformers import from_config

if TYPE_CHECKING:
    from megatron.core.transformer.spec_utils import ModuleSpec

State = dict[str, Tensor]
HuggingFaceConfig = Mapping[str, Any]

HEAD = 8
HEADS = {"full_attention": 4, "sliding_attention": 6}
AHEAD = ["sliding_attention", "full_attention"]
_KINDS = ["full_attention", "sliding_attention"] * 2
_LAYERS = len(_KINDS)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "step3p5": ("Step3p5ForCausalLM", {"num_nextn_predict_layers": 1})
}
_VISION = {"width": 8, "layers": 1, "heads": 2, "image_size": 28, "patch_size": 7}
_ROPE = {"rope_type": "default", "rope_theta": 50000.0, "partial_rotary_factor": 0.5}


def make_config(num_nextn_predict_layers: int = 0) -> dict[str, Any]:
    """As it is on the Hub: lists go on for the layers for multi-token prediction."""
    layers = _LAYERS + num_nextn_predict_layers
    return {
        "model_type": "step3p5",
        "architectures": ["Step3p5ForCausalLM"],
        "vocab_size": 101,
        "hidden_size": 32,
        "intermediate_size": 28,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": HEADS["full_attention"],
        "num_attention_groups": 2,
        "head_dim": HEAD,
        "layer_types": [*_KINDS, *AHEAD[:num_nextn_predict_layers]],
        "attention_other_setting": {
            "attention_type": "sliding_attention",
            "num_attention_heads": HEADS["sliding_attention"],
            "num_attention_groups": 2,
            "head_dim": HEAD,
        },
        "sliding_window": 64,
        "moe_layers_enum": "1,2,3",
        "moe_num_experts": 4,
        "moe_top_k": 2,
        "moe_intermediate_size": 12,
        "share_expert_dim": 20,
        "moe_router_scaling_factor": 1.7,
        "rope_theta": [50000.0] * layers,
        "partial_rotary_factors": [0.5] * layers,
        "num_nextn_predict_layers": num_nextn_predict_layers,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        "dtype": "float32",
    }


def _build(ahead: int) -> Any:
    """A Step-3.7 whose last layers are those for multi-token prediction."""
    import transformers

    said = make_config()
    text = {
        **said,
        "num_hidden_layers": _LAYERS + ahead,
        "layer_types": [*_KINDS, *AHEAD[:ahead]],
        "rope_theta": 50000.0,
        "partial_rotary_factors": [0.5] * (_LAYERS + ahead),
    }
    config = transformers.Step3p7Config(
        text_config=text, vision_config=_VISION, tie_word_embeddings=False
    )
    model = from_config(transformers.Step3p7ForConditionalGeneration, config, torch.float32)
    fill_distinct(model)
    return model.eval()


def _list_ahead(ahead: int, vocab: int, hidden: int) -> State:
    """What is beside the layers for multi-token prediction, every element of it distinct."""
    shapes = {
        "enorm": (hidden,),
        "hnorm": (hidden,),
        "eh_proj": (hidden, 2 * hidden),
        "transformer.shared_head.norm": (hidden,),
        "transformer.shared_head.output": (vocab, hidden),
    }
    modules = torch.nn.ParameterDict(
        {
            f"{number}.{name}".replace(".", "/"): torch.nn.Parameter(torch.empty(shape))
            for number in range(ahead)
            for name, shape in shapes.items()
        }
    )
    fill_distinct(modules)
    found = {}
    for name, tensor in modules.items():
        number, _, rest = name.replace("/", ".").partition(".")
        found[f"model.layers.{_LAYERS + int(number)}.{rest}.weight"] = tensor.detach()
    return found


def write_whole(folder: Path, changes: Mapping[str, int]) -> Path:
    """A Step-3.7 on the Hub, its config as transformers writes it."""
    ahead = changes["num_nextn_predict_layers"]
    model = _build(ahead)
    model.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    text = config["text_config"]
    extra = _list_ahead(ahead, text["vocab_size"], text["hidden_size"])
    text |= {
        "num_hidden_layers": _LAYERS,
        "num_nextn_predict_layers": ahead,
        "layer_types": _KINDS,
        "mlp_layer_types": text["mlp_layer_types"][:_LAYERS],
        "mtp_layer_types": AHEAD[:ahead],
        "mtp_mlp_layer_types": ["dense"] * ahead,
    }
    own = text["per_layer_config"]
    text["per_layer_config"] = {n: said for n, said in own.items() if int(n) < _LAYERS}
    path.write_text(json.dumps(config, indent=2))
    (file,) = folder.glob("*.safetensors")
    save_file(load_file(file) | extra, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_model(folder: Path) -> Path:
    """A Step-3.5, its config in the words of transformers, and what that makes of a text."""
    (_, said), *_ = MODELS.values()
    ahead = said["num_nextn_predict_layers"]
    whole = write_whole(folder / "whole", said)
    state = load_file(whole / "model.safetensors")
    text = json.loads((whole / "config.json").read_text())["text_config"]
    hf = folder / "hf"
    hf.mkdir()
    inside = ("model.", "lm_head.")
    kept = {
        name: tensor
        for name, tensor in state.items()
        if name.startswith(inside) and ".shared_head.output." not in name  # of its own, on the Hub
    }
    save_file(kept, hf / "model.safetensors", metadata={"format": "pt"})
    named = {"model_type": "step3p5", "architectures": ["Step3p5ForCausalLM"], "dtype": "float32"}
    (hf / "config.json").write_text(json.dumps(text | named | {"rope_parameters": _ROPE}, indent=2))
    save_file(_compute(_build(ahead), ahead, kept), folder / "reference.safetensors")
    return hf


@torch.no_grad()
def _compute(model: Any, ahead: int, state: State) -> State:
    """The logits for a few tokens, and those of the token after the next.

    As in megatron-core: a layer for multi-token prediction sees each position's state after the
    final norm, and the token that follows; after the last one comes token 0.
    """
    inner = model.model.language_model
    layers, inner.layers = inner.layers[_LAYERS:], inner.layers[:_LAYERS]
    inner.config.num_hidden_layers = _LAYERS
    ids = torch.randint(101, (2, 12), generator=torch.Generator().manual_seed(7))
    found = {"input_ids": ids, "logits": logits_of(model, ids)}
    norm = copy.deepcopy(inner.norm)

    def normed(name: str, states: Tensor) -> Tensor:
        norm.weight.data.copy_(state[f"model.layers.{_LAYERS}.{name}.weight"])
        result: Tensor = norm(states)
        return result

    states = inner(ids, use_cache=False).last_hidden_state
    following = torch.cat([ids[:, 1:], torch.zeros_like(ids[:, :1])], dim=1)
    embedded = normed("enorm", inner.embed_tokens(following))
    both = torch.cat([embedded, normed("hnorm", states)], dim=-1)
    joined = both @ state[f"model.layers.{_LAYERS}.eh_proj.weight"].T
    rotary = inner.rotary_emb(joined, torch.arange(12)[None], AHEAD[0])
    future = torch.full((1, 1, 12, 12), float("-inf")).triu(1)
    states = layers[0](joined, attention_mask=future, position_embeddings=rotary)
    logits = model.lm_head(normed("transformer.shared_head.norm", states))
    return {**found, "mtp_logits": logits}


def is_step(hf: HuggingFaceConfig) -> bool:
    return bool(hf["model_type"] == "step3p5")


def use_plain_names(hf: State, config: HuggingFaceConfig) -> State:
    """The names that most models have, each expert by itself, and copies of embedding and head."""
    names = {
        ".moe.gate.": ".mlp.gate.",
        ".moe.router_bias": ".mlp.gate.e_score_correction_bias",
        ".share_expert.": ".mlp.shared_experts.",
        ".transformer.shared_head.norm.": ".shared_head.norm.",
    }
    found: State = {}
    for name, tensor in hf.items():
        stem, experts, part = name.partition(".moe.")
        if experts and part.endswith("_proj.weight"):
            each = {f"{stem}.mlp.experts.{n}.{part}": one for n, one in enumerate(tensor)}
            found |= {key: one.contiguous() for key, one in each.items()}
            continue
        plain = next((name.replace(*pair) for pair in names.items() if pair[0] in name), name)
        found[plain] = tensor
    for number in range(config["num_nextn_predict_layers"]):
        layer = f"model.layers.{config['num_hidden_layers'] + number}."
        found[f"{layer}embed_tokens.weight"] = found["model.embed_tokens.weight"]
        found[f"{layer}shared_head.head.weight"] = found["lm_head.weight"]
    return found


def gated_query(query: Tensor, gate: Tensor, groups: int) -> Tensor:
    """By group: the rows of its query heads, then of each gate as many as its head has."""
    wide = gate.repeat_interleave(len(query) // len(gate), 0)
    parts = (part.unflatten(0, (groups, -1)) for part in (query, wide))
    return torch.cat(list(parts), 1).flatten(0, 1)


def describe(hf: HuggingFaceConfig) -> dict[str, Any]:
    """What megatron-core's config says of it."""
    if not is_step(hf):
        return {}
    return {
        "attention_output_gate": True,
        "qk_layernorm": True,
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "moe_router_topk_scaling_factor": hf["moe_router_scaling_factor"],
        "moe_shared_expert_intermediate_size": hf["share_expert_dim"],
    }


def vary_heads(layers: "list[ModuleSpec]", hf: HuggingFaceConfig, *, ahead: bool = False) -> None:
    """Have attention of described layers have as many heads as its kind has.

    ``ahead``: these are layers for multi-token prediction, whose numbers begin anew since 0.19.
    """
    from megatron.core.transformer.attention import SelfAttention

    kinds = hf["mtp_layer_types"] if ahead else hf["layer_types"]
    heads = {"sliding_attention": hf["num_sliding_attention_heads"]}

    class Attention(SelfAttention):  # type: ignore[misc]
        def __init__(self, config: Any, submodules: Any, layer_number: int, **rest: Any) -> None:
            config = copy.copy(config)
            behind = hf["num_hidden_layers"] if layer_number > len(kinds) else 0
            kind = kinds[layer_number - behind - 1]
            config.num_attention_heads = heads.get(kind, config.num_attention_heads)
            super().__init__(config, submodules, layer_number, **rest)

    for layer in layers:
        layer.submodules.self_attention.module = Attention
