"""What the merge tests share: small checkpoints made on the spot, and merged folders as tensors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 16,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


def values(*shape: int, start: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Distinct values around one, none of them exact in bfloat16 but the first."""
    count = int(torch.tensor(shape).prod())
    return (1 + torch.arange(start - 1, start - 1 + count) * 2.0**-12).to(dtype).reshape(shape)


def write_rank(
    folder: Path,
    state: Mapping[str, Any],
    config: Mapping[str, Any] | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Path:
    """One rank file as torch writes it, with ``huggingface/`` where there is a config."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(dict(state), folder / f"model_world_size_{world_size}_rank_{rank}.pt")
    if config is not None:
        (folder / "huggingface").mkdir(exist_ok=True)
        (folder / "huggingface" / "config.json").write_text(json.dumps(config))
    return folder


def load_folder(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder, as the safetensors library reads it."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        loaded = load_file(file)
        assert not tensors.keys() & loaded.keys()
        tensors |= loaded
    return tensors


def assert_same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """The same names, dtypes, shapes and bits."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        raw = [t.contiguous().reshape(-1).view(torch.uint8) for t in (found[name], tensor)]
        assert torch.equal(*raw), name
