"""What a command that writes says of its plan, and when it is done, as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ckpt_tool.cli.crc import make_crc_json
from ckpt_tool.cli.flags import spell_flags, spell_reasons

if TYPE_CHECKING:
    from ckpt_tool.mapping.lora.options import LoraNote
    from ckpt_tool.plans.checks.judge import Verdict
    from ckpt_tool.plans.options import LoadCheck, WriteResult
    from ckpt_tool.plans.plan import Plan
    from ckpt_tool.writers.places import Place

_MANIFEST = "ckpt_manifest.json"


def plan_json(
    plan: Plan, out: Place, verdict: Verdict | None = None, *, manifest: bool
) -> dict[str, Any]:
    """A plan as JSON: the keys of the result, without what only writing tells."""
    from ckpt_tool.plans.provenance import find_role, find_step

    load_check, warnings = split_verdict(verdict)
    return {
        "format": plan.checkpoint.format,
        "source": str(plan.checkpoint.path),
        "step": find_step(plan.checkpoint),
        "role": find_role(plan.checkpoint.path),
        "output": str(out),
        "dry_run": True,
        "num_tensors": plan.num_tensors,
        "total_bytes": plan.total_bytes,
        "files": [{"path": file.name, "bytes": file.size} for file in plan.files],
        "casts": [
            {"from": source.name, "to": target.name, "num_tensors": count, "max_abs_error": None}
            for (source, target), count in plan.casts.items()
        ],
        "dropped": spell_reasons(plan.dropped),
        "seconds": None,
        "bytes_per_second": None,
        "verified": None,
        "crc": None,
        "load_check": None if load_check is None else asdict(load_check),
        "warnings": list(map(spell_flags, [*plan.warnings, *warnings])),
        "lora": _lora_json(plan.lora),
        "filled": plan.filled,
        "float32": plan.float32 or None,
        "manifest": _MANIFEST if manifest else None,
    }


def result_json(result: WriteResult) -> dict[str, Any]:
    """The result as JSON."""
    from ckpt_tool.plans.manifest import cast_json

    return {
        "format": result.format,
        "source": str(result.source),
        "step": result.step,
        "role": result.role,
        "output": str(result.output),
        "num_tensors": result.num_tensors,
        "total_bytes": result.total_bytes,
        "files": [
            {"path": file.name, "bytes": file.size, "digest": file.digest} for file in result.files
        ],
        "casts": [cast_json(cast) for cast in result.casts],
        "dropped": spell_reasons(result.dropped),
        "seconds": result.seconds,
        "bytes_per_second": result.bytes_per_second,
        "already_complete": result.already_complete,
        "crc": make_crc_json(result.crc),
        "verified": result.verified,
        "differences": result.differences,
        "load_check": asdict(result.load_check) if result.load_check is not None else None,
        "warnings": list(map(spell_flags, result.warnings)),
        "lora": _lora_json(result.lora),
        "filled": result.filled,
        "float32": result.float32 or None,
        "manifest": _MANIFEST if result.manifest else None,
    }


def split_verdict(verdict: Verdict | None) -> tuple[LoadCheck | None, tuple[str, ...]]:
    """What opened, and warnings; nothing where nobody was asked."""
    return (None, ()) if verdict is None else (verdict.check, verdict.warnings)


def _lora_json(lora: LoraNote | None) -> dict[str, Any] | None:
    return None if lora is None else asdict(lora) | {"source": spell_flags(lora.source)}
