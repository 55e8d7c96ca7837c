"""What a command that writes says of its plan, and when it is done."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt_tool.cli import consoles, ui
from ckpt_tool.cli.crc import list_crc_lines
from ckpt_tool.cli.flags import spell_flags, spell_reasons
from ckpt_tool.cli.folding import fold
from ckpt_tool.cli.results_json import result_json, split_verdict
from ckpt_tool.common.wording import count_noun, format_bytes, join_words

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ckpt_tool.mapping.lora.options import LoraNote
    from ckpt_tool.plans.checks.judge import Verdict
    from ckpt_tool.plans.options import Cast, LoadCheck, WriteResult
    from ckpt_tool.plans.plan import Plan
    from ckpt_tool.writers.places import Place


#: A layer of the model, or the first two parts of a name.
_WITHIN = re.compile(r"^((?:.*?\blayers\.\d+)|(?:[^.]+(?:\.[^.]+)?))\..*$")


def report(result: WriteResult, *, as_json: bool, **more: Any) -> None:
    """The result, as JSON (with ``more`` keys) or for people."""
    if as_json:
        ui.print_json(result_json(result) | more)
    else:
        show_result(result)


def show_result(result: WriteResult) -> None:
    """The result for people."""
    console = consoles.make_console()
    for warning in result.warnings:
        ui.warn(warning)
    if result.differences:
        count = count_noun(len(result.differences), "tensor")
        kept = f"{result.output} was left" if result.already_complete else "nothing was kept"
        said = f"{count} did not read back as written; {kept}"
        console.print(said, style="red", soft_wrap=True)
        for name in map(consoles.make_printable, result.differences):
            console.print(f"  {name}", soft_wrap=True)
        return
    consoles.print_fact(console, _first_line(result), "  ")
    consoles.print_fact(console, _source_line(result.format, result.step, result.source))
    _show_lora(console, result.lora)
    _show_filled(console, result.filled)
    for cast in result.casts:
        consoles.print_fact(console, _cast_line(cast))
    _show_float32(console, result.float32)
    _show_dropped(console, result.dropped)
    if result.verified:
        console.print("  verify   read back from disk: every bit as planned")
    for line in list_crc_lines(result.crc):
        consoles.print_fact(console, f"  crc      {line}")
    _show_load(console, result.load_check)


def say_state(result: WriteResult) -> str:
    """What there is of the output, for whoever cannot read the result."""
    if result.differences and not result.already_complete:
        return f"{result.output}: did not read back as written, and nothing was kept."
    if result.differences:
        return f"{result.output}: is not what would be written; it was left."
    return f"{result.output}: is complete and in its place."


def _show_load(console: Console, check: LoadCheck | None) -> None:
    if check is not None:
        consoles.print_fact(console, f"  load     {load_text(check)}")


def load_text(check: LoadCheck) -> str:
    """What opened the result, and what it did not look at."""
    counts = (
        (check.num_ignored, "of multi-token prediction"),
        (check.num_other_heads, "of other heads"),
    )
    ignored = [f"the {count:,} {what}" for count, what in counts if count]
    text = (
        f"{check.architecture} of {check.library} finds all {check.num_tensors:,} tensors"
        f" it wants, and {'ignores ' + join_words(ignored) if ignored else 'no other'}"
    )
    if check.also:
        text += f"; {join_words(check.also)} can open it, too"
    return text


def _first_line(result: WriteResult) -> str:
    held = (
        f"{count_noun(result.num_tensors, 'tensor')}, {format_bytes(result.total_bytes)}"
        f" in {count_noun(len(result.files), 'file')}"
    )
    if result.already_complete:
        return f"Already complete: {held} in {result.output}, checked ({result.seconds:.1f} s)"
    speed = f"writing at {format_bytes(result.bytes_per_second)}/s"
    return f"Wrote {held} to {result.output} ({result.seconds:.1f} s, {speed})"


def _source_line(name: str, step: int | None, path: Path) -> str:
    """What the source was taken for, and which of a run's it is."""
    from ckpt_tool.plans.provenance import find_role, name_source

    return f"  from     {name_source(name, step, find_role(path))}: {path}"


def show_plan(
    plan: Plan,
    out: Place,
    table: Table,
    notes: Sequence[str] = (),
    verdict: Verdict | None = None,
) -> None:
    """A plan for people: ``table`` of what is written, ``notes`` on that, and what it changes.

    ``verdict``: whether the result would load.
    """
    from ckpt_tool.plans.provenance import find_step

    console = consoles.make_console()
    console.print(f"Would write to {out}", soft_wrap=True)
    console.print(table)
    found = plan.checkpoint
    consoles.print_fact(console, _source_line(found.format, find_step(found), found.path))
    for note in notes:
        consoles.print_fact(console, f"  {note}")
    _show_lora(console, plan.lora)
    _show_filled(console, plan.filled)
    for (source, target), count in plan.casts.items():
        console.print(_say_cast(count, source.name, target.name, abs(source.offset)))
    _show_float32(console, plan.float32)
    _show_dropped(console, plan.dropped)
    load_check, warnings = split_verdict(verdict)
    _show_load(console, load_check)
    for warning in (*plan.warnings, *warnings):
        ui.warn(warning)


def _show_lora(console: Console, lora: LoraNote | None) -> None:
    if lora is None:
        return
    done = {"fuse": "fused into", "split": "split off", "both": "fused into, and split off,"}
    what = f"{done[lora.mode]} {count_noun(lora.num_modules, 'module')}"
    if lora.adapter == ".":
        what = f"an adapter of {count_noun(lora.num_modules, 'module')} for peft"
    numbers = f"rank {lora.rank}, alpha {lora.alpha:g} ({spell_flags(lora.source)})"
    consoles.print_fact(console, f"  lora     {what}: {numbers}")
    if lora.trained_whole:
        names = ", ".join(map(consoles.make_printable, lora.trained_whole))
        consoles.print_fact(console, f"           trained whole: {names}")
    if lora.num_tokens:
        rows = count_noun(lora.num_tokens, "row")
        consoles.print_fact(console, f"           trained alone: {rows} of embeddings")
    if lora.adapter not in (None, "."):
        consoles.print_fact(console, f"           adapter for peft in {lora.adapter}")


def _show_filled(console: Console, filled: list[str]) -> None:
    """What was taken from another model, counted by layer or first parts of names."""
    counts = Counter(_WITHIN.sub(r"\1.*", name) for name in filled)
    for start, count in counts.items():
        what = consoles.make_printable(start)
        consoles.print_fact(console, f"  fill     {what} ({count_noun(count, 'tensor')})")


def _show_float32(console: Console, why: str) -> None:
    if why:
        said = spell_flags("`dtype='bfloat16'` takes half the room")
        consoles.print_fact(console, f"  dtype    float32, {why}; {said}")


def _show_dropped(console: Console, dropped: dict[str, str]) -> None:
    reasons = spell_reasons(dropped)
    for each in fold(reasons):
        name = consoles.make_printable(each.pattern)
        consoles.print_fact(console, f"  drop     {name} ({reasons[each.first]})")


def _cast_line(cast: Cast) -> str:
    text = _say_cast(cast.num_tensors, cast.source, cast.target, cast.offset)
    return f"{text}, largest absolute error {cast.max_abs_error:.3g}"


def _say_cast(count: int, source: str, target: str, offset: float) -> str:
    tensors = count_noun(count, "tensor")
    if offset:  # what the sum is made in says nothing: it is nobody's dtype
        return f"  offset   {tensors} by {offset:g}, rounded to {target}"
    return f"  cast     {tensors} from {source} to {target}"
