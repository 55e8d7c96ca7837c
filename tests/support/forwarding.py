"""One tiny input for whatever a model takes, and all numbers that it gives for it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tests.support.shrinking import walk

_LENGTH = 8
#: Where none is said.
_VOCABULARY = 32
#: Classifiers of sequences take more only where they know what padding is.
_BATCH = 1


def compute(model: Any) -> list[Any]:
    """Every floating-point tensor of the output, in order. Raises whatever its code does."""
    import torch

    inputs = make_inputs(model)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # where memory begins, as in a file, decides last bits
            parameter.data = parameter.data.clone()
        found = model(**inputs)
    return [each for each in _flatten(found) if each.is_floating_point()]


def make_inputs(model: Any) -> dict[str, Any]:
    """What ``forward`` needs: of the model's main input, and what goes with it."""
    import torch

    torch.manual_seed(0)
    taken = inspect.signature(model.forward).parameters
    inputs = {}
    for name, parameter in taken.items():
        if _is_given(name, parameter) or name == model.main_input_name:
            inputs[name] = _MAKERS.get(name, _make_ids)(model)
    if "bbox" in taken and "input_ids" in inputs:
        inputs["bbox"] = torch.zeros(_BATCH, _LENGTH, 4, dtype=torch.long)
    if "inputs" in inputs:
        inputs.pop("input_ids", None)
    if "use_cache" in taken:
        inputs["use_cache"] = False
    return inputs


def _is_given(name: str, parameter: inspect.Parameter) -> bool:
    """Whether it is tokens, or what there is no model without."""
    by_name = parameter.kind is not inspect.Parameter.VAR_KEYWORD
    wanted = by_name and name in _MAKERS and parameter.default is inspect.Parameter.empty
    return wanted or name in ("input_ids", "decoder_input_ids", "qformer_input_ids")


def _make_ids(model: Any) -> Any:
    """Tokens that mean nothing else to the model, and at the end, where it has one, its last."""
    import torch

    configs = list(walk(model.config))
    sizes = [getattr(each, "vocab_size", None) for each in configs]
    vocabulary = min((size for size in sizes if size), default=_VOCABULARY)
    special = {
        value
        for each in configs
        for key, value in vars(each).items()
        if key.endswith(("_token_id", "_token_index", "_id")) and type(value) is int
    }
    plain = [each for each in range(vocabulary) if each not in special] or [0]
    ids = torch.tensor([[plain[7 * place % len(plain)] for place in range(_LENGTH)]] * _BATCH)
    last = getattr(model.config, "eos_token_id", None)
    if type(last) is int and 0 <= last < vocabulary:
        ids[:, -1] = last
    return ids


def _find(model: Any, *names: str, default: int) -> int:
    """A number of the config, or of one in it."""
    for name in names:
        for each in walk(model.config):
            value = getattr(each, name, None)
            if isinstance(value, (list, tuple)) and value and type(value[0]) is int:
                return int(value[0])
            if type(value) is int and value:
                return value
    return default


def _make_pixels(model: Any) -> Any:
    import torch

    if "Video" in type(model).__name__:
        return _make_video(model)
    size = _find(model, "image_size", "input_size", default=64)
    return torch.randn(_BATCH, _find(model, "num_channels", "in_channels", default=3), size, size)


def _make_inputs(model: Any) -> Any:
    """What a model takes that takes all there is."""
    return _make_pixels(model) if "Image" in type(model).__name__ else _make_ids(model)


def _make_video(model: Any) -> Any:
    import torch

    size = _find(model, "image_size", "crop_size", default=32)
    frames = _find(model, "num_frames", "frames_per_clip", default=4)
    return torch.randn(1, frames, 3, size, size)


def _make_wave(model: Any) -> Any:
    import torch

    return torch.randn(_BATCH, 4000)


def _make_features(model: Any) -> Any:
    import torch

    width = _find(
        model,
        "feature_projection_input_dim",
        "num_mel_bins",
        "input_feat_per_channel",
        "feature_size",
        default=80,
    )
    length = _find(model, "max_source_positions", default=64)
    if "whisper" in model.config.model_type or "moonshine" in model.config.model_type:
        return torch.randn(_BATCH, width, 2 * length)
    return torch.randn(_BATCH, min(length, 64), width)


#: Everything else is tokens.
_MAKERS: dict[str, Callable[[Any], Any]] = {
    "pixel_values": _make_pixels,
    "pixel_values_videos": _make_video,
    "input_values": _make_wave,
    "input_features": _make_features,
    "inputs": _make_inputs,
}


def _flatten(found: Any) -> Iterator[Any]:
    import torch

    if isinstance(found, torch.Tensor):
        yield found
    elif isinstance(found, Mapping):
        for value in found.values():
            yield from _flatten(value)
    elif isinstance(found, (list, tuple)):
        for value in found:
            yield from _flatten(value)
