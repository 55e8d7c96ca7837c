"""One side of a comparison: a checkpoint that is proven complete, by its names on the Hub."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ckpt_tool.common.errors import MappingError, UsageError
from ckpt_tool.common.parallel import ALONE, Team
from ckpt_tool.common.progress import Progress
from ckpt_tool.mapping.casting import main_dtype
from ckpt_tool.mapping.config import ModelConfig, load_config
from ckpt_tool.mapping.frameworks.nested import prefix_of, under
from ckpt_tool.mapping.frameworks.torchtitan import from_torchtitan, is_torchtitan
from ckpt_tool.mapping.frameworks.training import is_training_state
from ckpt_tool.mapping.hub.names import by_family, refuse_adapters, to_hub
from ckpt_tool.mapping.hub.value_head import heads_as_in, value_model
from ckpt_tool.mapping.lora.options import LoraOptions
from ckpt_tool.mapping.megatron.keys import is_megatron
from ckpt_tool.mapping.quantised import dequantised, has_scales
from ckpt_tool.operations.lora import adapters_of, resolve
from ckpt_tool.operations.lora_megatron import resolve_megatron
from ckpt_tool.operations.proofs import is_weight_of, only_embedding, prove_replicas
from ckpt_tool.operations.resolved import Resolved
from ckpt_tool.operations.training_state import left_out
from ckpt_tool.readers import open_checkpoint
from ckpt_tool.readers.base import Checkpoint
from ckpt_tool.tensors.dtypes import BFLOAT16
from ckpt_tool.tensors.equality import are_equal
from ckpt_tool.tensors.lazy import LazyTensor


@dataclass(frozen=True)
class Side:
    """``tensors`` by name; ``ranks`` of its files; ``config`` where one is beside the weights."""

    checkpoint: Checkpoint
    config: ModelConfig | None
    tensors: dict[str, LazyTensor]
    ranks: dict[str, int | None]
    warnings: tuple[str, ...] = ()

    def rank_of(self, path: str) -> int | None:
        """The rank that wrote a file, if one did."""
        return self.ranks.get(path)


def open_side(path: Path, jobs: int, progress: Progress) -> Side:
    """Open a checkpoint and prove it complete; raises what verifying does."""
    checkpoint = open_checkpoint(path, lambda name: not is_training_state(name))
    checkpoint.require_sound()
    if checkpoint.format == "fsdp-rank" and checkpoint.world_size != 1:
        raise UsageError(
            f"{path}: the file of one rank of {checkpoint.world_size}, not a whole checkpoint",
            hint="Name the folder in which all ranks are.",
        )
    prove_replicas(checkpoint, False, Team(ALONE, jobs, progress))
    config = load_config(checkpoint.side_files) if checkpoint.side_files is not None else None
    ranks = {file.path: file.rank for file in checkpoint.files}
    gone = [f"{path}: left out {name} ({why})" for name, why in left_out(checkpoint).items()]
    return Side(checkpoint, config, dict(checkpoint), ranks, tuple(gone))


def require_config(side: Side, other: Side) -> Side:
    """The side by its names on the Hub; where it has no config, the other's says what they are.

    Hugging Face files have these names already, unless somebody saved a state dict as it was in
    memory: the tables of families change names in memory only, so they are used there too.
    Without any config names stay as they are.
    """
    named = _by_hub_names(_plain(side), other)
    return replace(named, tensors=heads_as_in(named.tensors, other.tensors))


def _by_hub_names(side: Side, other: Side) -> Side:
    config = side.config or other.config
    if config is None:
        return _as_it_is(side)
    if side.checkpoint.format == "huggingface":
        return _as_on_hub(side, other, config)
    if side.checkpoint.format in ("torch_dist", "megatron-ranks"):
        return _from_megatron(side, other, config)
    if side.checkpoint.format == "dcp" and is_megatron(side.tensors):
        return _from_megatron(side, other, config)
    tensors = side.tensors
    if side.checkpoint.format == "dcp" and is_torchtitan(tensors):
        tensors = from_torchtitan(tensors, config)
    fused = resolve(side.checkpoint, tensors, adapters_of(tensors), LoraOptions(), config)
    refuse_adapters(fused.tensors)
    model = value_model(fused.tensors, config)
    form = to_hub(model.base, model.config)
    said = (*side.warnings, *_fused_text(side, fused), *form.warnings)
    return replace(side, tensors=form.tensors | model.head, warnings=said)


def _fused_text(side: Side, fused: Resolved) -> list[str]:
    note = fused.note
    if note is None:
        return []
    numbers = f"rank {note.rank}, alpha {note.alpha:g}, {note.source}"
    return [f"{side.checkpoint.path}: LoRA adapters are compared fused ({numbers})"]


def _plain(side: Side) -> Side:
    """A side of torch.distributed.checkpoint without what is nested around its model."""
    if side.checkpoint.format != "dcp" or is_megatron(side.tensors):
        return side
    return replace(side, tensors=under(side.tensors, prefix_of(side.tensors)))


def _as_it_is(side: Side) -> Side:
    """A side whose names nothing explains; of Megatron, that is worth a word."""
    if side.checkpoint.format not in ("torch_dist", "megatron-ranks"):
        return side
    said = "no config.json beside either checkpoint, so names and layouts are compared as they are"
    return replace(side, warnings=(*side.warnings, f"{side.checkpoint.path}: {said}"))


def _from_megatron(side: Side, other: Side, config: ModelConfig) -> Side:
    """A Megatron side, with what Hugging Face repeats of it where the other side has that."""
    fused, model = resolve_megatron(side.checkpoint, LoraOptions(), config, 1)
    repeated = {name: t for name, t in model.repeats.items() if name in other.tensors}
    said = (*side.warnings, *_fused_text(side, fused))
    return replace(side, tensors=model.tensors | repeated, warnings=said)


def _as_on_hub(side: Side, other: Side, config: ModelConfig) -> Side:
    """A Hugging Face side; what its family's table does not know is compared as it is.

    Block-quantised weights are compared with wide ones by their values.
    """
    if has_scales(side.tensors) and not has_scales(other.tensors):
        dtype = main_dtype(other.tensors.values()) or BFLOAT16
        side = replace(
            side,
            tensors=dequantised(side.tensors, config, dtype),
            warnings=(
                f"{side.checkpoint.path}: fp8 weights are compared as {dtype}, with their"
                " scales applied",
            ),
        )
    try:
        return replace(side, tensors=by_family(side.tensors, config) or side.tensors)
    except MappingError:
        return side


def tied_heads(
    left: Side,
    right: Side,
    mine: dict[str, LazyTensor],
    theirs: dict[str, LazyTensor],
    jobs: int,
) -> dict[str, str]:
    """Heads on one side only that repeat the embedding to which a config ties them, and why."""
    found = {}
    for side, here, there in ((left, mine, theirs), (right, theirs, mine)):
        tied = [config.tied for config in (left.config, right.config) if config is not None]
        for name in here:
            if name in there or not is_weight_of(name, ("lm_head",)) or not any(tied):
                continue
            head = here[name]
            alike = (n for n, t in here.items() if (t.shape, t.dtype) == (head.shape, head.dtype))
            embedding = only_embedding(alike)
            if embedding is None or embedding not in there:  # nothing would say that it is right
                continue
            if are_equal(head, here[embedding], jobs):
                where = "checkpoint" if side is left else "reference"
                found[name] = f"only in the {where}, equal to {embedding}, to which config ties it"
    return found
