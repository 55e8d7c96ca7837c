"""What lies beside a checkpoint, or is named there: model folders that it needs, an optimizer's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ckpt_tool.common.errors import UsageError
from ckpt_tool.common.progress import Progress
from ckpt_tool.mapping.lora.megatron import drop_adapters, has_megatron_adapters
from ckpt_tool.mapping.lora.resolve import holds_only_adapters
from ckpt_tool.mapping.lora.swift import is_beside, is_factor
from ckpt_tool.mapping.megatron.keys import is_megatron
from ckpt_tool.mapping.megatron.masters import is_master
from ckpt_tool.operations.options import ModelOptions
from ckpt_tool.readers import open_checkpoint
from ckpt_tool.readers.base import Checkpoint
from ckpt_tool.readers.huggingface import open_sound_model
from ckpt_tool.readers.sharded_hub.folder import locate_sharded_hub
from ckpt_tool.readers.weight_files import is_model_folder

#: Whether a tensor of this name is to be opened.
Wanted = Callable[[str], bool]


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


def add_optimizer(checkpoint: Checkpoint, wanted: Wanted, progress: Progress) -> Checkpoint:
    """The checkpoint with an optimizer's state, which verl has since 0.9 beside the model's folder.

    As it is where there is no such folder, or where the state is there already.
    """
    model = checkpoint.path
    folder = model.parent.parent / "optimizer" / model.name
    is_apart = (model.parent.name, model.name) == ("model", "dist_ckpt") and folder.is_dir()
    if not is_apart or any(map(is_master, checkpoint.entries)):
        return checkpoint
    found = open_checkpoint(folder, wanted, progress)
    masters = {name: entry for name, entry in found.entries.items() if is_master(name)}
    return replace(
        checkpoint,
        entries=checkpoint.entries | masters,
        files=(*checkpoint.files, *found.files),
        problems=(*checkpoint.problems, *found.problems),
        left_out=checkpoint.left_out | found.left_out,
        sums=checkpoint.sums | found.sums,
    )


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
