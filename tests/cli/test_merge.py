"""`ckpt merge fsdp`: flags, what is printed, exit codes."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ckpt_tool.cli.app import app
from tests.support.merging import load_folder
from tests.support.versions import needs_transformers_5


def run(*arguments: object) -> Result:
    words = ["merge", "fsdp", *map(str, arguments)]
    return CliRunner(env={"COLUMNS": "100"}).invoke(app, words)


def test_the_result_is_one_json_object(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(checkpoints["fsdp2_w2"], out, "--json", "--dtype", "bfloat16", "--verify")
    found = json.loads(result.stdout)
    assert found["format"] == "fsdp"
    assert found["output"] == str(out)
    assert found["num_tensors"] == 27
    assert found["total_bytes"] == (out / "model.safetensors").stat().st_size
    assert [row["path"] for row in found["files"]] == ["model.safetensors"]
    (cast,) = found["casts"]
    assert (cast["from"], cast["to"], cast["num_tensors"]) == ("float32", "bfloat16", 27)
    assert 0 < cast["max_abs_error"] < 0.1
    assert found["seconds"] > 0
    assert found["bytes_per_second"] > 0
    assert found["verified"] is True
    assert found["warnings"] == []


def test_people_are_told_what_was_done(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    result = run(
        checkpoints["fsdp2_tied_w2"], tmp_path / "out", "--verify", "--check-load",
        "--dtype", "bfloat16",
    )  # fmt: skip
    assert result.exit_code == 0
    assert re.search(r"Wrote 26 tensors, [\d.]+ kB in 1 file to ", result.stdout)
    assert "26 tensors from float32 to bfloat16, largest absolute error" in result.stdout
    assert "lm_head.weight (equal to model.embed_tokens.weight" in result.stdout
    assert "every bit as planned" in result.stdout
    assert "Qwen2ForCausalLM of transformers" in result.stdout
    assert result.stderr == ""


def test_a_dry_run_shows_the_plan_and_writes_nothing(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = run(checkpoints["fsdp2_w2"], out, "--dry-run", "--max-shard-size", "30KB")
    assert result.exit_code == 0
    assert "model-00001-of-00003.safetensors" in result.stdout
    assert "tokenizer.json" in result.stdout
    planned = json.loads(
        run(checkpoints["fsdp2_w2"], out, "--dry-run", "--max-shard-size", "30KB", "--json").stdout
    )
    assert not list(tmp_path.iterdir())
    run(checkpoints["fsdp2_w2"], out, "--max-shard-size", "30KB")
    written = {path.name: path.stat().st_size for path in out.glob("*.safetensors")}
    assert {row["path"]: row["bytes"] for row in planned["files"]} == written
    assert planned["total_bytes"] == sum(written.values())


def test_a_dry_run_finds_what_would_stop_the_merge(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    assert run(checkpoints["fsdp2_w2"], tmp_path / "out", "--dry-run").exit_code == 2
    actor = tmp_path / "actor"
    shutil.copytree(checkpoints["fsdp2_w2"] / "actor", actor)
    (actor / "model_world_size_2_rank_1.pt").unlink()
    result = run(actor, tmp_path / "new", "--dry-run")
    assert result.exit_code == 2
    assert "rank 1 of 2 missing" in result.stderr


def test_a_difference_found_by_verify_is_exit_1(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, starts = os.pwrite, list[int]()

    def flip(descriptor: int, data: memoryview, offset: int) -> int:
        if not offset:  # the file begins with the length of its header
            starts.append(8 + int.from_bytes(data[:8], "little"))
        at = starts[-1] - offset
        if 0 <= at < len(data):
            data[at] ^= 1  # the first byte of the first tensor
        return honest(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", flip)
    result = run(checkpoints["fsdp2_w2"], tmp_path / "out", "--verify")
    assert result.exit_code == 1
    assert "1 tensor did not read back as written" in result.stdout
    assert not (tmp_path / "out").exists()


@needs_transformers_5
def test_check_load_refuses_before_anything_is_written(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    actor = tmp_path / "actor"
    shutil.copytree(checkpoints["fsdp2_w2"] / "actor", actor)
    config = actor / "huggingface" / "config.json"
    settings = json.loads(config.read_text())
    settings |= {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}
    config.write_text(json.dumps(settings))
    result = run(actor, tmp_path / "out", "--check-load")
    assert result.exit_code == 2
    assert "missing: model.layers.2.mlp.up_proj.weight [51, 32]" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["actor"]
    assert run(actor, tmp_path / "out", "--no-check-load").exit_code == 0


@needs_transformers_5
def test_config_none_writes_weights_alone(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    result = run(checkpoints["fsdp2_moe_w2"], tmp_path / "out", "--config", "none")
    assert result.exit_code == 0
    assert "model.layers.0.mlp.experts.gate_up_proj" in load_folder(tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()
    refused = run(checkpoints["fsdp2_moe_w2"], tmp_path / "x", "--config", "none", "--check-load")
    assert refused.exit_code == 2


def test_warnings_go_to_stderr_and_into_the_json(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    actor = tmp_path / "actor"
    shutil.copytree(checkpoints["fsdp2_w2"] / "actor", actor)
    config = actor / "huggingface" / "config.json"
    config.write_text(config.read_text().replace('"qwen2"', '"a_model_of_our_own"'))
    result = run(actor, tmp_path / "out")
    assert result.exit_code == 0
    assert "a_model_of_our_own is not known" in result.stderr
    again = run(actor, tmp_path / "json", "--json")
    assert "keep the names" in json.loads(again.stdout)["warnings"][0]


def test_a_value_model_is_told_with_the_classes_that_open_it(checkpoints, tmp_path):
    actor = checkpoints["fsdp2_valuehead_w2"] / "actor"
    said = run(actor, tmp_path / "out", "--value-model", "--check-load")
    assert said.exit_code == 0
    (line,) = (line for line in said.stdout.splitlines() if line.startswith("  load"))
    assert "Qwen2ForTokenClassification of transformers " in line
    assert line.endswith(
        "finds all 28 tensors it wants, and ignores the 3 of other heads;"
        " Qwen2ForCausalLM can open it, too"
    )
    as_json = run(actor, tmp_path / "again", "--check-load", "--json")
    check = json.loads(as_json.stdout)["load_check"]
    assert (check["num_tensors"], check["num_other_heads"]) == (28, 3)
    assert check["also"] == ["Qwen2ForCausalLM"]


def test_value_models_are_required_or_left_out_on_request(checkpoints, tmp_path):
    actor = checkpoints["fsdp2_valuehead_w2"] / "actor"
    left_out = run(actor, tmp_path / "actor", "--no-value-model", "--json")
    dropped = json.loads(left_out.stdout)["dropped"]
    assert dropped.keys() == {"v_head.summary.weight", "v_head.summary.bias"}
    assert "--no-value-model" in dropped["v_head.summary.bias"]
    manifest = json.loads((tmp_path / "actor" / "ckpt_manifest.json").read_text())
    assert manifest["dropped"] == {
        name: reason.replace("--no-value-model", "`value_model=False`")
        for name, reason in dropped.items()
    }
    for case, flag in (
        ("fsdp2_w2", "--value-model"),
        ("fsdp2_tokencls_w2", "--no-value-model"),
    ):
        refused = run(checkpoints[case], tmp_path / "never", flag, "--dry-run")
        assert refused.exit_code == 2
        assert flag in refused.stderr
        assert "score.weight" in refused.stderr


def test_unknown_names_beside_a_value_model_are_still_errors(checkpoints, tmp_path):
    import torch

    actor = tmp_path / "actor"
    shutil.copytree(checkpoints["fsdp2_valuehead_w2"] / "actor", actor)
    for rank in (0, 1):
        path = actor / f"model_world_size_2_rank_{rank}.pt"
        state = torch.load(path, weights_only=False) | {"extra.weight": torch.ones(2)}
        torch.save(state, path)
    refused = run(actor, tmp_path / "never", "--check-load")
    assert refused.exit_code == 2
    assert "unexpected: extra.weight" in refused.stderr
