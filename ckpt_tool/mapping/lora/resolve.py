"""Checkpoints with LoRA adapters: fused into the model, split off, or both.

Beside a model the adapters become a folder that peft loads (``lora_adapter/``); adapters alone
(verl's ``save_lora_only``) become such a folder themselves, unless their base is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ckpt_tool.common.errors import MappingError, UsageError
from ckpt_tool.common.wording import count_noun
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.hub.form import HubModel
from ckpt_tool.mapping.hub.memory import to_memory
from ckpt_tool.mapping.hub.names import rename_for_hub
from ckpt_tool.mapping.lora.adapters import Adapters
from ckpt_tool.mapping.lora.checked import refuse_taken_out, require_explained, require_promised
from ckpt_tool.mapping.lora.fuse import find_rank_faults, fuse_adapters
from ckpt_tool.mapping.lora.names import has_adapters, take_apart
from ckpt_tool.mapping.lora.options import AdapterFiles, LoraNote, LoraOptions
from ckpt_tool.mapping.lora.parameters import settle_parameters
from ckpt_tool.mapping.lora.peft_files import make_peft_config, name_for_peft
from ckpt_tool.mapping.lora.settings import Settings, read_settings
from ckpt_tool.mapping.lora.tied import give_tied_head
from ckpt_tool.mapping.lora.tokens import list_rows
from ckpt_tool.tensors.lazy import LazyTensor

#: Where in a model's folder its adapters lie: as verl has them, and where transformers does not
#: load them on its own.
ADAPTER_FOLDER = "lora_adapter"
_TASKS = {"ForCausalLM": "CAUSAL_LM", "ForTokenClassification": "TOKEN_CLS",
          "ForSequenceClassification": "SEQ_CLS"}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where adapters are from: the checkpoint's ``path``; ``folders`` that may describe them.

    ``named``: what the user named of it.
    """

    path: Path
    folders: Sequence[Path]
    named: Sequence[Path] = ()


def resolve_adapters(
    model: HubModel, base: HubModel | None, options: LoraOptions, place: Place
) -> HubModel:
    """The model, whose names are those in memory, with its adapters as asked for.

    ``base`` is the model of adapters that were saved alone; its names are those on the Hub, and so
    are then the result's. MappingError where adapters do not fit, UsageError where alpha is unknown
    or an option is for another kind of checkpoint.
    """
    adapters = take_apart(model.tensors) if has_adapters(model.tensors) else None
    if adapters is None:
        refuse_options(place.path, options)
        return model
    if not adapters.base:
        return _resolve_alone(replace(model, tensors={}), base, adapters, options, place)
    refuse_base(options)
    model = replace(model, tensors=adapters.base)
    if not (adapters.modules or adapters.saved or adapters.tokens):  # a PeftModel of no adapters
        return model
    settings = _read_settings(adapters, options, place)
    adapters = settle_parameters(adapters, adapters.base, settings)
    return _apply(model, adapters, adapters, settings, options.mode or "fuse")


def holds_only_adapters(tensors: Mapping[str, LazyTensor]) -> bool:
    """Whether these are adapters without their model; raises what taking them apart does."""
    return has_adapters(tensors) and not take_apart(tensors).base


def note_kept_adapters(model: HubModel) -> HubModel:
    """The model with a warning where there are adapters in it, which stay as they are."""
    if not has_adapters(model.tensors):
        return model
    said = (
        "LoRA adapters are written as they are, beside the weights; `lora.mode='fuse'` fuses them"
    )
    return replace(model, warnings=(*model.warnings, said))


def refuse_options(path: Path, options: LoraOptions) -> None:
    """UsageError where something was asked of adapters, and there are none."""
    if options.asked:
        raise UsageError(
            f"{path}: no LoRA adapters in this checkpoint",
            hint="Leave out `lora.mode`, `lora.alpha` and `lora.base`.",
        )


def refuse_base(options: LoraOptions) -> None:
    """UsageError where a base is named for adapters that have theirs beside them."""
    if options.base is not None:
        raise UsageError(
            f"`lora.base={str(options.base)!r}`: the checkpoint has the weights below its adapters"
            " itself",
            hint="Leave `lora.base` out.",
        )


def make_adapter_files(
    folder: str | None, adapters: Adapters, settings: Settings, config: ModelConfig | None
) -> AdapterFiles:
    """What peft is given, in ``folder`` below OUT (None: where a model's adapters lie)."""
    architecture = config.architecture if config is not None else ""
    task = next((task for end, task in _TASKS.items() if architecture.endswith(end)), None)
    made = make_peft_config(adapters, settings, _family_of(config), task)
    named = name_for_peft(adapters, settings)
    return AdapterFiles(ADAPTER_FOLDER if folder is None else folder, named, made)


def _read_settings(adapters: Adapters, options: LoraOptions, place: Place) -> Settings:
    """The settings of these adapters; MappingError where they say what the tensors do not."""
    settings = read_settings(place.folders, options.alpha, place.named)
    modules = adapters.modules.values()
    require_promised(settings.config, {m.name: m.beyond_factors for m in modules})
    return settings


def _resolve_alone(
    model: HubModel,
    base: HubModel | None,
    adapters: Adapters,
    options: LoraOptions,
    place: Place,
) -> HubModel:
    """Adapters that were saved alone: as a folder for peft, or fused into ``base``."""
    settings = _read_settings(adapters, options, place)
    require_explained(adapters.beside, settings.config)
    mode = options.mode or ("fuse" if options.base else "split")
    if mode == "split":
        adapters = settle_parameters(adapters, {}, settings)
        _require_ranks(adapters, settings)
        files = make_adapter_files("", adapters, settings, model.config)
        return replace(model, lora=_note(mode, adapters, settings, "."), adapter=files)
    if base is None or base.config is None:
        raise UsageError(
            f"`lora.mode={mode!r}`: {place.path} holds adapters alone, without their base model",
            hint="Name the model that they were trained on with `lora.base=MODEL`.",
        )
    refuse_taken_out(settings.config)
    named, tensors = _rename(adapters, base.config), base.tensors
    if any(weight not in tensors for weight in _list_weights(named)):
        named, tensors = adapters, to_memory(base.tensors, base.config).tensors
    tensors = give_tied_head(tensors, named, base.config)
    named = settle_parameters(named, tensors, settings)
    model = replace(model, tensors=tensors, warnings=model.warnings + base.warnings)
    return _apply(model, settle_parameters(adapters, {}, settings), named, settings, mode)


def _apply(
    model: HubModel, adapters: Adapters, named: Adapters, settings: Settings, mode: str
) -> HubModel:
    """The model with its adapters fused, split off, or both; ``named``: by the model's names."""
    note = _note(mode, adapters, settings)
    if mode == "split":
        _require_ranks(adapters, settings)
    else:
        whole = give_tied_head(model.tensors, named, model.config)
        tensors = fuse_adapters(whole, named, settings, _family_of(model.config))
        model = replace(model, tensors=tensors, dropped=model.dropped | _list_replaced(adapters))
    if mode == "fuse":
        return replace(model, lora=note)
    files = make_adapter_files(None, adapters, settings, model.config)
    return replace(model, lora=replace(note, adapter=files.folder), adapter=files)


def _family_of(config: ModelConfig | None) -> str:
    return config.model_type if config is not None else ""


def _rename(adapters: Adapters, config: ModelConfig) -> Adapters:
    """The adapters by the names that their modules have on the Hub."""

    def name_on_hub(module: str) -> str:
        return rename_for_hub(f"{module}.weight", config).removesuffix(".weight")

    modules = {
        key: replace(module, name=name_on_hub(module.name))
        for key, module in adapters.modules.items()
    }
    saved = {name_on_hub(name): found for name, found in adapters.saved.items()}
    tokens = {name_on_hub(name): rows for name, rows in adapters.tokens.items()}
    beside = {rename_for_hub(name, config): tensor for name, tensor in adapters.beside.items()}
    names = {module.name for module in modules.values()}
    if len(names) != len({module.name for module in adapters.modules.values()}):
        raise MappingError("adapters of two modules that have one name on the Hub", sorted(names))
    return Adapters({}, modules, saved, tokens, beside)


def _list_weights(adapters: Adapters) -> list[str]:
    """What of a model the adapters are about, where each is about a module's weight."""
    return [*(module.weight for module in adapters.modules.values()), *adapters.beside]


def _require_ranks(adapters: Adapters, settings: Settings) -> None:
    faults = list(find_rank_faults(adapters, settings))
    if faults:
        raise MappingError(f"{count_noun(len(faults), 'problem')} in the LoRA adapters", faults)


def _list_replaced(adapters: Adapters) -> dict[str, str]:
    """The originals of what was trained whole."""
    return {
        f"{module}.original_module.{name}": "replaced by what was trained in its place"
        for module, found in adapters.saved.items()
        for name in found
        if f"{module}.{name}" in adapters.base
    }


def _note(mode: str, adapters: Adapters, settings: Settings, folder: str | None = None) -> LoraNote:
    return LoraNote(
        mode=mode,
        num_modules=len(adapters.modules),
        rank=adapters.rank,
        alpha=settings.alpha,
        source=settings.source,
        trained_whole=sorted([*adapters.saved, *adapters.beside]),
        num_tokens=sum(rows.shape[0] for rows in list_rows(adapters, settings).values()),
        adapter=folder,
    )
