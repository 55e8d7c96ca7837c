"""``check_load`` of a merge: what will be planned is exactly the model that transformers wants.

Two judges, on the meta device and from names and shapes alone, before a byte is planned. First
what the architecture has, brought into the form of the Hub by transformers' own tables, is
compared with the plan. Then the loader itself is handed these names and shapes and reports what
it misses or does not use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ckpt_tool.common.errors import MappingError, UsageError
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.families.hub_rules import TransposeExperts
from ckpt_tool.mapping.hub.form import View
from ckpt_tool.mapping.hub.library import describe_error, quieten
from ckpt_tool.mapping.hub.transformers_tables import build_on_meta, keep_prefixes
from ckpt_tool.plans.options import LoadCheck

Shapes = dict[str, tuple[int, ...]]


def check_views(views: Sequence[View], planned: Shapes) -> LoadCheck:
    """Open the model with each class that shall open it; what came of the first, config.json's.

    Raises what :func:`check_load` raises.
    """
    checks = []
    for view in views:
        read = {name: shape for name, shape in planned.items() if name not in view.ignored}
        checks.append(replace(check_load(view.config, read), num_other_heads=len(view.ignored)))
    return replace(checks[0], also=tuple(check.architecture for check in checks[1:]))


def check_load(config: ModelConfig, planned: Shapes) -> LoadCheck:
    """Open a model of ``config`` with tensors of these names and shapes on the meta device.

    MappingError lists every missing, unexpected and mismatched tensor; UsageError where
    transformers cannot build the model at all.
    """
    library = _name_library()
    try:
        model = build_on_meta(config)
    except Exception as error:  # whatever building a model raises
        raise UsageError(
            f"`write.check_load`: {library} cannot build"
            f" {config.architecture or config.model_type}: {error}",
            hint="Leave `write.check_load` out, or install a transformers that knows the model.",
        ) from error
    ours = _prediction_prefixes(config)
    known = {name: shape for name, shape in planned.items() if not name.startswith(ours)}
    with quieten():
        faults = _compare(_wanted(model, config), known) or _loader_faults(model, known)
    if faults:
        raise MappingError(
            f"`write.check_load`: this is not what {type(model).__name__} loads", faults
        )
    return LoadCheck(type(model).__name__, len(known), library, len(planned) - len(known))


def _name_library() -> str:
    """The installed transformers; UsageError where it cannot be imported."""
    try:
        import transformers
    except Exception as error:  # a broken installation raises whatever it likes
        raise UsageError(
            f"`write.check_load`: transformers cannot be imported: {describe_error(error)}",
            hint="Leave `write.check_load` out, or mend the installation.",
        ) from error
    return f"transformers {transformers.__version__}"


def _prediction_prefixes(config: ModelConfig) -> tuple[str, ...]:
    """Where the layers for multi-token prediction are: behind the last one that a model has."""
    layers, more = (
        config.text.get(key) for key in ("num_hidden_layers", "num_nextn_predict_layers")
    )
    if not isinstance(layers, int) or not isinstance(more, int):
        return ()
    return tuple(f"model.layers.{layers + number}." for number in range(more))


def _wanted(model: Any, config: ModelConfig) -> Shapes | None:
    """Hub names and shapes of the architecture; None before transformers 5, which has no tables."""
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:
        return None
    tied = set(model.all_tied_weights_keys or {})
    state = {name: t.to("meta") for name, t in model.state_dict().items() if name not in tied}
    keep_prefixes(model)
    shapes = {
        name: tuple(tensor.shape) for name, tensor in revert_weight_conversion(model, state).items()
    }
    for rule in config.family.hub or ():
        if isinstance(rule, TransposeExperts):
            shapes |= _transpose(shapes, rule)
    return shapes


def _transpose(shapes: Shapes, rule: TransposeExperts) -> Shapes:
    """Fused experts as they are on the Hub: transformers 5 loads them, but saves them otherwise."""
    ends = (f".{rule.path}.gate_up_proj", f".{rule.path}.down_proj")
    fused = {name: shape for name, shape in shapes.items() if name.endswith(ends)}
    return {name: (shape[0], shape[2], shape[1]) for name, shape in fused.items()}


def _compare(wanted: Shapes | None, planned: Shapes) -> list[str]:
    if wanted is None:
        return []
    missing = [f"missing: {name} {list(wanted[name])}" for name in wanted if name not in planned]
    unexpected = [f"unexpected: {name}" for name in planned if name not in wanted]
    mismatched = [
        f"mismatched: {name}: {list(shape)}, expected {list(wanted[name])}"
        for name, shape in planned.items()
        if name in wanted and wanted[name] != shape
    ]
    return missing + unexpected + mismatched


def _loader_faults(model: Any, planned: Shapes) -> list[str]:
    """What ``from_pretrained`` itself says of these names and shapes."""
    import torch

    state = {name: torch.empty(shape, device="meta") for name, shape in planned.items()}
    try:
        _, report = type(model).from_pretrained(
            None,
            config=model.config,
            state_dict=state,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (RuntimeError, ValueError) as error:
        return [f"from_pretrained: {error}"]
    keys = ("missing_keys", "unexpected_keys", "mismatched_keys")
    return [f"{key.removesuffix('_keys')}: {name}" for key in keys for name in sorted(report[key])]
