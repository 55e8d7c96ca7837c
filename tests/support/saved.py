"""Models, tensors and configs on disk, as the mapping gets them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from ckpt_tool.mapping.config import ModelConfig, load_config
from ckpt_tool.mapping.hub import names
from ckpt_tool.mapping.hub.form import HubModel
from ckpt_tool.readers import Checkpoint, open_checkpoint
from ckpt_tool.tensors.lazy import LazyTensor
from tests.support.backed import distinct, same
from tests.support.versions import require_transformers_5

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Saved:
    """A model as FSDP holds it (``memory``) and as ``save_pretrained`` writes it (``hub``)."""

    memory: Checkpoint
    hub: dict[str, torch.Tensor]
    config: ModelConfig


def save_both(model: "PreTrainedModel", folder: Path) -> Saved:
    """Write the state dict, less tied weights, and ``save_pretrained``'s folder."""
    require_transformers_5()
    model.save_pretrained(folder / "hub")
    tied = set(model.all_tied_weights_keys)
    state = {name: t.clone() for name, t in model.state_dict().items() if name not in tied}
    return Saved(
        write_tensors(folder / "memory.safetensors", state),
        load_file(folder / "hub" / "model.safetensors"),
        load_config(folder / "hub"),
    )


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> Checkpoint:
    """The tensors in a file, opened as any other checkpoint is."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return open_checkpoint(path)


def write_shapes(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Checkpoint:
    """Tensors of these shapes, whose elements are all distinct within each."""
    return write_tensors(path, {name: distinct(shape) for name, shape in shapes.items()})


def to_hub(tensors: Mapping[str, LazyTensor], config: ModelConfig) -> HubModel:
    """What becomes of tensors with a config on their way to the Hub."""
    return names.to_hub(HubModel(dict(tensors), config))


def write_config(folder: Path, **raw: Any) -> ModelConfig:
    """A folder with this ``config.json``, read back."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    return load_config(folder)


def assert_equal(found: Mapping[str, LazyTensor], expected: Mapping[str, torch.Tensor]) -> None:
    """The same names, and under each the same shape, dtype and bits."""
    assert found.keys() == expected.keys(), sorted(found.keys() ^ expected.keys())
    differing = [name for name in found if not same(found[name].read(), expected[name])]
    assert not differing, differing
