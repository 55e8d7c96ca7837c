"""The class that tensors are of, as ``config.json`` names it."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

from ckpt_tool.common.packages import list_missing, say_missing
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.hub.library import import_library
from ckpt_tool.tensors.lazy import LazyTensor

_KIND = re.compile(r"For(CausalLM|ConditionalGeneration|(?:Token|Sequence)Classification)$")


def name_architecture(tensors: Mapping[str, LazyTensor], config: ModelConfig) -> ModelConfig:
    """The config naming the class that these tensors, by their names on the Hub, are of.

    A head called ``score`` in place of ``lm_head`` is a classifier's (critics, reward models),
    whatever class the config was copied from: with a bias for tokens, without for sequences.
    MappingError where transformers has to be asked for the class and cannot be imported.
    """
    named = config.architecture or find_architecture(config)
    score = tensors.get("score.weight")
    family = _KIND.sub("", named)
    is_head = score is not None and score.shape and "lm_head.weight" not in tensors
    if score is not None and is_head and family != named:
        kind = "Token" if "score.bias" in tensors else "Sequence"
        if not named.endswith(f"For{kind}Classification"):
            named = _find_own_classifier(config, kind) or f"{family}For{kind}Classification"
        config = set_labels(config, score.shape[0])
    if named and named != config.said_architecture:
        config = config.with_changes(architectures=[named])
    return config


def find_architecture(config: ModelConfig) -> str:
    """The class of a family's generating model; empty where nobody knows it.

    MappingError where transformers has to be asked and cannot be imported.
    """
    if config.family.architecture:
        return config.family.architecture
    auto = _import_auto(config)
    tables = [auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
    if "vision_config" in config.raw:
        tables.insert(0, auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    for table in tables:
        if config.model_type in table:
            return str(table[config.model_type])
    return ""


def _find_own_classifier(config: ModelConfig, kind: str) -> str:
    """The family's classifier of ``kind``; the one that the config names where there is no other.

    Empty where there is none at all. MappingError where transformers cannot be imported.
    """
    others = {find_classifier(config, other) for other in ("Token", "Sequence")}
    named = config.architecture if config.architecture in others else ""
    return find_classifier(config, kind) or named


def find_classifier(config: ModelConfig, kind: str) -> str:
    """The class of a family's classifier of ``kind``, Token or Sequence; empty if there is none.

    MappingError where transformers cannot be imported.
    """
    auto = _import_auto(config)
    table = getattr(auto, f"MODEL_FOR_{kind.upper()}_CLASSIFICATION_MAPPING_NAMES")
    return str(table.get(config.model_type, ""))


def warn_of_unknown_class(config: ModelConfig) -> list[str]:
    """A warning where the config names a classifier that transformers does not have.

    Also where transformers is not installed; MappingError where it is and cannot be imported.
    """
    kind = _KIND.search(config.architecture)
    if kind is None or not kind[1].endswith("Classification"):
        return []
    missing = list_missing(["transformers"])
    if missing and "transformers" not in sys.modules:
        return [f"nobody says whether there is a {config.architecture}: {say_missing(missing)}"]
    if find_classifier(config, kind[1].removesuffix("Classification")) or "auto_map" in config.raw:
        return []
    return [
        f"the installed transformers has no {config.architecture}, which these weights are of:"
        " its Auto classes do not open them"
    ]


def set_labels(config: ModelConfig, count: int) -> ModelConfig:
    """The config with ``count`` labels; transformers assumes two where it names none."""
    named = config.raw.get("id2label")
    if (len(named) if named and isinstance(named, (dict, list)) else 2) == count:
        return config
    labels = {str(index): f"LABEL_{index}" for index in range(count)}
    return config.with_changes(
        id2label=labels, label2id={label: int(index) for index, label in labels.items()}
    )


def _import_auto(config: ModelConfig) -> Any:
    needed = f"the classes of model type {config.model_type or '(none)'} are looked up there"
    return import_library("transformers.models.auto.modeling_auto", needed)
