"""Checkpoints with LoRA adapters: fused into the model, split off, or both.

Beside a model the adapters become a folder that peft loads (``lora_adapter/``); a checkpoint of
adapters alone (verl's ``save_lora_only``) becomes such a folder itself, unless its base is named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from ckpt_tool.common.errors import MappingError, UsageError
from ckpt_tool.common.wording import plural
from ckpt_tool.mapping.config import ModelConfig, load_config
from ckpt_tool.mapping.hub.names import by_family
from ckpt_tool.mapping.lora.fuse import fused, peft_config, peft_tensors, rank_faults
from ckpt_tool.mapping.lora.names import Adapters, has_adapters, take_apart
from ckpt_tool.mapping.lora.options import AdapterFiles, LoraNote, LoraOptions
from ckpt_tool.mapping.lora.settings import Settings, read_settings
from ckpt_tool.operations.resolved import Resolved
from ckpt_tool.readers.base import Checkpoint
from ckpt_tool.readers.huggingface import is_model_folder, open_sound_model
from ckpt_tool.tensors.dtypes import FLOAT32
from ckpt_tool.tensors.lazy import LazyTensor

#: Where in a model's folder its adapters lie: as verl has them, and where transformers does not
#: load them on its own.
ADAPTER_FOLDER = "lora_adapter"
_TASKS = {"ForCausalLM": "CAUSAL_LM", "ForTokenClassification": "TOKEN_CLS",
          "ForSequenceClassification": "SEQ_CLS"}  # fmt: skip


def adapters_of(tensors: Mapping[str, LazyTensor]) -> Adapters | None:
    """The state dict taken apart, as :func:`take_apart` does; None where nothing is of adapters."""
    return take_apart(tensors) if has_adapters(tensors) else None


def resolve(
    checkpoint: Checkpoint,
    tensors: Mapping[str, LazyTensor],
    adapters: Adapters | None,
    options: LoraOptions,
    config: ModelConfig | None,
) -> Resolved:
    """The model of ``tensors``, whose names are those in memory, with its adapters as asked for.

    ``adapters`` are those of the tensors.

    Raises MappingError where adapters do not fit, UsageError where alpha is unknown or an option
    is for another kind of checkpoint.
    """
    if adapters is None:
        refuse_options(checkpoint, options)
        return Resolved(dict(tensors))
    refuse_base(options)
    if not adapters.modules and not adapters.saved:  # a PeftModel of no adapters
        return Resolved(adapters.base)
    settings = read_settings(places(checkpoint), options.alpha)
    mode = options.mode or "fuse"
    model, dropped = adapters.base, {}
    if mode == "split":
        _check_ranks(adapters, settings)
    else:
        _refuse_tied(adapters, config)
        model = fused(adapters.base, adapters, settings, _family(config))
        dropped = _replaced(adapters)
    note = _note(mode, adapters, settings)
    if mode == "fuse":
        return Resolved(model, note, None, dropped)
    files = adapter_files(None, adapters, settings, config)
    return Resolved(model, replace(note, adapter=files.folder), files, dropped)


def resolve_alone(
    checkpoint: Checkpoint,
    adapters: Adapters,
    options: LoraOptions,
    config: ModelConfig | None,
) -> Resolved:
    """Adapters that were saved alone: as a folder for peft, or fused into ``options.base``.

    ``config`` is that of the base where there is one; its tensors then have their names on the Hub.
    """
    settings = read_settings(places(checkpoint), options.alpha)
    mode = options.mode or ("fuse" if options.base else "split")
    if options.base is None and mode != "split":
        raise UsageError(
            f"--lora {mode}: {checkpoint.path} holds adapters alone, without their base model",
            hint="Name the model that they were trained on with --base MODEL.",
        )
    note = _note(mode, adapters, settings)
    if mode == "split":
        _check_ranks(adapters, settings)
        files = adapter_files("", adapters, settings, config)
        return Resolved({}, replace(note, adapter="."), files)
    assert options.base is not None
    assert config is not None
    base = open_sound_model(options.base)
    _refuse_tied(replace(adapters, base=dict(base)), config)
    model = fused(dict(base), _by_hub_names(adapters, config), settings, config.model_type)
    if mode == "fuse":
        return Resolved(model, note, base=base)
    files = adapter_files(None, adapters, settings, config)
    return Resolved(model, replace(note, adapter=files.folder), files, base=base)


def kept_adapters(names: Iterable[str]) -> list[str]:
    """The warning that adapters are written as they are, where there are some."""
    if not has_adapters(names):
        return []
    return ["LoRA adapters are written as they are, beside the weights; --lora fuse fuses them"]


def base_config(options: LoraOptions) -> ModelConfig | None:
    """The config of ``--base``; UsageError where that is no model folder."""
    if options.base is None:
        return None
    if not is_model_folder(options.base):
        raise UsageError(
            f"--base {options.base}: no Hugging Face model folder",
            hint="Name a folder with config.json and *.safetensors; nothing is fetched.",
        )
    return load_config(options.base)


def refuse_options(checkpoint: Checkpoint, options: LoraOptions) -> None:
    """UsageError where something was asked of adapters, and there are none."""
    if options.asked:
        raise UsageError(
            f"{checkpoint.path}: no LoRA adapters in this checkpoint",
            hint="Leave out --lora, --lora-alpha and --base.",
        )


def refuse_base(options: LoraOptions) -> None:
    """UsageError where a base is named for adapters that have theirs beside them."""
    if options.base is not None:
        raise UsageError(
            f"--base {options.base}: the checkpoint has the weights below its adapters itself",
            hint="Leave --base out.",
        )


def _family(config: ModelConfig | None) -> str:
    return config.model_type if config is not None else ""


#: Stands for a weight whose name alone matters.
_NOTHING = LazyTensor((), FLOAT32, FLOAT32, ())


def _by_hub_names(adapters: Adapters, config: ModelConfig) -> Adapters:
    """The adapters by the names that their modules have on the Hub."""

    def on_hub(name: str) -> str:
        probe = f"{name}.weight"
        renamed = by_family({probe: _NOTHING}, config) or {probe: _NOTHING}
        return next(iter(renamed)).removesuffix(".weight")

    modules = {
        name: replace(module, name=name)
        for name, module in ((on_hub(m.name), m) for m in adapters.modules.values())
    }
    saved = {on_hub(name): found for name, found in adapters.saved.items()}
    if len(modules) != len(adapters.modules) or len(saved) != len(adapters.saved):
        raise MappingError("adapters of two modules that have one name on the Hub", [*modules])
    return Adapters({}, modules, saved)


def places(checkpoint: Checkpoint) -> list[Path]:
    """Where what describes the adapters may lie: with the shards, or with the config.

    verl 0.8 with Megatron has it in ``huggingface/adapter/``.
    """
    found = [Path(file.path).parent for file in checkpoint.files]
    found += [checkpoint.path] if checkpoint.path.is_dir() else []
    side = checkpoint.side_files
    found += [side, side / "adapter"] if side is not None else []
    return list(dict.fromkeys(found))


def _check_ranks(adapters: Adapters, settings: Settings) -> None:
    faults = list(rank_faults(adapters, settings))
    if faults:
        raise MappingError(f"{plural(len(faults), 'problem')} in the LoRA adapters", faults)


def _refuse_tied(adapters: Adapters, config: ModelConfig | None) -> None:
    """MappingError where fusing would change a head that is not in the checkpoint.

    An embedding's adapter is not the head's, even where both are one tensor.
    """
    heads = any(name.split(".")[-2:-1] == ["lm_head"] for name in adapters.base)
    changed = [module.name for module in adapters.modules.values() if module.is_embedding]
    changed += [name for name in adapters.saved if "embed" in name.rpartition(".")[2]]
    if changed and not heads and config is not None and config.tied:
        raise MappingError(
            "adapters of an embedding to which config.json ties the head: fused, the two differ,"
            " and the checkpoint holds no head of its own",
            changed,
            hint="Keep the adapters apart with --lora split.",
        )


def _replaced(adapters: Adapters) -> dict[str, str]:
    """The originals of what was trained whole."""
    return {
        f"{module}.original_module.{name}": "replaced by what was trained in its place"
        for module, found in adapters.saved.items()
        for name in found
        if f"{module}.{name}" in adapters.base
    }


def adapter_files(
    folder: str | None, adapters: Adapters, settings: Settings, config: ModelConfig | None
) -> AdapterFiles:
    """What peft is given, in ``folder`` below OUT (None: where a model's adapters lie)."""
    named = config.architecture if config is not None else ""
    task = next((task for end, task in _TASKS.items() if named.endswith(end)), None)
    made = peft_config(adapters, settings, _family(config), task)
    return AdapterFiles(ADAPTER_FOLDER if folder is None else folder, peft_tensors(adapters), made)


def _note(mode: str, adapters: Adapters, settings: Settings) -> LoraNote:
    return LoraNote(
        mode=mode,
        num_modules=len(adapters.modules),
        rank=adapters.rank,
        alpha=settings.alpha,
        source=settings.source,
        trained_whole=sorted(adapters.saved),
    )
