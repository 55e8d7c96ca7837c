"""A whole model from one side to the other, by its bindings: complete and exact, or refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.wording import count_doing, count_noun, join_words
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.hub.form import HubModel, Tie
from ckpt_tool.mapping.megatron.bindings import Binding
from ckpt_tool.mapping.megatron.copies import find_gates
from ckpt_tool.mapping.megatron.entries import Slices, select_entry
from ckpt_tool.mapping.megatron.keys import unify_keys
from ckpt_tool.mapping.megatron.numbers import require_rows
from ckpt_tool.mapping.megatron.ops import Blocks, Vocabulary
from ckpt_tool.mapping.megatron.rules import Rules, infer_rules
from ckpt_tool.mapping.megatron.shared_kv_ops import Unread
from ckpt_tool.mapping.megatron.towers import use_tower_names
from ckpt_tool.mapping.megatron.verl_names import use_core_names
from ckpt_tool.tensors.geometry import Shape
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.tensors.tiled import Block, TiledTensor

Tensors = Mapping[str, LazyTensor]

_NO_HEAD = "There is no head, and config.json does not tie it to the embedding."
_LOST_NORMS = (
    "megatron-core 0.17 and 0.18 do not save these norms in torch_dist where the run fuses the down"
    " projections (--mla-down-proj-fusion): they are not in this checkpoint. Files of single ranks"
    " (--ckpt-format torch) have them, and what 0.19 saves."
)
_FOLDED = (
    "Megatron-Bridge 0.5 has folded norms and scales into the weights of routers and shared experts"
    " (pffl_weight), from which they do not come back bit for bit: export with Megatron-Bridge."
)
_LABELS = (
    "A score of several rows is that of a classifier, with one for each label: Megatron's head is"
    " that of a language model, or of one row, as a value model's or a reward model's."
)
_BARE = (
    "These are the names of a base class, without what is before them in a language model: load the"
    " folder with transformers' AutoModelForCausalLM, save that, and convert it."
)
_OTHER = (
    "The weights and the config.json are of different models, or the model is of a kind that is"
    " not supported."
)


class _Entry(NamedTuple):
    """An entry of a Megatron tensor, in order along dimension 0."""

    binding: Binding
    blocks: Blocks


def restore_model(tensors: Tensors, config: ModelConfig, *, tied: bool | None = None) -> HubModel:
    """The Hugging Face model that ``tensors``, in any of Megatron's spellings, are.

    ``tied`` as in :func:`infer_rules`. MappingError lists all that is missing, unexpected or
    misshapen. ``ties`` of the model: what Megatron has for each of several layers and the Hub once.
    """
    family = require_rows(config)
    tensors = use_tower_names(use_core_names(tensors, config), family.around)
    keyed = unify_keys(tensors, multimodal=family.around.sees)
    rules = infer_rules(config, keyed, tied=tied)
    found = from_megatron(keyed, rules)
    repeats = {repeat.hf: found[repeat.of] for repeat in rules.repeats}
    dropped = _find_padding(keyed, rules) | _find_unread(rules)
    ties, gates = _find_copies(keyed, rules, found) or None, find_gates(keyed, rules.bindings)
    return HubModel(found, config, dropped=dropped, repeats=repeats, ties=ties, copies=gates)


def to_megatron(tensors: Tensors, rules: Rules) -> dict[str, TiledTensor]:
    """The Megatron tensors made of Hugging Face's; every one of both sides is used exactly once.

    MappingError lists every missing, unexpected and misshapen tensor.
    """
    _require_complete(tensors, rules)
    faults = []
    for binding in rules.bindings:
        parts = [tensors[name] for name in binding.hf]
        fault = binding.op.find_fault([part.shape for part in parts])
        if not fault and len({part.dtype for part in parts}) > 1:
            fault = f"of {' and '.join(part.dtype.name for part in parts)}; choose one with `dtype`"
        if fault:
            faults.append(f"{', '.join(binding.hf)}: {fault}")
        else:
            faults += _find_misshapen(binding, tensors)
    if faults:
        hint = _LABELS if any(fault.startswith("score.") for fault in faults) else ""
        said = f"{count_doing(len(faults), 'tensor', 'are')} not what {rules.config.path} says"
        raise MappingError(said, faults, hint=hint)
    grouped: dict[str, list[_Entry]] = {}
    for binding in rules.bindings:
        wholes = binding.op.join([tensors[name] for name in binding.hf])
        for name, blocks in zip(binding.names, wholes, strict=True):
            grouped.setdefault(name, []).append(_Entry(binding, blocks))
    stored = {name: _store(name, group, faults) for name, group in grouped.items()}
    if faults:
        raise MappingError(
            f"{count_doing(len(faults), 'tensor', 'are')} impossible to put together", faults
        )
    return stored


def from_megatron(tensors: Tensors, rules: Rules) -> dict[str, LazyTensor]:
    """Hugging Face's tensors out of Megatron's: the inverse of :func:`to_megatron`.

    ``tensors`` have exactly the keys of the bindings. MappingError lists every missing, unexpected
    and misshapen tensor.
    """
    names = (name for binding in rules.bindings for name in binding.names)
    _require_names(tensors, dict.fromkeys(names), rules)
    faults = []
    result: dict[str, LazyTensor] = {}
    slices: Slices = {}
    for binding in rules.bindings:
        try:
            wholes = [select_entry(name, binding, tensors, slices) for name in binding.names]
            for name, tensor in zip(binding.hf, binding.op.split(wholes), strict=True):
                result.setdefault(name, tensor)
        except ValueError as error:
            found = ", ".join(f"{name} {list(tensors[name].shape)}" for name in binding.names)
            faults.append(f"{found}: {error}")
        else:
            where = ", ".join(binding.names)
            faults += [f"{where}: {fault}" for fault in _find_misshapen(binding, result)]
    if faults:
        faults = list(dict.fromkeys(faults))  # a stacked tensor has the same fault in every layer
        said = rules.config.folder / "config.json"
        raise MappingError(
            f"{count_doing(len(faults), 'tensor', 'are')} not what {said} says", faults, hint=_OTHER
        )
    return result


def _find_padding(tensors: Tensors, rules: Rules) -> dict[str, str]:
    """The rows of Megatron's tensors that only pad the vocabulary, and why they are left out."""
    found: dict[str, str] = {}
    vocab = rules.numbers.vocab_size
    for binding in rules.bindings:
        if not isinstance(binding.op, Vocabulary):
            continue
        (name,) = binding.names
        rows = tensors[name].shape[0] - vocab
        if rows:
            found[f"{name}[{vocab}:{vocab + rows}]"] = (
                f"{count_noun(rows, 'row')} of padding: the vocabulary has {vocab} by config.json"
            )
    return found


def _find_copies(tensors: Tensors, rules: Rules, found: Mapping[str, LazyTensor]) -> dict[str, Tie]:
    """Megatron's tensors of which the Hub has one for several, but for the first of each."""
    seen: set[str] = set()
    copies = {}
    for binding in rules.bindings:
        name = binding.hf[0]
        if name in seen:
            (copy,) = binding.op.split([tensors[own] for own in binding.names])
            copies[binding.names[0]] = Tie(copy, name, found[name])
        seen.add(name)
    return copies


def _find_unread(rules: Rules) -> dict[str, str]:
    """What of Megatron's tensors its model does not read, and why: it is left out."""
    found: dict[str, str] = {}
    for binding in rules.bindings:
        if isinstance(binding.op, Unread):
            what, why = binding.op.UNREAD
            found[f"{binding.names[-1]}, {what}"] = why
    return found


def _find_misshapen(binding: Binding, tensors: Tensors) -> Iterator[str]:
    """The tensors whose shape is not the config's, with both."""
    for name, expected in binding.expected():
        found = tensors[name].shape
        wanted = [at if size is None else size for at, size in zip(found, expected, strict=False)]
        if len(found) != len(expected) or list(found) != wanted:
            sizes = ["?" if size is None else str(size) for size in expected]
            yield f"{name}: {list(found)}, expected [{', '.join(sizes)}]"


def _require_complete(tensors: Tensors, rules: Rules) -> None:
    names = (name for binding in rules.bindings for name in binding.hf)
    _require_names(tensors, dict.fromkeys(names), rules)


def _require_names(tensors: Tensors, wanted: Mapping[str, None], rules: Rules) -> None:
    missing = [name for name in wanted if name not in tensors]
    unexpected = [name for name in tensors if name not in wanted]
    if not missing and not unexpected:
        return
    counts = {"missing": len(missing), "unexpected": len(unexpected)}
    said = join_words([f"{count} {kind}" for kind, count in counts.items() if count])
    tensors_of = "tensor" if sum(counts.values()) == 1 else "tensors"
    hint = _NO_HEAD if missing == ["output_layer.weight"] and not unexpected else _OTHER
    lost = all(name.endswith(".input_layernorm.weight") for name in missing)
    if missing and lost and not unexpected and "latent" in rules.numbers.flags:
        hint = _LOST_NORMS
    if any(name.endswith(".pffl_weight") for name in unexpected):
        hint = _FOLDED
    trunk = require_rows(rules.config).around.trunk
    if unexpected and {f"{trunk}{name}" for name in unexpected} <= set(missing):
        hint = _BARE
    raise MappingError(
        f"{said} {tensors_of} for a {rules.config.model_type} of {rules.numbers.layers} layers, by"
        f" {rules.config.folder / 'config.json'}",
        [f"missing: {name}" for name in missing] + [f"unexpected: {name}" for name in unexpected],
        hint=hint,
    )


def _store(name: str, group: Sequence[_Entry], faults: list[str]) -> TiledTensor:
    """One Megatron tensor of all its entries, which must agree in shape and dtype."""
    blocks: list[Block] = []
    shapes, dtypes = [], set()
    for binding, joined in group:
        blocks += _place_blocks(binding.index, joined)
        shapes.append(_join_shapes(joined))
        dtypes |= {tensor.dtype.name for tensor in joined}
        if shapes[-1] != shapes[0]:
            names = ", ".join(binding.hf)
            faults.append(f"{names}: {list(shapes[-1])} together, the others {list(shapes[0])}")
    if len(dtypes) > 1:
        kinds = " and ".join(sorted(dtypes))
        faults.append(f"{name}: made of tensors of {kinds}; choose one with `dtype`")
    sources = tuple(source for entry in group for source in entry.binding.hf)
    return TiledTensor(group[0].binding.extent + shapes[0], tuple(blocks), sources)


def _place_blocks(index: Shape, tensors: Sequence[LazyTensor]) -> Iterator[Block]:
    """Tensors, one after the other along dimension 0, at ``index`` of the leading axes."""
    at = 0
    for tensor in tensors:
        start = (at,) + (0,) * (len(tensor.shape) - 1) if tensor.shape else ()
        yield Block(index + start, tensor)
        at += tensor.shape[0] if tensor.shape else 0


def _join_shapes(tensors: Sequence[LazyTensor]) -> Shape:
    first = tensors[0].shape
    return (sum(tensor.shape[0] for tensor in tensors), *first[1:]) if first else ()
