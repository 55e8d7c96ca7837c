"""The report of a verification: verdict, both sides, names, heat map, histogram, mismatches."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterator, Sequence

from ckpt_tool.cli.flags import spell_flags
from ckpt_tool.cli.report import svg
from ckpt_tool.cli.report.logits import make_logits_html
from ckpt_tool.cli.report.origin import make_origin_html
from ckpt_tool.cli.report.page import make_page
from ckpt_tool.cli.report.sides import make_fact, make_folded, make_sides
from ckpt_tool.cli.report.table import make_table
from ckpt_tool.cli.report.text import format_number, make_breakable, make_items, make_tag, share
from ckpt_tool.cli.report.totals import make_totals_html
from ckpt_tool.common.version import __version__
from ckpt_tool.common.wording import count_noun, format_bytes
from ckpt_tool.compare.grid import make_grid
from ckpt_tool.compare.suspects import sort_worst_first
from ckpt_tool.operations.options import VerifyOptions
from ckpt_tool.operations.verify import VerifyResult, collect_distances

_LISTED = 12  # names that are shown without a click


def render(result: VerifyResult, when: str) -> str:
    """One HTML document that stands alone; ``when`` is the date of the comparison, as it is shown.

    Every tensor that differs is in it, whatever their number.
    """
    sections = (
        _verdict(result, when),
        _notes(result),
        make_sides(result),
        _names("Missing", result.missing, "In the reference, not in the checkpoint."),
        _names("Unexpected", result.unexpected, "In the checkpoint, not in the reference."),
        _heatmap(result),
        make_totals_html(result.totals),
        make_origin_html(result.origin),
        make_logits_html(result.logits),
        _histogram(result),
        _mismatches(result),
        _set_aside(result),
        make_tag("footer", f"ckpt {__version__} · {html.escape(when)}"),
    )
    title = f"{_title(result)}: {result.left.checkpoint.path.name}"
    return make_page(title, "\n".join(filter(None, sections)))


# --- verdict
def _title(result: VerifyResult) -> str:
    if not result.equal:
        return "Different"
    return "Equal" if result.options.tolerance.exact else "Equal within tolerance"


def _verdict(result: VerifyResult, when: str) -> str:
    css = "equal" if result.equal else "different"
    parts = [
        make_tag("p", f"ckpt verify · {html.escape(when)}", class_="eyebrow"),
        make_tag("h1", svg.draw_sign(equal=result.equal) + _title(result)),
        *(make_tag("p", html.escape(sentence)) for sentence in _sentences(result)),
        _tiles(result),
    ]
    return make_tag("section", "".join(parts), class_=f"verdict {css}")


def _sentences(result: VerifyResult) -> Iterator[str]:
    """The verdict in words, and by which measure it was reached."""
    options = result.options
    how = "bit for bit" if result.exact else "in value"
    if not options.tolerance.exact:
        how = "within the tolerance"
    names = count_noun(result.num_compared, "tensor")
    if not result.num_compared:
        yield (
            f"No name is on both sides: {len(result.missing):,} missing,"
            f" {len(result.unexpected):,} unexpected."
        )
    elif result.equal:
        subject = f"All {names} are" if result.num_compared != 1 else "The only tensor is"
        yield f"{subject} equal {how}; none is mismatched, missing or unexpected."
    else:
        yield (
            f"{result.num_equal:,} of {names} on both sides are equal {how};"
            f" {len(result.mismatched):,} mismatched, {len(result.missing):,} missing,"
            f" {len(result.unexpected):,} unexpected."
        )
    yield from _measure(options, len(result.close))


def _measure(options: VerifyOptions, num_close: int) -> Iterator[str]:
    tolerance = options.tolerance
    if not tolerance.exact:
        needed = (
            f"{count_noun(num_close, 'tensor')} needed it" if num_close else "no tensor needed it"
        )
        yield (
            f"Tolerance: |a - b| ≤ {tolerance.atol:g} + {tolerance.rtol:g} · |b|"
            f" (atol, rtol); {needed}."
        )
    if options.cast_reference:
        yield (
            "Where dtypes differ, the finer side was rounded to the coarser one's dtype before"
            " comparing (--cast-reference)."
        )


def _tiles(result: VerifyResult) -> str:
    tiles = (
        ("equal", f"{result.num_equal:,}"),
        ("mismatched", f"{len(result.mismatched):,}"),
        ("missing", f"{len(result.missing):,}"),
        ("unexpected", f"{len(result.unexpected):,}"),
        ("compared per side", format_bytes(result.compared_bytes)),
        ("time", f"{result.seconds:.3g} s"),
    )
    return make_tag(
        "dl", "".join(make_tag("div", make_fact(*tile)) for tile in tiles), class_="tiles"
    )


# --- where it came from
def _notes(result: VerifyResult) -> str:
    notes = [result.names_hint] if result.names_hint else []
    for side, name in ((result.left, "Checkpoint"), (result.right, "Reference")):
        notes += [f"{name}: {warning}" for warning in side.warnings]
    text = "".join(make_tag("p", make_breakable(spell_flags(note))) for note in notes)
    return make_tag("section", make_tag("h2", "Note") + text, class_="note") if notes else ""


# --- what differs
def _names(title: str, names: Sequence[str], about: str) -> str:
    if not names:
        return ""
    listed = make_items(names)
    if len(names) > _LISTED:
        listed = make_folded(count_noun(len(names), "name"), listed)
    return make_tag(
        "section", make_tag("h2", f"{title}: {len(names):,}") + make_tag("p", about) + listed
    )


def _heatmap(result: VerifyResult) -> str:
    found = make_grid(collect_distances(result))
    if not found.cells:
        return ""
    about = (
        "A cell shows the relative distance |a - b| / |b| (Euclidean norm) of a layer's module, the"
        " largest where tensors share a cell; empty: not on both sides. In narrow cells, 4 stands"
        " for 1e-4 and more, below 1e-3."
    )
    parts = make_tag("h2", "Where it differs" if result.mismatched else "Layer by layer")
    return make_tag(
        "section", parts + make_tag("p", about) + svg.draw_scale() + svg.draw_heatmaps(found)
    )


def _histogram(result: VerifyResult) -> str:
    stats = [mismatch.stats for mismatch in result.mismatched if mismatch.stats is not None]
    exponents: Counter[int] = Counter()
    for each in stats:
        exponents.update(each.exponents)
    if not exponents:
        return ""
    different, total = (
        sum(each.num_different for each in stats), sum(each.num_elements for each in stats)
    )  # fmt: skip
    largest = max(each.max_abs for each in stats)
    about = (
        f"{different:,} of {total:,} elements of the mismatched tensors differ"
        f" ({share(different, total)}). Each bar counts those with |a - b| between two powers of"
        f" two; heights are logarithmic. Largest: {format_number(largest)}."
    )
    picture = make_tag("div", svg.draw_histogram(exponents), class_="scroll")
    return make_tag("section", make_tag("h2", "By how much") + make_tag("p", about) + picture)


def _mismatches(result: VerifyResult) -> str:
    if not result.mismatched:
        return ""
    title = make_tag("h2", f"Mismatched: {len(result.mismatched):,}")
    folder = result.left.checkpoint.path
    rows = sort_worst_first(result.mismatched)
    return make_tag("section", title + make_table(rows, folder), class_="wide")


def _set_aside(result: VerifyResult) -> str:
    """Tensors that the verdict does not rest on as it does on the others."""
    tied = [f"{name}: {why}" for name, why in result.tied.items()]
    lists = (
        ("equal only within the tolerance", result.close),
        ("tied, on one side only", tied),
        ("ignored (--ignore)", result.ignored),
    )
    parts = "".join(
        make_folded(f"{len(names):,} {what}", make_items(names), opened=len(names) <= _LISTED)
        for what, names in lists
        if names
    )
    return make_tag("section", make_tag("h2", "Set aside") + parts) if parts else ""
