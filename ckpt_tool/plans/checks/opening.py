"""What transformers says of a folder of weights, from names and shapes, on the meta device.

Two judges. What the architecture has, brought into the form of the Hub by transformers' own
tables, is compared with what is planned. Then the loader itself is handed these names and shapes
and reports what it misses, does not use, or finds in another shape; and what it has then loaded
says in which dtypes the class holds its weights: ``save_pretrained`` would write these.

A question has ``config``, the text of a ``config.json``, and ``planned``, shapes by name. An answer
is plain data as well, as it may come from another process:

``library``
    Name and version, always there.
``broken``, ``unknown``, ``unusable``
    Why nothing can be said: transformers cannot be imported, does not know the class, or cannot
    build it. The rest is not there then.
``architecture``, ``wanted``
    The class, and a :class:`~ckpt_tool.plans.checks.wanted.Wanted` as a dictionary; None before
    transformers 5, which has no tables, and where these cannot be applied backwards.
``overlooked``
    How many tensors the class leaves alone.
``faults``
    What is wrong, in lines; empty where it opens.
``dtypes``
    By names on the Hub, of what the class holds in another dtype than the config names; where
    there are no faults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from ckpt_tool.common.errors import MappingError
from ckpt_tool.mapping.config import ModelConfig, load_config
from ckpt_tool.mapping.families.hub_rules import TransposeExperts
from ckpt_tool.mapping.hub.library import describe_error, find_unknown, quieten
from ckpt_tool.mapping.hub.loader import (
    Opened,
    ask_loader,
    name_dtype,
    settle_prefixes,
    take_untied,
)
from ckpt_tool.mapping.hub.names import is_fused
from ckpt_tool.mapping.hub.saved_names import are_published, use_published_names
from ckpt_tool.mapping.hub.transformers_tables import build_on_meta
from ckpt_tool.plans.checks.wanted import Shapes, Wanted
from ckpt_tool.tensors.dtypes import FLOAT32

Question = Mapping[str, Any]
Answer = dict[str, Any]


class _Form(NamedTuple):
    """How the Hub has a model, where it has several ways.

    ``fused``: with experts as in memory; ``published``: by names that transformers does not save.
    """

    fused: bool
    published: bool

    @classmethod
    def of(cls, planned: Shapes, config: ModelConfig) -> _Form:
        """That of these names."""
        fused = any(is_fused(name, config) for name in planned)
        return cls(fused, are_published(planned, config))


def answer(question: Question) -> Answer:
    """Whether the class that the config names opens tensors of these names and shapes."""
    planned = {name: tuple(shape) for name, shape in question["planned"].items()}
    with TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(question["config"], encoding="utf-8")
        return _examine(load_config(Path(folder)), planned)


def _examine(config: ModelConfig, planned: Shapes) -> Answer:
    try:
        import transformers
    except Exception as error:  # a broken installation raises whatever it likes
        return {"library": "transformers", "broken": describe_error(error)}
    found: Answer = {"library": f"transformers {transformers.__version__}"}
    try:
        unknown = find_unknown(config)
        if unknown:
            return found | {"unknown": unknown}
        model = build_on_meta(config)
    except Exception as error:  # whatever building a model raises
        reason = error.message if isinstance(error, MappingError) else describe_error(error)
        return found | {"unusable": reason}
    with quieten():
        form = _Form.of(planned, config)
        wanted = _find_wanted(model, config, found["library"], form)
        faults = wanted.list_faults(planned) if wanted is not None else []
        dtype = (config.dtype or FLOAT32).name
        opened = Opened(faults, {}) if faults else ask_loader(model, planned, dtype)
        dtypes = {} if opened.faults else _name_dtypes(opened.dtypes, model, config, form)
        return found | {
            "architecture": type(model).__name__,
            "wanted": None if wanted is None else asdict(replace(wanted, dtypes=dtypes)),
            "faults": opened.faults,
            "dtypes": dtypes,
            "overlooked": 0 if wanted is None else wanted.count_overlooked(planned),
        }


def _find_wanted(model: Any, config: ModelConfig, library: str, form: _Form) -> Wanted | None:
    """Hub names and shapes of the architecture; None where transformers has no tables of them."""
    state = take_untied(model)
    settle_prefixes(model, state)
    reverted = _revert(state, model, config, form)
    if reverted is None:
        return None
    every = model.state_dict()
    copies = {name: tuple(every[name].shape) for name in every.keys() - state.keys()}
    shapes = {name: tuple(tensor.shape) for name, tensor in reverted.items()}
    overlooked = tuple(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())
    return Wanted(type(model).__name__, library, shapes, copies, overlooked=overlooked)


def _name_dtypes(
    held: Mapping[str, str], model: Any, config: ModelConfig, form: _Form
) -> dict[str, str]:
    """``held``, dtypes by names in memory, by those on the Hub.

    Where tensors of two dtypes become one, torch says which it has.
    """
    import torch

    if not held:
        return {}
    main = (config.dtype or FLOAT32).name
    state = {
        name: tensor.to(getattr(torch, held.get(name, main)))
        if tensor.is_floating_point()
        else tensor
        for name, tensor in take_untied(model).items()
    }
    copies = {name: dtype for name, dtype in held.items() if name not in state}
    reverted = _revert(state, model, config, form)
    named = {n: name_dtype(t) for n, t in (state if reverted is None else reverted).items()
             if t.is_floating_point()}  # fmt: skip
    return copies | {name: dtype for name, dtype in named.items() if dtype != main}


def _revert(
    state: dict[str, Any], model: Any, config: ModelConfig, form: _Form
) -> dict[str, Any] | None:
    """A state dict by the names, and in the layouts, of the Hub; None where nothing says these."""
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:
        return None
    try:
        reverted = dict(revert_weight_conversion(model, state))
    except NotImplementedError:
        return None
    if form.published:
        return use_published_names(reverted, config)
    if form.fused:
        return _keep_fused(reverted, state, config)
    for rule in config.family.hub or ():
        if isinstance(rule, TransposeExperts):
            reverted |= _transpose(reverted, rule)
    return reverted


def _keep_fused(
    reverted: dict[str, Any], state: dict[str, Any], config: ModelConfig
) -> dict[str, Any]:
    """``reverted`` with fused experts for those that transformers' tables have split off."""
    fused = {name: tensor for name, tensor in state.items() if is_fused(name, config)}
    stems = tuple({f"{name.rpartition('.')[0]}." for name in fused})
    return {name: t for name, t in reverted.items() if not name.startswith(stems)} | fused


def _transpose(reverted: dict[str, Any], rule: TransposeExperts) -> dict[str, Any]:
    """Fused experts as they are on the Hub: transformers 5 loads them, but saves them otherwise."""
    ends = (f".{rule.path}.gate_up_proj", f".{rule.path}.down_proj")
    return {name: t.transpose(1, 2) for name, t in reverted.items() if name.endswith(ends)}
