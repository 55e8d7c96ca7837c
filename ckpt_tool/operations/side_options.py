"""What a comparison is told, for the side that it is about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ckpt_tool.common.errors import UsageError
from ckpt_tool.mapping.lora.megatron import has_megatron_adapters
from ckpt_tool.mapping.lora.names import has_adapters
from ckpt_tool.mapping.lora.options import LoraOptions
from ckpt_tool.mapping.lora.resolve import refuse_base, refuse_options
from ckpt_tool.operations.beside import lacks_model
from ckpt_tool.operations.options import ModelOptions, NameOptions
from ckpt_tool.operations.source import Source, is_adapter_of_peft, is_named
from ckpt_tool.readers.base import Checkpoint


def share_out(sources: Sequence[Source], options: ModelOptions) -> list[ModelOptions]:
    """What is said for each side; UsageError for what no side takes."""
    plain = replace(
        options, names=NameOptions(), lora=LoraOptions(), fill_from=None, weights="model"
    )
    told = [plain for _ in sources]
    unnamed = [at for at, source in enumerate(sources) if not is_named(source.checkpoint)]
    if options.names.asked:
        if not unnamed:
            raise UsageError(
                "both are Hugging Face models, whose names are what they are",
                hint="Leave out `names.prefix`, `names.select` and `names.rename`.",
            )
        told[unnamed[0]] = replace(plain, names=options.names)
    if options.weights != "model":
        if not unnamed:
            raise UsageError("`weights='optimizer'`: both are Hugging Face models, which have none")
        told[unnamed[0]] = replace(told[unnamed[0]], weights=options.weights)
    if options.fill_from is not None:
        if not unnamed:
            raise UsageError("`fill_from`: both are Hugging Face models, which lack nothing")
        told[unnamed[0]] = replace(told[unnamed[0]], fill_from=options.fill_from)
    if options.lora.asked:
        adapted = [at for at, source in enumerate(sources) if _takes_lora(source.checkpoint)]
        if not adapted:
            refuse_options(sources[0].checkpoint.path, options.lora)
        if not any(lacks_model(sources[at].checkpoint) for at in adapted):
            refuse_base(options.lora)
        for at in adapted:
            told[at] = replace(told[at], lora=_choose_lora(sources[at].checkpoint, options.lora))
    return told


def _takes_lora(checkpoint: Checkpoint) -> bool:
    """Whether it has adapters, which peft's own files have alone."""
    taken = not is_named(checkpoint) or is_adapter_of_peft(checkpoint)
    return taken and has_any_adapters(checkpoint)


def _choose_lora(checkpoint: Checkpoint, lora: LoraOptions) -> LoraOptions:
    """The base is for adapters that were saved alone, not for those of the other side."""
    return lora if lacks_model(checkpoint) else replace(lora, base=None)


def has_any_adapters(names: Iterable[str]) -> bool:
    """Whether some of these names are of LoRA adapters, peft's or Megatron's."""
    listed = list(names)
    return has_adapters(listed) or has_megatron_adapters(listed)
