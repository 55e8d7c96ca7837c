"""What transformers says of a folder of weights, from names and shapes, on the meta device.

Two judges. What the architecture has, brought into the form of the Hub by transformers' own
tables, is compared with what is planned. Then the loader itself is handed these names and shapes
and reports what it misses, does not use, or finds in another shape.

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
``faults``
    What is wrong, in lines; empty where it opens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ckpt_tool.common.errors import MappingError
from ckpt_tool.mapping.config import ModelConfig, load_config
from ckpt_tool.mapping.families.hub_rules import TransposeExperts
from ckpt_tool.mapping.hub.library import describe_error, find_unknown, quieten
from ckpt_tool.mapping.hub.loader import ask_loader, settle_prefixes, take_untied
from ckpt_tool.mapping.hub.names import is_fused
from ckpt_tool.mapping.hub.transformers_tables import build_on_meta
from ckpt_tool.plans.checks.wanted import Shapes, Wanted

Question = Mapping[str, Any]
Answer = dict[str, Any]


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
        fused = any(is_fused(name, config) for name in planned)
        wanted = _find_wanted(model, config, found["library"], fused=fused)
        faults = wanted.list_faults(planned) if wanted is not None else []
        return found | {
            "architecture": type(model).__name__,
            "wanted": None if wanted is None else asdict(wanted),
            "faults": faults or ask_loader(model, planned),
        }


def _find_wanted(model: Any, config: ModelConfig, library: str, *, fused: bool) -> Wanted | None:
    """Hub names and shapes of the architecture; None where transformers has no tables of them."""
    state = take_untied(model)
    shapes = _revert(state, model, config, fused=fused)
    if shapes is None:
        return None
    every = model.state_dict()
    copies = {name: tuple(every[name].shape) for name in every.keys() - state.keys()}
    return Wanted(type(model).__name__, library, shapes, copies)


def _revert(
    state: dict[str, Any], model: Any, config: ModelConfig, *, fused: bool
) -> Shapes | None:
    """Shapes of a state dict by the names, and in the layouts, of the Hub.

    ``fused``: with experts as in memory, where the Hub has them so as well.
    """
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:
        return None
    settle_prefixes(model, state)
    try:
        reverted = revert_weight_conversion(model, state)
    except NotImplementedError:
        return None
    shapes = {name: tuple(tensor.shape) for name, tensor in reverted.items()}
    if fused:
        return _keep_fused(shapes, state, config)
    for rule in config.family.hub or ():
        if isinstance(rule, TransposeExperts):
            shapes |= _transpose(shapes, rule)
    return shapes


def _keep_fused(shapes: Shapes, state: dict[str, Any], config: ModelConfig) -> Shapes:
    """``shapes`` with fused experts for those that transformers' tables have split off."""
    fused = {n: tuple(t.shape) for n, t in state.items() if is_fused(n, config)}
    stems = tuple({f"{name.rpartition('.')[0]}." for name in fused})
    return {name: shape for name, shape in shapes.items() if not name.startswith(stems)} | fused


def _transpose(shapes: Shapes, rule: TransposeExperts) -> Shapes:
    """Fused experts as they are on the Hub: transformers 5 loads them, but saves them otherwise."""
    ends = (f".{rule.path}.gate_up_proj", f".{rule.path}.down_proj")
    fused = {name: shape for name, shape in shapes.items() if name.endswith(ends)}
    return {name: (shape[0], shape[2], shape[1]) for name, shape in fused.items()}
