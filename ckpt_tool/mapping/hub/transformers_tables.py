"""Families that we do not spell out, through transformers' own conversion tables.

transformers 5 knows how to bring the state dict of each of its models into the form it loads from
(``revert_weight_conversion``). It touches tensors only through operations such as ``chunk`` and
``unbind``, so it can be run on a model on the meta device with stand-ins that do the same on lazy
tensors. Importing transformers takes seconds, so this is the second choice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ckpt_tool.common.errors import MappingError
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.hub.conversion_tensor import ConversionTensor
from ckpt_tool.mapping.hub.form import HubModel
from ckpt_tool.tensors.dtypes import FLOAT32
from ckpt_tool.tensors.lazy import LazyTensor


def hub_names(tensors: Mapping[str, LazyTensor], config: ModelConfig) -> HubModel:
    """Names on the Hub for ``tensors``; names are kept, with a warning, where nothing is known."""
    kept = HubModel(dict(tensors), config)
    try:
        model = meta_model(config)
        import transformers.core_model_loading  # noqa: F401 (not there before transformers 5)
    except Exception as error:  # whatever a model's code raises: the family stays unknown
        reason = str(error).strip().split("\n")[0]
        return replace(kept, warnings=(_kept_warning(config, reason),))
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    shapes = {n: tuple(t.shape) for n, t in model.state_dict().items() if n not in tied}
    in_memory = set(tensors) - tied == set(shapes)
    source = tensors if in_memory else {name: _without_data(s) for name, s in shapes.items()}
    reverted = _revert(model, source, config)
    if not in_memory and set(tensors) - tied != set(reverted):
        return replace(kept, warnings=(_kept_warning(config, "its names are not the model's"),))
    wide = frozenset(name for name, found in reverted.items() if found.marked)
    found = {name: found.tensor for name, found in reverted.items()} if in_memory else kept.tensors
    return HubModel(found, replace(config, float32_names=wide))


def _revert(
    model: Any, tensors: Mapping[str, LazyTensor], config: ModelConfig
) -> dict[str, ConversionTensor]:
    """Transformers' own conversion to the form of the Hub; what stays float32 is marked.

    Which tensors those are is said of names in memory, so the mark has to travel with them.
    """
    from transformers.core_model_loading import revert_weight_conversion

    keep_prefixes(model)
    patterns = sorted(set(getattr(model, "_keep_in_fp32_modules_strict", None) or ()))
    wide = re.compile("|".join(patterns)) if patterns else None
    stand_ins = {
        name: ConversionTensor(tensor, marked=bool(wide and wide.search(name)))
        for name, tensor in tensors.items()
    }
    try:
        return dict(revert_weight_conversion(model, stand_ins))
    except NotImplementedError as error:
        raise MappingError(
            f"model type {config.model_type}: on the Hub its weights are rearranged ({error})",
            hint="Write the tensors as they are with --config none.",
        ) from error


def meta_model(config: ModelConfig) -> Any:
    """The model of ``config`` on the meta device: names and shapes without memory.

    Raises what transformers raises; LookupError where it does not know the class. Remote code is
    never run.
    """
    import transformers
    from accelerate import init_empty_weights

    transformers.logging.set_verbosity_error()
    with TemporaryDirectory() as folder:  # the config as it will be written
        (Path(folder) / "config.json").write_bytes(config.to_bytes())
        settings = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    named = config.architecture
    model_class = getattr(transformers, named, None)
    if model_class is None:
        raise LookupError(f"transformers {transformers.__version__} has no class {named!r}")
    with init_empty_weights(include_buffers=True):  # without, each weight is allocated first
        return model_class(settings)


def keep_prefixes(model: Any) -> None:
    """Have transformers also write the prefixes that the Hub has (``vision_model.``).

    For a model that was not loaded from such a checkpoint it leaves them out. The text-only
    Qwen3.5 classes are the exception: their table holds the multimodal parent's prefix.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping

    if model.config.model_type not in ("qwen3_5_text", "qwen3_5_moe_text"):
        model._weight_conversions = get_model_conversion_mapping(model, add_legacy=False)


def architecture_of(config: ModelConfig) -> str:
    """The class of a family's generating model; empty where transformers does not know it."""
    try:
        from transformers.models.auto import modeling_auto as auto
    except Exception:  # a broken or absent transformers: the config stays as it is
        return ""
    tables = [auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
    if "vision_config" in config.raw:
        tables.insert(0, auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    return next((str(t[config.model_type]) for t in tables if config.model_type in t), "")


def classifier_of(config: ModelConfig, kind: str) -> str:
    """The class of a family's classifier of ``kind``, Token or Sequence; empty if there is none."""
    try:
        from transformers.models.auto import modeling_auto as auto
    except Exception:  # a broken or absent transformers: nothing is known of it
        return ""
    table = getattr(auto, f"MODEL_FOR_{kind.upper()}_CLASSIFICATION_MAPPING_NAMES")
    return str(table.get(config.model_type, ""))


def _kept_warning(config: ModelConfig, reason: str) -> str:
    return (
        f"model type {config.model_type or '(none)'} is not known ({reason});"
        " tensors keep the names they have in the checkpoint"
    )


def _without_data(shape: tuple[int, ...]) -> LazyTensor:
    return LazyTensor(shape, FLOAT32, FLOAT32, ())
