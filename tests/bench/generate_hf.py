"""Hugging Face models to measure on: folders of several safetensors files, of bfloat16 or fp8.

Every tensor is cut from the same random values, each from a position of its own, so that writing
takes no longer than a copy and tensors that change places are noticed. Imports no torch.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.bench.generate import config_of, spec_of_size

if TYPE_CHECKING:
    import numpy as np

#: Random values that every tensor is cut from.
_VALUES = 32 << 20
_ITEMSIZE = 2

#: Rows and columns that share a scale of fp8, and what the names of scales end with.
_BLOCK, _SCALES = 128, "_scale_inv"

#: A model has at least this many files, and none of more than about this size.
_FILES = 4
_FILE_BYTES = 1 << 30

# Qwen3-30B-A3B, which has 48 layers of 128 experts
_HIDDEN, _EXPERT_WIDTH, _VOCABULARY = 2048, 768, 151936
_HEADS, _KV_HEADS, _HEAD_DIM = 32, 4, 128
_EXPERTS, _FEWEST_EXPERTS, _FEWEST_LAYERS = 16, 4, 2

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Model:
    """Name and shape of every tensor, and config.json."""

    shapes: Shapes
    config: dict[str, object]


def dense_model(size: int) -> Model:
    """The Qwen2.5-1.5B-like model nearest to ``size`` bytes."""
    spec = spec_of_size(size, "bfloat16", 0)
    return Model(spec.shapes(), config_of(spec))


def fp8_model(size: int) -> Model:
    """The same as :func:`dense_model`, its linear layers in fp8 with scales by blocks.

    ``size``: of the model that it was made of, in bytes.
    """
    dense = dense_model(size)
    shapes: Shapes = {}
    for name, shape in dense.shapes.items():
        shapes[name] = shape
        if _is_fp8(name):
            shapes[name + _SCALES] = (-(-shape[0] // _BLOCK), -(-shape[1] // _BLOCK))
    said = {"quant_method": "fp8", "weight_block_size": [_BLOCK, _BLOCK]}
    return Model(shapes, {**dense.config, "quantization_config": said})


def _is_fp8(name: str) -> bool:
    return name.endswith("_proj.weight")


def moe_model(size: int) -> Model:
    """The Qwen3-30B-A3B-like model nearest to ``size`` bytes; at least two layers.

    Every matrix of a layer is as in the real one; there are fewer layers and experts. For small
    sizes the vocabulary is halved until layers are half of the model, then the number of experts
    until a few layers fit.
    """
    vocabulary, experts = _VOCABULARY, _EXPERTS
    while vocabulary > _VOCABULARY >> 4 and _nbytes(_moe_shapes(0, 0, vocabulary)) > size / 2:
        vocabulary //= 2
    room = size - _nbytes(_moe_shapes(0, 0, vocabulary))
    while experts > _FEWEST_EXPERTS and 2 * _FEWEST_LAYERS * _layer_nbytes(experts) > room:
        experts //= 2
    layers = max(_FEWEST_LAYERS, round(room / _layer_nbytes(experts)))
    return Model(_moe_shapes(layers, experts, vocabulary), _moe_config(layers, experts, vocabulary))


def _layer_nbytes(experts: int) -> int:
    return _nbytes(_moe_layer(experts))


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
    source, values = random.Random(0), _Values()
    shards = list(_shards(model.shapes))
    files, places = [], {}
    for number, shapes in enumerate(shards, 1):
        files.append(folder / f"model-{number:05}-of-{len(shards):05}.safetensors")
        places.update(dict.fromkeys(shapes, files[-1].name))
        kinds = {name: values.of(name, model.shapes) for name in shapes}
        with files[-1].open("wb") as file:
            file.write(_header(shapes, kinds))
            for name, shape in shapes.items():
                for part in _cut(kinds[name].values, prod(shape), source):
                    file.write(part)
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


def _header(shapes: Shapes, kinds: Mapping[str, _Kind]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        end = at + kinds[name].values.itemsize * prod(shape)
        header[name] = {"dtype": kinds[name].dtype, "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class _Kind(NamedTuple):
    """What tensors of a kind are cut from, and its dtype as safetensors names it."""

    dtype: str
    values: np.ndarray


class _Values:
    """Values of each kind of tensor: bfloat16, but for fp8 and its scales.

    Those of norms are near 1, as in trained models. Codes of fp8 are of both signs, and no NaN.
    """

    def __init__(self) -> None:
        import numpy as np

        drawn = np.random.default_rng(0)
        numbers = drawn.standard_normal(_VALUES, dtype=np.float32) * 0.02
        self._matrices = _Kind("BF16", _bfloat16(numbers))
        self._norms = _Kind("BF16", _bfloat16(numbers[: 1 << 20] + 1))
        codes = drawn.integers(0, 254, _VALUES, dtype=np.uint8)
        self._codes = _Kind("F8_E4M3", codes + (codes >= 127))
        self._scales = _Kind("F32", np.abs(numbers[: 1 << 20]) * np.float32(0.01))

    def of(self, name: str, shapes: Shapes) -> _Kind:
        """The kind that a tensor of a model with these tensors is of."""
        if name.endswith(_SCALES):
            return self._scales
        if name + _SCALES in shapes:
            return self._codes
        return self._norms if "norm" in name else self._matrices


def _bfloat16(numbers: np.ndarray) -> np.ndarray:
    """The upper halves: rounded toward zero."""
    return numbers.view("<u2")[1::2].copy()


def _cut(values: np.ndarray, count: int, source: random.Random) -> Iterator[np.ndarray]:
    """``count`` of ``values`` from a random position on, over and over."""
    at = source.randrange(len(values))
    while count:
        part = values[at : at + count]
        yield part
        count, at = count - len(part), 0
