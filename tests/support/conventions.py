"""The ways in which trainers leave a model: names, nesting, copies, dtypes, and what lies beside.

A convention writes one model into a folder and says what a merge has to make of it.
"""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
import torch.distributed.checkpoint as dcp

from ckpt_tool.mapping.lora.options import LoraOptions
from ckpt_tool.operations.options import MergeOptions
from ckpt_tool.plans.options import WriteOptions
from tests.support.merging import load_folder, write_rank

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Model:
    """A model of transformers, its state dict in memory, and what it saves."""

    made: Any
    state: State
    hub: State
    config: dict[str, Any]

    @classmethod
    def of(cls, made: Any, folder: Path) -> Model:
        """The model, saved in ``folder``."""
        made.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        state = {name: tensor.clone() for name, tensor in made.state_dict().items()}
        return cls(made, state, load_folder(folder), config)

    @property
    def copies(self) -> set[str]:
        """What of the state dict repeats another tensor."""
        return set(self.made.all_tied_weights_keys)

    def with_text(self, **changes: Any) -> dict[str, Any]:
        """The config with changes where the language model's are."""
        if "text_config" in self.config:
            return self.config | {"text_config": self.config["text_config"] | changes}
        return self.config | changes


@dataclass(frozen=True)
class Left:
    """What a trainer left: a folder, what the command is told, and the state dict that opens.

    ``kind``: the word of the command. ``state``: None where it is the model's. ``dtype``: of all
    weights in the files.
    """

    source: Path
    kind: str = "fsdp"
    options: MergeOptions = field(default_factory=lambda: MergeOptions(write=UNSYNCED))
    state: State | None = None
    dtype: torch.dtype = torch.float32


UNSYNCED = WriteOptions(fsync=False)
Convention = Callable[[Model, Path], Left | None]
CONVENTIONS: dict[str, Convention] = {}


def _convention(name: str) -> Callable[[Convention], Convention]:
    def add(function: Convention) -> Convention:
        CONVENTIONS[name] = function
        return function

    return add


def _renaming(rename: Callable[[str], str]) -> Convention:
    def write(model: Model, folder: Path) -> Left:
        state = {rename(name): tensor for name, tensor in model.state.items()}
        return Left(write_rank(folder, state, model.config))

    return write


def _prefixed(prefix: str) -> Convention:
    return _renaming(lambda name: prefix + name)


def _inside_layers(part: str) -> Convention:
    return _renaming(lambda name: re.sub(r"(\.\d+)\.", rf"\1.{part}.", name, count=1))


# --- names of FSDP rank files
CONVENTIONS["as in memory"] = _renaming(str)
for _each in (
    "module.",
    "_orig_mod.",
    "_orig_mod.module.",
    "module._orig_mod.",
    "_fsdp_wrapped_module.",
    "_fsdp_wrapped_module._orig_mod.",
):
    CONVENTIONS[f"wrapped: {_each}"] = _prefixed(_each)
for _each in ("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod",
              "_fsdp_wrapped_module._checkpoint_wrapped_module"):  # fmt: skip
    CONVENTIONS[f"wrapped layers: {_each}"] = _inside_layers(_each)


@_convention("names of the Hub")
def _as_on_hub(model: Model, folder: Path) -> Left:
    return Left(write_rank(folder, model.hub, model.config))


@_convention("a PeftModel without adapters")
def _bare_peft(model: Model, folder: Path) -> Left:
    config = model.config | {"architectures": ["PeftModelForCausalLM"]}
    state = {f"base_model.model.{name}": tensor for name, tensor in model.state.items()}
    return Left(write_rank(folder, state, config))


@_convention("adapters that are still zero")
def _adapters(model: Model, folder: Path) -> Left:
    lora = peft.LoraConfig(r=2, lora_alpha=3, target_modules="all-linear")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = peft.get_peft_model(copy.deepcopy(model.made), lora).state_dict()
    write_rank(folder, state, model.config)
    lora.save_pretrained(folder / "lora_adapter")
    return Left(folder, options=MergeOptions(lora=LoraOptions("fuse"), write=UNSYNCED))


@_convention("trl's value head beside it")
def _value_head(model: Model, folder: Path) -> Left | None:
    if not type(model.made).__name__.endswith("ForCausalLM") or "hidden_size" not in model.config:
        return None
    head = {"v_head.summary.weight": torch.ones(1, model.config["hidden_size"])}
    state = model.state | head | {"v_head.summary.bias": torch.zeros(1)}
    options = MergeOptions(value_model=False, write=UNSYNCED)
    return Left(write_rank(folder, state, model.config), options=options)


# --- copies, buffers and state beside the weights
@_convention("what is tied is there once")
def _untied(model: Model, folder: Path) -> Left | None:
    state = {name: tensor for name, tensor in model.state.items() if name not in model.copies}
    return Left(write_rank(folder, state, model.config)) if model.copies else None


@_convention("tied by one level of the config only")
def _one_level(model: Model, folder: Path) -> Left | None:
    if "text_config" not in model.config or not model.copies:
        return None
    config = model.with_text(tie_word_embeddings=True)
    config.pop("tie_word_embeddings", None)
    state = {name: tensor for name, tensor in model.state.items() if name not in model.copies}
    return Left(write_rank(folder, state, config))


def _find_layers(model: Model) -> list[str]:
    """Where layers begin, by names in memory."""
    found = (re.match(r"(.*?\.(?:layers|h|blocks?)\.\d+)\.", name) for name in model.state)
    return sorted({each[1] for each in found if each})


@_convention("rotary buffers of old releases")
def _rotary(model: Model, folder: Path) -> Left:
    names = [f"{layer}.self_attn.rotary_emb.inv_freq" for layer in _find_layers(model)]
    return Left(write_rank(folder, model.state | dict.fromkeys(names, torch.ones(4)), model.config))


@_convention("state of Transformer Engine")
def _extra_state(model: Model, folder: Path) -> Left:
    states = [None, torch.zeros(0, dtype=torch.uint8), torch.ones(9, dtype=torch.uint8)]
    names = [f"{layer}.mlp._extra_state" for layer in _find_layers(model)]
    extra = {name: states[n % 3] for n, name in enumerate(names)}
    return Left(write_rank(folder, model.state | extra, model.config))


# --- dtypes
def _cast(state: State, dtype: torch.dtype) -> State:
    return {n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()}


def _say_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    said = {**config, "dtype": dtype}
    said.pop("torch_dtype", None)
    for key, part in config.items():
        if isinstance(part, dict) and "dtype" in part:
            said[key] = part | {"dtype": dtype}
    return said


@_convention("float32 masters of a bfloat16 model")
def _masters(model: Model, folder: Path) -> Left:
    source = write_rank(folder, model.state, _say_dtype(model.config, "bfloat16"))
    return Left(source, state=_cast(model.state, torch.bfloat16), dtype=torch.bfloat16)


@_convention("bfloat16 weights of a float32 model")
def _narrow(model: Model, folder: Path) -> Left:
    state = _cast(model.state, torch.bfloat16)
    return Left(write_rank(folder, state, model.config), state=_cast(state, torch.float32))


@_convention("vectors in float32, matrices in bfloat16")
def _mixed(model: Model, folder: Path) -> Left:
    narrow = _cast(model.state, torch.bfloat16)
    state = {n: t if t.ndim == 1 else narrow[n] for n, t in model.state.items()}
    source = write_rank(folder, state, _say_dtype(model.config, "bfloat16"))
    return Left(source, state=narrow, dtype=torch.bfloat16)


@_convention("bfloat16 kept under a config of float32")
def _kept(model: Model, folder: Path) -> Left:
    state = _cast(model.state, torch.bfloat16)
    options = MergeOptions(dtype="keep", write=UNSYNCED)
    source = write_rank(folder, state, model.config)
    return Left(source, options=options, state=state, dtype=torch.bfloat16)


# --- what the config says
@_convention("a vocabulary that was padded")
def _padded(model: Model, folder: Path) -> Left:
    size = model.config.get("text_config", model.config)["vocab_size"]

    def pad(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.shape or tensor.shape[0] != size:
            return tensor
        return torch.cat([tensor, torch.full((5, *tensor.shape[1:]), 0.25)])

    ends = [*model.made.get_input_embeddings().parameters()]
    head = model.made.get_output_embeddings()
    ends += [] if head is None else [*head.parameters()]
    names = {n for n, p in model.made.named_parameters(remove_duplicate=False)
             if any(p is end for end in ends)}  # fmt: skip
    state = {n: pad(t) if n in names else t for n, t in model.state.items()}
    return Left(write_rank(folder, state, model.config), state=state)


@_convention("a class with FSDP before its name")
def _fsdp_class(model: Model, folder: Path) -> Left:
    named = [f"FSDP{model.config['architectures'][0]}"]
    return Left(write_rank(folder, model.state, model.config | {"architectures": named}))


@_convention("a config that names no class")
def _no_class(model: Model, folder: Path) -> Left:
    config = {key: value for key, value in model.config.items() if key != "architectures"}
    return Left(write_rank(folder, model.state, config))


@_convention("quantisation of a base that was trained in full")
def _quantisation(model: Model, folder: Path) -> Left:
    said = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    return Left(write_rank(folder, model.state, model.config | {"quantization_config": said}))


@_convention("the config beside the shards")
def _beside(model: Model, folder: Path) -> Left:
    source = write_rank(folder, model.state)
    (source / "config.json").write_text(json.dumps(model.config))
    return Left(source)


@_convention("the config elsewhere")
def _elsewhere(model: Model, folder: Path) -> Left:
    source, other = write_rank(folder / "run", model.state), folder / "base"
    other.mkdir()
    (other / "config.json").write_text(json.dumps(model.config))
    return Left(source, options=MergeOptions(config=other, write=UNSYNCED))


@_convention("the folder of the step above")
def _step(model: Model, folder: Path) -> Left:
    write_rank(folder / "global_step_5" / "actor", model.state, model.config)
    return Left(folder / "global_step_5")


# --- torch.distributed.checkpoint
def _nested(*keys: str, prefix: str = "", more: dict[str, Any] | None = None) -> Convention:
    def write(model: Model, folder: Path) -> Left:
        held: Any = {f"{prefix}{name}": tensor for name, tensor in model.state.items()}
        for key in reversed(keys):
            held = {key: held}
        folder.mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is one process
            dcp.save(held | (more or {}), checkpoint_id=folder / "step")
        (folder / "step" / "huggingface").mkdir()
        (folder / "step" / "huggingface" / "config.json").write_text(json.dumps(model.config))
        return Left(folder / "step", "dcp")

    return write


_OPTIMIZER = {"optim": {"state": {"0": {"exp_avg": torch.ones(3)}}}, "step": 7}
CONVENTIONS["dcp: bare"] = _nested()
CONVENTIONS["dcp: model"] = _nested("model")
CONVENTIONS["dcp: model, optimizer beside"] = _nested("model", more=_OPTIMIZER)
CONVENTIONS["dcp: app.model"] = _nested("app", "model", more=_OPTIMIZER)
CONVENTIONS["dcp: state.model"] = _nested("state", "model")
CONVENTIONS["dcp: model.module"] = _nested("model", prefix="module.")
CONVENTIONS["dcp: compiled"] = _nested("model", prefix="_orig_mod.")
CONVENTIONS["dcp: Lightning's"] = _nested("state_dict", prefix="model.", more={"epoch": 3})
