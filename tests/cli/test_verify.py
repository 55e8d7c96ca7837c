"""`ckpt verify`: flags, what is printed, the JSON object."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from ckpt_tool.cli.app import app
from tests.operations.merge.test_megatron_lora import WRITTEN as BRIDGE_LORA
from tests.support.merging import TINY, write_rank
from tests.support.verifying import Tensors, merged, planted, save

UP = "model.layers.0.mlp.up_proj.weight"
NORM = "model.norm.weight"


def run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "100"}).invoke(app, ["verify", *map(str, arguments)])


def as_json(result: Result) -> dict[str, Any]:
    """The one JSON object on stdout, by the letter of the standard: no NaN, no Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    found = json.loads(result.stdout, parse_constant=refuse)
    assert isinstance(found, dict)
    return found


@pytest.fixture
def case(checkpoints: dict[str, Path]) -> Path:
    return checkpoints["fsdp2_w2"]


@pytest.fixture
def different(case: Path, tmp_path: Path) -> Path:
    """A copy of the model with one difference of every kind."""

    def change(tensors: Tensors) -> None:
        del tensors["model.layers.0.self_attn.q_proj.bias"]
        tensors["model.layers.0.self_attn.o_proj.bias"] = torch.ones(32)
        tensors[NORM] = tensors[NORM].half()
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:90]
        tensors[UP][5, 6] = 3.0

    return planted(case / "reference", tmp_path / "different", change)


# --- JSON
CONTRACT = {
    "equal", "exact", "num_compared", "num_equal", "tolerance", "missing", "unexpected",
    "mismatched",
}  # fmt: skip
ROW = {
    "name", "kind", "max_abs", "max_rel", "mean_abs", "cosine", "num_different", "num_elements",
    "num_nan", "first_index", "hint",
}  # fmt: skip


def test_equal_is_exit_0_and_says_so_in_json(case: Path) -> None:
    result = run(case, case / "reference", "--json")
    found = as_json(result)
    assert (result.exit_code, result.stderr) == (0, "")
    assert found.keys() >= CONTRACT
    assert {key: found[key] for key in CONTRACT} == {
        "equal": True, "exact": True, "num_compared": 27, "num_equal": 27,
        "tolerance": {"atol": 0.0, "rtol": 0.0}, "missing": [], "unexpected": [], "mismatched": [],
    }  # fmt: skip


def test_different_is_exit_1_and_all_of_it_is_in_the_json(case: Path, different: Path) -> None:
    result = run(different, case, "--json", "--top", "1")
    found = as_json(result)
    assert (result.exit_code, result.stderr) == (1, "")
    assert (found["equal"], found["exact"]) == (False, True)
    assert (found["num_compared"], found["num_equal"]) == (26, 23)
    assert found["missing"] == ["model.layers.0.self_attn.q_proj.bias"]
    assert found["unexpected"] == ["model.layers.0.self_attn.o_proj.bias"]
    rows = {row["name"]: row for row in found["mismatched"]}
    assert all(row.keys() >= ROW for row in rows.values())
    assert {name: row["kind"] for name, row in rows.items()} == {
        UP: "values", NORM: "dtype", "lm_head.weight": "shape",
    }  # fmt: skip
    row = rows[UP]
    assert (row["num_different"], row["num_elements"], row["num_nan"]) == (1, 51 * 32, 0)
    assert row["first_index"] == [5, 6]
    assert row["first_values"][0] == 3.0
    assert row["max_abs"] == pytest.approx(3 - row["first_values"][1])
    assert row["max_rel"] == pytest.approx(row["max_abs"] / abs(row["first_values"][1]))
    assert row["mean_abs"] == pytest.approx(row["max_abs"] / (51 * 32))
    assert 0 < row["cosine"] < 1
    assert rows["lm_head.weight"]["max_abs"] is None
    assert "7 more rows in the reference" in rows["lm_head.weight"]["hint"]
    assert "rounding the reference to float16" in rows[NORM]["hint"]


def test_options_are_in_the_json(case: Path, different: Path) -> None:
    flags = ["--atol", "0.5", "--rtol", "1e-3", "--cast-reference", "--ignore", "*o_proj.bias"]
    found = as_json(run(different, case, "--json", *flags, "--ignore", UP))
    assert found["tolerance"] == {"atol": 0.5, "rtol": 0.001}
    assert (found["exact"], found["cast_reference"]) == (False, True)
    assert found["ignored"] == [UP, "model.layers.0.self_attn.o_proj.bias"]
    assert found["unexpected"] == []
    assert [row["name"] for row in found["mismatched"]] == ["lm_head.weight"]


def rows_of(folder: Path, rows: dict[str, tuple[list[float], list[float]]]) -> Result:
    """The result for small float64 tensors, the checkpoint's and the reference's."""
    for side in (0, 1):
        state = {
            f"{name}.weight": torch.tensor(row[side], dtype=torch.float64)
            for name, row in rows.items()
        }
        write_rank(folder / str(side), state, TINY)
    return run(folder / "0", folder / "1", "--json")


def test_nan_and_infinity_are_still_json(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    rows = {
        "a": ([nan, 1], [1, 1]),
        "b": ([1, 1], [inf, 1]),
        "c": ([nan, nan], [inf, -inf]),
        "d": ([1, 1], [0, 0]),
    }
    result = rows_of(tmp_path, rows)
    assert (result.exit_code, result.stderr) == (1, "")
    found = {row["name"][0]: row for row in as_json(result)["mismatched"]}
    assert list(found) == list(rows)
    assert (found["a"]["num_nan"], found["a"]["first_values"]) == (1, ["nan", 1.0])
    assert (found["b"]["num_inf_reference"], found["b"]["first_values"]) == (1, [1.0, "inf"])
    assert (found["c"]["num_nan"], found["c"]["num_different"]) == (2, 2)
    assert found["d"]["cosine"] is None
    text = run(tmp_path / "0", tmp_path / "1")
    assert (text.exit_code, text.stderr) == (1, "")


@pytest.mark.filterwarnings("error::RuntimeWarning")  # the program would print it
def test_numbers_beyond_what_squares_can_hold(tmp_path: Path) -> None:
    result = rows_of(tmp_path, {"a": ([1e308, 1], [-1e308, 1]), "b": ([1, 1], [5e-324, 1])})
    assert (result.exit_code, result.stderr) == (1, "")
    opposite, _ = as_json(result)["mismatched"]
    assert opposite["cosine"] in (None, pytest.approx(-1))


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_signalling_nan_is_counted_quietly(tmp_path: Path) -> None:
    """As a flipped bit makes one of an infinity, or of a large number."""
    for side, bits in (("a", 0x7F81), ("b", 0x3F80)):
        state = {"a.weight": torch.tensor([bits, 0x3F80], dtype=torch.int16).view(torch.bfloat16)}
        write_rank(tmp_path / side, state, TINY)
    result = run(tmp_path / "a", tmp_path / "b", "--json")
    assert (result.exit_code, result.stderr) == (1, "")
    (row,) = as_json(result)["mismatched"]
    assert (row["num_nan"], row["num_different"]) == (1, 1)


# --- text
def test_people_are_told_that_two_are_equal(case: Path) -> None:
    result = run(case, case / "reference")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("Equal: 27 tensors, ")
    assert "bit for bit" in result.stdout


def test_people_are_told_what_differs(case: Path, different: Path) -> None:
    result = run(different, case)
    assert (result.exit_code, result.stderr) == (1, "")
    first, *lines = result.stdout.splitlines()
    assert first == "Different: 23 of 26 tensors equal, 3 differ, 1 missing, 1 unexpected"
    text = "\n".join(lines)
    assert "missing (in the reference only):\n  model.layers.0.self_attn.q_proj.bias" in text
    assert "unexpected (in the checkpoint only):\n  model.layers.0.self_attn.o_proj.bias" in text
    assert "shape: float32 [90, 32], the reference has float32 [97, 32]" in text
    assert "dtype: float16 [32], the reference has float32 [32]" in text
    assert "hint: vocabulary padded: 7 more rows in the reference" in text
    assert "first at [5, 6]: 3, expected " in text
    assert "1 (0.061%)" in text  # of 51 x 32 elements


def test_the_rank_of_a_difference_is_printed(case: Path, different: Path) -> None:
    text = run(case, different).stdout
    assert "first at [5, 6] in model_world_size_2_rank_0.pt: " in text


def test_only_the_worst_are_printed(case: Path, different: Path) -> None:
    text = run(different, case, "--top", "2").stdout
    assert "and 1 more that differ (--top N shows more)" in text
    assert "lm_head.weight" in text
    assert NORM in text
    assert UP not in text  # a value counts less than another shape or dtype


def test_a_report_has_the_causes_of_all(case: Path, different: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    assert "vocabulary padded" in run(different, case, "--top", "1", "--report", report).stdout
    text = report.read_text(encoding="utf-8")
    assert "vocabulary padded" in text
    assert "after rounding the reference to float16 (--cast-reference compares so)" in text


def test_a_tolerance_is_never_silent(case: Path, different: Path, tmp_path: Path) -> None:
    near = planted(case / "reference", tmp_path / "near", lambda t: t[UP].add_(2.0**-10))
    accepted = run(near, case, "--atol", "0.001")
    assert accepted.exit_code == 0
    assert "|a-b| <= 0.001 + 0*|b|; 1 tensor only within the tolerance" in accepted.stdout
    assert "bit for bit" not in accepted.stdout
    refused = run(near, case, "--atol", "0.0009")
    assert refused.exit_code == 1
    assert "1 differ (|a-b| <= 0.0009 + 0*|b|)" in refused.stdout
    assert run(different, case, "--atol", "1e9").exit_code == 1  # names and shapes still count


def test_a_cast_is_never_silent(case: Path, tmp_path: Path) -> None:
    rounded = merged(case, tmp_path / "rounded", dtype="bfloat16")
    assert run(rounded, case).exit_code == 1
    for sides in ((rounded, case), (case, rounded)):
        result = run(*sides, "--cast-reference")
        assert result.exit_code == 0
        assert "the finer side rounded first" in result.stdout
        assert "bit for bit" not in result.stdout


def test_what_is_tied_or_ignored_is_said(checkpoints: dict[str, Path]) -> None:
    case = checkpoints["fsdp2_tied_w2"]
    result = run(case, case / "reference", "--ignore", "*.bias")
    assert result.exit_code == 0
    assert "tied     lm_head.weight: only in the checkpoint, equal to model.emb" in result.stdout
    assert "ignored  6 tensors" in result.stdout


# --- how tensors get their names
def test_names_are_found_as_a_merge_finds_them(tmp_path: Path) -> None:
    state = {"norm.weight": torch.ones(3), "up.weight": torch.arange(6.0).reshape(2, 3)}
    here = {f"actor.model.{name}": tensor for name, tensor in state.items()}
    write_rank(tmp_path / "ranks", here | {"critic.norm.weight": torch.zeros(3)}, TINY)
    save(state, tmp_path / "model.safetensors")
    sides = (tmp_path / "ranks", tmp_path / "model.safetensors")
    assert run(*sides).exit_code == 1
    flags = ["--prefix", "actor.model"]
    assert run(*sides, *flags).exit_code == 0
    assert run(*reversed(sides), *flags).exit_code == 0
    picked = run(*sides, "--select", "*.up.*", "--rename", "actor.model=x", "--json")
    assert as_json(picked)["unexpected"] == ["x.up.weight"]


@pytest.mark.slow
def test_alpha_is_said_as_to_a_merge(tmp_path: Path) -> None:
    merge = ["merge", "megatron", str(BRIDGE_LORA), str(tmp_path / "out"), "--lora-alpha", "16"]
    assert CliRunner().invoke(app, merge).exit_code == 0
    unknown = run(BRIDGE_LORA, tmp_path / "out")
    assert (unknown.exit_code, unknown.stdout) == (2, "")
    assert "alpha is unknown" in unknown.stderr
    assert run(BRIDGE_LORA, tmp_path / "out", "--lora-alpha", "16").exit_code == 0
    assert run(BRIDGE_LORA, tmp_path / "out", "--lora-alpha", "8").exit_code == 1


def test_adapters_alone_are_fused_into_a_base(checkpoints: dict[str, Path]) -> None:
    adapters, whole = checkpoints["lora_alone_w2"], checkpoints["lora_w2"]
    assert run(adapters, whole / "reference", "--base", whole / "base").exit_code == 0
    assert run(adapters, whole / "reference").exit_code == 1  # factors alone are no model


def test_a_config_is_named_or_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Experts are fused in memory: only a config can say how they are called on the Hub."""
    case = checkpoints["fsdp2_moe_w2"]
    bare, lone = tmp_path / "bare", tmp_path / "lone.safetensors"
    shutil.copytree(case / "actor", bare, ignore=shutil.ignore_patterns("huggingface"))
    shutil.copy(case / "reference" / "model.safetensors", lone)
    assert run(bare, lone).exit_code == 1
    assert run(bare, lone, "--config", case / "reference").exit_code == 0
    assert run(case, case / "reference").exit_code == 0
    as_they_are = as_json(run(case, case / "reference", "--config", "none", "--json"))
    assert "model.layers.0.mlp.experts.gate_up_proj" in as_they_are["unexpected"]
