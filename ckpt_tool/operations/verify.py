"""``ckpt verify``: are two checkpoints the same model, bit for bit, and if not, why not.

Both sides are opened, proven complete, brought to the names of the Hub and paired by name. Pairs
are first compared as bytes; only those that differ are read again for numbers and for their cause.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from ckpt_tool.common.errors import UsageError
from ckpt_tool.common.parallel import Team, join_team
from ckpt_tool.common.progress import Progress
from ckpt_tool.common.wording import format_bytes
from ckpt_tool.compare.heads import Heads
from ckpt_tool.compare.mismatch import Mismatch, explain
from ckpt_tool.compare.pairs import compare_tensors, sum_up
from ckpt_tool.compare.prefixes import explain_prefix
from ckpt_tool.compare.scale import IMMEASURABLE
from ckpt_tool.compare.totals import Totals
from ckpt_tool.operations.logits import Logits, find_logits, require_models
from ckpt_tool.operations.options import VerifyOptions
from ckpt_tool.operations.origin import Origin, find_origin, open_origin
from ckpt_tool.operations.sides import Side, find_tied_heads, open_sides
from ckpt_tool.plans.options import CrcCheck
from ckpt_tool.plans.provenance import say_source
from ckpt_tool.tensors.lazy import LazyTensor


@dataclass(frozen=True)
class VerifyResult:
    """The verdict, and all that it rests on.

    ``left``, ``right``: the checkpoint and the reference, by their names on the Hub.
    ``num_compared``: tensors on both sides; ``compared_bytes``: their size, of one side.
    ``missing``: names in the reference only; ``unexpected``: in the checkpoint only.
    ``mismatched``: tensors on both sides that differ, in the order of the reference; the worst
    ``options.explained`` of them with their numbers and causes.
    ``close``: names of those that are equal within the tolerance only.
    ``tied``: heads on one side only that a config ties to an equal embedding, and why that is no
    difference. ``ignored``: names that were left out because the options say so.
    ``distances``: for every tensor of one shape on both sides, how far they are apart: its
    :attr:`~ckpt_tool.compare.stats.Stats.distance`, 0 where they are equal.
    ``names_hint``: what explains names on one side only; empty where nothing does.
    ``seconds``: how long it took. ``crc``: what the checksums of both say; ``totals``: how far
    layers and modules moved; ``origin``: who moved what; ``logits``: what the
    models say after a text; None: nobody asked.
    """

    left: Side
    right: Side
    options: VerifyOptions
    num_compared: int
    missing: list[str]
    unexpected: list[str]
    mismatched: list[Mismatch]
    close: list[str]
    tied: dict[str, str]
    ignored: list[str]
    distances: dict[str, float]
    names_hint: str
    compared_bytes: int
    seconds: float
    crc: CrcCheck | None = None
    totals: Totals | None = None
    origin: Origin | None = None
    logits: Logits | None = None

    @property
    def equal(self) -> bool:
        """Whether nothing differs, the tolerance granted."""
        return not (self.missing or self.unexpected or self.mismatched)

    @property
    def num_equal(self) -> int:
        """Tensors on both sides that do not differ."""
        return self.num_compared - len(self.mismatched)

    @property
    def exact(self) -> bool:
        """Whether equal meant the same bits: no tolerance, no cast."""
        return self.options.tolerance.exact and not self.options.cast_reference


def verify_checkpoint(
    checkpoint: str | Path,
    reference: str | Path,
    options: VerifyOptions | None = None,
    progress: Progress | None = None,
) -> VerifyResult:
    """Say whether two checkpoints are the same model, and if not, what differs and why.

    Either may be of any format that can be read: FSDP or Megatron rank files, a folder of
    torch.distributed.checkpoint or megatron-core, a Hugging Face folder, a safetensors or torch
    file. Both are proven complete and brought to their names on the Hub, by the config that either
    has, and by what ``options`` say of it. Equal means the same names, shapes, dtypes and bits,
    unless ``options`` say otherwise.

    ``progress`` is told how many bytes of one side are compared, ranked, measured and explained.
    Under torchrun every process reads its share, and all have the same result.

    Raises CheckpointError where one is damaged or incomplete, FormatError or UnsafeContentError
    where it cannot be read, MappingError where its names cannot be brought to those of the Hub,
    UsageError where the options make no sense or there is nothing to compare, OSError where a file
    cannot be opened: there is then no verdict.

    >>> import tempfile
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> from ckpt_tool import verify_checkpoint
    >>> folder = tempfile.TemporaryDirectory()
    >>> ours, theirs = f"{folder.name}/ours.safetensors", f"{folder.name}/theirs.safetensors"
    >>> save_file({"norm.weight": np.array([1.0, 2.0, 3.0]), "head.weight": np.ones(2)}, ours)
    >>> save_file({"norm.weight": np.array([1.0, 2.0, 2.5]), "head.weight": np.ones(2)}, theirs)
    >>> result = verify_checkpoint(ours, theirs)
    >>> result.equal, result.num_equal, result.num_compared
    (False, 1, 2)
    >>> [(each.name, each.first_index, each.stats.max_abs) for each in result.mismatched]
    [('norm.weight', (2,), 0.5)]
    >>> folder.cleanup()
    """
    options = options or VerifyOptions()
    with join_team(options.jobs, progress) as team:
        return verify_as_team(checkpoint, reference, options, team)


def verify_as_team(
    checkpoint: str | Path, reference: str | Path, options: VerifyOptions, team: Team
) -> VerifyResult:
    """The same by processes that have joined already. Raises what :func:`verify_checkpoint` does.

    PeerError where another process could not read its share. ``options.jobs`` is not looked at.
    """
    started = time.monotonic()
    _check(options)
    left, right = open_sides(Path(checkpoint), Path(reference), options, team)
    origin = None
    if options.origin is not None:
        origin = open_origin(Path(options.origin), options, left, team)
    if options.logits is not None:
        text = options.logits
        team.world.each(lambda: require_models(left, right, text))
    size = format_bytes(sum(tensor.nbytes for tensor in right.tensors.values()))
    sides = (say_source(side.checkpoint) for side in (left, right))
    team.progress.announce(f"{' and '.join(sides)}: {size}, compared")
    crc = None
    if options.check_crc:
        from ckpt_tool.plans.source_sums import prove_all  # of what writes: seldom wanted here

        crc = prove_all((left.checkpoint, right.checkpoint), team)
    mine, ignored = _without(left.tensors, options.ignore)
    theirs, also = _without(right.tensors, options.ignore)
    if not mine and not theirs:
        why = "what is ignored leaves" if ignored or also else "the two checkpoints have"
        raise UsageError(f"{why} no tensor to compare")
    tied = find_tied_heads(left, right, mine, theirs, team)
    common = [name for name in theirs if name in mine and name not in tied]
    missing = [name for name in theirs if name not in mine and name not in tied]
    unexpected = [name for name in mine if name not in theirs and name not in tied]
    rows = [(name, mine[name], theirs[name]) for name in common]
    found = compare_tensors(
        rows,
        options.tolerance,
        team,
        rounded=options.cast_reference,
        most=options.explained,
    )
    mismatched = explain(
        found.suspects, _find_heads(left, right), left.rank_of, options.explained, team
    )
    if options.ranks:
        from ckpt_tool.compare.spectrum import add_spectra  # numpy: not where everything is equal

        mismatched = add_spectra(found.suspects, mismatched, options.ranks, team)
    return VerifyResult(
        left=left,
        right=right,
        options=options,
        num_compared=len(common),
        missing=missing,
        unexpected=unexpected,
        mismatched=mismatched,
        close=found.close,
        tied=tied,
        ignored=sorted({*ignored, *also}),
        distances=found.distances,
        totals=sum_up(rows, found, team) if options.totals else None,
        logits=(None if options.logits is None else find_logits(left, right, options.logits, team)),
        origin=None if origin is None else find_origin(origin, mine, theirs, team),
        names_hint=explain_prefix(missing, unexpected, mine, theirs, team),
        compared_bytes=sum(mine[name].nbytes for name in common),
        seconds=time.monotonic() - started,
        crc=crc,
    )


def collect_distances(result: VerifyResult) -> dict[str, float]:
    """The distances of a verification, with those of differences that no norm can express.

    Infinite where shapes differ, :data:`IMMEASURABLE` where only dtypes or the signs of zeros do: a
    tensor that differs is never shown as equal.
    """
    shown = dict(result.distances)
    for mismatch in result.mismatched:
        if mismatch.kind == "shape":
            shown[mismatch.name] = math.inf
        else:
            shown[mismatch.name] = max(shown.get(mismatch.name, 0.0), IMMEASURABLE)
    return shown


def _check(options: VerifyOptions) -> None:
    for name in ("atol", "rtol"):
        value = getattr(options.tolerance, name)
        if not 0 <= value < math.inf:
            raise UsageError(f"{name} {value}: expected a number that is 0 or more")
    if options.explained is not None and options.explained < 0:
        raise UsageError(f"explained {options.explained}: expected 0 or more, or None for all")


def _without(
    tensors: dict[str, LazyTensor], patterns: Sequence[str]
) -> tuple[dict[str, LazyTensor], list[str]]:
    """The tensors that no pattern names, and the names of the others."""
    kept, ignored = {}, []
    for name, tensor in tensors.items():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            ignored.append(name)
        else:
            kept[name] = tensor
    return kept, ignored


def _find_heads(left: Side, right: Side) -> Heads | None:
    """Head counts and size, from whichever config says them."""
    for side in (left, right):
        text = side.config.text if side.config is not None else {}
        query, hidden = text.get("num_attention_heads"), text.get("hidden_size")
        if isinstance(query, int) and query > 0:
            key_value = text.get("num_key_value_heads") or query
            dim = text.get("head_dim") or (hidden // query if isinstance(hidden, int) else 0)
            if isinstance(key_value, int) and isinstance(dim, int) and dim > 0:
                return Heads(query, key_value, dim)
    return None
