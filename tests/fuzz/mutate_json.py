"""Changes to JSON: wrong types anywhere, numbers and texts that readers fear, odd syntax."""

from __future__ import annotations

import json
from functools import lru_cache
from random import Random
from typing import Any

from tests.fuzz.mutate_bytes import mutate_bytes

#: Text that goes out as it is: what no JSON value of Python's stands for.
_RAW = (
    "1e999", "-1e999", "NaN", "-Infinity", "1" + "0" * 400, "1" + "0" * 5000, "-" + "9" * 19,
    "1e400000000", "0.1e-999999999", "{}", '{"a":1,"a":2}', "[" * 200 + "]" * 200,
    "[" * 100_000 + "]" * 100_000, '{"a":' * 3000 + "1" + "}" * 3000, '"\\ud800"',
    '"\\udfff\\ud800"', "01", "+1", "'a'", "undefined", "tru", "/* */ 1", "\u2028", '"\t"',
    '"\\u0000"',
)  # fmt: skip
_MARK = "@@raw{}@@"
#: Where shards of a Hugging Face model say what part of each tensor they have.
_INFO = "DCP_SHARDING_INFO"

_NUMBERS = (0, 1, 2, 3, 7, 8, 16, 64, -1, -2, 10**5, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1,
            2**63, 2**64, 10**30, 0.0, -0.0, 0.5, 1.0, 2.5, -3.5, 1e15, 1e300, 1e308, 5e-324,
            True, False)  # fmt: skip
_TEXTS = (
    "", " ", ".", "..", "a.b", "a/b", "../../../etc/passwd", "/etc/passwd", "/dev/zero",
    "/proc/self/mem", "a\0b", "\0", "\x1b[31mred\x1b]0;t\x07", "\n", "\r\x08", "\u202e", "\ud800",
    "a\udc80b", "é", "\U0001f600", "x" * 300, "y" * 70_000, "__metadata__", "weight",
    "model.norm.weight", "%s%n{0}{x}", "None", "null", "nan", "inf", "NaN", "1", "-1", "1e999",
    "bfloat16", "float32", "torch.float16", "int8", "float8_e4m3fn", "auto", "(a+)+$", "(.*)*b",
    "(.+)+\\.weight", "((a|a)*)*c", "[", "(?P<a>", "\\", ".*", "(?:.*\\.){40}x", "a{4294967295}",
    "(?=(a+))*b", "x*" * 30, "llama", "qwen2", "qwen3_moe", "mixtral", "deepseek_v3", "gpt2",
    "gemma3", "qwen2_5_vl", "bert", "mimo", "glm4_moe", "kimi_k2", "jamba", "no_such_type",
    "LlamaForCausalLM", "FSDPLlamaForCausalLM", "PeftModelForCausalLM",
    "LlamaForTokenClassification", "TaskType.CAUSAL_LM", "LORA", "IA3", "torch_dist", "zarr",
    "default", "yarn", "longrope", "axial", "model.safetensors", "model-00001-of-00002.safetensors",
    "config.json", "configuration_x.Y", "a--b.C", "../x.Y", "torch", "F32", "BF16", "F8_E4M3", "U8",
    "BOOL",
)  # fmt: skip
#: Keys that some reader asks for.
_KEYS = """
model_type architectures torch_dtype dtype tie_word_embeddings text_config vision_config hidden_size
num_hidden_layers num_attention_heads num_key_value_heads head_dim vocab_size intermediate_size
num_experts n_routed_experts num_local_experts moe_intermediate_size n_shared_experts
shared_expert_intermediate_size decoder_sparse_step moe_layer_freq first_k_dense_replace
mlp_only_layers num_nextn_predict_layers q_lora_rank kv_lora_rank qk_nope_head_dim qk_rope_head_dim
v_head_dim attention_bias mlp_bias qkv_bias use_qk_norm rope_parameters rope_theta rope_scaling
rope_type partial_rotary_factor full_attention sliding_attention quantization_config
weight_block_size quant_method is_encoder_decoder id2label num_labels auto_map depth num_heads
spatial_merge_size tokenizer_class extra_special_tokens additional_special_tokens
image_processor feature_extractor video_processor processor_class
r lora_alpha task_type peft_type target_modules exclude_modules modules_to_save target_parameters
trainable_token_indices rank_pattern alpha_pattern use_rslora use_dora fan_in_fan_out lora_bias bias
peft_version layers_to_transform layers_pattern layer_replication use_qalora base_model_name_or_path
world_size FSDP_version sharded_backend sharded_backend_version common_backend weight_map metadata
total_size data_offsets shape __metadata__ path name plan size digest cast_errors casts files from
to num_tensors max_abs_error bytes shapes tied dtypes overlooked architecture library
DCP_SHARDING_INFO saved_offsets
""".split()


def mutate_json(data: bytes, rng: Random) -> bytes:
    """One to three changes of its values and keys; now and then of its bytes."""
    if rng.random() < 0.1:
        return mutate_bytes(data, rng)
    holder: list[Any] = [json.loads(data)]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        _change(holder, rng)
    text = json.dumps(holder[0])
    for number, raw in enumerate(_RAW):
        text = text.replace(f'"{_MARK.format(number)}"', raw)
    if rng.random() < 0.05:
        text = rng.choice(("\ufeff", " " * 9, "[]", "\0")) + text
    if rng.random() < 0.1:  # the same characters, not escaped
        return json.dumps(holder[0], ensure_ascii=False).encode("utf-8", "surrogatepass")
    return text.encode("utf-8", "surrogatepass")


def mutate_lines(data: bytes, rng: Random) -> bytes:
    """Changes of one of many lines of JSON; now and then of all bytes, or of which there are."""
    if rng.random() < 0.2:
        return mutate_bytes(data, rng)
    lines = data.splitlines()
    at = rng.randrange(len(lines))
    if rng.random() < 0.1:
        lines.insert(rng.randrange(len(lines) + 1), rng.choice((lines[at], b"", lines[at][:9])))
    else:
        lines[at] = mutate_json(lines[at], rng)
    return b"\n".join(lines) + rng.choice((b"\n", b"\n", b"", b'{"na'))


def make_text(rng: Random) -> str:
    """A text at which something may go wrong."""
    return rng.choice(_TEXTS)


def _change(holder: list[Any], rng: Random) -> None:
    """Change one place of the tree: a value, a key, or what there is."""
    places = _list_places(holder)
    parent, key = rng.choice(places)
    kind = rng.randrange(10)
    if kind < 5:
        parent[key] = _make_value(rng)
    elif kind == 5:
        parent[key] = rng.choice(([parent[key]], {"a": parent[key]}, [parent[key]] * 100))
    elif kind == 6:
        other, at = rng.choice(places)
        if not _holds(parent[key], other) and not _holds(other[at], parent):
            parent[key], other[at] = other[at], parent[key]
    elif kind == 7 and isinstance(parent, dict):
        parent[rng.choice((*_TEXTS, *_KEYS))] = parent.pop(key)
    elif kind == 8 and parent is not holder:
        del parent[key]
    else:
        objects = [found for found, _ in places if isinstance(found, dict)]
        if objects:
            rng.choice(objects)[rng.choice((rng.choice(_KEYS), make_text(rng)))] = _make_value(rng)


def _make_value(rng: Random, depth: int = 0) -> Any:
    kind = rng.randrange(12)
    if kind < 4:
        return rng.choice(_NUMBERS)
    if kind < 7:
        return make_text(rng)
    if kind < 9:
        return _MARK.format(rng.randrange(len(_RAW)))
    if kind == 9 or depth > 2:
        return None
    if kind == 10:
        return [_make_value(rng, depth + 1) for _ in range(rng.choice((0, 1, 2, 3)))]
    keys = (rng.choice((rng.choice(_KEYS), make_text(rng))) for _ in range(rng.choice((0, 1, 2))))
    return {key: _make_value(rng, depth + 1) for key in keys}


def _list_places(holder: Any) -> list[tuple[Any, Any]]:
    """Every value of the tree, as what holds it and where."""
    places: list[tuple[Any, Any]] = []
    waiting = [holder]
    while waiting:
        found = waiting.pop()
        keys = range(len(found)) if isinstance(found, list) else list(found)
        for key in keys:
            places.append((found, key))
            if isinstance(found[key], (dict, list)):
                waiting.append(found[key])
    return places


def _holds(value: Any, sought: Any) -> bool:
    """Whether a tree has ``sought`` itself in it: it may not be put below itself."""
    if value is sought:
        return True
    if isinstance(value, dict):
        return any(_holds(each, sought) for each in value.values())
    return isinstance(value, list) and any(_holds(each, sought) for each in value)


@lru_cache(maxsize=64)
def _split_header(data: bytes) -> tuple[bytes, bytes]:
    length = int.from_bytes(data[:8], "little")
    return data[8 : 8 + length], data[8 + length :]


def mutate_safetensors(data: bytes, rng: Random) -> bytes:
    """The JSON header, the JSON that is a text in it, its length, or any byte changed."""
    if rng.random() < 0.25:
        return mutate_bytes(data, rng)
    header, rest = _split_header(data)
    described = json.loads(header).get("__metadata__", {})
    if _INFO in described and rng.random() < 0.5:
        info = mutate_json(described[_INFO].encode(), rng)
        described[_INFO] = info.decode(errors="replace")
        header = json.dumps(json.loads(header) | {"__metadata__": described}).encode()
    else:
        header = mutate_json(header, rng)
    length = len(header)
    if rng.random() < 0.05:
        length = rng.choice((0, 1, max(length - 1, 0), length + 8, 2**31, 2**63, 2**64 - 1))
    return length.to_bytes(8, "little") + header + rest
