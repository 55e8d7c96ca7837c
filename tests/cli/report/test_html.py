"""The HTML report: what it says, and that it stands alone."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ckpt_tool.cli.report import render
from ckpt_tool.cli.report.row import TITLES
from ckpt_tool.common.version import __version__
from ckpt_tool.compare.moves import Moves
from ckpt_tool.compare.suspects import sort_worst_first
from ckpt_tool.compare.totals import Total, Totals
from ckpt_tool.operations.logits import Disagreement, Logits
from ckpt_tool.operations.origin import Origin
from ckpt_tool.operations.verify import VerifyResult, verify_checkpoint
from ckpt_tool.tensors.offsets import add
from tests.support.backed import backed
from tests.support.document import Document
from tests.support.verifications import FOLDER, llama, mismatch, result, side, stats, tolerant

WHEN = "2026-01-31 12:00 UTC"
HOSTILE = "<script>alert('1')</script>.\"onload=\"x&amp;.weight"


def document(found: VerifyResult) -> Document:
    return Document(render(found, WHEN))


def different() -> VerifyResult:
    distances = llama(3)
    one, other = "model.layers.0.mlp.up_proj.weight", "model.layers.2.input_layernorm.weight"
    distances |= {one: 3e-3, other: math.inf}
    few = stats(num_different=3, max_abs=math.inf, max_rel=math.nan, max_ulp=None, exponents={})
    return result(
        distances,
        [
            mismatch(one),
            mismatch(
                other, stats=replace(few, num_nan=(2, 0), num_nan_alone=2, num_unlike=2), rank=0
            ),
            mismatch("lm_head.weight", kind="shape", left="bfloat16 [5, 2]", hint="padded"),
        ],
        missing=["model.layers.9.x.weight"],
        unexpected=[f"extra.{n}.weight" for n in range(40)],
    )


def test_the_page_loads_nothing() -> None:
    text = render(different(), WHEN)
    assert not re.search(r"https?:|//[a-z]|@import|url\(|\bsrc=|\bhref=", text)
    page = Document(text)
    assert not page.all("link") + page.all("img") + page.all("iframe")
    policies = [a["content"] for a in page.all("meta") if "http-equiv" in a]
    assert len(policies) == 1
    assert policies[0].startswith("default-src 'none'")


def test_an_equal_model_is_stated_plainly() -> None:
    found = result(llama(3))
    page = document(found)
    assert page.all("section", "equal")
    assert not page.all("section", "different")
    assert "All 36 tensors are equal bit for bit" in page.text
    assert page.all("table") == []
    assert len(page.all("rect", "cell")) == len(page.all("rect", "l0")) == 36
    assert not page.all("svg", "histogram")


@pytest.mark.parametrize(
    ("changed", "title", "sentence"),
    [
        ({}, "Equal", "All 36 tensors are equal bit for bit"),
        (
            {"options": tolerant(1e-5, 0.01), "close": ["lm_head.weight"]},
            "Equal within tolerance",
            "|a - b| ≤ 1e-05 + 0.01 · |b| (atol, rtol); 1 tensor needed it.",
        ),
        ({"options": tolerant(1e-5)}, "Equal within tolerance", "no tensor needed it"),
        ({"options": tolerant(cast_reference=True)}, "Equal", "--cast-reference"),
        ({"missing": ["a"]}, "Different", "0 mismatched, 1 missing, 0 unexpected"),
        (
            {"missing": ["a"], "num_compared": 0},
            "Different",
            "No name is on both sides: 1 missing",
        ),
    ],
)
def test_the_verdict_comes_first(changed: dict, title: str, sentence: str) -> None:
    page = document(result(llama(3), **changed))
    assert page.headings[0] == title
    assert sentence in page.text
    assert page.text.index(sentence) < page.text.index(str(FOLDER))


def test_every_mismatch_is_a_row_with_its_numbers() -> None:
    page = document(different())
    rows = [row for row in page.rows if row]
    worst = "model.layers.2.input_layernorm.weight"
    assert [row[0][0] for row in rows] == [
        "lm_head.weight", worst, "model.layers.0.mlp.up_proj.weight",
    ]  # fmt: skip
    assert page.column("Different") == [("", ""), ("3", "30.3 %"), ("250", "25025 %")]
    assert page.column("Max abs") == [
        ("", ""), ("Infinity", "NaNfinite inf"), ("0.0058", "0.0058"),
    ]  # fmt: skip
    assert page.column("Max rel")[2] == ("0.31", "0.31")
    assert page.column("Mean abs")[2] == ("0.0005", "0.0005")
    assert [text for _, text in page.column("Cosine")[1:]] == ["NaN", "0.9999"]
    assert page.column("Max ULP") == [("", ""), ("", ""), ("12", "12")]
    assert page.column("Rank") == [("", ""), ("0", "0"), ("1", "1")]
    of_shape, odd, last = (text for _, text in page.column("Tensor"))
    assert "NaN on one side: 2 elements (NaN: 2, reference 0)" in odd
    assert "first at [0, 7]: 0.125, expected 0.1254" in last
    assert "in model_world_size_2_rank_1.pt" in last
    assert "only rank 1's shard differs: stale" in last
    assert "another shape" in of_shape
    assert "reference bfloat16 [25, 40]" in of_shape
    assert "padded" in of_shape


def test_the_order_is_the_terminals() -> None:
    """Columns and rows both."""
    found = different()
    page = document(found)
    assert tuple(head.lower() for head in page.heads[1:5]) == TITLES
    names = [each.name for each in sort_worst_first(found.mismatched)]
    assert [row[0][0] for row in page.rows if row] == names


def test_columns_without_content_are_left_out() -> None:
    found = different()
    bare = [replace(each, rank=None, source="", hint="") for each in found.mismatched[:1]]
    page = document(replace(found, mismatched=bare))
    assert "Rank" not in page.heads
    assert {"Tensor", "Max abs", "Cosine"} <= set(page.heads)


def test_the_table_can_be_sorted() -> None:
    page = document(different())
    assert len(page.all("table", "sortable")) == 1
    kinds = {a["data-type"] for a in page.all("th")}
    assert kinds == {"number", "text"}
    for head, attributes in zip(page.heads, page.all("th"), strict=True):
        keys = [key for key, _ in page.column(head)]
        if attributes["data-type"] == "number":
            assert all(key == "" or math.isfinite(float(key)) or key == "Infinity" for key in keys)
    assert len(page.all("script")) == 1


def test_a_difference_that_has_no_distance_is_still_on_the_heat_map() -> None:
    page = document(different())
    cells = page.all("rect", "cell")
    assert len(cells) == 36
    levels = [a["class"].split()[1] for a in cells]
    # the distance of 3e-3; the tensor with NaN on one side; the one of another shape
    assert sorted(found for found in levels if found != "l0") == ["l5", "l8", "l8"]
    assert "model.layers.0 · mlp.up_proj: 0.003" in page.text


def test_a_difference_without_a_distance_is_not_called_a_number() -> None:
    found = result({"a.weight": 0.0, "b.weight": 0.0}, [mismatch("b.weight", kind="dtype")])
    page = document(found)
    assert [a["class"] for a in page.all("rect", "cell")] == ["cell l0", "cell l1"]
    assert "b: differs by no measurable amount" in page.text


def test_histograms_have_a_bar_for_each_power_of_two() -> None:
    page = document(different())
    assert len(page.all("svg", "histogram")) == 1
    assert len(page.all("rect", "bar")) == 5, "from -12 to -8, empty ones too"
    assert "2⁻¹² ≤ |a - b| < 2⁻¹¹: 200 elements (80 %)" in page.text
    assert len(page.all("svg", "spark")) == 1, "other rows have no exponents"


def test_a_histogram_of_any_range_stays_small() -> None:
    wide = stats(exponents={-1022: 1, 0: 5, 1024: 2})
    page = document(result({"a": math.inf}, [mismatch("a", stats=wide)]))
    bars = page.all("rect", "bar")
    assert 3 <= len(bars) <= 48
    assert sum(float(bar["height"]) > 0 for bar in bars) == 3
    assert "2¹⁰²" in page.text


def test_hostile_names_stay_text() -> None:
    moves = Moves(f"o{HOSTILE}", 4, (1.0, 1.0, 0.0, 1.0), 0.0)
    odd = mismatch(HOSTILE, hint="<b>hint</b>", left="<i>", source=f"{FOLDER}/<u>.pt")
    found = result(
        {HOSTILE: 0.5, f"a.layers.0.{HOSTILE}": 0.5},
        [odd],
        missing=[f"m{HOSTILE}"],
        unexpected=[f"u{HOSTILE}"],
        tied={f"t{HOSTILE}": "<b>"},
        ignored=[f"i{HOSTILE}"],
        names_hint="<em>hint</em>",
        totals=Totals((Total(f"l{HOSTILE}", 1, 1, 4, 4, 0, 0.5),), ()),
        origin=Origin(side(Path("/o<q>"), []), [moves], moves, []),
        logits=Logits(
            HOSTILE,
            "<b>",
            1,
            2,
            0.5,
            0.5,
            0,
            0,
            0,
            [Disagreement(0, HOSTILE, [(HOSTILE, 0.5)], [("<i>", 0.5)])],
        ),
        left=side(Path("/x<y>"), [], ["<q>"]),
    )
    page = document(found)
    assert len(page.all("script")) == 1
    names = {tag for tag, _ in page.tags}
    assert names.isdisjoint({"b", "i", "u", "em", "q", "y"})
    assert not any("onload" in attributes for _, attributes in page.tags)
    for prefix in ("", "m", "u", "t", "i", "l", "o"):
        assert prefix + HOSTILE in page.text
    assert "<em>hint</em>" in page.text
    assert f"{HOSTILE!r} 50.0%" in page.text
    assert page.rows[-1][0][0] == HOSTILE


def test_paths_that_are_not_utf8_can_be_written() -> None:
    path = Path("/models/odd\udce9")
    text = render(result(llama(1), right=side(path, [])), WHEN)
    assert r"odd\udce9" in text.encode("utf-8").decode("utf-8")


def test_both_sides_say_where_they_come_from() -> None:
    page = document(replace(different(), names_hint="names differ by a prefix"))
    text = page.text
    for fact in (str(FOLDER), "/models/base", "fsdp", "2 (3 GB)", "fsdp 2", "bfloat16 x 36", WHEN):
        assert fact in text
    assert f"ckpt {__version__}" in text
    assert "names differ by a prefix" in text
    assert "model_world_size_2_rank_1.pt · 1.5 GB · rank 1" in text


def test_a_dtype_that_only_sums_have_is_on_no_side(tmp_path: Path) -> None:
    left, norm = side(FOLDER, []), add(backed(tmp_path / "norm", torch.ones(4).bfloat16()), 1.0)
    left = replace(left, model=replace(left.model, tensors={"norm": norm}))
    text = document(replace(result(llama(1)), left=left)).text
    assert "bfloat16 x 1" in text
    assert "float64" not in text


def test_warnings_tell_their_side() -> None:
    text = document(result(llama(1), right=side(Path("/b"), [], ["no config"]))).text
    assert "Reference: no config" in text


def test_long_lists_are_folded_and_complete() -> None:
    page = document(different())
    assert "40 names" in page.text
    assert all(f"extra.{n}.weight" in page.text for n in range(40))
    # both lists of files and the forty names; the one missing name is simply there
    assert ["open" in a for a in page.all("details")] == [False, False, False]
    assert "model.layers.9.x.weight" in page.text


@pytest.mark.slow
def test_a_thousand_mismatches_are_all_there() -> None:
    names = [f"model.layers.{n}.mlp.up_proj.weight" for n in range(1000)]
    page = document(result(dict.fromkeys(names, 1e-3), [mismatch(name) for name in names]))
    assert [row[0][0] for row in page.rows if row] == names
    assert len(page.all("rect", "cell")) == 1000


def test_a_real_comparison_is_reported(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {
        f"model.layers.{n}.{module}.weight": torch.randn(16, 8, generator=generator)
        for n in range(2)
        for module in ("self_attn.q_proj", "mlp.up_proj")
    }
    changed = {name: tensor.clone() for name, tensor in weights.items()}
    changed["model.layers.1.mlp.up_proj.weight"][3, 4] += 1
    for folder, tensors in (("a", changed), ("b", weights)):
        (tmp_path / folder).mkdir()
        save_file(tensors, tmp_path / folder / "model.safetensors")
    page = document(verify_checkpoint(tmp_path / "a", tmp_path / "b"))
    assert "3 of 4 tensors on both sides are equal bit for bit; 1 mismatched" in page.text
    assert page.column("Different") == [("1", "10.781 %")]
    ((_, text),) = page.column("Tensor")
    assert "first at [3, 4]" in text
    assert text.endswith("in model.safetensors")
    assert len(page.all("rect", "l0")) == 3
