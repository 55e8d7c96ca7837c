"""Rank files as verl 0.3 writes them, cut from a Hugging Face folder with torch alone.

Its models are no longer to be had, so this writes down their layout: names of the Hub, `qkv_proj`
with a rank's query, key and value heads in this order, `gate_up_proj` with its part of each, rows
of the other projections cut, layers numbered within a pipeline chunk, and a file that is a list of
the chunks' states. Sources, of verl 0.3: `QKVParallelLinear` and `ParallelQwen2Attention.forward`
(order of the split), `llama_saver.py` (what belongs to which rank; `_megatron_calc_layer_map`),
`MegatronCheckpointManager.save_checkpoint` (files).
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import pad

State = dict[str, Tensor]


def write_verl_03(hf: Path, out: Path, *, tp: int = 1, pp: int = 1, vpp: int = 1) -> Path:
    """Write `out/model/mp_rank_TT_PPP/model.pt` and the config beside; returns `out`."""
    config = json.loads((hf / "config.json").read_text())
    state: State = {}
    for file in hf.glob("*.safetensors"):
        state |= load_file(file)
    for stage in range(pp):
        for rank in range(tp):
            chunks = [
                _rank_state(_chunk(state, config, v * pp + stage, pp * vpp), rank, tp)
                for v in range(vpp)
            ]
            folder = out / "model" / f"mp_rank_{rank:02d}_{stage:03d}"
            folder.mkdir(parents=True)
            torch.save(chunks, folder / "model.pt")
    (out / "hf_config_and_tokenizer").mkdir()
    shutil.copy(hf / "config.json", out / "hf_config_and_tokenizer")
    return out


def _chunk(state: State, config: dict, number: int, count: int) -> State:
    """The tensors of a pipeline chunk; the last one has a head, be it a copy of the embedding."""
    layers = config["num_hidden_layers"] // count
    chunk: State = {}
    for name, tensor in state.items():
        if name.startswith("model.layers."):
            _, _, layer, rest = name.split(".", 3)
            if int(layer) // layers == number:
                chunk[f"model.layers.{int(layer) % layers}.{rest}"] = tensor
    if number == 0:
        chunk["model.embed_tokens.weight"] = state["model.embed_tokens.weight"]
    if number == count - 1:
        chunk["model.norm.weight"] = state["model.norm.weight"]
        if count > 1 or not config["tie_word_embeddings"]:
            embedding = state["model.embed_tokens.weight"]
            chunk["lm_head.weight"] = state.get("lm_head.weight", embedding)
    return chunk


def _rank_state(chunk: State, rank: int, tp: int) -> State:
    """A rank's part of a chunk, with fused names."""
    result: State = {}
    fused: dict[str, list[Tensor]] = {}
    for name in sorted(chunk, key=_order):
        tensor = chunk[name]
        if name in ("model.embed_tokens.weight", "lm_head.weight") and len(tensor) > 1:
            result[name] = pad(tensor, (0, 0, 0, -len(tensor) % tp)).chunk(tp)[rank].clone()
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            result[name] = tensor.chunk(tp, 1)[rank].clone()
        elif "_proj." in name:
            whole = name
            for part in "qkv":
                whole = whole.replace(f".{part}_proj.", ".qkv_proj.")
            for part in ("gate", "up"):
                whole = whole.replace(f".{part}_proj.", ".gate_up_proj.")
            fused.setdefault(whole, []).append(tensor.chunk(tp)[rank])
        else:
            result[name] = tensor.clone()
    return result | {name: torch.cat(parts) for name, parts in fused.items()}


def _order(name: str) -> int:
    """Query before key before value, gate before up."""
    parts = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    return next((n for n, part in enumerate(parts) if f".{part}." in name), len(parts))
