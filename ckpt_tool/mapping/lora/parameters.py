"""Which parameter each adapter is about, where peft wraps parameters and not modules.

That is how stacks of experts are trained: ``target_parameters``, ``peft.tuners.lora.ParamWrapper``.
Nothing in a state dict names the parameter: the shapes of the factors tell. A stack [E, d1, d2] has
A [E r, in], of which expert e has rows ``e r .. (e + 1) r``, and B [out, r E], of which it has
columns ``e::E``. Its matrices are [out, in] or, turned, [in, out]: peft before 0.19 takes d1 for
"in" whatever it is, later ones only where the model's class says so (``is_transposed``). It is one
way for all of an adapter, so that where the shapes of one stack do not tell, those of another do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import permutations

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.wording import count_noun
from ckpt_tool.mapping.lora.adapters import Adapters, Module
from ckpt_tool.mapping.lora.settings import Settings
from ckpt_tool.tensors.geometry import Shape
from ckpt_tool.tensors.lazy import LazyTensor

Base = Mapping[str, LazyTensor]


def settle_parameters(adapters: Adapters, base: Base, settings: Settings) -> Adapters:
    """The adapters with what each of them is about, by the names and shapes of ``base``.

    Without a base, by what the settings say alone. MappingError lists those that fit nothing there,
    or several parameters alike, and stacks of which nothing tells how they lie.
    """
    groups: dict[str, list[Module]] = {}
    for module in adapters.modules.values():
        groups.setdefault(module.name, []).append(module)
    settled: dict[str, Module] = {}
    faults: list[str] = []
    for name, wrappers in groups.items():
        found = _assign(name, wrappers, base, settings) if base else _guess(wrappers, settings)
        if isinstance(found, str):
            faults.append(found)
        else:
            settled |= {module.wrapper: module for module in found}
    modules = {key: settled[key] for key in adapters.modules if key in settled}
    faults += _turn(modules, base, settings)
    if faults:
        raise MappingError(f"{count_noun(len(faults), 'problem')} in the LoRA adapters", faults)
    return replace(adapters, modules=modules)


def _assign(
    name: str, wrappers: Sequence[Module], base: Base, settings: Settings
) -> list[Module] | str:
    """The wrappers of one module with their parameters; what is wrong where that is not clear."""
    candidates = _find_candidates(name, base, settings)
    if not candidates:
        return f"{name}: the model has no {name}.weight"
    fitting = [
        choice
        for choice in permutations(candidates, len(wrappers))
        if all(_fits(w, base[n].shape) for w, n in zip(wrappers, choice, strict=True))
    ]
    if len(fitting) == 1:
        return [
            _about(module, parameter, base[parameter].shape, settings)
            for module, parameter in zip(wrappers, fitting[0], strict=True)
        ]
    shapes = "; ".join(f"{list(w.a.shape)} and {list(w.b.shape)}" for w in wrappers)
    there = ", ".join(f"{each} {list(base[each].shape)}" for each in candidates)
    if fitting:
        return f"{name}: nothing tells which of {there} is updated by factors of shapes {shapes}"
    grouped = ": of a convolution in groups?" if len(wrappers[0].a.shape) > 2 else ""
    return f"{name}: factors of shapes {shapes} fit none of {there}{grouped}"


def _fits(module: Module, shape: Shape) -> bool:
    """Whether factors make an update of this shape; matrices may be transposed, as Conv1D's are."""
    if _is_stack(module, shape):
        rows = module.a.shape[0]
        return sorted(shape[1:]) == sorted(module.shape) and rows % shape[0] == 0
    wanted = (module.b.shape[0], *module.a.shape[1:])
    return shape == wanted or (len(shape) == 2 and shape[::-1] == wanted)


def _find_candidates(name: str, base: Base, settings: Settings) -> list[str]:
    """Parameters of the module itself that its wrappers may be about."""
    own = [key for key in base if key.rpartition(".")[0] == name and len(base[key].shape) > 1]
    return [key for key in own if settings.targets(key)] or own


def _about(module: Module, parameter: str, shape: Shape, settings: Settings) -> Module:
    own, stacked = parameter.rpartition(".")[2], _is_stack(module, shape)
    return replace(
        module,
        parameter=own,
        experts=shape[0] if stacked else 1,
        by_parameter=stacked or own != "weight" or settings.targets(parameter),
    )


def _is_stack(module: Module, shape: Shape) -> bool:
    return (len(module.a.shape), len(shape)) == (2, 3)


def _guess(wrappers: Sequence[Module], settings: Settings) -> list[Module] | str:
    """The wrappers of one module of a model that is not there."""
    name = wrappers[0].name
    targets = [own for target in settings.parameters if (own := _below(target, name))]
    if not targets and len(wrappers) == 1:
        return list(wrappers)
    if len(targets) < len(wrappers):
        return (
            f"{name}: {count_noun(len(wrappers), 'adapter')} of its parameters, and"
            f" {count_noun(len(targets), 'name')} in target_parameters"
        )
    # Which of them is about which makes no difference to what peft is given.
    return [
        replace(module, parameter=own, by_parameter=True, experts=_count(module, settings, own))
        for module, own in zip(wrappers, targets, strict=False)
    ]


def _below(target: str, module: str) -> str:
    """The parameter that ``target`` means of ``module``; empty where it means none."""
    path, _, own = target.rpartition(".")
    return own if path and f".{module}".endswith(f".{path}") else ""


def _count(module: Module, settings: Settings, own: str) -> int:
    rows = module.a.shape[0]
    return max(1, rows // (settings.expected_rank(f"{module.name}.{own}") or rows))


# --- which way stacks lie
def _turn(modules: dict[str, Module], base: Base, settings: Settings) -> Iterable[str]:
    """Say of each stack of matrices whether these are [in, out]; what is wrong, where it is not."""
    shapes = {key: base[module.weight].shape for key, module in modules.items()} if base else {}
    stacks = {key: shape[1:] for key, shape in shapes.items() if _is_stack(modules[key], shape)}
    votes = {modules[key].shape != shape for key, shape in stacks.items() if shape[0] != shape[1]}
    if not stacks:
        return
    if len(votes) > 1:
        yield "stacks of experts of which some are [in, out] and some [out, in]: of two releases?"
        return
    turned = votes.pop() if votes else _ask_version(stacks, base, settings)
    if turned is None:
        yield (
            f"{next(iter(stacks))}: square matrices, which peft before 0.19 takes as [in, out], and"
            " later ones as [out, in]: adapter_config.json beside the shards says peft_version"
        )
        return
    for key in stacks:
        modules[key] = replace(modules[key], turned=turned)


def _ask_version(stacks: Iterable[str], base: Base, settings: Settings) -> bool | None:
    """Whether square matrices are [in, out], by the release of peft; None where nothing says it."""
    before = settings.is_before(0, 19)
    if before is not False:
        return before
    return any(_lies_turned(key.replace(".base_layer", ""), base) for key in stacks)


def _lies_turned(name: str, base: Base) -> bool:
    """Whether a class holds its experts as [E, in, out], by gate_up_proj [E, H, 2I] beside down."""
    pair = [base.get(f"{name}.{own}") for own in ("gate_up_proj", "down_proj")]
    shapes = [tensor.shape for tensor in pair if tensor is not None and len(tensor.shape) == 3]
    if len(shapes) != 2:
        return False
    (_, a, b), (_, c, d) = shapes
    return (a, b) == (d, 2 * c) and (b, a) != (c, 2 * d)
