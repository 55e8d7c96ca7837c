"""A state dict with LoRA adapters in it, taken apart by its names.

As peft holds a model in memory (``peft.tuners.lora``): below ``base_model.model.`` lie the
parameters of the model. An adapted module ``M`` has ``M.base_layer.weight`` and
``M.lora_A.<adapter>.weight`` [r, in], ``M.lora_B.<adapter>.weight`` [out, r], with ``lora_bias``
``M.lora_B.<adapter>.bias`` [out]; an embedding ``M.lora_embedding_A.<adapter>`` [r, num],
``M.lora_embedding_B.<adapter>`` [dim, r]; DoRA adds ``M.lora_magnitude_vector.<adapter>.weight``
[out]. Where parameters of M are adapted (``target_parameters``), each is wrapped once more: the
first one's factors are ``M.base_layer.lora_A``, the second's ``M.lora_A``, the parameters
themselves ``M.base_layer.base_layer.<parameter>``. A module that was trained whole has
``M.original_module.*`` and ``M.modules_to_save.<adapter>.*``; an embedding of which rows were
trained ``M.token_adapter.base_layer.weight`` and [n, dim]
``M.token_adapter.trainable_tokens_delta.<adapter>``. Files of adapters leave that name out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.wording import count_noun
from ckpt_tool.mapping.hub.names import unwrap_name
from ckpt_tool.mapping.lora.adapters import Adapters, Module
from ckpt_tool.mapping.renaming import rename_all
from ckpt_tool.tensors.lazy import LazyTensor

#: Where peft's model begins; before it are dictionaries that somebody nested it in.
_PREFIX = re.compile(r"^(?:.*?\.)??(pretrained_model\.)?base_model\.model\.")
_ADAPTER = r"(?:\.(?P<adapter>[^.]+))?"
#: What an adapter has, and the part that it is.
_PARTS = {
    "A": re.compile(rf"(?P<module>.+)\.lora_A{_ADAPTER}\.weight"),
    "B": re.compile(rf"(?P<module>.+)\.lora_B{_ADAPTER}\.weight"),
    "bias": re.compile(rf"(?P<module>.+)\.lora_B{_ADAPTER}\.bias"),
    "embedding_A": re.compile(rf"(?P<module>.+)\.lora_embedding_A{_ADAPTER}"),
    "embedding_B": re.compile(rf"(?P<module>.+)\.lora_embedding_B{_ADAPTER}"),
    "magnitude": re.compile(
        r"(?P<module>.+)\.lora_magnitude_vector(?:\.(?!weight$)(?P<adapter>[^.]+))?(?:\.weight)?"
    ),
    "tokens": re.compile(rf"(?P<module>.+)\.token_adapter\.trainable_tokens_delta{_ADAPTER}"),
}
_SAVED = re.compile(r"(?P<module>.+)\.modules_to_save\.(?P<adapter>[^.]+)\.(?P<parameter>.+)")
#: What peft puts around a module, below which its own parameters lie.
_WRAPPED = re.compile(r"(?:\.token_adapter)?\.base_layer(?=\.)|\.original_module(?=\.)")
#: What LoRA adds, and what peft puts around a module.
_ADAPTED = re.compile(
    r"\.(lora_(embedding_)?[AB]|lora_magnitude_vector|base_layer|original_module|modules_to_save"
    r"|token_adapter)(\.|$)"
)
#: What other methods of peft, and other uses of LoRA, have in their names.
_FOREIGN = re.compile(
    r"\.(modules_to_save|token_adapter)\."
    r"|\.(lora|ia3|vera|hada|lokr|oft|boft|randlora|hira|road|trainable_tokens|prompt_encoder)_?\w*\b"
)
_EMBEDDINGS = ("embed_tokens", "lm_head")


def has_adapters(names: Iterable[str]) -> bool:
    """Whether some of these names are of LoRA adapters, or of what peft puts around a model."""
    return any(is_adapted(name) for name in names)


def is_adapted(name: str) -> bool:
    """Whether ``name`` is of a LoRA adapter, or of what peft puts around a model."""
    plain = unwrap_name(name)
    return bool(_ADAPTED.search(plain) or _PREFIX.match(plain))


def cut_around(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The tensors by names that begin with peft's model, where they are of one in dictionaries.

    MappingError where two get one name.
    """
    around = r"\g<1>base_model.model."
    return rename_all(tensors, lambda name: _PREFIX.sub(around, name))


def refuse_adapters(names: Iterable[str]) -> None:
    """MappingError where there are adapters, for what takes plain models only."""
    listed = list(names)
    adapted = [name for name in listed if is_adapted(name)]
    if adapted:
        raise MappingError(
            f"a model with LoRA adapters: {len(adapted)} of {len(listed)} tensors belong to"
            " adapters or lie below them",
            adapted,
            hint="Merge them into the model first: ckpt merge does with a training checkpoint, peft"
            " with a model that it opened (merge_and_unload).",
        )


def take_apart(tensors: Mapping[str, LazyTensor]) -> Adapters:
    """The adapters in a state dict, and the model below them.

    MappingError lists what belongs to another kind of adapter, adapters that are incomplete or
    whose factors do not fit together, layers that lost theirs, and names of several adapters.
    """
    sorter = _Sorter()
    for name, tensor in tensors.items():
        sorter.put(_PREFIX.sub(lambda found: found[1] or "", unwrap_name(name)), tensor)
    return sorter.sorted()


@dataclass
class _Sorter:
    """Names as they are sorted."""

    base: dict[str, LazyTensor] = field(default_factory=dict)
    parts: dict[str, dict[str, LazyTensor]] = field(default_factory=dict)
    saved: dict[str, dict[str, LazyTensor]] = field(default_factory=dict)
    tokens: dict[str, LazyTensor] = field(default_factory=dict)
    adapters: set[str] = field(default_factory=set)
    bare: dict[str, str] = field(default_factory=dict)
    foreign: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)

    def put(self, name: str, tensor: LazyTensor) -> None:
        for part, pattern in _PARTS.items():
            matched = pattern.fullmatch(name)
            if matched is not None:
                self._put_part(part, matched, tensor)
                return
        matched = _SAVED.fullmatch(name)
        if matched is not None:
            self._note(matched)
            module = self.saved.setdefault(matched["module"], {})
            self._add(module, matched["parameter"], name, tensor)
            return
        plain = _WRAPPED.sub("", name)
        if _FOREIGN.search(plain):
            self.foreign.append(name)
        for wrapped in _WRAPPED.finditer(name):
            self.bare[name[: wrapped.start()]] = wrapped[0].rpartition(".")[2]
        self._add(self.base, plain, name, tensor)

    def _put_part(self, part: str, matched: re.Match[str], tensor: LazyTensor) -> None:
        self._note(matched)
        module = matched["module"]
        if part == "tokens":
            self._add(self.tokens, module, matched[0], tensor)
        else:
            self._add(self.parts.setdefault(module, {}), part, matched[0], tensor)

    def sorted(self) -> Adapters:
        self._refuse_foreign()
        faults = [
            fault for name, parts in self.parts.items() for fault in _find_faults(name, parts)
        ]
        faults += [
            f"{module}: {kind} without what was trained beside it"
            for module, kind in self.bare.items()
            if module not in self.parts and module not in self.saved and module not in self.tokens
        ]
        if faults:
            raise MappingError(f"{count_noun(len(faults), 'problem')} in the LoRA adapters", faults)
        modules = {name: _make_module(name, parts) for name, parts in self.parts.items()}
        found = Adapters(self.base, modules, self.saved, self.tokens)
        if not _is_alone(found):
            return found
        return Adapters({}, modules, self.saved, self.tokens, self.base)

    def _refuse_foreign(self) -> None:
        if self.twice:
            raise MappingError(f"{count_noun(len(self.twice), 'name')} twice", self.twice)
        if self.foreign:
            raise MappingError(
                f"{count_noun(len(self.foreign), 'tensor')} of adapters that are not supported",
                self.foreign,
                hint="Supported is LoRA (rsLoRA, DoRA) of linear layers, embeddings, convolutions"
                " and parameters of experts, with modules_to_save, trainable_token_indices and"
                " biases. Let peft merge the others: merge_and_unload.",
            )
        if len(self.adapters) > 1:
            raise MappingError(
                f"{len(self.adapters)} adapters in one checkpoint, expected one",
                sorted(self.adapters),
            )

    def _note(self, matched: re.Match[str]) -> None:
        if matched["adapter"]:
            self.adapters.add(matched["adapter"])

    def _add(self, there: dict[str, LazyTensor], key: str, name: str, tensor: LazyTensor) -> None:
        if key in there:
            self.twice.append(name)
        there[key] = tensor


def _make_module(wrapper: str, parts: Mapping[str, LazyTensor]) -> Module:
    a, b = _factors(parts)
    return Module(
        name=wrapper.replace(".base_layer", ""),
        a=parts[a],
        b=parts[b],
        magnitude=parts.get("magnitude"),
        bias=parts.get("bias"),
        is_embedding=a == "embedding_A",
        wrapper=wrapper,
    )


def _factors(parts: Mapping[str, LazyTensor]) -> tuple[str, str]:
    if any(part.startswith("embedding") for part in parts):
        return "embedding_A", "embedding_B"
    return "A", "B"


def _find_faults(name: str, parts: Mapping[str, LazyTensor]) -> Iterable[str]:
    wanted = _factors(parts)
    missing = [part for part in wanted if part not in parts]
    if missing:
        yield f"{name}: lora_{next(iter(parts))} without lora_{missing[0]}"
        return
    a, b = (parts[part].shape for part in wanted)
    said = f"{name}: factors of shapes {list(a)} and {list(b)}"
    if len(a) < 2 or len(a) != len(b):
        yield f"{said}, expected as many dimensions, at least two"
    elif a[0] != b[1]:
        yield f"{said}, which have no common rank"
    elif b[2:] != (1,) * len(b[2:]):
        yield f"{said}, expected B of a convolution to have a kernel of one element"


def _is_alone(found: Adapters) -> bool:
    """Whether there is no model: what adapters are on has no weights of its own, but embeddings."""
    embeddings = {module.name for module in found.modules.values() if module.is_embedding}
    linear = {module.name for module in found.modules.values()} - embeddings
    embeddings |= found.tokens.keys()

    def may_be_beside(name: str) -> bool:
        module, _, parameter = name.rpartition(".")
        is_embedding = module in embeddings or module.rpartition(".")[2] in _EMBEDDINGS
        if parameter == "bias" or is_embedding:
            return True
        return bool(linear) and module not in linear

    anything = found.modules or found.saved or found.tokens
    return bool(anything) and all(map(may_be_beside, found.base))
