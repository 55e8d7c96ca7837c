"""What the processes running megatron-core can be asked to do. Imports nothing heavy.

Every job builds a GPTModel at its parallel sizes and fills it either from a checkpoint or, where no
process splits anything, straight from the Hugging Face folder (`megatron_copy`).
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

# How megatron-core lays out layers and experts: "default" is what it chooses for the model.
Layout = Literal["default", "per-layer", "singleton"]
# "te": the names that Transformer Engine's layers write; "local": those of the layers used here.
Names = Literal["te", "local"]


@dataclass(frozen=True)
class Sizes:
    """Parallel sizes: tensor, pipeline, expert, expert tensor, and pipeline chunks per process."""

    tp: int = 1
    pp: int = 1
    ep: int = 1
    etp: int = 1
    vpp: int | None = None

    @property
    def world_size(self) -> int:
        """The fewest processes that hold the model; any multiple of it adds data parallelism."""
        return self.pp * math.lcm(self.tp, self.ep * self.etp)

    @property
    def is_whole(self) -> bool:
        """Whether each process holds the whole model."""
        return self == Sizes()


@dataclass(frozen=True)
class Checkpoint:
    """A `torch_dist` folder and how its tensors are named.

    With `engine_states`, saving writes and loading asks for every `_extra_state` that some release
    with Transformer Engine has, not only those of the local layers. With `hybrid`, the model that
    reads or writes it is a HybridModel; with `fused`, its latent attention has one down projection.
    `prefix` is before the keys of a language model that is a part of another one.
    """

    folder: Path
    names: Names = "te"
    layout: Layout = "default"
    engine_states: bool = False
    hybrid: bool = False
    fused: bool = False
    prefix: str = ""


@dataclass(frozen=True)
class Save:
    """Have megatron-core save the model of the Hugging Face folder `model` to `out`.

    `source` is a checkpoint to start from; without it `sizes` must not split anything. The
    vocabulary is padded to a multiple of `vocab_multiple` x TP.
    """

    model: Path
    out: Checkpoint
    sizes: Sizes = Sizes()
    source: Checkpoint | None = None
    vocab_multiple: int = 1
    dtype: str = "float32"


@dataclass(frozen=True)
class Logits:
    """Write the logits for the `input_ids` in `inputs` to the safetensors file `out`.

    `strict` is one of megatron-core's `StrictHandling` values. With `saved`, the ranks also save
    the model that they have.
    """

    model: Path
    inputs: Path
    out: Path
    sizes: Sizes = Sizes()
    source: Checkpoint | None = None
    vocab_multiple: int = 1
    dtype: str = "float32"
    strict: str = "assume_ok_unexpected"
    saved: Checkpoint | None = None


# How a process keeps the experts it has: each by itself, numbered in the names of Transformer
# Engine's grouped layer, or all in two transposed tensors.
Experts = Literal["sequential", "engine", "grouped"]


@dataclass(frozen=True)
class SaveRanks:
    """Have every rank save its own file, as verl 0.4 and `--ckpt-format torch` do.

    "verl" writes below `out/model` and keeps the config beside it, "megatron-lm" writes an
    iteration with a tracker file, its arguments, and what else a training run saves.
    """

    model: Path
    out: Path
    source: Checkpoint
    sizes: Sizes = Sizes()
    style: Literal["verl", "megatron-lm"] = "verl"
    names: Names = "te"
    experts: Experts = "engine"
    vocab_multiple: int = 1
    dtype: str = "float32"


Job = Save | SaveRanks | Logits
