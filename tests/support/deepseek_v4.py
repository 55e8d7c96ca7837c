"""A tiny DeepSeek-V4: as transformers saves it, and as DeepSeek publishes it, names and config."""

import json
import re
import zlib
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from tests.support.merging import load_folder

Tensors = dict[str, Tensor]

LAYERS, EXPERTS, VOCABULARY, STREAMS = 4, 4, 100, 2
KINDS = [
    "sliding_attention",
    "heavily_compressed_attention",
    "compressed_sparse_attention",
    "heavily_compressed_attention",
]
#: What of it a config says in both ways. No size is another one, or its double.
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "moe_intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "head_dim": 16,
    "q_lora_rank": 20,
    "num_experts_per_tok": 2,
    "n_routed_experts": EXPERTS,
    "n_shared_experts": 1,
    "o_groups": 2,
    "o_lora_rank": 6,
    "index_n_heads": 2,
    "index_head_dim": 8,
    "index_topk": 4,
    "sliding_window": 6,
    "qk_rope_head_dim": 4,
    "hc_mult": STREAMS,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
#: The config as DeepSeek has it: kinds as ratios, of the layer that predicts further too.
PUBLISHED = {
    **SIZES,
    "model_type": "deepseek_v4",
    "architectures": ["DeepseekV4ForCausalLM"],
    "compress_ratios": [0, 128, 4, 128, 0],
    "num_hash_layers": 2,
    "num_nextn_predict_layers": 1,
    "num_key_value_heads": 1,
    "rope_theta": 10000,
    "tie_word_embeddings": False,
}
#: Names as transformers has them in files, and DeepSeek: written down once more.
_RENAMED = (
    ("model.embed_tokens.", "embed."),
    ("model.hc_head.hc_", "hc_head_"),
    ("model.", ""),
    (".attn.norm.", ".attn.kv_norm."),
)


def fill(name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Distinct numbers that depend on the name; of integers, numbers of experts."""
    order = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    count = torch.Size(shape).numel()
    if not dtype.is_floating_point:
        return torch.randint(0, EXPERTS, shape, generator=order, dtype=dtype)
    values = torch.randperm(count, generator=order).double() / count * 0.2 - 0.1
    return (values + 1.0 * ("norm" in name)).to(dtype).reshape(shape)


def write_saved(folder: Path) -> Path:
    """The folder that `save_pretrained` writes, in float32."""
    config = transformers.DeepseekV4Config(
        **SIZES, layer_types=KINDS, num_hash_layers=2, num_nextn_predict_layers=0
    )
    model = transformers.DeepseekV4ForCausalLM(config)
    for name, tensor in model.state_dict().items():
        tensor.copy_(fill(name, tuple(tensor.shape), tensor.dtype))
    model.save_pretrained(folder)
    return folder


def publish_name(name: str) -> str:
    for old, new in _RENAMED:
        name = name.replace(old, new, 1) if name.startswith(old) or old[0] == "." else name
    return name


def list_published(saved: Path) -> Tensors:
    """The weights by DeepSeek's names, and a layer that predicts further, as it publishes one."""
    found = {publish_name(name): tensor for name, tensor in load_folder(saved).items()}
    last = re.compile(rf"^layers\.{LAYERS - 1}\.(?!attn\.compressor)")
    like = {last.sub("mtp.0.", name): t for name, t in found.items() if last.match(name)}
    hidden = SIZES["hidden_size"]
    more = {f"mtp.0.{part}_proj.weight": (hidden, hidden) for part in "eh"}
    more |= {f"mtp.0.{norm}norm.weight": (hidden,) for norm in ("e", "h", "")}
    shapes = {name: tuple(tensor.shape) for name, tensor in like.items()} | more
    shapes |= {f"mtp.0.{n}": tuple(t.shape) for n, t in found.items() if n.startswith("hc_head")}
    ahead = {name: fill(name, shape) for name, shape in shapes.items()}
    copies = {"mtp.0.emb.tok_emb.weight": found["embed.weight"].clone()}
    return found | ahead | copies | {"mtp.0.head.weight": found["head.weight"].clone()}


def write(folder: Path, tensors: Tensors, dtype: str = "float32", **config: object) -> Path:
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    raw = PUBLISHED | {"torch_dtype": dtype} | config
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


def write_published(folder: Path) -> Path:
    """The folder that DeepSeek would publish, in float32."""
    return write(folder / "published", list_published(write_saved(folder / "saved")))
