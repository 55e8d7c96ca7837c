"""What transformers' own loader says of names and shapes: it is the judge of what a class opens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Opened:
    """What came of loading: ``faults`` in lines, and ``dtypes`` by names in memory.

    ``dtypes``: of the floating-point tensors that are not in the dtype that was asked for.
    """

    faults: list[str]
    dtypes: dict[str, str]


def ask_loader(model: Any, planned: Shapes, dtype: str = "auto") -> Opened:
    """What ``from_pretrained`` misses, does not use, or finds in another shape, on the meta device.

    ``dtype``: the one that it is asked for; ``auto``: the config's.
    """
    import torch

    state = {name: torch.empty(shape, device="meta") for name, shape in planned.items()}
    try:
        opened, report = type(model).from_pretrained(
            None,
            config=model.config,
            state_dict=state,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **{_dtype_keyword(): dtype},
        )
    except Exception as error:  # whatever a model's code raises
        return Opened([f"from_pretrained: {error}"], {})
    keys = ("missing_keys", "unexpected_keys", "mismatched_keys")
    faults = [
        f"{key.removesuffix('_keys')}: {name}" for key in keys for name in sorted(report[key])
    ]
    held = {name: name_dtype(tensor) for name, tensor in opened.state_dict().items()
            if tensor.is_floating_point()}  # fmt: skip
    return Opened(faults, {name: found for name, found in held.items() if found != dtype})


def _dtype_keyword() -> str:
    """What ``from_pretrained`` calls it: transformers before 5 knows the longer name."""
    import transformers

    return "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"


def name_dtype(tensor: Any) -> str:
    """The dtype of a ``torch.Tensor`` as :mod:`ckpt_tool.tensors.dtypes` calls it."""
    return str(tensor.dtype).removeprefix("torch.")


def settle_prefixes(model: Any, state: Mapping[str, Any]) -> None:
    """Have transformers also write the prefixes that the Hub has (``vision_model.``).

    For a model that was not loaded from such a checkpoint it leaves them out. A text model's table
    holds the prefix of its multimodal parent, from whose checkpoints it opens too: its own have
    none. Where names with prefixes do not come back through the loader, they are left out as well.
    ``state``: its tensors on the meta device, by their names in memory. Before transformers 5 there
    is nothing to settle.
    """
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:
        return

    if model.config.get_text_config() is model.config:
        return
    before = getattr(model, "_weight_conversions", None)
    model._weight_conversions = get_model_conversion_mapping(model, add_legacy=False)
    try:
        reverted = revert_weight_conversion(model, dict(state))
    except NotImplementedError:  # said where the tensors themselves are brought into that form
        return
    if ask_loader(model, {name: tuple(t.shape) for name, t in reverted.items()}).faults:
        model._weight_conversions = before


def take_untied(model: Any) -> dict[str, Any]:
    """The state dict on the meta device, without what repeats another tensor, or is computed."""
    gone = find_tied(model) | find_computed(model)
    return {n: tensor.to("meta") for n, tensor in model.state_dict().items() if n not in gone}


def find_tied(model: Any) -> set[str]:
    """Tensors that repeat another one, as transformers 5 says it, or 4."""
    found = getattr(model, "all_tied_weights_keys", None)
    if found is None:
        found = getattr(model, "_tied_weights_keys", None)
    return set(found or ())


def find_computed(model: Any) -> set[str]:
    """Tensors in its state dict that the class computes, so that it does not save them."""
    return set(getattr(model, "_keys_to_ignore_on_save", None) or ())
