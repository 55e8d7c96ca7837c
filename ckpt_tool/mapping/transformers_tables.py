"""Families that we do not spell out, through transformers' own conversion tables.

transformers 5 knows how to bring the state dict of each of its models into the form it loads from
(``revert_weight_conversion``). It touches tensors only through operations such as ``chunk`` and
``unbind``, so it can be run on a model on the meta device with stand-ins that do the same on lazy
tensors. Importing transformers takes seconds, so this is the second choice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ckpt_tool.errors import MappingError
from ckpt_tool.lazy import LazyTensor, cat
from ckpt_tool.mapping.config import ModelConfig


@dataclass(frozen=True)
class NamedByTransformers:
    """Tensors under Hub names, the config (with what must stay float32), and what to tell."""

    tensors: dict[str, LazyTensor]
    config: ModelConfig
    warnings: list[str]


def hub_names(tensors: Mapping[str, LazyTensor], config: ModelConfig) -> NamedByTransformers:
    """Names on the Hub for ``tensors``; names are kept, with a warning, where nothing is known."""
    kept = NamedByTransformers(dict(tensors), config, [])
    try:
        model = meta_model(config)
        from transformers.core_model_loading import revert_weight_conversion
    except Exception as error:  # whatever a model's code raises: the family stays unknown
        reason = str(error).strip().split("\n")[0]
        return replace(kept, warnings=[_kept_warning(config, reason)])
    config = replace(config, float32_pattern=_float32_pattern(model))
    kept = replace(kept, config=config)
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    memory = set(model.state_dict())
    keep_prefixes(model)
    if set(tensors) | tied != memory | tied:
        hub = set(revert_weight_conversion(model, _without(model.state_dict(), tied)))
        if set(tensors) | tied == hub | tied:
            return kept
        return replace(kept, warnings=[_kept_warning(config, "its names are not the model's")])
    stand_ins = {name: _StandIn(tensor) for name, tensor in tensors.items()}
    try:
        reverted = revert_weight_conversion(model, stand_ins)
    except NotImplementedError as error:
        raise MappingError(
            f"model type {config.model_type}: on the Hub its weights are rearranged ({error})",
            hint="Write the tensors as they are with --config none.",
        ) from error
    return replace(kept, tensors={name: found.tensor for name, found in reverted.items()})


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
    with init_empty_weights():
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


def _kept_warning(config: ModelConfig, reason: str) -> str:
    return (
        f"model type {config.model_type or '(none)'} is not known ({reason});"
        " tensors keep the names they have in the checkpoint"
    )


def _without(names: Mapping[str, Any], left_out: Iterable[str]) -> dict[str, Any]:
    gone = set(left_out)
    return {name: value for name, value in names.items() if name not in gone}


def _float32_pattern(model: Any) -> re.Pattern[str] | None:
    names = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    return re.compile("|".join(sorted(names))) if names else None


class _StandIn:
    """Does to a lazy tensor what transformers' conversions do to a ``torch.Tensor``."""

    def __init__(self, tensor: LazyTensor) -> None:
        self.tensor = tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def ndim(self) -> int:
        return len(self.tensor.shape)

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def contiguous(self) -> _StandIn:
        return self

    def narrow(self, dim: int, start: int, length: int) -> _StandIn:
        return _StandIn(self.tensor.narrow(dim, start, length))

    def split(self, sizes: int | list[int], dim: int = 0) -> tuple[_StandIn, ...]:
        length = self.shape[dim]
        if isinstance(sizes, int):
            sizes = [min(sizes, length - start) for start in range(0, length, sizes)]
        starts = [sum(sizes[:index]) for index in range(len(sizes))]
        return tuple(self.narrow(dim, at, n) for at, n in zip(starts, sizes, strict=True))

    def chunk(self, parts: int, dim: int = 0) -> tuple[_StandIn, ...]:
        return self.split(-(-self.shape[dim] // parts), dim)

    def select(self, dim: int, index: int) -> _StandIn:
        return _StandIn(self.tensor.select(dim, index))

    def unbind(self, dim: int = 0) -> tuple[_StandIn, ...]:
        return tuple(self.select(dim, index) for index in range(self.shape[dim]))

    def squeeze(self, dim: int) -> _StandIn:
        return self.select(dim, 0) if self.shape[dim] == 1 else self

    def transpose(self, dim0: int, dim1: int) -> _StandIn:
        return _StandIn(self.tensor.transpose(dim0, dim1))

    def reshape(self, *_: Any) -> _StandIn:
        raise NotImplementedError("reshape")

    view = reshape

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """``torch.chunk(stand_in, ...)`` and the like."""
        kwargs = dict(kwargs or {})
        if func.__name__ == "cat":
            dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
            return _StandIn(cat([part.tensor for part in args[0]], dim))
        method = getattr(cls, func.__name__, None)
        if method is None:
            raise NotImplementedError(func.__name__)
        return method(*args, **kwargs)
