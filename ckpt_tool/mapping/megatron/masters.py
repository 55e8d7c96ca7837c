"""A model's weights out of Megatron's distributed optimizer: its float32 ones.

In ``torch_dist`` each is ``[chained_N.]optimizer.state.fp32_param.KEY``, or ``….param.KEY`` of
``fully_reshardable``, where KEY is the model's own. It has the shape of the model's tensor, or, of
megatron-core up to 0.15 (``fully_sharded_model_space``), one more dimension: [f_1, …, f_n, N] for a
tensor that tensor, expert and pipeline parallelism cut into f_i pieces along dimension i, N the
elements of a piece, row-major. Source: ``sharded_param_state_fs_model_space`` and
``sharded_param_state_fully_reshardable`` of ``megatron/core/optimizer/distrib_optimizer.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from pathlib import Path

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.wording import count_doing
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.megatron.bindings import Binding
from ckpt_tool.mapping.megatron.keys import Tensors, unify_keys
from ckpt_tool.mapping.megatron.numbers import read_numbers, require_rows
from ckpt_tool.mapping.megatron.rules import infer_rules
from ckpt_tool.mapping.megatron.towers import use_tower_names
from ckpt_tool.tensors.chunks import Chunk
from ckpt_tool.tensors.geometry import Box, Shape, dot
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.tensors.reshaped import reshape

#: The shape of a tensor; None: a size that nothing says.
Wanted = tuple[int | None, ...]

_MASTER = re.compile(r"(?:^|\.)optimizer\.state\.(?:fp32_param|param)\.")
_BUCKET = re.compile(r"(?:^|\.)optimizer\..*\.bucket_idx_\d+\.")
#: Their rows may be padded: nothing says how many there are, nor whether they are those of a head.
_ENDS = ("embedding.word_embeddings.weight", "output_layer.weight")
#: Of one tensor; more than any model is cut into.
_MOST_PIECES = 1 << 20


def is_master(name: str) -> bool:
    """Whether ``name`` is that of a weight in the state of Megatron's optimizer."""
    return _MASTER.search(name) is not None


def is_bucket(name: str) -> bool:
    """Whether ``name`` is of a flat buffer of that optimizer (``dp_reshardable``).

    The order of the parameters in one is known to the run alone.
    """
    return _BUCKET.search(name) is not None


@dataclass(frozen=True)
class Taken:
    """A model by the tables' keys; what of its own tensors is ``replaced``, and what ``kept``."""

    tensors: dict[str, LazyTensor]
    replaced: list[str]
    kept: list[str]


def take_masters(tensors: Mapping[str, LazyTensor], config: ModelConfig) -> Taken:
    """The model of the optimizer's weights.

    What the optimizer has none of (what was not trained, buffers) is the model's own, where that is
    there. MappingError lists those that are no pieces of what ``config`` says, or pieces of what
    nothing says the shape of.
    """
    family = require_rows(config)
    multimodal = family.around.sees
    masters: Tensors = {
        _MASTER.split(name, 1)[1]: t for name, t in tensors.items() if is_master(name)
    }
    model: Tensors = {name: t for name, t in tensors.items() if not is_master(name)}
    if len(masters) < sum(map(is_master, tensors)):
        raise MappingError("several optimizers have a weight for one tensor of the model")
    model = use_tower_names(model, family.around)
    own = unify_keys(model, multimodal=multimodal)
    masters = use_tower_names(masters, family.around)
    # What a layer is, and so what its norms are called, may be said by what was not trained.
    found = unify_keys(masters, multimodal=multimodal, beside=model)
    known: dict[str, Wanted] = {name: tensor.shape for name, tensor in own.items()}
    ends = {name: t for name, t in found.items() if name.endswith(_ENDS)}
    hidden = read_numbers(config).sizes["hidden"]
    found |= _join_all(ends, dict.fromkeys(ends, (None, hidden)) | known, config.path)
    rules = infer_rules(config, own | found)
    said = {name: shape for each in rules.bindings for name, shape in _list_shapes(each)}
    joined = _join_all(found, said | known, config.path)
    _require_shapes(found, joined, said | known)
    _require_alike(own, joined)
    return Taken(
        own | joined,
        replaced=[name for name in own if name in found],
        kept=[name for name in own if name not in found],
    )


def _join_all(
    tensors: Mapping[str, LazyTensor], shapes: Mapping[str, Wanted], said_by: Path
) -> dict[str, LazyTensor]:
    joined, faults = {}, []
    for name, tensor in tensors.items():
        try:
            joined[name] = join_pieces(tensor, shapes[name]) if name in shapes else tensor
        except ValueError as error:
            faults.append(f"{name}: {error}")
    if faults:
        raise MappingError(
            f"the optimizer's state: {count_doing(len(faults), 'weight', 'are')} not what {said_by}"
            " says",
            faults,
            hint="The optimizer's state and this config.json are of different models.",
        )
    return joined


def _require_shapes(
    found: Mapping[str, LazyTensor],
    joined: Mapping[str, LazyTensor],
    shapes: Mapping[str, Wanted],
) -> None:
    """MappingError lists tensors without a shape where others were in pieces: so are these."""
    unknown = [name for name in found if name not in shapes]
    if unknown and any(joined[name].shape != found[name].shape for name in found):
        raise MappingError(
            f"{count_doing(len(unknown), 'weight', 'are')} in pieces in the optimizer, of shapes"
            " that nothing says",
            unknown,
            hint="The model's own tensors say them, and are not in this checkpoint: these are of a"
            " tower, whose sizes no rule has.",
        )


def _require_alike(own: Mapping[str, LazyTensor], joined: Mapping[str, LazyTensor]) -> None:
    """MappingError lists weights that have another shape than the model's own."""
    pairs = (
        (name, own[name].shape, tensor.shape) for name, tensor in joined.items() if name in own
    )
    faults = [f"{name}: {list(b)}, expected {list(a)}" for name, a, b in pairs if a != b]
    if faults:
        raise MappingError(
            f"the optimizer's state: {count_doing(len(faults), 'weight', 'are')} not of the shape"
            " that the model's own has",
            faults,
        )


def _list_shapes(binding: Binding) -> Iterator[tuple[str, Wanted]]:
    """The Megatron tensors and their shapes by the config: of one, the rows of all of its parts."""
    wholes = binding.wholes
    if not wholes and binding.shapes:
        rows = [shape[0] for shape in binding.shapes]
        whole = None if None in rows else sum(size or 0 for size in rows)
        wholes = ((whole, *binding.shapes[0][1:]),)
    for name, shape in zip(binding.names, wholes, strict=False):
        yield name, (*binding.extent, *shape)


def join_pieces(tensor: LazyTensor, wanted: Wanted) -> LazyTensor:
    """The tensor of shape ``wanted`` whose pieces ``tensor`` has; itself where it is whole.

    ValueError where it has none of these shapes. Reads nothing.
    """
    if len(tensor.shape) == len(wanted):
        return tensor
    pieces = tensor.shape[:-1]
    if len(pieces) != len(wanted) or prod(pieces) > _MOST_PIECES:
        raise ValueError(f"{list(tensor.shape)}, expected {_show(wanted)}, or pieces of it")
    whole = _complete(wanted, tensor)
    if whole is None:
        raise ValueError(f"{list(tensor.shape)} is not {_show(wanted)} in pieces")
    return _join(tensor, pieces, tuple(n // f for n, f in zip(whole, pieces, strict=True)))


def _complete(wanted: Wanted, tensor: LazyTensor) -> Shape | None:
    """The sizes with one that is not known; None where no such tensor has these pieces."""
    rest = prod(size for size in wanted if size is not None)
    if None in wanted and (wanted.count(None) > 1 or not rest or tensor.numel % rest):
        return None
    whole = tuple(tensor.numel // rest if size is None else size for size in wanted)
    cut = all(f and n % f == 0 for n, f in zip(whole, tensor.shape[:-1], strict=True))
    return whole if cut and prod(whole) == tensor.numel else None


def _join(tensor: LazyTensor, pieces: Shape, local: Shape) -> LazyTensor:
    """All pieces, each of shape ``local``, one after the other along every dimension."""
    count, chunks, room = len(pieces), [], _MOST_PIECES
    for chunk in reshape(tensor, (*pieces, *local)).chunks:
        lead, strides = chunk.box.sizes[:count], chunk.region.strides
        room -= prod(lead)
        if room < 0:
            raise ValueError(f"{list(tensor.shape)}: blocks of more than {_MOST_PIECES:,} pieces")
        for step in product(*map(range, lead)):
            skipped = dot(step, strides[:count]) * tensor.source_dtype.itemsize
            region = chunk.region._replace(
                offset=chunk.region.offset + skipped, strides=strides[count:]
            )
            numbers = (at + more for at, more in zip(chunk.box.offsets, step, strict=False))
            inner = zip(numbers, local, chunk.box.offsets[count:], strict=True)
            offsets = tuple(number * size + at for number, size, at in inner)
            chunks.append(Chunk(Box(offsets, chunk.box.sizes[count:]), region))
    whole = tuple(f * n for f, n in zip(pieces, local, strict=True))
    return replace(tensor, shape=whole, chunks=tuple(chunks))


def _show(shape: Sequence[int | None]) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"
