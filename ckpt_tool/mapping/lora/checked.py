"""What files say of LoRA adapters, before it is used: of the types that peft writes, and kept.

What is of another type is refused rather than read by its truth: to Python, the text "false" is
true. What a checkpoint lacks of what its settings promise, peft makes up: it starts magnitudes and
biases anew, with a warning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from ckpt_tool.common.errors import FormatError, MappingError, UsageError
from ckpt_tool.common.untrusted import Fields
from ckpt_tool.common.wording import count_noun
from ckpt_tool.mapping.hub.heads import CLASSIFIERS, EMBEDDINGS, HEADS
from ckpt_tool.mapping.lora.patterns import compile_pattern

#: Far above what anybody trains with, and far below what makes weights infinite by itself.
_MOST_ALPHA = 1e6
_MOST_RANK = 1_000_000
#: What alpha may be, wherever it is said: peft takes any number, and 0 makes an update of nothing.
_ALPHA = f"a finite number other than 0, up to {_MOST_ALPHA:g} or minus that"
_BOOLEANS = ("use_rslora", "use_dora", "fan_in_fan_out", "lora_bias", "use_qalora")
#: Options of peft with which an update is not just scale * B @ A, or not of weights alone.
_OTHER_MATHS = ("use_qalora", "alora_invocation_tokens", "layer_replication",
                "arrow_config", "monteclora_config", "use_bdlora", "kasa_config")  # fmt: skip
#: Initialisations of peft that take a part of each adapted weight out of the model, or round it.
_OUT_OF_THE_MODEL = ("pissa", "olora", "corda", "lora_ga", "loftq")
#: What peft saves whole though nobody asks: heads of what is classified, embeddings of new tokens.
_SAVED_UNASKED = (*EMBEDDINGS, *HEADS, *CLASSIFIERS, "qa_outputs", "v_head", "value_head")
#: What each adapter has where a setting is true, and only there.
_PROMISED = {"use_dora": "lora_magnitude_vector", "lora_bias": "lora_B.bias"}


def require_alpha(alpha: float) -> None:
    """UsageError where an alpha that was given is none."""
    if not 0 < abs(alpha) <= _MOST_ALPHA:
        raise UsageError(f"`lora.alpha={alpha:g}`: expected {_ALPHA}")


def require_types(fields: Fields) -> None:
    """FormatError, by file and key, for what is of another type than peft writes, or absurd."""
    fields.find_number("lora_alpha", _MOST_ALPHA)
    fields.find_number("r")
    if fields.find_size("r", _MOST_RANK) == 0:
        raise FormatError(f"r is 0, expected a rank from 1 to {_MOST_RANK:,}", path=fields.path)
    for key in ("task_type", "peft_type", "bias", "peft_version"):
        fields.find_text(key)
    for key in _BOOLEANS:
        fields.find_bool(key)
    fields.texts("target_parameters")
    patterns = _require_numbers(fields)
    fields.texts("modules_to_save")
    for key in ("target_modules", "exclude_modules"):
        named = fields.values.get(key)
        if isinstance(named, str):
            patterns.append(named)
        else:
            fields.texts(key)
    with _name_file(fields.path):
        for pattern in patterns:
            compile_pattern(pattern)
    _require_rows(fields)


def _require_numbers(fields: Fields) -> list[str]:
    """The patterns of ranks and alphas, each of which has one."""
    ranks, alphas = fields.inside("rank_pattern"), fields.inside("alpha_pattern")
    for key in ranks.values:
        if not ranks.size(key, most=_MOST_RANK):
            raise FormatError(f"rank_pattern: {key!r:.80} has rank 0", path=fields.path)
    for key in alphas.values:
        found = alphas.find_number(key, _MOST_ALPHA)
        if not found:
            said = "no alpha" if found is None else f"alpha 0, expected {_ALPHA}"
            raise FormatError(f"alpha_pattern: {key!r:.80} has {said}", path=fields.path)
    return [*ranks.values, *alphas.values]


def _require_rows(fields: Fields) -> None:
    """The same of ``trainable_token_indices``: a list of rows, or one for each embedding."""
    if isinstance(fields.values.get("trainable_token_indices"), dict):
        rows = fields.inside("trainable_token_indices")
        for key, value in rows.values.items():
            rows.sizes(key)
            if value is None:
                raise FormatError(
                    f"trainable_token_indices: {key!r:.80} has no rows", path=fields.path
                )
    else:
        fields.sizes("trainable_token_indices")


@contextmanager
def _name_file(path: str | PathLike[str]) -> Iterator[None]:
    """Say in a FormatError of the block that it is about ``path``."""
    try:
        yield
    except FormatError as error:
        error.path = fspath(path)
        raise


def refuse_other_methods(config: Mapping[str, Any], path: Path | None) -> None:
    """UsageError for settings of updates that are no plain products of two factors."""
    method = config.get("peft_type") or "LORA"
    if method != "LORA":
        raise UsageError(f"{path}: adapters of {method}, expected LORA")
    used = [name for name in _OTHER_MATHS if config.get(name)]
    if used:
        raise UsageError(
            f"{path}: LoRA with {', '.join(used)}, which is not supported",
            hint="Let peft merge it: merge_and_unload.",
        )


def require_explained(beside: Iterable[str], config: Mapping[str, Any]) -> None:
    """MappingError for weights beside adapters that are neither theirs nor trained with them.

    These are biases, embeddings and heads, which peft adds by itself, and what ``modules_to_save``
    names; anything else is of a model that lost what the adapters are on.
    """
    said = (*_SAVED_UNASKED, *(config.get("modules_to_save") or ()))
    odd = [
        name
        for name in beside
        if not name.endswith(".bias") and not any(f".{each}." in f".{name}" for each in said)
    ]
    if odd:
        raise MappingError(
            f"{count_noun(len(odd), 'weight')} beside the adapters that they do not account for,"
            " and none of what they are on",
            odd,
            hint="What was trained whole with them is in modules_to_save of adapter_config.json:"
            " put the right one beside them. A model has to have all of its weights.",
        )


def find_taken_out(config: Mapping[str, Any]) -> str | None:
    """The initialisation after which the weights below were no longer the model's, if it was one.

    Such adapters are not updates of the model that they were made on: B @ A was a part of each
    weight from the beginning, or close to one (``peft.tuners.lora.LoraLayer.pissa_init``).
    """
    said = config.get("init_lora_weights")
    return said if isinstance(said, str) and said.lower().startswith(_OUT_OF_THE_MODEL) else None


def refuse_taken_out(config: Mapping[str, Any]) -> None:
    """UsageError where adapters that were saved alone are not updates of the model they are of."""
    said = find_taken_out(config)
    if said is not None:
        raise UsageError(
            f"adapter_config.json says init_lora_weights: {said:.40}, which changed the weights"
            " below these adapters before training, and these were not saved: added to the model"
            " itself, the adapters give another one",
            hint="Let peft make plain adapters of them where they were trained (save_pretrained"
            " with path_initial_model_for_weight_conversion), or merge them (merge_and_unload). If"
            " they are plain, or the base is the model with the changed weights, set"
            " init_lora_weights to true.",
        )


def require_promised(config: Mapping[str, Any], modules: Mapping[str, Mapping[str, bool]]) -> None:
    """MappingError where adapters lack what their settings promise, or have what these deny.

    ``modules``: of each by its name, whether it has what a setting stands for (``use_dora``,
    ``lora_bias``); it has not where nothing is said. A setting that is not there promises nothing.
    """
    for key, part in _PROMISED.items():
        if config.get(key) is None:
            continue
        said = bool(config[key])
        odd = [name for name, found in modules.items() if found.get(key, False) != said]
        if odd:
            raise MappingError(
                f"adapter_config.json says {key}: {str(said).lower()}, and {len(odd)} of"
                f" {count_noun(len(modules), 'adapter')} {'lack' if said else 'have'} a {part}",
                odd,
                hint="The settings are of another run, or the tensors were not saved whole: put the"
                f" right adapter_config.json beside them; set {key} to {str(not said).lower()} in"
                " it only if they were trained so.",
            )
