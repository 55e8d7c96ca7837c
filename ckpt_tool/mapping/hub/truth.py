"""``config.json`` says what the weights are: where it does not, it is corrected, or refused.

What is said beside the weights was copied from a base model, and training changed these: new
tokens were added, fp8 weights were trained in bfloat16, a tower was not trained and not saved.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.untrusted import show
from ckpt_tool.common.wording import join_words
from ckpt_tool.mapping.config import MTP_KEYS, ModelConfig
from ckpt_tool.mapping.hub.form import HubModel
from ckpt_tool.mapping.hub.heads import find_only_embedding, is_head
from ckpt_tool.mapping.quantised import find_quantisation
from ckpt_tool.tensors.lazy import LazyTensor

QUANTISATION = "quantization_config"

#: Parts of a multimodal model, by their key in the config, and what names of their tensors have.
_PARTS = {
    "vision_config": r"vis(ion|ual)|ima?ge?|patch|vit\b|vpm|siglip|clip|tower|projector|radio",
    "audio_config": r"audio|speech|whisper|conformer|tower",
    "thinker_config": r"thinker|audio|visual",
    "talker_config": r"talker",
    "code2wav_config": r"code2wav",
    "token2wav_config": r"token2wav",
}
#: How layers for multi-token prediction are called.
_PREDICTION = re.compile(r"(^|[._])(mtp|nextn)")
_UNSERVED = (
    "servers that use them for speculative decoding will not find {0}; `fill_from=BASE` takes {0}"
    " from the model that has {0}"
)
_LAYER = re.compile(r"(?:^|\.)layers\.(\d{1,9})\.")


def refuse_other_part(tensors: Iterable[str], config: ModelConfig) -> None:
    """MappingError where the config is a multimodal model's and the weights are its text part's."""
    said = [key for key in _PARTS if isinstance(config.raw.get(key), dict)]
    names = list(tensors)
    if not said or not names or any(_has_part(key, names) for key in said):
        return
    parts = join_words([key.removesuffix("_config") for key in said])
    raise MappingError(
        f"{config.path} is a multimodal model's ({parts} beside the text), and these are weights of"
        f" a text model alone: none of {len(names)} tensors is of anything else",
        hint="Name the config of the text model with `config=DIR`, or with `fill_from=BASE` the"
        " model that has the rest.",
    )


def _has_part(key: str, names: Iterable[str]) -> bool:
    found = re.compile(_PARTS[key], re.IGNORECASE)
    return any(found.search(name) for name in names)


def tell_truth(model: HubModel) -> HubModel:
    """The model, by its names on the Hub, with a config that says what its weights are.

    What was left out of the config is in ``dropped``, what was changed or promised in vain in
    ``warnings``.
    """
    if model.config is None:
        return model
    config, dropped = _settle_quantisation(model.config, model.tensors)
    config, said = _correct_vocabulary(config, model.tensors)
    warnings = (*model.warnings, *said, *_warn_of_prediction(config, model.tensors))
    return replace(model, config=config, dropped=model.dropped | dropped, warnings=warnings)


def drop_quantisation(config: ModelConfig) -> ModelConfig:
    """The config without quantisation, at any level."""
    for key in _find_quantisation(config):
        if key == QUANTISATION:
            config = config.without(key)
        else:
            part = {k: v for k, v in config.written[key].items() if k != QUANTISATION}
            config = config.with_changes(**{key: part})
    return config


def _find_quantisation(config: ModelConfig) -> list[str]:
    """The top-level keys that are about quantisation, or have a part that is."""
    return [
        key
        for key, part in config.written.items()
        if key == QUANTISATION
        or (key.endswith("_config") and isinstance(part, dict) and QUANTISATION in part)
    ]


def _settle_quantisation(
    config: ModelConfig, tensors: Mapping[str, LazyTensor]
) -> tuple[ModelConfig, dict[str, str]]:
    """The config without quantisation where no weight is quantised."""
    found = _find_quantisation(config)
    if not found or find_quantisation(tensors):
        return config, {}
    names = [key if key == QUANTISATION else f"{key}.{QUANTISATION}" for key in found]
    reason = "none of these weights is quantised"
    return drop_quantisation(config), {f"config.json: {name}": reason for name in names}


def _correct_vocabulary(
    config: ModelConfig, tensors: Mapping[str, LazyTensor]
) -> tuple[ModelConfig, list[str]]:
    """The config with as many tokens as the embedding has, where only that differs.

    An embedding that is not as wide as the model, or has another length than the head, was not
    resized: it is of another model, or half of one.
    """
    said, name = config.text.get("vocab_size"), find_only_embedding(tensors)
    if name is None or type(said) is not int or len(tensors[name].shape) != 2:
        return config, []
    rows, width = tensors[name].shape
    heads = {tensors[head].shape[0] for head in filter(is_head, tensors)}
    if rows == said or width != config.text.get("hidden_size", width) or heads - {rows}:
        return config, []
    if not _is_whole(tensors, width):
        return config, []
    warning = (
        f"config.json: vocab_size was {said}, and is {rows} now, the number of rows of {name}: its"
        " tokenizer may have more tokens, or rows are padding"
    )
    return config.with_text(vocab_size=rows), [warning]


def _is_whole(tensors: Mapping[str, LazyTensor], width: int) -> bool:
    """Whether norms are as wide as the model: those of half a checkpoint are not."""
    norms = [t.shape for n, t in tensors.items() if n.endswith("input_layernorm.weight")]
    return all(shape == (width,) for shape in norms if len(shape) == 1)


def _warn_of_prediction(config: ModelConfig, tensors: Iterable[str]) -> Iterator[str]:
    """A warning where layers for multi-token prediction, or heads of theirs, are not there."""
    key = next((key for key in MTP_KEYS if config.text.get(key)), None)
    layers = config.text.get("num_hidden_layers")
    if key is None:
        return
    ahead = [name for name in tensors if _is_prediction(name, layers)]
    if not ahead:
        yield (
            f"{config.path} promises layers for multi-token prediction ({key} is"
            f" {show(config.text[key])}), and there are none: {_UNSERVED.format('them')}"
        )
    for part in _list_absent(config):
        if ahead and not any(part in name for name in ahead):
            yield (
                f"layers for multi-token prediction have no {part.strip('.')} here, which they have"
                f" on the Hub and no model of Megatron's has: {_UNSERVED.format('it')}"
            )


def _list_absent(config: ModelConfig) -> tuple[str, ...]:
    """What layers of the family have on the Hub and nowhere in Megatron."""
    rows = config.family.megatron
    return tuple(part for part in rows.around.absent if part.startswith(".")) if rows else ()


def _is_prediction(name: str, layers: object) -> bool:
    if _PREDICTION.search(name):
        return True
    number = _LAYER.search(name)
    return number is not None and isinstance(layers, int) and int(number[1]) >= layers
