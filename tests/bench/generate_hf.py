"""Hugging Face models to measure on: folders of several safetensors files. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from tests.bench.generate import config_of, spec_of_size
from tests.bench.values import Kind, Shapes, Values

_ITEMSIZE = 2

#: A model has at least this many files, and none of more than about this size.
_FILES = 4
_FILE_BYTES = 1 << 30

# Qwen3-30B-A3B, which has 48 layers of 128 experts
_HIDDEN, _EXPERT_WIDTH, _VOCABULARY = 2048, 768, 151936
_HEADS, _KV_HEADS, _HEAD_DIM = 32, 4, 128
_EXPERTS, _FEWEST_EXPERTS = 16, 4


@dataclass(frozen=True)
class Model:
    """Name and shape of every tensor, and config.json."""

    shapes: Shapes
    config: dict[str, object]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, each as if it were bfloat16."""
        return _nbytes(self.shapes)


def dense_model(size: int) -> Model:
    """The Qwen2.5-1.5B-like model nearest to ``size`` bytes."""
    spec = spec_of_size(size, "bfloat16", 0)
    return Model(spec.shapes(), config_of(spec))


@dataclass(frozen=True)
class Family:
    """Models that are alike but for the numbers of layers and of experts, and the vocabulary.

    ``make``: of these three. ``layers``: how many there are before their kinds repeat.
    """

    make: Callable[[int, int, int], Model]
    vocabulary: int
    experts: int = _EXPERTS
    layers: int = 1


def fit(family: Family, size: int) -> Model:
    """The model nearest to ``size`` bytes; at least two layers, and one of every kind.

    Every matrix of a layer is as in the real one; there are fewer layers and experts. For small
    sizes the vocabulary is halved until layers are half of the model, then the number of experts
    until a few layers fit.
    """
    vocabulary, experts, fewest = family.vocabulary, family.experts, max(2, family.layers)

    def measure(layers: int) -> int:
        return family.make(layers, experts, vocabulary).nbytes

    while vocabulary > family.vocabulary >> 4 and measure(0) > size / 2:
        vocabulary //= 2
    room = size - measure(0)
    while experts > _FEWEST_EXPERTS and 2 * (measure(fewest) - measure(0)) > room:
        experts //= 2
    times = round(room / (measure(family.layers) - measure(0)))
    return family.make(max(fewest, times * family.layers), experts, vocabulary)


def moe_model(size: int) -> Model:
    """The Qwen3-30B-A3B-like model nearest to ``size`` bytes: see :func:`fit`."""
    return fit(Family(_make_moe, _VOCABULARY), size)


def _make_moe(layers: int, experts: int, vocabulary: int) -> Model:
    return Model(_moe_shapes(layers, experts, vocabulary), _moe_config(layers, experts, vocabulary))


def _nbytes(shapes: Shapes) -> int:
    return _ITEMSIZE * sum(map(prod, shapes.values()))


def _moe_shapes(layers: int, experts: int, vocabulary: int) -> Shapes:
    table = (vocabulary, _HIDDEN)
    shapes: Shapes = {"model.embed_tokens.weight": table}
    for layer in range(layers):
        for name, shape in _moe_layer(experts).items():
            shapes[f"model.layers.{layer}.{name}"] = shape
    return shapes | {"model.norm.weight": (_HIDDEN,), "lm_head.weight": table}


def _moe_layer(experts: int) -> Shapes:
    shapes: Shapes = {
        "input_layernorm.weight": (_HIDDEN,),
        "self_attn.q_proj.weight": (_HEADS * _HEAD_DIM, _HIDDEN),
        "self_attn.k_proj.weight": (_KV_HEADS * _HEAD_DIM, _HIDDEN),
        "self_attn.v_proj.weight": (_KV_HEADS * _HEAD_DIM, _HIDDEN),
        "self_attn.o_proj.weight": (_HIDDEN, _HEADS * _HEAD_DIM),
        "self_attn.q_norm.weight": (_HEAD_DIM,),
        "self_attn.k_norm.weight": (_HEAD_DIM,),
        "post_attention_layernorm.weight": (_HIDDEN,),
        "mlp.gate.weight": (experts, _HIDDEN),
    }
    for expert in range(experts):
        shapes[f"mlp.experts.{expert}.gate_proj.weight"] = (_EXPERT_WIDTH, _HIDDEN)
        shapes[f"mlp.experts.{expert}.up_proj.weight"] = (_EXPERT_WIDTH, _HIDDEN)
        shapes[f"mlp.experts.{expert}.down_proj.weight"] = (_HIDDEN, _EXPERT_WIDTH)
    return shapes


def _moe_config(layers: int, experts: int, vocabulary: int) -> dict[str, object]:
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": _HIDDEN,
        "intermediate_size": 6144,
        "moe_intermediate_size": _EXPERT_WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "head_dim": _HEAD_DIM,
        "num_experts": experts,
        "num_experts_per_tok": min(8, experts),
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "vocab_size": vocabulary,
        "max_position_embeddings": 40960,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def write_model(folder: Path, model: Model) -> list[Path]:
    """Write the model as ``save_pretrained`` would; returns its safetensors files."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(model.config, indent=2))
    values = Values()
    shards = list(_shards(model.shapes))
    files, places = [], {}
    for number, shapes in enumerate(shards, 1):
        files.append(folder / f"model-{number:05}-of-{len(shards):05}.safetensors")
        places.update(dict.fromkeys(shapes, files[-1].name))
        kinds = {name: values.of(name, model.shapes) for name in shapes}
        with files[-1].open("wb") as file:
            file.write(_header(shapes, kinds))
            for name, shape in shapes.items():
                file.writelines(values.cut(kinds[name], prod(shape)))
    index = {"metadata": {"total_size": _nbytes(model.shapes)}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return files


def _shards(shapes: Shapes) -> Iterator[Shapes]:
    """The tensors of each file, sorted by name within it as safetensors sorts them."""
    limit = min(_FILE_BYTES, -(-_nbytes(shapes) // _FILES))
    shard: Shapes = {}
    room = limit
    for name, shape in shapes.items():
        size = _nbytes({name: shape})
        if shard and size > room:
            yield dict(sorted(shard.items()))
            shard, room = {}, limit
        shard[name] = shape
        room -= size
    yield dict(sorted(shard.items()))


def _header(shapes: Shapes, kinds: Mapping[str, Kind]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        end = at + kinds[name].values.itemsize * prod(shape)
        header[name] = {"dtype": kinds[name].dtype, "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
