"""What a command that writes says of its plan, and when it is done."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt_tool.cli import ui
from ckpt_tool.wording import human_bytes, plural

if TYPE_CHECKING:
    from rich.console import Console

    from ckpt_tool.mcore_folder import McorePlan
    from ckpt_tool.output import WriteResult
    from ckpt_tool.plan import Cast, Casts, ModelPlan


def report(result: WriteResult, *, as_json: bool, **more: Any) -> None:
    """The result, as JSON (with ``more`` keys) or for people."""
    if as_json:
        ui.print_json(result_json(result) | more)
    else:
        show_result(result)


def show_result(result: WriteResult) -> None:
    """The result for people."""
    console = ui.console()
    for warning in result.warnings:
        ui.warn(warning)
    if result.differences:
        count = plural(len(result.differences), "tensor")
        console.print(f"[red]{count} did not read back as written; nothing was kept[/red]")
        for name in result.differences:
            console.print(f"  {name}", soft_wrap=True)
        return
    console.print(
        f"Wrote {plural(result.num_tensors, 'tensor')}, {human_bytes(result.total_bytes)}"
        f" in {plural(len(result.files), 'file')} to {result.output}"
        f" ({result.seconds:.1f} s, writing at {human_bytes(result.bytes_per_second)}/s)",
        soft_wrap=True,
    )
    for cast in result.casts:
        console.print(_cast_line(cast))
    _show_dropped(console, result.dropped)
    if result.verified:
        console.print("  verify   read back from disk: every bit as planned")
    if result.load_check is not None:
        check = result.load_check
        others = "no other"
        if check.num_ignored:
            others = f"ignores the {check.num_ignored:,} of multi-token prediction"
        if check.num_other_heads:
            others += f" but the {check.num_other_heads} of other heads"
        if check.also:
            others += f"; so does {', '.join(check.also)}"
        console.print(
            f"  load     {check.architecture} of {check.library}"
            f" finds all {check.num_tensors:,} tensors it wants, and {others}",
            soft_wrap=True,
        )


def show_changes(casts: Casts, dropped: dict[str, str]) -> None:
    """What a plan changes of the tensors: dtypes, and what it leaves out."""
    console = ui.console()
    for (source, target), count in casts.items():
        console.print(f"  cast     {plural(count, 'tensor')} from {source} to {target}")
    _show_dropped(console, dropped)


def plan_json(plan: ModelPlan | McorePlan, out: Path) -> dict[str, Any]:
    """A plan as JSON: the keys of the result, without what only writing tells."""
    return {
        "format": plan.checkpoint.format,
        "output": str(out),
        "dry_run": True,
        "num_tensors": len(plan.tensors),
        "total_bytes": plan.total_bytes,
        "files": [{"path": file.name, "bytes": file.size} for file in plan.files],
        "casts": [
            {"from": source.name, "to": target.name, "num_tensors": count, "max_abs_error": None}
            for (source, target), count in plan.casts().items()
        ],
        "dropped": plan.dropped,
        "seconds": None,
        "bytes_per_second": None,
        "verified": None,
        "warnings": plan.warnings,
    }


def _show_dropped(console: Console, dropped: dict[str, str]) -> None:
    for name, reason in dropped.items():
        console.print(f"  drop     {name} ({reason})", soft_wrap=True)


def _cast_line(cast: Cast) -> str:
    text = f"  cast     {plural(cast.num_tensors, 'tensor')} from {cast.source} to {cast.target}"
    return f"{text}, largest absolute error {cast.max_abs_error:.3g}"


def result_json(result: WriteResult) -> dict[str, Any]:
    """The result as JSON."""
    from ckpt_tool.plan import cast_json

    return {
        "format": result.format,
        "output": str(result.output),
        "num_tensors": result.num_tensors,
        "total_bytes": result.total_bytes,
        "files": [
            {"path": file.name, "bytes": file.size, "digest": file.digest} for file in result.files
        ],
        "casts": [cast_json(cast) for cast in result.casts],
        "dropped": result.dropped,
        "seconds": result.seconds,
        "bytes_per_second": result.bytes_per_second,
        "verified": result.verified,
        "differences": result.differences,
        "load_check": asdict(result.load_check) if result.load_check is not None else None,
        "warnings": result.warnings,
    }
