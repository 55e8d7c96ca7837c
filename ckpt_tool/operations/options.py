"""What operations can be told; the defaults are the commands'."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from ckpt_tool.common.errors import UsageError
from ckpt_tool.compare.stats import Tolerance
from ckpt_tool.mapping.lora.options import LoraOptions
from ckpt_tool.plans.options import WriteOptions

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
#: A plain number is bytes; of less than this somebody has forgotten the unit.
_LEAST_PLAIN = 10**6


@dataclass(frozen=True)
class NameOptions:
    """Which tensors are the model, and how they are called.

    ``prefix``: only those below it, which is cut off; empty: found. ``select``: only those whose
    name in the checkpoint matches one of these globs. ``rename``: ``OLD=NEW``, as
    :func:`ckpt_tool.mapping.frameworks.nested.rename_tensors` takes them, in order.
    """

    prefix: str = ""
    select: tuple[str, ...] = ()
    rename: tuple[str, ...] = ()

    @property
    def start(self) -> str:
        """The prefix with its last dot."""
        return f"{self.prefix.rstrip('.')}." if self.prefix else ""

    @property
    def asked(self) -> bool:
        """Whether anything was asked for."""
        return bool(self.prefix or self.select or self.rename)


@dataclass(frozen=True)
class ModelOptions:
    """How the tensors of a checkpoint become those of a model on the Hub.

    ``config`` is a folder with config and tokenizer (None: the checkpoint's own). ``keep_names``:
    no config, names as they are in the checkpoint. ``names``: which tensors are the model, for
    checkpoints in which that is not plain. ``lora``: what becomes of adapters. ``fill_from``: a
    model folder that has what the checkpoint lacks of its model. ``weights``: ``model``, or
    ``optimizer`` for the float32 weights of Megatron's optimizer, where a ``torch_dist`` folder has
    some. ``step``: which one is meant where a run's folder is named, or ``latest``: the one that
    its tracker file names, else the highest; None: the tracker file's, or the only one.
    """

    config: str | Path | None = None
    keep_names: bool = False
    names: NameOptions = field(default_factory=NameOptions)
    lora: LoraOptions = field(default_factory=LoraOptions)
    fill_from: str | Path | None = None
    weights: str = "model"
    step: int | str | None = None


@dataclass(frozen=True)
class MergeOptions(ModelOptions):
    """What a merge can be told, besides how names are found.

    ``dtype``: ``auto`` (what the config says), ``keep``, ``bfloat16``, ``float16``, ``float32``.
    ``max_shard_size``: of a weight file, like ``5GB``. ``tie_word_embeddings``: whether the head is
    the embedding (None: what the config says). ``value_model``: whether one is wanted (None: what
    the checkpoint is). ``tokenizer``: a folder that it is taken from (None: the checkpoint's, or
    that of the config). ``check_replicas``: copies that the device mesh records are read too.
    ``card``: write a model card, ``README.md``, beside a model or an adapter. ``jobs``: threads, 0
    for one per core, at least 2 and at most 4.
    """

    dtype: str = "auto"
    max_shard_size: str = "5GB"
    tie_word_embeddings: bool | None = None
    value_model: bool | None = None
    check_replicas: bool = False
    jobs: int = 0
    tokenizer: str | Path | None = None
    card: bool = True
    write: WriteOptions = field(default_factory=WriteOptions)


@dataclass(frozen=True)
class RunOptions:
    """Which ``steps`` of a run are merged: ``all``, ``latest``, or numbers like ``100,200``.

    ``watch``: also those that come, as they are finished; a look every ``watch_every`` seconds.
    """

    steps: str = "all"
    watch: bool = False
    watch_every: float = 30.0


@dataclass(frozen=True)
class ToMcoreOptions:
    """What ``to-mcore`` can be told.

    ``config``: a folder with config.json (None: the model's own). ``layout``: ``bare``, or
    ``megatron-lm`` for a folder that its ``--load`` takes. ``layers``: ``stacked``,
    ``per-layer`` or ``hybrid`` (for a HybridModel), empty for what megatron-core's GPTModel would
    write. ``vocab_multiple``: the vocabulary is padded with rows of zeros to a multiple of this.
    ``tower``: of a model that sees, under the names of ``transformers``' modules or of
    ``megatron``'s; empty for what Megatron-Bridge loads.
    ``sums``: with CRC-32.
    ``jobs``: threads, 0 for one per core, at least 2 and at most 4.
    """

    config: str | Path | None = None
    dtype: str = "auto"
    layout: str = "bare"
    layers: str = ""
    vocab_multiple: int = 1
    tower: str = ""
    sums: bool = True
    jobs: int = 0
    write: WriteOptions = field(default_factory=WriteOptions)


@dataclass(frozen=True)
class VerifyOptions(ModelOptions):
    """What a comparison can be told, besides how names are found on a side that needs it.

    ``tolerance``: elements ``a`` of the checkpoint and ``b`` of the reference are close where
    ``|a - b| <= atol + rtol * |b|``; only floating-point tensors can be close. ``cast_reference``:
    where dtypes differ, the finer side is rounded to the coarser one's first. ``ignore``: patterns
    (of ``fnmatch``) of names on the Hub, left out on both sides. ``explained``: how many
    differences get numbers and a hint at their cause, the worst first; None: all. It takes reading
    them again.
    ``totals``: also how far each layer and each kind of module moved, for which equal tensors
    beside those that differ are read again.
    ``origin``: a checkpoint that both were trained from: how far each tensor is from it, too.
    ``ranks``: of how many of the worst, if they are matrices, the difference's rank is found.
    ``logits``: a text on which both are run, as models of transformers in float32.
    ``check_crc``: first read all records of archives in which tensors lie, and hold them against
    their CRC-32; what is damaged is an error then, not a difference.
    ``jobs``: threads, 0 for one per core, at least 2 and at most 4.
    """

    tolerance: Tolerance = field(default_factory=Tolerance)
    cast_reference: bool = False
    ignore: tuple[str, ...] = ()
    explained: int | None = None
    totals: bool = False
    origin: str | Path | None = None
    ranks: int = 0
    logits: str | None = None
    jobs: int = 0
    check_crc: bool = False


def parse_size(text: str) -> int:
    """Bytes in ``5GB``, ``500MB``, ``4GiB`` or a large plain number; UsageError otherwise."""
    matched = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?B?)", text.strip().upper())
    size = 0.0
    if matched and matched[2] in _UNITS:
        size = float(matched[1]) * _UNITS[matched[2]]
    if not 1 <= size < math.inf:
        raise UsageError(
            f"`max_shard_size={text!r}`: is not a size", hint="Write it like 5GB, 500MB or 4GiB."
        )
    if matched and not matched[2] and size < _LEAST_PLAIN:
        raise UsageError(
            f"`max_shard_size={text!r}`: is {int(size):,} bytes, without a unit",
            hint=f"Write {matched[1]}GB for gigabytes, or {matched[1]}B if bytes are meant.",
        )
    return int(size)
