"""The heat map that a terminal shows."""

import io
import math

import pytest
from rich.console import Console

from ckpt_tool.cli.report.terminal import abbreviate, draw_heatmap
from ckpt_tool.compare.grid import make_grid
from tests.support.verifications import llama

MOE = (
    "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj self_attn.q_norm"
    " self_attn.k_norm input_layernorm post_attention_layernorm pre_feedforward_layernorm"
    " post_feedforward_layernorm mlp.gate mlp.gate_proj mlp.up_proj mlp.down_proj"
    " mlp.experts.0.gate_proj mlp.experts.0.up_proj mlp.experts.0.down_proj"
    " mlp.shared_expert.gate_proj mlp.shared_expert.up_proj mlp.shared_expert.down_proj"
    " mlp.shared_expert_gate"
).split()


def moe(layers: int) -> dict[str, float]:
    return {f"model.layers.{n}.{module}.weight": 1e-4 for n in range(layers) for module in MOE}


def show(distances: dict[str, float], width: int = 80, **options: object) -> str:
    """What a terminal of this width gets, control sequences and all."""
    console = Console(file=io.StringIO(), width=width, **{"color_system": None} | options)
    console.print(draw_heatmap(make_grid(distances), width))
    return console.file.getvalue()


def rows(text: str, title: str) -> list[str]:
    """The lines of layers under a title."""
    lines = text.split(f"{title}\n", 1)[1].split("\noutside", 1)[0].splitlines()
    lines = lines[: next((at for at, line in enumerate(lines) if "Relative" in line), None)]
    return [line for line in lines if line.strip()[:1].isdigit()]


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("layers", [2, 28, 100])
def test_a_usual_model_is_one_block(layers: int, width: int) -> None:
    text = show(llama(layers), width)
    assert max(map(len, text.splitlines())) <= width
    shown = rows(text, "model.layers")
    assert [int(line.split()[0]) for line in shown] == list(range(layers))
    assert all(line.split()[1:] == ["·"] * 11 for line in shown)


def test_numbers_tell_the_distance_without_colour() -> None:
    distances = llama(4)
    distances["model.layers.2.mlp.up_proj.weight"] = 3e-4
    distances["model.layers.3.input_layernorm.weight"] = math.inf
    distances["model.norm.weight"] = 1e-7
    text = show(distances)
    header = next(line for line in text.splitlines() if line.lstrip().startswith("layer"))
    columns = header.split()
    marked = {
        (line.split()[0], columns[at]): mark
        for line in rows(text, "model.layers")
        for at, mark in enumerate(line.split())
        if at and mark != "·"
    }
    assert marked == {("2", "up"): "3e-4", ("3", "iln"): "!"}
    assert "\x1b" not in text
    outside = text.split("outside the layers\n")[1].split("\n\n")[0].split()
    assert outside == ["·", "embed_tokens", "1e-7", "norm", "·", "lm_head"]


def test_colours_repeat_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = show({"a.layers.0.up.weight": 0.5}, color_system="truecolor", force_terminal=True)
    (line,) = [line for line in coloured.splitlines() if line.strip().startswith("0")]
    assert "\x1b[38;2;0;0;0;48;2;248;208;43m0.50" in line  # between those of 1e-1 and of 1
    monkeypatch.setenv("NO_COLOR", "1")
    plain = show({"a.layers.0.up.weight": 0.5}, color_system="truecolor", force_terminal=True)
    assert "48;2;" not in plain
    assert rows(plain, "\x1b[1ma.layers\x1b[0m")[0].split() == ["0", "0.50"]


@pytest.mark.parametrize("width", [40, 80])
def test_a_wide_model_takes_several_blocks_and_loses_nothing(width: int) -> None:
    text = show(moe(3), width)
    assert max(map(len, text.splitlines())) <= width
    shown = rows(text, "model.layers")
    blocks = len(shown) // 3
    assert blocks > 1
    assert [line.split()[0] for line in shown] == ["0", "1", "2"] * blocks
    assert sum(line.split()[1:].count("1e-4") for line in shown) == 3 * len(MOE)


def test_a_module_that_a_layer_lacks_is_blank() -> None:
    text = show({"m.layers.0.mlp.up.weight": 0.0, "m.layers.1.attn.q.weight": 0.0})
    dense, sparse = rows(text, "m.layers")
    assert (dense.index("·"), sparse.index("·")) == (14, 9)
    assert dense.count("·") == sparse.count("·") == 1


def test_every_abbreviation_is_explained_and_unlike_the_others() -> None:
    found = make_grid(moe(1))
    short = abbreviate(found.columns)
    assert len(set(short.values())) == len(MOE)
    assert short["self_attn.q_proj"] == "q"
    assert short["post_attention_layernorm"] == "paln"
    assert short["mlp.experts.*.up_proj"] == "e.up"
    assert short["mlp.shared_expert.up_proj"] == "se.up"
    text = show(moe(1))
    assert all(f"{abbreviation} {column}" in text for column, abbreviation in short.items())


def test_names_with_markup_are_shown_as_they_are() -> None:
    assert "odd[red]name" in show({"odd[red]name.weight": 0.0})
    assert "[bold].layers" in show({"[bold].layers.0.up.weight": 0.0})


@pytest.mark.parametrize("width", [40, 80, 160])
def test_the_legend_runs_from_the_least_to_the_most(width: int) -> None:
    lines = show(llama(2, 1e-3), width).splitlines()
    assert lines[-1].split() == [*(f"1e-{n}" for n in range(7, 0, -1)), "1"]
    assert [line for line in lines if line != line.rstrip() or len(line) > width] == []


def test_distances_of_one_decade_have_colours_of_their_own() -> None:
    distances = {f"a.layers.{n}.up.weight": (n + 2) * 1e-3 for n in range(6)}
    text = show(distances, color_system="truecolor", force_terminal=True)
    colours = {line.split("48;2;")[1].split("m")[0] for line in rows(text, "a.layers\x1b[0m")}
    assert len(colours) == 6
