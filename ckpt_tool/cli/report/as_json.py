"""The JSON object of ``ckpt verify --json``."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ckpt_tool.cli.crc import make_crc_json
from ckpt_tool.cli.flags import spell_flags
from ckpt_tool.cli.report.origin import make_origin_json
from ckpt_tool.cli.report.totals import make_totals_json

if TYPE_CHECKING:
    from ckpt_tool.compare.mismatch import Mismatch
    from ckpt_tool.operations.verify import VerifyResult


def make_object(result: VerifyResult) -> dict[str, Any]:
    """The result as the contract has it; more keys may come."""
    tolerance = result.options.tolerance
    return {
        "equal": result.equal,
        "exact": result.exact,
        "num_compared": result.num_compared,
        "num_equal": result.num_equal,
        "tolerance": {"atol": tolerance.atol, "rtol": tolerance.rtol},
        "cast_reference": result.options.cast_reference,
        "missing": result.missing,
        "unexpected": result.unexpected,
        "mismatched": [_mismatch_json(mismatch) for mismatch in result.mismatched],
        "close": result.close,
        "tied": result.tied,
        "ignored": result.ignored,
        "hint": spell_flags(result.names_hint),
        "warnings": list(map(spell_flags, (*result.left.warnings, *result.right.warnings))),
        "compared_bytes": result.compared_bytes,
        "seconds": result.seconds,
        "crc": make_crc_json(result.crc),
        "totals": make_totals_json(result.totals),
        "origin": make_origin_json(result.origin),
        "logits": None if result.logits is None else asdict(result.logits),
    }


def _mismatch_json(mismatch: Mismatch) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": mismatch.name,
        "kind": mismatch.kind,
        "checkpoint": mismatch.left,
        "reference": mismatch.right,
        "first_index": None if mismatch.first_index is None else list(mismatch.first_index),
        "rank": mismatch.rank,
        "file": mismatch.source,
        "hint": spell_flags(mismatch.hint),
    }
    stats = mismatch.stats
    numbers = (
        "max_abs", "max_rel", "mean_abs", "cosine", "max_ulp", "relative_norm", "num_different",
        "num_outside", "num_elements", "num_unlike", "num_nan_alone", "num_inf_alone",
    )  # fmt: skip
    row |= {key: None if stats is None else _finite(getattr(stats, key)) for key in numbers}
    nan = stats.num_nan if stats is not None else (None, None)
    infinite = stats.num_inf if stats is not None else (None, None)
    row |= {"num_nan": nan[0], "num_nan_reference": nan[1]}
    row |= {"num_inf": infinite[0], "num_inf_reference": infinite[1]}
    row["spectrum"] = None if mismatch.spectrum is None else asdict(mismatch.spectrum)
    values = stats.first_values if stats is not None else None
    return row | {"first_values": None if values is None else [_finite(v) for v in values]}


def _finite(value: float | None) -> float | str | None:
    """JSON has no NaN and no infinity: they are written as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
