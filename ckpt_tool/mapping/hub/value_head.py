"""Value models: trl's value head beside a language model's own, and what opens the two.

trl's ``AutoModelForCausalLMWithValueHead`` holds a language model as ``pretrained_model`` and
``v_head.summary``, a Linear(hidden, 1) on the last hidden state, after the last norm. In its own
``state_dict()``, which FSDP2 shards and its ``save_pretrained`` writes, the language model has no
prefix; in that of any other wrapper it has. Source: trl 0.11 to 0.24, ``modeling_value_head.py``.

The token classifiers of transformers compute the same with one label. Where a family has one, the
head is written under its name too: one folder then opens as a language model, as a classifier that
gives the values, and in trl.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from ckpt_tool.common.errors import MappingError, UsageError
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.hub.architecture import find_architecture, find_classifier, set_labels
from ckpt_tool.mapping.hub.form import HubModel, Tensors, View
from ckpt_tool.mapping.hub.heads import CLASSIFIERS, OUTPUTS
from ckpt_tool.mapping.hub.library import find_unknown
from ckpt_tool.mapping.hub.names import unwrap_names
from ckpt_tool.mapping.hub.transformers_tables import AS_THEY_ARE, build_known
from ckpt_tool.tensors.lazy import LazyTensor

#: What trl nests a model in, and its head beside that: together they are the model.
BASE = "pretrained_model."
HEAD = "v_head."
_LINEAR = "v_head.summary"
_NAMES = frozenset((f"{_LINEAR}.weight", f"{_LINEAR}.bias"))


def refuse_value_head(names: Iterable[str]) -> None:
    """MappingError where there is trl's value head, for what takes models with one head only."""
    heads = [name for name in names if name.startswith(BASE) or _is_head(name)]
    if heads:
        raise MappingError(
            "a model with trl's value head (v_head) beside its own, and Megatron has one head",
            heads,
            hint="Merge with `value_model=False` for the language model, or save the critic alone"
            " with transformers: AutoModelForTokenClassification, then save_pretrained.",
        )


def take_value_head(model: HubModel, wanted: bool | None = None) -> HubModel:
    """The model with trl's head set aside, and without what trl puts before names.

    ``wanted``: None, or whether a value model is. A model without a config stays as it is.
    MappingError lists tensors that are neither of the language model nor of the head, and whatever
    of the head is not as trl has it.
    """
    if model.config is None:
        return model
    plain = unwrap_names(model.tensors)
    head = {name: tensor for name, tensor in plain.items() if name.startswith(HEAD)}
    base = {name: tensor for name, tensor in plain.items() if name not in head}
    wrapped = any(name.startswith(BASE) for name in base)
    if wrapped:
        base = _strip_prefix(base)
    _refuse_other_heads(base)
    if not head and not wrapped:
        return model
    if not head and wanted is not False:
        raise MappingError(
            f"tensors under {BASE[:-1]}, where trl has a model, without a value head (v_head)"
            " beside them",
            sorted(_NAMES),
            hint="If there never was one, `value_model=False` takes them as a language model.",
        )
    if head:
        _require_head(head, model.config)
    return replace(model, tensors=base, head=head, config=_name_language_model(model.config))


def put_value_head(model: HubModel, wanted: bool | None) -> HubModel:
    """The model, by its names on the Hub, with the head that was set aside.

    Where it is not ``wanted`` it is dropped. UsageError where one is wanted and there is none, or
    is all there is and not wanted.
    """
    if model.head and wanted is False:
        gone = dict.fromkeys(model.head, "trl's value head, left out by `value_model=False`")
        return replace(model, head={}, dropped=model.dropped | gone)
    if model.head:
        return _add_head(model, model.head)
    rows = _count_score_rows(model.tensors)
    if wanted and rows != 1:
        _refuse_without_head(rows)
    if wanted is False and rows == 1:
        raise UsageError(
            "`value_model=False`: the checkpoint has score.weight, which gives values, in place of"
            " a language model's head, so there is no language model in it",
            hint="Leave it out: this becomes a model that transformers opens as a classifier.",
        )
    return model


def match_heads(tensors: Mapping[str, LazyTensor], others: Iterable[str]) -> Tensors:
    """The tensors, trl's head under those of its names that ``others`` have.

    What is a copy of one head is not compared with nothing.
    """
    there, found = set(others), dict(tensors)
    taken = any(f"{module}.weight" in found for module in CLASSIFIERS)
    if taken or not found.keys() >= _NAMES:
        return found
    for name in sorted(_NAMES):
        kind = name.removeprefix(f"{_LINEAR}.")
        copies = [f"{module}.{kind}" for module in CLASSIFIERS if f"{module}.{kind}" in there]
        found |= dict.fromkeys(copies, found[name])
        if copies and name not in there:
            del found[name]
    return found


def _strip_prefix(base: Tensors) -> Tensors:
    others = [name for name in base if not name.startswith(BASE)]
    if others:
        raise MappingError(
            f"{len(others)} of {len(base)} tensors belong neither to {BASE[:-1]} nor to"
            f" {HEAD[:-1]}, the two parts of a model with trl's value head",
            others,
            hint=AS_THEY_ARE,
        )
    return {name.removeprefix(BASE): tensor for name, tensor in base.items()}


def _is_head(name: str) -> bool:
    """Whether it is of a value head, at any depth; attention that calls its values so has none."""
    return name.startswith(HEAD) or f".{_LINEAR}." in name


def _refuse_other_heads(base: Tensors) -> None:
    nested = list(filter(_is_head, base))
    if nested:
        what = "a value head (v_head) inside the model, where trl has it beside"
        raise MappingError(what, nested, hint=AS_THEY_ARE)


def _require_head(head: Tensors, config: ModelConfig) -> None:
    """MappingError unless the head is one linear layer on the hidden states."""
    if config.raw.get("is_encoder_decoder"):
        raise MappingError(
            f"an encoder-decoder ({config.model_type}) with trl's value head, which is not"
            " supported yet",
            sorted(head),
            hint=AS_THEY_ARE,
        )
    sizes = (config.text.get(key) for key in ("word_embed_proj_dim", "hidden_size", "n_embd"))
    hidden, weight = next(filter(None, sizes), None), head.get(f"{_LINEAR}.weight")
    if hidden is None and weight is not None and len(weight.shape) == 2:
        hidden = weight.shape[1]
    wanted = {f"{_LINEAR}.weight": (1, hidden), f"{_LINEAR}.bias": (1,)}
    faults = [f"{name}: missing, expected {list(wanted[name])}" for name in wanted.keys() - head]
    for name, tensor in head.items():
        if name not in wanted:
            faults.append(f"{name} {list(tensor.shape)}: not in trl's head")
        elif tensor.shape != wanted[name]:
            faults.append(f"{name}: {list(tensor.shape)}, expected {list(wanted[name])}")
    if faults:
        raise MappingError(
            "the value head is not that of trl, a linear layer with one row and a bias",
            sorted(faults),
            hint=AS_THEY_ARE,
        )


def _name_language_model(config: ModelConfig) -> ModelConfig:
    """The config naming a language model, which is what trl wraps, where it named a classifier."""
    if not config.architecture.endswith("Classification"):
        return config
    named = find_architecture(config)
    return config.with_changes(architectures=[named]) if named else config


def _count_score_rows(tensors: Mapping[str, LazyTensor]) -> int:
    """Labels of a classifier's head in place of a language model's; 0 where there is none."""
    score = tensors.get("score.weight")
    if score is None or "lm_head.weight" in tensors:
        return 0
    return score.shape[0]


def _refuse_without_head(rows: int) -> None:
    found = "the checkpoint has no value head"
    if rows:
        found = f"score.weight has {rows} rows, one for each label of a classifier"
    raise UsageError(
        f"`value_model=True`: {found}; looked for v_head.summary.weight (trl), and score.weight or"
        " an output layer of Megatron with one row, in place of a language model's head",
        hint="Is this the critic's folder, and not the actor's?",
    )


def _add_head(model: HubModel, head: Tensors) -> HubModel:
    """The language model with the head, first so that one file has it, and the classifier's."""
    language = model.config
    if language is None:
        return model
    outputs = {name for name in model.tensors if name.split(".")[0] in OUTPUTS}
    found = _find_classifier_head(language, head)
    if found is None:
        view = View(language, frozenset(head))
        kept = replace(language, own_dtypes=language.own_dtypes | set(head))
        said = (
            "transformers has no token classification class for model type"
            f" {language.model_type}: the value head is v_head, which trl alone reads"
        )
        return replace(
            model,
            tensors=head | model.tensors,
            config=kept,
            warnings=(*model.warnings, said),
            views=(view,),
        )
    module, config = found
    copy = {name.replace(_LINEAR, module, 1): tensor for name, tensor in head.items()}
    names = frozenset(copy) | frozenset(head)
    config = replace(config, own_dtypes=config.own_dtypes | names)
    views = (View(config, frozenset(head) | outputs), View(language, names))
    return replace(model, tensors=head | copy | model.tensors, config=config, views=views)


def _find_classifier_head(config: ModelConfig, head: Tensors) -> tuple[str, ModelConfig] | None:
    """The module of the head in the family's token classifier, and the config that names it.

    None unless this class is the language model with another head, of the shape of trl's.
    MappingError where transformers knows the class and cannot build it.
    """
    named = find_classifier(config, "Token")
    if not named or find_unknown(config):
        return None
    labelled = set_labels(config, 1).with_changes(architectures=[named])
    before, after = (_list_shapes(each) for each in (config, labelled))
    added = {name: shape for name, shape in after.items() if name not in before}
    module = min(added, default="").partition(".")[0]
    wanted = {name.replace(_LINEAR, module, 1): tensor.shape for name, tensor in head.items()}
    removed = {name.rpartition(".")[0] for name in before if name not in after}
    return (module, labelled) if added == wanted and removed <= OUTPUTS else None


def _list_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The names and shapes of all that the model of ``config`` has in memory."""
    state = build_known(config).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
