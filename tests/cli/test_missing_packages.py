"""Without torch, transformers and the rest: what needs none works, else what to install is said."""

import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.support.light import LIGHT, ROOT, link_packages, run_light, run_without
from tests.support.merging import TINY, values, write_rank

pytestmark = pytest.mark.slow

STATE = {"a.weight": values(3, 4), "b.weight": values(5)}
OF_TRANSFORMERS = "transformers, torch and accelerate are not installed: pip install transformers"


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = link_packages(tmp_path_factory.mktemp("light") / "packages")
    there = {path.name for path in folder.iterdir()}
    assert {"typer", "rich", "numpy", "xxhash", "isal"} <= there
    assert not there & {"torch", "transformers", "accelerate", "safetensors", "megatron"}
    return folder


def test_the_line_that_installs_it_is_documented() -> None:
    line = f"$ pip install {' '.join(LIGHT)} && pip install --no-deps .\n"
    assert line in (ROOT / "README.md").read_text()


def assert_refused(done: subprocess.CompletedProcess[str], what: str, line: str) -> None:
    """One sentence and the line to install, no traceback and no result."""
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    first, second = done.stderr.splitlines()
    assert first == f"ckpt: error: {what}"
    assert second.startswith(f"  {line}")


def read_folder(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def assert_same(light: Path, tmp_path: Path, *words: object) -> list[str]:
    """What is written is what a full installation writes. What is said of it, by lines."""
    done = run_light(light, *words, tmp_path / "light")
    assert done.returncode == 0, done.stderr
    full = run_without("", *words, tmp_path / "full")
    assert full.returncode == 0, full.stderr
    assert read_folder(tmp_path / "light") == read_folder(tmp_path / "full")
    return done.stderr.splitlines()


def test_every_merge_works_in_a_light_installation(
    light: Path, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    actor = checkpoints["fsdp2_w2"] / "actor"
    first, second = assert_same(light, tmp_path, "merge", actor, "--verify", "--dtype", "bfloat16")
    said = "ckpt: warning: not held against the architecture of its config: "
    assert first == f"{said}{OF_TRANSFORMERS} torch accelerate"
    assert second == (
        "ckpt: warning: not opened by the safetensors library: safetensors is not installed:"
        " pip install safetensors"
    )
    done = run_light(light, "verify", actor, tmp_path / "light", "--cast-reference")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Equal: ")
    done = run_light(light, "verify", tmp_path / "light")
    assert (done.returncode, done.stderr) == (0, "")
    done = run_light(light, "inspect", actor)
    assert (done.returncode, done.stderr) == (0, "")


def test_there_and_back_in_a_light_installation(
    light: Path, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    reference = checkpoints["fsdp2_w2"] / "reference"
    assert assert_same(light, tmp_path, "to-mcore", reference, "--verify") == []
    back = tmp_path / "back"
    done = run_light(light, "merge", tmp_path / "light", back, "--config", reference)
    assert done.returncode == 0, done.stderr
    done = run_light(light, "verify", back, reference)
    assert done.stdout.startswith("Equal: "), done.stdout


def test_what_needs_more_says_what_to_install(light: Path, tmp_path: Path) -> None:
    ranks = write_rank(tmp_path / "in", STATE, TINY)
    merge = ("merge", ranks, tmp_path / "out", "--config", "none")
    hub = "which is not installed"
    assert_refused(
        run_light(light, *merge, "--upload", "me/model"),
        f"--upload needs huggingface_hub, {hub}",
        "pip install huggingface_hub",
    )
    assert_refused(
        run_light(light, *merge[:-1], "lab/model"),
        f"--config lab/model: no such folder, and looking on the Hub needs huggingface_hub, {hub}",
        "pip install huggingface_hub",
    )
    unchecked = run_light(light, *merge[:-2], "--check-load")
    assert unchecked.returncode == 2
    assert f"--check-load: {OF_TRANSFORMERS} torch accelerate" in unchecked.stderr
    assert not (tmp_path / "out").exists()


def test_a_name_that_transformers_has_to_be_asked_for(light: Path, tmp_path: Path) -> None:
    config = {"model_type": "opt", "architectures": ["OPTForCausalLM"]}
    ranks = write_rank(tmp_path / "in", STATE, config)
    done = run_light(light, "merge", ranks, tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert "transformers cannot be imported" in done.stderr
    assert "Install it: pip install transformers torch accelerate." in done.stderr
    assert "bug" not in done.stderr


def test_several_processes_need_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = write_rank(tmp_path / "in", STATE, TINY)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "1")
    done = run_without("torch", "merge", ranks, tmp_path / "out", "--config", "none")
    what = "A run of several processes needs torch, which is not installed"
    assert_refused(done, what, "pip install torch")


def test_megatron_core_is_named_as_pip_calls_it(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    reference = checkpoints["fsdp2_w2"] / "reference"
    words = ("to-mcore", reference, tmp_path / "out", "--check-load")
    assert_refused(
        run_without("megatron", *words),
        "--check-load needs megatron-core, which is not installed",
        "pip install megatron-core, or leave --check-load out.",
    )
    assert "needs torch and megatron-core" in run_without("megatron torch", *words).stderr


@pytest.mark.parametrize("package", ["transformers", "torch", "accelerate"])
def test_a_merge_goes_on_without_the_class(
    package: str,
    checkpoints: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # where no merge has left what it heard
    actor = checkpoints["fsdp2_w2"] / "actor"
    done = run_without(package, "merge", actor, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stderr == (
        "ckpt: warning: not held against the architecture of its config:"
        f" {package} is not installed: pip install {package}\n"
    )
    assert load_file(tmp_path / "out" / "model.safetensors")


@pytest.mark.parametrize("package", ["numpy", "xxhash"])
def test_any_other_package_is_no_bug(package: str, tmp_path: Path) -> None:
    ranks = write_rank(tmp_path / "in", STATE, TINY)
    done = run_without(package, "merge", ranks, tmp_path / "out", "--config", "none")
    what = f"this needs {package}, which is not installed"
    assert_refused(done, what, f"pip install {package}")
