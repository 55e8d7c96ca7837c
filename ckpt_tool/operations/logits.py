"""What two models say next after a text: both run on the CPU, in float32, one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ckpt_tool.common.errors import MappingError, UsageError
from ckpt_tool.common.memory import find_available_memory
from ckpt_tool.common.parallel import Team
from ckpt_tool.common.remote.address import find_address
from ckpt_tool.common.wording import format_bytes
from ckpt_tool.operations.sides import Side
from ckpt_tool.plans.checks.child import Child

#: Tokens of a text at most: logits take their memory, too.
MOST_TOKENS = 512

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_BYTES = 4  # of float32
_SPARE = 2 << 30  # libraries, activations, and what is read while it is cast
_LEAVE_OUT = "Leave out `logits` to compare the tensors alone."


@dataclass(frozen=True)
class Disagreement:
    """A position at which the likeliest next tokens are not the same.

    ``after``: the text of the token there. ``checkpoint``, ``reference``: text and probability of
    the five likeliest.
    """

    position: int
    after: str
    checkpoint: list[tuple[str, float]]
    reference: list[tuple[str, float]]


@dataclass(frozen=True)
class Logits:
    """How far the logits of both models are apart.

    ``max_abs``, ``mean_abs``: of differences of logits [``num_tokens``, ``vocabulary``], of those
    that are finite on both sides; ``num_odd`` are not. ``position``: of the token with the largest.
    ``num_agreeing``: positions at which the likeliest next token is the same. ``disagreements``:
    the first of the others, eight at most.
    """

    text: str
    library: str
    num_tokens: int
    vocabulary: int
    max_abs: float
    mean_abs: float
    position: int
    num_odd: int
    num_agreeing: int
    disagreements: list[Disagreement]


def require_models(left: Side, right: Side, text: str) -> None:
    """UsageError where a side is no model that transformers can run, or memory is too little."""
    if not text:
        raise UsageError("`logits`: the text is empty")
    for side in (left, right):
        _require_model(side)
    needed = _SPARE + max(_count_bytes(side) for side in (left, right))
    there = find_available_memory()
    if needed > there:
        raise UsageError(
            f"`logits`: a model in float32 takes {format_bytes(needed)} of memory,"
            f" {format_bytes(there)} are available",
            hint=_LEAVE_OUT,
        )


def _count_bytes(side: Side) -> int:
    return _BYTES * sum(tensor.numel for tensor in side.tensors.values())


def _require_model(side: Side) -> None:
    folder = Path(side.checkpoint.path)
    if (address := find_address(folder)) is not None:
        raise UsageError(
            f"`logits`: {address} is not on this machine, where a model has to be to be run",
            hint="Copy it to a folder of this machine, or leave out `logits`.",
        )
    if side.checkpoint.format != "huggingface" or not folder.is_dir():
        raise UsageError(
            f"`logits`: {folder} is no folder of a Hugging Face model",
            hint="Merge it first, and compare what is written.",
        )
    if not (folder / "config.json").is_file():
        raise UsageError(f"`logits`: {folder} has no config.json", hint=_LEAVE_OUT)
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise UsageError(
            f"`logits`: {folder} has no tokenizer ({', '.join(_TOKENIZERS)})",
            hint="Copy the tokenizer's files there, or leave out `logits`.",
        )
    if side.config is not None and side.config.raw.get("quantization_config"):
        raise UsageError(f"`logits`: {folder} is quantised", hint=_LEAVE_OUT)


def find_logits(left: Side, right: Side, text: str, team: Team) -> Logits:
    """Run both models on ``text``, in a process of its own; the first of the team does.

    UsageError says why they cannot be run, or not be compared.
    """
    team.progress.start("logits", None)
    return team.world.first(lambda: _ask(left, right, text, team.jobs))


def _ask(left: Side, right: Side, text: str, jobs: int) -> Logits:
    folders = [str(Path(side.checkpoint.path).resolve()) for side in (left, right)]
    request = {"folders": folders, "text": text, "most": MOST_TOKENS, "jobs": jobs}
    child = Child("ckpt_tool.operations.logits_child", "both models", request)
    try:
        found = child.answer()
    except MappingError as error:
        last = error.names[-1] if error.names else "it was ended, maybe for lack of memory"
        raise UsageError(
            f"`logits`: the process that runs both models failed: {last}", hint=_LEAVE_OUT
        ) from error
    finally:
        child.stop()
    if "refused" in found:
        raise UsageError(f"`logits`: {found['refused']}", hint=_LEAVE_OUT)
    apart = [
        Disagreement(
            each["position"],
            each["after"],
            [(token, share) for token, share in each["checkpoint"]],
            [(token, share) for token, share in each["reference"]],
        )
        for each in found.pop("disagreements")
    ]
    return Logits(text=text, disagreements=apart, **found)
