"""A folder held against its manifest: for people, and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckpt_tool.cli import consoles, ui
from ckpt_tool.common.wording import count_noun, format_bytes

if TYPE_CHECKING:
    from ckpt_tool.operations.check_folder import FolderResult

_LISTED = 20


def show_folder(result: FolderResult) -> None:
    """The verdict, where the folder came from, and what is wrong with it."""
    console = consoles.make_console()
    held = f"{count_noun(result.num_files, 'file')}, {format_bytes(result.total_bytes)}"
    if result.equal:
        lines = [f"Equal: {held}, each as ckpt_manifest.json says"]
    else:
        wrong = len(result.missing) + len(result.different)
        parts = [f"{wrong:,} of {count_noun(result.num_files, 'file')} not as"]
        parts += [f"ckpt_manifest.json says, {len(result.unexpected):,} too many"]
        lines = [f"Different: {' '.join(parts)}"]
    lines += [f"  from     {_say_source(result)}"]
    rows = [f"  {'missing':10} {name}" for name in result.missing]
    rows += [f"  {'unexpected':10} {name}" for name in result.unexpected]
    rows += [f"  {'different':10} {name}: {said}" for name, said in result.different.items()]
    shown = rows if ui.verbose else rows[:_LISTED]
    lines += shown
    if len(rows) > len(shown):
        lines.append(f"  and {len(rows) - len(shown):,} more (--verbose lists them)")
    for line in lines:
        console.print(consoles.make_printable(line), soft_wrap=True)


def make_folder_json(result: FolderResult) -> dict[str, Any]:
    """The result as the contract has it; more keys may come."""
    return {
        "equal": result.equal,
        "path": str(result.path),
        "num_files": result.num_files,
        "total_bytes": result.total_bytes,
        "missing": result.missing,
        "unexpected": result.unexpected,
        "different": result.different,
        "version": result.version,
        "source": result.source,
        "seconds": result.seconds,
    }


def _say_source(result: FolderResult) -> str:
    """``fsdp of run qwen-grpo, step 100; ckpt-tool 0.1.0``."""
    source = result.source
    words = [f"{source['format'] or 'a checkpoint'}"]
    words += [f"of run {source['run']}"] if source["run"] is not None else []
    step = f", step {source['step']}" if source["step"] is not None else ""
    role = f" ({source['role']})" if source["role"] is not None else ""
    return f"{' '.join(words)}{step}{role}; ckpt-tool {result.version}"
