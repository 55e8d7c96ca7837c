"""Model folders that are named beside a checkpoint: what it is without, opened and sound."""

from __future__ import annotations

from pathlib import Path

from ckpt_tool.common.errors import UsageError
from ckpt_tool.mapping.lora.megatron import drop_adapters, has_megatron_adapters
from ckpt_tool.mapping.lora.resolve import holds_only_adapters
from ckpt_tool.mapping.lora.swift import is_beside, is_factor
from ckpt_tool.mapping.megatron.keys import is_megatron
from ckpt_tool.operations.options import ModelOptions
from ckpt_tool.readers.base import Checkpoint
from ckpt_tool.readers.huggingface import open_sound_model
from ckpt_tool.readers.sharded_hub.folder import locate_sharded_hub
from ckpt_tool.readers.weight_files import is_model_folder


def lacks_model(checkpoint: Checkpoint) -> bool:
    """Whether there are adapters alone, peft's or Megatron's."""
    if has_megatron_adapters(checkpoint.entries):
        return not drop_adapters(checkpoint.entries)
    if is_megatron(checkpoint.entries) and any(map(is_factor, checkpoint.entries)):
        rest = (name for name in checkpoint.entries if not is_factor(name) and not is_beside(name))
        return not is_megatron(rest)
    return holds_only_adapters(checkpoint)


def open_base(checkpoint: Checkpoint, options: ModelOptions) -> Checkpoint | None:
    """The model that adapters are to be fused into; None where they have theirs beside them.

    UsageError where the folder is no model's.
    """
    folder = options.lora.base
    if folder is None or not lacks_model(checkpoint):
        return None
    return _open_model(folder, f"`lora.base={str(folder)!r}`")


def open_filler(options: ModelOptions) -> Checkpoint | None:
    """The model that has what the checkpoint lacks, if one was named.

    UsageError where the folder is no model's, or names are kept as they are.
    """
    folder = options.fill_from
    if folder is None:
        return None
    if options.keep_names:
        raise UsageError("`fill_from` needs a config: it cannot go with `keep_names=True`")
    return _open_model(Path(folder), f"`fill_from={str(folder)!r}`")


def _open_model(folder: Path, asked: str) -> Checkpoint:
    if not is_model_folder(folder):
        raise UsageError(
            f"{asked}: no Hugging Face model folder",
            hint="Name a folder with config.json and *.safetensors; nothing is fetched.",
        )
    if locate_sharded_hub(folder) == folder:
        raise UsageError(
            f"{asked}: shards of a model, as its ranks saved them",
            hint=f"Make the model of them first: ckpt merge dcp {folder} OUT",
        )
    return open_sound_model(folder)
