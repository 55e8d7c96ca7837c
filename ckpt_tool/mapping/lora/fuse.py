"""LoRA adapters into the weights that they update.

The update of a weight [out, in] is ``scale * B @ A``; of an embedding [num, dim], and of the
[in, out] weights of transformers' ``Conv1D`` (GPT-2), it is that transposed; of the kernels of a
convolution it is that of the matrix [out, in * kernel]; of a stack of matrices each has its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.wording import count_noun
from ckpt_tool.mapping.families.table import UNKNOWN, find_family
from ckpt_tool.mapping.lora.adapters import Adapters, Module
from ckpt_tool.mapping.lora.settings import Settings
from ckpt_tool.mapping.lora.tokens import put_rows
from ckpt_tool.tensors.columns import take_columns
from ckpt_tool.tensors.lazy import LazyTensor, stack
from ckpt_tool.tensors.lowrank import Magnitude, update_matrix, update_vector
from ckpt_tool.tensors.reshaped import reshape

Tensors = dict[str, LazyTensor]


def fuse_adapters(
    base: Mapping[str, LazyTensor], adapters: Adapters, settings: Settings, family: str
) -> Tensors:
    """``base`` with the updates of ``adapters`` in it, and what was trained whole in its place.

    ``family``: the model type, empty where it is unknown. MappingError lists adapters without a
    base weight, and those whose shapes, ranks or rows are not what was said.
    """
    faults = list(find_rank_faults(adapters, settings))
    whole = adapters.trained_whole()
    for name, tensor in whole.items():
        faults += _find_whole_faults(name, tensor, base, adapters)
    base = {**base, **whole}  # an adapted embedding, too, may have been saved beside its adapter
    result = dict(base)
    transposed = find_transposed(base, adapters, settings, family)
    for module in adapters.modules.values():
        scale = settings.scale(module.key, module.rank)
        try:
            weight = _find(base, module.weight)
            result[module.weight] = _update(weight, module, scale, module.name in transposed)
            if module.bias is not None:
                name = f"{module.name}.bias"
                result[name] = update_vector(_find(base, name), module.bias, scale)
        except ValueError as error:
            faults.append(f"{module.weight}: {error}")
    embeddings, unfit = put_rows(base, adapters, settings)
    result |= embeddings
    faults += unfit
    if faults:
        raise MappingError(
            f"{count_noun(len(faults), 'problem')} in fusing the LoRA adapters", faults
        )
    return result


def find_rank_faults(adapters: Adapters, settings: Settings) -> Iterator[str]:
    """Modules whose rank is not the one that the settings say."""
    for module in adapters.modules.values():
        expected = settings.expected_rank(module.key)
        if expected not in (None, module.rank):
            yield f"{module.key}: rank {module.rank} by its shapes, {expected} by its settings"


def find_transposed(
    base: Mapping[str, LazyTensor], adapters: Adapters, settings: Settings, family: str
) -> set[str]:
    """Modules whose weights are [in, out]: their shapes tell, but for square ones.

    These are like the others; else as the family's, whatever the settings say, as with peft, which
    asks the layers. The settings tell it only where nothing else does.
    """
    linear = [m for m in adapters.modules.values() if not m.is_embedding and _is_matrix(m, base)]
    square = {m.name for m in linear if m.shape[0] == m.shape[1]}
    found = {
        module.name
        for module in linear
        if module.name not in square and base[module.weight].shape == module.shape[::-1]
    }
    row = find_family(family)
    untold = row is UNKNOWN and all(module.name in square for module in linear)
    if found or row.conv1d or (untold and settings.fan_in_fan_out):
        found |= square
    return found


def _is_matrix(module: Module, base: Mapping[str, LazyTensor]) -> bool:
    return module.weight in base and len(base[module.weight].shape) == 2


def _find(base: Mapping[str, LazyTensor], name: str) -> LazyTensor:
    if name not in base:
        raise ValueError(f"the model has no {name}")
    return base[name]


def _update(weight: LazyTensor, module: Module, scale: float, transposed: bool) -> LazyTensor:
    """The weight with its update, whatever kind of a layer it is of."""
    if len(module.a.shape) > 2:
        return _update_kernels(weight, module, scale)
    if len(weight.shape) == 3:
        return _update_stack(weight, module, scale)
    if not (module.is_embedding or transposed):
        return update_matrix(weight, module.b, module.a, scale, _magnitude(module))
    left, right = module.a.transpose(0, 1), module.b.transpose(0, 1)
    return update_matrix(weight, left, right, scale, _magnitude(module, of_columns=True))


def _magnitude(module: Module, *, of_columns: bool = False) -> Magnitude | None:
    """One length for each of the features that come out."""
    if module.magnitude is None:
        return None
    return Magnitude(reshape(module.magnitude, (-1,)), of_columns)


def _update_kernels(weight: LazyTensor, module: Module, scale: float) -> LazyTensor:
    matrix, left, right = (reshape(t, (t.shape[0], -1)) for t in (weight, module.b, module.a))
    updated = update_matrix(matrix, left, right, scale, _magnitude(module))
    return reshape(updated, weight.shape)


def _update_stack(weight: LazyTensor, module: Module, scale: float) -> LazyTensor:
    """Each of a stack of matrices with its own rows of A, and its own columns of B."""
    return stack(
        [
            _update_expert(weight.select(0, number), module, number, scale)
            for number in range(weight.shape[0])
        ]
    )


def _update_expert(matrix: LazyTensor, module: Module, number: int, scale: float) -> LazyTensor:
    a = module.a.narrow(0, number * module.rank, module.rank)
    b = take_columns(module.b, number, module.experts)
    if not module.turned:
        return update_matrix(matrix, b, a, scale)
    return update_matrix(matrix, a.transpose(0, 1), b.transpose(0, 1), scale)


def _find_whole_faults(
    name: str, tensor: LazyTensor, base: Mapping[str, LazyTensor], adapters: Adapters
) -> Iterator[str]:
    """What cannot take a parameter's place: of an embedding that was resized, rows may differ."""
    if name not in base:
        if name in adapters.beside:
            yield f"{name}: saved beside the adapters, and the model has no such parameter"
        return
    there, resized = base[name].shape, name in adapters.beside and len(tensor.shape) > 1
    if tensor.shape != there and not (resized and tensor.shape[1:] == there[1:]):
        yield f"{name}: trained whole with shape {list(tensor.shape)}, expected {list(there)}"
