"""The conversion everybody writes first: build both models, copy every weight, save.

Run as a program, so that its time and memory are measured like the tool's:
``python -m tests.bench.mcore_baseline save HF_FOLDER OUT``, and
``python -m tests.bench.mcore_baseline compare FOLDER REFERENCE``, which exits with 1 and says what
differs where the two checkpoints do not hold the same tensors, bit for bit. Both are read with
torch's own reader.

The CPU has no Transformer Engine: megatron-core's local layers are saved by the names that it has.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch.nn import Module


def save(folder: str, out: str) -> None:
    """Convert as the simple scripts do."""
    Path(out).mkdir()
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # compiling would only cost it time
    import torch
    from megatron.core import dist_checkpointing, parallel_state
    from transformers import AutoModelForCausalLM

    from tests.real.megatron_gpt import build_chunks
    from tests.real.megatron_jobs import Sizes
    from tests.real.megatron_names import rename_to_engine
    from tests.real.megatron_world import patch_for_cpu, world

    source = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    patch_for_cpu()
    store = Path(out).with_name("rendezvous")
    with world(Sizes(), 0, 1, store), torch.no_grad():
        (model,) = build_chunks(_config(Path(folder)), Sizes(), 1, torch.bfloat16)
        model.bfloat16()  # the local layers' norms are float32 otherwise
        _copy(source, model)
        group = parallel_state.get_data_parallel_group(with_context_parallel=True)
        state = model.sharded_state_dict(metadata={"dp_cp_group": group})
        rename_to_engine(state)
        dist_checkpointing.save(state, out)


def _config(folder: Path) -> dict[str, Any]:
    """config.json, in the words of transformers 5."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config | {"rope_parameters": {"rope_theta": config["rope_theta"]}}


def _copy(source: Module, model: Module) -> None:
    model.embedding.word_embeddings.weight.copy_(source.model.embed_tokens.weight)
    for theirs, ours in zip(source.model.layers, model.decoder.layers, strict=True):
        ours.input_layernorm.weight.copy_(theirs.input_layernorm.weight)
        ours.pre_mlp_layernorm.weight.copy_(theirs.post_attention_layernorm.weight)
        _copy_attention(theirs.self_attn, ours.self_attention)
        if hasattr(theirs.mlp, "experts"):
            _copy_experts(theirs.mlp, ours.mlp)
        else:
            _copy_mlp(theirs.mlp, ours.mlp)
    model.decoder.final_layernorm.weight.copy_(source.model.norm.weight)
    model.output_layer.weight.copy_(source.lm_head.weight)


def _copy_attention(theirs: Module, ours: Module) -> None:
    import torch

    groups = ours.config.num_query_groups
    parts = (theirs.q_proj, theirs.k_proj, theirs.v_proj)
    for kind in ("weight", "bias"):
        whole = [getattr(part, kind) for part in parts]
        if whole[0] is not None:
            by_group = [part.view(groups, -1, *part.shape[1:]) for part in whole]
            getattr(ours.linear_qkv, kind).copy_(torch.cat(by_group, 1).flatten(0, 1))
    if hasattr(theirs, "q_norm"):
        ours.q_layernorm.weight.copy_(theirs.q_norm.weight)
        ours.k_layernorm.weight.copy_(theirs.k_norm.weight)
    ours.linear_proj.weight.copy_(theirs.o_proj.weight)


def _copy_mlp(theirs: Module, ours: Module) -> None:
    import torch

    ours.linear_fc1.weight.copy_(torch.cat([theirs.gate_proj.weight, theirs.up_proj.weight]))
    ours.linear_fc2.weight.copy_(theirs.down_proj.weight)


def _copy_experts(theirs: Module, ours: Module) -> None:
    """Transformers 5 has the experts of a layer in two tensors, transformers 4 has a list."""
    ours.router.weight.copy_(theirs.gate.weight)
    for number, expert in enumerate(ours.experts.local_experts):
        if hasattr(theirs.experts, "gate_up_proj"):
            expert.linear_fc1.weight.copy_(theirs.experts.gate_up_proj[number])
            expert.linear_fc2.weight.copy_(theirs.experts.down_proj[number])
        else:
            _copy_mlp(theirs.experts[number], expert)


def differences(folder: str, reference: str) -> Iterator[str]:
    """Names of tensors in one of the two only, or not equal in dtype, shape or any bit."""
    expected, found = _tensors(reference), _tensors(folder)
    yield from sorted(expected.keys() ^ found.keys())
    for name in expected.keys() & found.keys():
        if not _same(found[name], expected[name]):
            yield name


def _tensors(folder: str) -> dict[str, torch.Tensor]:
    """All tensors; of what is not a tensor the two ways write different amounts."""
    import torch
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    entries = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    state = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    dcp.load(state, checkpoint_id=folder, no_dist=True)
    return state


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    import torch

    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def _main(command: str, *arguments: str) -> int:
    warnings.filterwarnings("ignore")
    if command == "save":
        save(*arguments)
        return 0
    different = list(differences(*arguments))
    for name in different[:10]:
        print(f"differs from the baseline: {name}", file=sys.stderr)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
