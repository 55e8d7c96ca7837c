"""Every class of transformers that generates or classifies, tiny: of its own config, made small.

What cannot be made small this way is said and left out: it is about the config, not the weights.
"""

from __future__ import annotations

import copy
import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tests.support.shrinking import shrink, walk
from tests.support.shrinking_recipes import RECIPES

GENERATING = ("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "SEQ_TO_SEQ_CAUSAL_LM", "MULTIMODAL_LM")
KINDS = (
    *GENERATING, "MASKED_LM",
    "SEQUENCE_CLASSIFICATION", "TOKEN_CLASSIFICATION", "QUESTION_ANSWERING",
    "IMAGE_CLASSIFICATION", "VIDEO_CLASSIFICATION", "AUDIO_CLASSIFICATION",
)  # fmt: skip
TIE = "tie_word_embeddings"
_MOST_PARAMETERS = 9_000_000
_SECONDS = 60
_SPREAD = 0.02


class TooLargeError(Exception):
    """A model that its config does not make small."""


def list_classes(kinds: Sequence[str] = KINDS) -> list[tuple[str, str]]:
    """Model type and class, of all that generate, or classify whatever they are given."""
    from transformers.models.auto import modeling_auto as auto

    found: dict[tuple[str, str], None] = {}
    for kind in kinds:
        for model_type, named in getattr(auto, f"MODEL_FOR_{kind}_MAPPING_NAMES", {}).items():
            for each in named if isinstance(named, (tuple, list)) else (named,):
                found[model_type, each] = None
    return list(found)


def build_tiny(model_type: str, class_name: str, tied: bool | None = None) -> Any:
    """The model with random weights. Raises whatever its code does where it cannot be small.

    ``tied`` is what its config, at every level, says of the embeddings; None for what it says by
    itself.
    """
    import torch
    import transformers

    model_class = getattr(transformers, class_name)
    config = make_config(model_type, model_class)
    if tied is not None:
        _tie(config, tied)
    with _in_time(), torch.device("meta"):
        count = sum(parameter.numel() for parameter in model_class(config).parameters())
    if count > _MOST_PARAMETERS:
        raise TooLargeError(f"{count / 1e6:.0f} million parameters")
    torch.manual_seed(0)
    with _in_time():
        model = model_class(config)
    _make_distinct(model)
    return model.eval()


def list_wide(model_type: str, class_name: str, dtype: str) -> list[str]:
    """:func:`find_wide` of the model, tiny; of what cannot be built nothing."""
    import transformers

    model_class = getattr(transformers, class_name)
    try:
        return find_wide(model_class, make_config(model_type, model_class), dtype)
    except Exception:
        return []


def find_wide(model_class: Any, config: Any, dtype: str) -> list[str]:
    """What a model holds as float32 though it is built in ``dtype``, by names in memory.

    Created as float32, or kept so by the loader.
    """
    import torch
    from transformers.modeling_utils import local_torch_dtype

    asked = getattr(torch, dtype)
    with _in_time(), torch.device("meta"), local_torch_dtype(asked):
        model = model_class(config)
    kept = [re.compile(pattern) for pattern in model._get_dtype_plan(asked)]
    return [
        name
        for name, tensor in model.state_dict().items()
        if tensor.dtype == torch.float32 or any(pattern.search(name) for pattern in kept)
    ]


def list_ways(model: Any) -> list[bool]:
    """What else a model's config can say of tied embeddings, where its class has any."""
    tying = any(getattr(module, "_tied_weights_keys", None) for module in model.modules())
    said = _say(model.config)
    return [way for way in (True, False) if tying and said != {way} and _keeps(model.config, way)]


def _say(config: Any) -> set[bool]:
    return {getattr(each, TIE) for each in walk(config) if hasattr(each, TIE)}


def _tie(config: Any, tied: bool) -> None:
    for each in walk(config):
        if hasattr(each, TIE):
            setattr(each, TIE, tied)


def _keeps(config: Any, tied: bool) -> bool:
    """Whether it says so when it is read again: some always tie, and some refuse to."""
    changed = copy.deepcopy(config)
    try:
        _tie(changed, tied)
        return _say(type(config).from_dict(changed.to_dict())) == {tied}
    except Exception:
        return False


def make_config(model_type: str, model_class: Any) -> Any:
    """The config, small; the part of it that the class is of where that is not all."""
    import transformers

    known = RECIPES.get(model_type, {}) | RECIPES.get(model_class.__name__, {})
    config = transformers.CONFIG_MAPPING[model_type](**known)
    shrink(config)
    config = _read_again(config)
    wanted = model_class.config_class
    parts = [each for each in walk(config) if type(each) is wanted]
    return parts[0] if parts else config


def _read_again(config: Any) -> Any:
    """The config as it is after it was saved, with what it computes of the rest."""
    try:
        return type(config).from_dict(config.to_dict())
    except Exception:  # a part of it is what cannot be read: the class may be of another
        return config


def _make_distinct(model: Any) -> None:
    """Change every parameter that is trained a little: of fresh ones, many elements are equal."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                parameter.add_(torch.randn_like(parameter), alpha=_SPREAD)


@contextmanager
def _in_time() -> Iterator[None]:
    """Some build for minutes, on the meta device too."""

    def stop(*_: object) -> None:
        raise TooLargeError(f"not built in {_SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
