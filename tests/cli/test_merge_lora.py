"""`ckpt merge` of checkpoints with LoRA adapters: what is printed, JSON, exit codes."""

import json
import shutil

from typer.testing import CliRunner

from ckpt_tool.cli.app import app
from tests.support.merging import TINY, values, write_rank


def run(*arguments, command="fsdp"):
    words = ["merge", command, *map(str, arguments)]
    return CliRunner(env={"COLUMNS": "100"}).invoke(app, words)


def test_fusing_is_said(checkpoints, tmp_path):
    result = run(checkpoints["lora_patterns_w2"], tmp_path / "out", "--verify", "--check-load")
    assert result.exit_code == 0
    assert "lora     fused into 7 modules: rank 4, alpha 10 (adapter_config.json)" in result.stdout
    assert "trained whole: lm_head" in result.stdout
    assert "lm_head.original_module.weight (replaced by what" in result.stdout
    assert result.stderr == ""


def test_the_result_as_json(checkpoints, tmp_path):
    result = run(checkpoints["lora_w2"], tmp_path / "out", "--lora", "both", "--json")
    found = json.loads(result.stdout)
    assert found["lora"] == {
        "mode": "both",
        "num_modules": 6,
        "rank": 4,
        "alpha": 10.0,
        "source": "lora_train_meta.json",
        "trained_whole": [],
        "num_tokens": 0,
        "adapter": "lora_adapter",
    }
    names = ["model.safetensors", "lora_adapter/adapter_model.safetensors"]
    assert [file["path"] for file in found["files"]] == names
    manifest = json.loads((tmp_path / "out" / "ckpt_manifest.json").read_text())
    assert manifest["lora"] == found["lora"]
    plain = json.loads(run(checkpoints["fsdp2_w2"], tmp_path / "plain", "--json").stdout)
    assert plain["lora"] is None


def test_a_dry_run_shows_what_would_be_done(checkpoints, tmp_path):
    result = run(checkpoints["lora_w2"], tmp_path / "out", "--lora", "split", "--dry-run")
    assert "split off 6 modules: rank 4, alpha 10" in result.stdout
    assert "lora_adapter/adapter_model.safetensors" in result.stdout
    assert not (tmp_path / "out").exists()


def test_alpha_that_nobody_knows(checkpoints, tmp_path):
    case, out = checkpoints["lora_unknown_w1"], tmp_path / "out"
    result = run(case, out)
    assert result.exit_code == 2
    assert "alpha is unknown" in result.stderr
    assert "--lora-alpha X" in result.stderr
    given = ("--lora-alpha", "10")
    assert "alpha 10 (--lora-alpha)" in run(case, out, *given).stdout
    for more in ("--dry-run", "--resume"):
        found = json.loads(run(case, tmp_path / "other", *given, more, "--json").stdout)
        assert found["lora"]["source"] == "--lora-alpha"


def test_an_alpha_below_0_is_taken_and_said(checkpoints, tmp_path):
    result = run(checkpoints["lora_unknown_w1"], tmp_path / "out", "--lora-alpha", "-10")
    assert result.exit_code == 0
    assert "alpha -10 (--lora-alpha)" in result.stdout


def test_bad_choices(checkpoints, tmp_path):
    for flags, message in {
        ("--lora", "merge"): "--lora merge: expected one of fuse, split, both",
        ("--lora-alpha", "0"): "--lora-alpha 0: expected a finite number other than 0",
    }.items():
        result = run(checkpoints["lora_w2"], tmp_path / "out", *flags)
        assert result.exit_code == 2
        assert message in result.stderr


def test_adapters_alone_have_no_model_to_check(checkpoints, tmp_path):
    result = run(checkpoints["lora_alone_w2"], tmp_path / "out", "--check-load")
    assert result.exit_code == 2
    assert "adapters alone" in result.stderr
    assert "--base MODEL" in result.stderr


def test_a_tied_head_that_is_not_there_is_not_changed_along(tmp_path):
    state = {
        "base_model.model.model.embed_tokens.base_layer.weight": values(16, 8),
        "base_model.model.model.embed_tokens.lora_embedding_A.default": values(2, 16),
        "base_model.model.model.embed_tokens.lora_embedding_B.default": values(8, 2),
        "base_model.model.model.norm.weight": values(8),
    }
    source = write_rank(tmp_path / "in", state, TINY | {"tie_word_embeddings": True})
    result = run(source, tmp_path / "out", "--lora-alpha", "1")
    assert result.exit_code == 2
    assert "model.embed_tokens" in result.stderr
    split = ("--lora-alpha", "1", "--lora", "split", "--no-check-load")
    assert run(source, tmp_path / "out", *split).exit_code == 0


def test_ranks_that_are_not_those_of_the_run(checkpoints, tmp_path):
    source = shutil.copytree(checkpoints["lora_w2"] / "actor", tmp_path / "in")
    (source / "lora_train_meta.json").write_text(json.dumps({"r": 8, "lora_alpha": 10}))
    for mode in ("fuse", "split"):
        result = run(source, tmp_path / "out", "--lora", mode)
        assert result.exit_code == 2
        assert "self_attn.q_proj: rank 4 by its shapes, 8 by its settings" in result.stderr
