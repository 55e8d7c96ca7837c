"""`ckpt merge megatron` and `ckpt merge dcp`: flags, what is printed, exit codes."""

import json
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner, Result

from ckpt_tool.cli.app import app
from tests.operations.merge.test_dcp import config_of
from tests.support import megatron
from tests.support.merging import load_folder


def run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "100"}).invoke(app, ["merge", *map(str, arguments)])


def padded(cases: Path) -> tuple[Path, str]:
    """A checkpoint with rows that pad its vocabulary, and the option that names its config."""
    return megatron.saved(cases, "mistral", "vpp2"), f"--config={megatron.hf(cases, 'mistral')}"


def test_people_are_told_what_was_done(megatron_cases: Path, tmp_path: Path) -> None:
    result = run("megatron", *padded(megatron_cases), tmp_path / "out", "--verify", "--check-load")
    assert result.exit_code == 0
    assert "Wrote 39 tensors" in result.stdout
    assert (
        "output_layer.weight[251:288] (37 rows of padding: the vocabulary has 251" in result.stdout
    )
    assert "every bit as planned" in result.stdout
    assert "MistralForCausalLM of transformers" in result.stdout
    assert result.stderr == ""


def test_a_dry_run_is_the_result_before_it_is_there(megatron_cases: Path, tmp_path: Path) -> None:
    arguments = ("megatron", *padded(megatron_cases), tmp_path / "out", "--json")
    planned = json.loads(run(*arguments, "--dry-run", "--dtype", "bfloat16").stdout)
    assert not (tmp_path / "out").exists()
    done = json.loads(run(*arguments, "--dtype", "bfloat16").stdout)
    same = ("format", "num_tensors", "total_bytes", "dropped", "warnings")
    assert [planned[key] for key in same] == [done[key] for key in same]
    assert planned["format"] == "torch_dist"
    assert len(load_folder(tmp_path / "out")) == done["num_tensors"] == 39


def test_names_may_be_chosen_and_changed(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    source = checkpoints["fsdp2_w3"] / "dcp"
    choice = ("--prefix", "app.model", "--select", "*.norm.weight", "--select", "*lm_head*")
    rename = ("--rename", "model=", "--rename", "lm_head=head")
    result = run("dcp", source, tmp_path / "out", "--config", "none", *choice, *rename)
    assert result.exit_code == 0, result.stderr
    assert set(load_folder(tmp_path / "out")) == {"norm.weight", "head.weight"}
    assert "app.* (not selected: 25 tensors" in result.stdout


def test_what_is_wrong_is_said_with_what_to_do(
    checkpoints: dict[str, Path], megatron_cases: Path, tmp_path: Path
) -> None:
    source = checkpoints["fsdp2_w3"] / "dcp"
    for arguments, told in (
        (("megatron", source), "ckpt merge dcp"),
        (("dcp", padded(megatron_cases)[0]), "ckpt merge megatron"),
        (("dcp", source, "--rename", "absent=x", "--config", "none"), "no name has these parts"),
        (("dcp", source, "--prefix", "absent"), "Names are like: app.model."),
        (("megatron", padded(megatron_cases)[0]), "--config DIR"),
        (("megatron", tmp_path / "absent"), "no such file or folder"),
        (("megatron", *padded(megatron_cases), "--dtype", "int8"), "expected one of"),
    ):
        result = run(*arguments, tmp_path / "out")
        assert result.exit_code == 2, arguments
        assert result.stdout == ""
        assert told in result.stderr
        assert not (tmp_path / "out").exists()


def test_neither_imports_anything_heavy(
    checkpoints: dict[str, Path], megatron_cases: Path, tmp_path: Path
) -> None:
    script = (
        "import sys\nfrom ckpt_tool.cli.app import app\n"
        "try:\n    app(sys.argv[1:])\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "assert not {'torch', 'transformers', 'megatron', 'accelerate'} & set(sys.modules)\n"
    )
    folder = checkpoints["fsdp2_w3"]
    for arguments in (
        ("megatron", *padded(megatron_cases), tmp_path / "megatron", "--dtype", "bfloat16"),
        ("dcp", folder / "dcp", tmp_path / "dcp", f"--config={config_of(folder)}"),
        ("megatron", "--help"),
    ):
        command = [sys.executable, "-c", script, "merge", *map(str, arguments)]
        subprocess.run(command, check=True, capture_output=True)
