"""`ckpt inspect`: what a person and what a script sees."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from ckpt_tool.cli.app import app
from tests.support.merging import values


def run(*arguments: object, width: int = 100) -> Result:
    return CliRunner(env={"COLUMNS": str(width)}).invoke(app, ["inspect", *map(str, arguments)])


def run_json(*arguments: object) -> dict:
    result = run(*arguments, "--json")
    return json.loads(result.stdout)


def test_the_json_says_what_the_checkpoint_is(checkpoints: dict[str, Path]) -> None:
    actor = checkpoints["fsdp2_hsdp_w4"] / "actor"
    found = run_json(actor)
    assert found["format"] == "fsdp"
    assert found["path"] == str(actor)
    assert found["world_size"] == 4
    assert found["mesh"] == {"shape": [2, 2], "dim_names": ["ddp", "fsdp"]}
    assert [row["rank"] for row in found["files"]] == [0, 1, 2, 3]
    assert all(row["bytes"] == Path(row["path"]).stat().st_size for row in found["files"])
    assert found["num_tensors"] == len(found["tensors"]) == 27
    assert found["num_parameters"] == sum(
        torch.Size(row["shape"]).numel() for row in found["tensors"]
    )
    assert found["total_bytes"] == found["num_parameters"] * 4
    assert found["dtypes"] == {"float32": 27}
    assert found["problems"] == []
    assert found["ok"] is True
    assert "shards" not in found
    row = next(row for row in found["tensors"] if row["name"] == "model.embed_tokens.weight")
    assert row == {
        "name": "model.embed_tokens.weight",
        "shape": [97, 32],
        "dtype": "float32",
        "placements": "Replicate, Shard(0)",
        "num_chunks": 2,
    }


def test_shards_list_every_ranks_piece(checkpoints: dict[str, Path]) -> None:
    found = run_json(checkpoints["fsdp2_w3"], "--shards", "--filter", "*.0.self_attn.k_proj.weight")
    pieces = [(row["rank"], row["offsets"], row["shape"]) for row in found["shards"]]
    # 4 rows over 3 ranks: torch.chunk gives 2, 2 and nothing
    assert pieces == [(0, [0, 0], [2, 32]), (1, [2, 0], [2, 32]), (2, [4, 0], [0, 32])]
    assert {row["name"] for row in found["shards"]} == {"model.layers.0.self_attn.k_proj.weight"}
    assert [Path(row["file"]).name for row in found["shards"]] == [
        f"model_world_size_3_rank_{rank}.pt" for rank in range(3)
    ]
    text = run(
        checkpoints["fsdp2_w3"], "--shards", "--filter", "*.0.self_attn.k_proj.weight"
    ).stdout
    assert "rank 2  [0, 32]  at [4, 0]" in text


def test_layers_are_folded_unless_all_is_asked_for(checkpoints: dict[str, Path]) -> None:
    folder = checkpoints["fsdp2_layers12_w2"]
    folded, whole = run(folder).stdout, run(folder, "--all").stdout
    assert "model.layers.{0..11}.self_attn.q_proj.weight" in folded
    assert "model.layers.3." not in folded
    assert "model.layers.3.self_attn.q_proj.weight" in whole
    assert len(folded.splitlines()) < 30
    assert len(whole.splitlines()) > 135


@pytest.mark.parametrize("width", [80, 160])
@pytest.mark.parametrize("case", ["fsdp2_tp_w4", "fsdp2_vlm_w2", "fsdp2_moe_w2"])
def test_tables_fit_and_names_are_never_cut(
    checkpoints: dict[str, Path], case: str, width: int
) -> None:
    output = run(checkpoints[case], width=width).stdout
    assert max(map(len, output.splitlines()[1:])) <= width
    assert "…" not in output
    pieces = "".join(line.strip().split("  ")[0] for line in output.splitlines())
    assert ".post_attention_layernorm.weight" in pieces


def test_filters_are_globs_and_add_up(checkpoints: dict[str, Path]) -> None:
    folder = checkpoints["fsdp2_w2"]
    found = run_json(folder, "--filter", "lm_head*", "--filter", "*norm.weight")
    names = [row["name"] for row in found["tensors"]]
    assert "lm_head.weight" in names
    assert "model.norm.weight" in names
    assert all(name.startswith("lm_head") or name.endswith("norm.weight") for name in names)
    assert found["num_tensors"] == len(names)
    assert (
        f"{len(names)} of 27"
        in run(folder, "--filter", "lm_head*", "--filter", "*norm.weight").stdout
    )


def test_problems_are_shown_and_exit_with_2(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    actor = tmp_path / "actor"
    shutil.copytree(checkpoints["fsdp2_w3"] / "actor", actor)
    (actor / "model_world_size_3_rank_1.pt").unlink()
    with open(actor / "model_world_size_3_rank_2.pt", "r+b") as file:
        file.truncate(1000)
    result = run(actor)
    assert result.exit_code == 2
    assert "missing-rank" in result.stdout
    only = run(actor, "--problems")
    assert only.exit_code == 2
    assert "model.embed_tokens.weight" not in only.stdout
    found = run_json(actor)
    assert found["ok"] is False
    assert {row["kind"] for row in found["problems"]} == {"missing-rank", "unreadable"}
    assert all(row.keys() == {"kind", "where", "message"} for row in found["problems"])


def test_a_single_rank_file_is_shown_with_its_place(checkpoints: dict[str, Path]) -> None:
    path = checkpoints["fsdp2_w3"] / "actor" / "model_world_size_3_rank_1.pt"
    found = run_json(path)
    assert (found["format"], found["world_size"]) == ("fsdp-rank", 3)
    row = next(row for row in found["tensors"] if row["name"] == "model.embed_tokens.weight")
    assert row["shape"] == [33, 32]
    assert row["placements"] == "Shard(0), [33:66, 0:32] of [97, 32]"


@pytest.mark.slow
def test_model_folders_and_files_are_understood(tmp_path: Path) -> None:
    save_file({"a.0.weight": values(3, 2), "a.1.weight": values(3, 2)}, tmp_path / "m.safetensors")
    for path in (tmp_path, tmp_path / "m.safetensors"):
        found = run_json(path)
        assert found["format"] == "huggingface"
        assert found["mesh"] is None
        assert [row["placements"] for row in found["tensors"]] == ["whole", "whole"]
        assert "a.{0..1}.weight" in run(path).stdout


def test_names_with_brackets_are_shown_as_they_are(tmp_path: Path) -> None:
    save_file({"a[bold].weight": values(2)}, tmp_path / "m.safetensors")
    assert "a[bold].weight" in run(tmp_path).stdout


def test_an_index_that_is_not_used_is_a_warning(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    index = {"weight_map": {"a": "model-1\x1b[31m.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (warning,) = run_json(tmp_path)["warnings"]
    assert warning.startswith("model.safetensors.index.json names model-1")
    shown = run(tmp_path)
    assert shown.exit_code == 0
    assert "warning   model.safetensors.index.json names" in shown.stdout
    assert "\x1b" not in shown.stdout
