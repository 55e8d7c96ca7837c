"""The console for results, and text out of files as it is shown there."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ckpt_tool.common.remote.naming import name_places

if TYPE_CHECKING:
    from rich.console import Console
    from rich.segment import Segment


def make_printable(text: str, kept: str = "") -> str:
    """Text from a file with its control characters shown, not sent to the terminal.

    So are half characters, which no encoding has, and marks that turn text around; those in
    ``kept`` are left.
    """
    text = name_places(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in kept else _spell(ord(c)) for c in text)


def _spell(code: int) -> str:
    """A character as Python spells it."""
    if code > 0xFFFF:
        return f"\\U{code:08x}"
    return f"\\u{code:04x}" if code > 0xFF else f"\\x{code:02x}"


def make_console() -> Console:
    """The console for results (stdout); plain and 100 wide where it is no terminal.

    What it is told is text, no markup, and shown (:func:`make_printable`) but for line breaks.
    """
    from rich.console import Console

    class Result(Console):
        def render(self, *args: Any, **kwargs: Any) -> Iterable[Segment]:
            yield from _drop_blanks(map(_show_text, super().render(*args, **kwargs)))

        def on_broken_pipe(self) -> None:
            """Rich would exit with 1, which is a verdict of ours."""
            raise BrokenPipeError

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 100
    return Result(width=width, highlight=False, markup=False, emoji=False)


def print_fact(console: Console, line: str, indent: str = " " * 11) -> None:
    """A line such as ``  load     Qwen3ForCausalLM ...``; a terminal has it in lines that fit.

    They are broken between words, and go on behind ``indent``. What is longer alone, as a path,
    stays whole.
    """
    for part in line.splitlines():
        pieces = [part]
        if console.is_terminal:
            pieces = textwrap.wrap(
                part,
                console.width,
                subsequent_indent=indent,
                break_on_hyphens=False,
                break_long_words=False,
            )
        for piece in pieces:
            console.print(piece, soft_wrap=True)


def _drop_blanks(segments: Iterable[Segment]) -> Iterator[Segment]:
    """Lines without the blanks at their ends that nobody sees: tables fill them up."""
    waiting: list[Segment] = []
    for segment in segments:
        if segment.control or (segment.style and segment.style.bgcolor):
            yield from waiting
            waiting = []
            yield segment
            continue
        for text in segment.text.splitlines(keepends=True):
            seen = text.rstrip()
            if seen:
                yield from waiting
                waiting = []
                yield segment._replace(text=seen)
            blank = text[len(seen) :]
            if blank.endswith("\n"):
                waiting = []
                yield segment._replace(text="\n")
            elif blank:
                waiting.append(segment._replace(text=blank))


def _show_text(segment: Segment) -> Segment:
    if segment.control:
        return segment
    return segment._replace(text=make_printable(segment.text, "\n"))
