"""What transformers' own loader says of names and shapes: it is the judge of what a class opens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Shapes = dict[str, tuple[int, ...]]


def ask_loader(model: Any, planned: Shapes) -> list[str]:
    """What ``from_pretrained`` misses, does not use, or finds in another shape; in lines."""
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


def settle_prefixes(model: Any, state: Mapping[str, Any]) -> None:
    """Have transformers also write the prefixes that the Hub has (``vision_model.``).

    For a model that was not loaded from such a checkpoint it leaves them out. A text model's table
    holds the prefix of its multimodal parent, from whose checkpoints it opens too: its own have
    none. Where names with prefixes do not come back through the loader, they are left out as well.
    ``state``: its tensors on the meta device, by their names in memory.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import revert_weight_conversion

    if model.config.get_text_config() is model.config:
        return
    before = getattr(model, "_weight_conversions", None)
    model._weight_conversions = get_model_conversion_mapping(model, add_legacy=False)
    try:
        reverted = revert_weight_conversion(model, dict(state))
    except NotImplementedError:  # said where the tensors themselves are brought into that form
        return
    if ask_loader(model, {name: tuple(tensor.shape) for name, tensor in reverted.items()}):
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
