"""A state dict with LoRA adapters in it, taken apart by its names.

As peft holds a model in memory (``peft.tuners.lora``): below ``base_model.model.`` lie the
parameters of the model. An adapted module ``M`` has ``M.base_layer.weight`` and
``M.lora_A.<adapter>.weight`` [r, in], ``M.lora_B.<adapter>.weight`` [out, r]; an embedding
``M.lora_embedding_A.<adapter>`` [r, num], ``M.lora_embedding_B.<adapter>`` [dim, r]; DoRA adds
``M.lora_magnitude_vector.<adapter>.weight`` [out]. A module that was trained whole has
``M.original_module.*`` and ``M.modules_to_save.<adapter>.*``. Files of adapters leave the
adapter's name out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.wording import count_noun
from ckpt_tool.mapping.hub.names import unwrap_name
from ckpt_tool.tensors.lazy import LazyTensor

_PREFIX = re.compile(r"^(pretrained_model\.)?base_model\.model\.")
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB])(?:\.(?P<adapter>[^.]+))?\.weight")
_EMBEDDING = re.compile(r"(?P<module>.+)\.lora_embedding_(?P<part>[AB])(?:\.(?P<adapter>[^.]+))?")
_MAGNITUDE = re.compile(
    r"(?P<module>.+)\.lora_(?P<part>magnitude_vector)(?:\.(?!weight$)(?P<adapter>[^.]+))?(?:\.weight)?"
)
_SAVED = re.compile(r"(?P<module>.+)\.modules_to_save\.(?P<adapter>[^.]+)\.(?P<parameter>.+)")
_UNWRAPPED = re.compile(r"\.(base_layer|original_module)\.(?!.*\.(base_layer|original_module)\.)")
#: What LoRA adds, and what peft puts around a module.
_ADAPTED = re.compile(
    r"\.(lora_(embedding_)?[AB]|lora_magnitude_vector|base_layer|original_module|modules_to_save)"
    r"(\.|$)"
)
#: What other methods of peft, and other uses of LoRA, have in their names.
_FOREIGN = re.compile(
    r"\.(base_layer|original_module|modules_to_save|token_adapter)\."
    r"|\.(lora|ia3|vera|hada|lokr|oft|boft|randlora|hira|road|trainable_tokens|prompt_encoder)_?\w*\b"
)


@dataclass(frozen=True)
class Module:
    """A module with a low-rank update: A [r, in] and B [out, r].

    Of an embedding, "in" are the tokens and "out" the features. ``magnitude`` [out] with DoRA.
    """

    name: str
    a: LazyTensor
    b: LazyTensor
    magnitude: LazyTensor | None = None
    is_embedding: bool = False

    @property
    def rank(self) -> int:
        """r, by the factors' shapes."""
        return self.a.shape[0]

    @property
    def weight(self) -> str:
        """The name of the weight that it updates."""
        return f"{self.name}.weight"


@dataclass(frozen=True)
class Adapters:
    """``base``: the model without its adapters, by the names it has without them.

    ``modules`` by name. ``saved``: parameters trained in place of those of the same names, by
    module and the name below it.
    """

    base: dict[str, LazyTensor]
    modules: dict[str, Module]
    saved: dict[str, dict[str, LazyTensor]]

    @property
    def rank(self) -> int:
        """R of most modules; 0 where there is none."""
        ranks = Counter(module.rank for module in self.modules.values())
        return ranks.most_common(1)[0][0] if ranks else 0

    def trained_whole(self) -> dict[str, LazyTensor]:
        """Parameters of ``saved`` by their full names."""
        return {
            f"{module}.{name}": tensor
            for module, found in self.saved.items()
            for name, tensor in found.items()
        }


def has_adapters(names: Iterable[str]) -> bool:
    """Whether some of these names are of LoRA adapters, or of what peft puts around a model."""
    return any(is_adapted(name) for name in names)


def is_adapted(name: str) -> bool:
    """Whether ``name`` is of a LoRA adapter, or of what peft puts around a model."""
    plain = unwrap_name(name)
    return bool(_ADAPTED.search(plain) or _PREFIX.match(plain))


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
    factors: dict[str, dict[str, LazyTensor]] = field(default_factory=dict)
    saved: dict[str, dict[str, LazyTensor]] = field(default_factory=dict)
    embeddings: set[str] = field(default_factory=set)
    adapters: set[str] = field(default_factory=set)
    bare: dict[str, str] = field(default_factory=dict)
    foreign: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)

    def put(self, name: str, tensor: LazyTensor) -> None:
        for pattern in (_FACTOR, _EMBEDDING, _MAGNITUDE):
            matched = pattern.fullmatch(name)
            if matched is not None:
                self._note(matched)
                if pattern is _EMBEDDING:
                    self.embeddings.add(matched["module"])
                parts = self.factors.setdefault(matched["module"], {})
                self._add(parts, matched["part"], name, tensor)
                return
        matched = _SAVED.fullmatch(name)
        if matched is not None:
            self._note(matched)
            module = self.saved.setdefault(matched["module"], {})
            self._add(module, matched["parameter"], name, tensor)
            return
        plain = _UNWRAPPED.sub(".", name)
        if _FOREIGN.search(plain):
            self.foreign.append(name)
        wrapped = _UNWRAPPED.search(name)
        if wrapped is not None:
            self.bare[name[: wrapped.start()]] = wrapped[1]
        self._add(self.base, plain, name, tensor)

    def sorted(self) -> Adapters:
        if self.twice:
            raise MappingError(f"{count_noun(len(self.twice), 'name')} twice", self.twice)
        if self.foreign:
            raise MappingError(
                f"{count_noun(len(self.foreign), 'tensor')} of adapters that are not supported",
                self.foreign,
                hint="Supported is LoRA (rsLoRA, DoRA) of linear layers and embeddings, with"
                " modules_to_save. Let peft merge the others: merge_and_unload.",
            )
        if len(self.adapters) > 1:
            raise MappingError(
                f"{len(self.adapters)} adapters in one checkpoint, expected one",
                sorted(self.adapters),
            )
        faults = [
            fault for name, parts in self.factors.items() for fault in self._faults(name, parts)
        ]
        faults += [
            f"{module}: {kind} without what was trained beside it"
            for module, kind in self.bare.items()
            if module not in self.factors and module not in self.saved
        ]
        if faults:
            raise MappingError(f"{count_noun(len(faults), 'problem')} in the LoRA adapters", faults)
        return Adapters(self.base, {name: self._module(name) for name in self.factors}, self.saved)

    def _module(self, name: str) -> Module:
        parts = self.factors[name]
        return Module(
            name, parts["A"], parts["B"], parts.get("magnitude_vector"), name in self.embeddings
        )

    def _note(self, matched: re.Match[str]) -> None:
        if matched["adapter"]:
            self.adapters.add(matched["adapter"])

    def _add(self, there: dict[str, LazyTensor], key: str, name: str, tensor: LazyTensor) -> None:
        if key in there:
            self.twice.append(name)
        there[key] = tensor

    def _faults(self, name: str, parts: Mapping[str, LazyTensor]) -> Iterable[str]:
        missing = [part for part in "AB" if part not in parts]
        if missing:
            yield f"{name}: lora_{next(iter(parts))} without lora_{missing[0]}"
            return
        a, b = parts["A"].shape, parts["B"].shape
        if len(a) != 2 or len(b) != 2:
            yield f"{name}: factors of shapes {list(a)} and {list(b)}: of a convolution?"
        elif a[0] != b[1]:
            yield f"{name}: factors of shapes {list(a)} and {list(b)}, which have no common rank"
