"""What both models say next after a text: on the terminal, and in the report."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ckpt_tool.cli import consoles
from ckpt_tool.cli.report.text import format_number, make_tag
from ckpt_tool.common.wording import count_doing, count_noun

if TYPE_CHECKING:
    from rich.console import Console

    from ckpt_tool.operations.logits import Disagreement, Logits

_INDENT = "  "
_SHOWN = 4  # positions on the terminal


def show_logits(console: Console, logits: Logits) -> None:
    """How far apart, how many next tokens agree, and the likeliest of both where they do not."""
    console.print("")
    for line in _list_sentences(logits):
        _print(console, line, "")
    for each in logits.disagreements[:_SHOWN]:
        _print(console, f"after {each.after!r} (token {each.position:,}):", _INDENT)
        for side, likeliest in _sides(each):
            _print(console, f"{side:10}  {likeliest}", 2 * _INDENT)
    rest = logits.num_tokens - logits.num_agreeing - _SHOWN
    if rest > 0:
        _print(console, f"and {rest:,} more positions", _INDENT)


def _print(console: Console, line: str, indent: str) -> None:
    whole = consoles.make_printable(line)
    parts = textwrap.wrap(whole, max(console.width - len(indent), 20), break_long_words=False,
                          break_on_hyphens=False)  # fmt: skip
    for part in parts:
        console.print(f"{indent}{part}", soft_wrap=True)


def _list_sentences(logits: Logits) -> Iterator[str]:
    tokens = count_noun(logits.num_tokens, "token")
    yield f"Logits of {tokens}, both models in float32 on the CPU ({logits.library}):"
    yield (
        f"largest difference {format_number(logits.max_abs)} (token {logits.position:,}), mean"
        f" {format_number(logits.mean_abs)}; the next token agrees after"
        f" {logits.num_agreeing:,} of {logits.num_tokens:,}"
    )
    if logits.num_odd:
        yield f"{count_doing(logits.num_odd, 'logit', 'are')} not finite on a side, and left out"


def _sides(each: Disagreement) -> Iterator[tuple[str, str]]:
    for side, pairs in (("checkpoint", each.checkpoint), ("reference", each.reference)):
        yield side, ", ".join(f"{token!r} {share:.1%}" for token, share in pairs)


def make_logits_html(logits: Logits | None) -> str:
    """A section with the same; empty where nobody asked."""
    if logits is None:
        return ""
    parts = [make_tag("h2", "What both say next")]
    parts += [make_tag("p", html.escape(line)) for line in _list_sentences(logits)]
    for each in logits.disagreements:
        where = html.escape(f"after {each.after!r} (token {each.position:,})")
        facts = "".join(
            make_tag("dt", side) + make_tag("dd", html.escape(said)) for side, said in _sides(each)
        )
        parts.append(make_tag("h3", where) + make_tag("dl", facts, class_="facts"))
    return make_tag("section", "".join(parts))
