"""What is printed of a verification: no number claims more than there is, all are in columns."""

import html
import io
import json

import pytest
from rich.console import Console

from ckpt_tool.cli.report.as_json import make_object
from ckpt_tool.cli.report.html import render
from ckpt_tool.cli.report.summary import show_summary
from ckpt_tool.cli.report.totals import show_totals
from ckpt_tool.compare.ranks import Spectrum
from ckpt_tool.compare.totals import Total, Totals
from ckpt_tool.operations.options import VerifyOptions
from ckpt_tool.operations.verify import VerifyResult
from tests.support.verifications import FOLDER, mismatch, result, side, stats


def printed(found: VerifyResult, top: int = 10, width: int = 80) -> list[str]:
    out = io.StringIO()
    show_summary(Console(file=out, width=width), found, top)
    return out.getvalue().splitlines()


@pytest.mark.parametrize(
    ("part", "whole", "expected"),
    [
        (1, 10**6, "1 (0.0001%)"),
        (250, 1000, "250 (25%)"),
        (999_999, 10**6, "999,999 (>99%)"),
        (10**6, 10**6, "1,000,000 (100%)"),
        (0, 8, "0 (0%)"),
    ],
)
def test_a_share_is_never_all_where_something_is_left(part: int, whole: int, expected: str) -> None:
    one = mismatch("a.weight", stats=stats(num_different=part, num_elements=whole))
    _, _, row, *_ = printed(result({}, [one]))
    assert f"  {expected}  " in row


@pytest.mark.parametrize("width", [40, 80, 120])
def test_numbers_stand_under_their_titles(width: int) -> None:
    names = ["norm", "model.layers.0.self_attn.q_proj.weight", "x" * 130]
    several = [mismatch(name, stats=stats(num_different=3**at)) for at, name in enumerate(names)]
    lines = printed(result({}, several), width=width)
    ends = {len(line) for line in lines if line.startswith("tensor") or line.endswith("0.99990")}
    assert len(ends) == 1, lines
    assert sum(line.endswith("0.99990") for line in lines) == 3
    for name in names:
        assert any(line.startswith(name) for line in lines)


def test_where_there_is_no_distance_none_is_told() -> None:
    values = {"max_abs": 0.0, "sum_abs": 0.0, "max_ulp": 0, "first_values": (1.0, float("nan"))}
    found = stats(num_nan=(0, 1), num_nan_alone=1, **values)
    lines = printed(result({}, [mismatch("a", stats=found)]), width=120)
    assert "    NaN on one side: 1 element (NaN: 0, reference 1)" in lines
    assert lines[-1].endswith(": 1, expected nan")
    assert not any("finite elements" in line for line in lines)


@pytest.mark.parametrize(
    ("changed", "cells", "line"),
    [
        (
            {"num_nan": (5, 2), "num_nan_alone": 3},
            ["NaN", "NaN", "NaN"],
            "NaN on one side: 3 elements (NaN: 5, reference 2)",
        ),
        (
            {"num_inf": (1, 0), "num_inf_alone": 1},
            ["inf", "inf", "NaN"],
            "infinite on one side: 1 element (infinite: 1, reference 0)",
        ),
        (
            {"num_nan": (1, 1), "num_inf": (2, 2)},
            ["0.0058", "0.31", "0.99990"],
            "NaN: 1 (reference 1), infinite: 2 (reference 2)",
        ),
    ],
)
def test_what_is_no_number_is_the_largest_difference(changed, cells, line) -> None:
    lines = printed(result({}, [mismatch("a", stats=stats(**changed))]))
    assert lines[2].split()[-3:] == cells
    assert f"    {line}" in lines
    beside = "    finite elements: max abs 0.0058, max rel 0.31, cosine 0.99990"
    assert (beside in lines) == (cells[0] in ("NaN", "inf"))


def test_a_cosine_that_is_rounded_to_one_is_not_called_one() -> None:
    near = stats(squares=(1.0, 1.0, 1e-12), product=1.0)
    assert printed(result({}, [mismatch("a", stats=near)]))[2].endswith(" >.99999")


@pytest.mark.parametrize("width", [80, 160])
def test_no_line_ends_in_blanks_or_in_half_a_word(width: int) -> None:
    hint = "equal to the reference's model.layers.10.mlp.experts.100.down_proj.weight: " * 3
    name = "model.layers.0.self_attn.q_proj.weight"
    odd = stats(num_nan=(1, 0), num_nan_alone=1)
    lines = printed(result({}, [mismatch(name, stats=odd, hint=hint)]), width=width)
    assert [line for line in lines if line != line.rstrip() or len(line) > width] == []
    words = set(" ".join(lines).split())
    assert {*hint.split(), "model_world_size_2_rank_1.pt:"} <= words


def test_only_the_worst_are_printed_and_the_rest_counted() -> None:
    several = [mismatch(f"t{at}", stats=stats(squares=(1, 1, at * 0.01))) for at in range(1, 6)]
    lines = printed(result({}, several), top=2)
    assert [line.split()[0] for line in lines if line.startswith("t") and line[1].isdigit()] == [
        "t5", "t4",
    ]  # fmt: skip
    assert lines[-1] == "and 3 more that differ (--top N shows more)"


def test_options_are_shown_as_flags() -> None:
    names = ["a", "b"]
    found = result(
        {"a": 0.0, "b": 0.0},
        [mismatch("c", hint="as with `keep_names=True`")],
        left=side(FOLDER, names, ["alpha 2, `lora.alpha`"]),
        names_hint="cut by `names.prefix='model'`",
    )
    typed = {"--lora-alpha", "--prefix model", "--config none"}
    shown = json.dumps(make_object(found))
    page = html.unescape(render(found, "now")).replace("<wbr>", "")
    text = " ".join(printed(found))
    assert all(flag in shown and flag in page for flag in typed)
    assert "--prefix model" in text
    assert "--config none" in text
    assert "`" not in shown + text


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (
            Spectrum(192, 8, 8, {1: 0.2, 8: 1.0}, 0.0),
            "a LoRA of rank 8 (of 192) would hold 99% of the difference",
        ),
        (
            Spectrum(4096, 64, 8, {8: 0.97, 64: 0.99}, 0.027),
            "a LoRA of rank 64 (of 4,096) would hold 99% of the difference; rounding to bfloat16"
            " alone makes an estimated 2.7% of it, and 99% of the rest has rank 8",
        ),
        (
            Spectrum(4096, None, None, {8: 0.04, 32: 0.14, 64: 0.26, 128: 0.44, 256: 0.68}, 1e-4),
            "of the difference (of 4,096) a LoRA would hold at least: of rank 8 4%, of rank 32 14%,"
            " of rank 128 44%, of rank 256 68%",
        ),
    ],
)
def test_a_rank_is_told_as_a_lora_has_it(found: Spectrum, text: str) -> None:
    one = result({}, [mismatch("a", spectrum=found)])
    assert text in " ".join(" ".join(printed(one)).split())
    page = html.unescape(render(one, "now")).replace("<wbr>", "")
    assert text in page
    assert "Directions" in page
    assert make_object(one)["mismatched"][0]["spectrum"]["rank"] == found.rank


def test_a_rank_that_was_asked_for_and_not_found_is_said() -> None:
    said = "rank: none of these rows"
    asked = VerifyOptions(ranks=3)
    assert printed(result({}, [mismatch("a")], options=asked))[-1].startswith(said)
    found = mismatch("a", spectrum=Spectrum(2, 1, 1, {1: 1.0}, 0.0))
    for other in ({"options": VerifyOptions()}, {"options": asked, "mismatched": [found]}):
        fields = {"mismatched": [mismatch("a")]} | other
        assert not any(line.startswith(said) for line in printed(result({}, **fields)))


TOTALS = Totals(
    (Total("model.layers.0", 12, 10, 1000, 225, 0, 0.000444), Total("odd", 1, 1, 9, 9, 5, None)),
    (Total("model.layers.*.post_attention_layernorm", 12, 0, 10, 0, 0, 0.0),),
)


@pytest.mark.parametrize("width", [40, 80, 160])
def test_totals_stand_under_their_titles(width: int) -> None:
    out = io.StringIO()
    show_totals(Console(file=out, width=width), TOTALS)
    lines = out.getvalue().splitlines()
    assert [line for line in lines if line != line.rstrip()] == []
    text = " ".join(" ".join(lines).split())
    for row in ("model.layers.0 10 of 12 22.5 % 0.000444", "odd 1 of 1 100 % inf, 5 not finite"):
        assert row in text
    assert "model.layers.*.post_attention_layernorm 0 of 12 0 % 0" in text
    ends = {len(line) for line in lines if line.endswith(("|b|", "0.000444", "not finite"))}
    assert len(ends) <= 2  # a width for each table


def test_totals_are_in_the_report_and_the_json() -> None:
    found = result({}, [mismatch("a")], totals=TOTALS)
    (first, second), modules = make_object(found)["totals"].values()
    assert (first["name"], first["num_different"], first["relative_norm"]) == (
        "model.layers.0", 225, 0.000444,
    )  # fmt: skip
    assert (second["relative_norm"], len(modules)) == (None, 1)
    page = html.unescape(render(found, "now")).replace("<wbr>", "")
    assert "model.layers.*.post_attention_layernorm" in page
    assert "inf, 5 not finite" in page
    assert make_object(result({}))["totals"] is None
    assert "How far each layer" not in render(result({}), "now")
