"""`ckpt to-mcore`: flags, what is printed, exit codes."""

import io
import json
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.metadata import Metadata
from typer.testing import CliRunner, Result

from ckpt_tool.cli.app import app
from ckpt_tool.mapping.families.table import FAMILIES
from tests.operations.to_mcore.test_inputs import archives, assert_same, loaded, rewritten
from tests.real.megatron_models import write_model
from tests.support.merging import TINY, load_folder, values, write_rank

NORM = "model.norm.weight"
EMBEDDING = "embedding.word_embeddings.weight"


def ckpt(*words: object) -> Result:
    return CliRunner(env={"COLUMNS": "120"}).invoke(app, list(map(str, words)))


def run(*words: object) -> Result:
    return ckpt("to-mcore", *words, "--no-fsync")


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model("qwen3", tmp_path_factory.mktemp("qwen3"))


def assert_refused(result: Result, out: Path, *said: str) -> None:
    assert result.exit_code == 2
    for text in said:
        assert text in result.stderr
    assert not out.exists()


def test_people_are_told_what_was_done(hf, tmp_path):
    result = run(hf, tmp_path / "out", "--verify", "--dtype", "bfloat16")
    assert result.exit_code == 0
    assert re.search(r"Wrote 11 tensors, [\d.]+ kB in 1 file to ", result.stdout)
    assert str(tmp_path / "out") in result.stdout
    assert "47 tensors from float32 to bfloat16, largest absolute error" in result.stdout
    assert "every bit as planned" in result.stdout
    assert result.stderr == ""


def test_the_result_is_one_json_object(hf, tmp_path):
    out = tmp_path / "out"
    found = json.loads(run(hf, out, "--json", "--dtype", "bfloat16", "--verify").stdout)
    assert found["format"] == "huggingface"
    assert found["output"] == str(out)
    assert found["num_tensors"] == 11
    sizes = {row["path"]: row["bytes"] for row in found["files"]}
    assert sizes == {name: len(content) for name, content in archives(out).items()}
    assert found["total_bytes"] == sum(sizes.values()) > 0
    (cast,) = found["casts"]
    source = load_folder(hf)
    error = max((t - t.bfloat16().float()).abs().max().item() for t in source.values())
    assert (cast["from"], cast["to"], cast["num_tensors"]) == ("float32", "bfloat16", len(source))
    assert cast["max_abs_error"] == pytest.approx(error, rel=1e-6)
    assert found["seconds"] > 0
    assert found["bytes_per_second"] > 0
    assert found["verified"] is True
    assert found["warnings"] == []
    assert found["layout"] == "bare"
    assert {t.dtype for t in loaded(out).values()} == {torch.bfloat16}


def test_without_a_cast_and_without_verify(hf, tmp_path):
    found = json.loads(run(hf, tmp_path / "out", "--json", "--layout", "megatron-lm").stdout)
    assert found["casts"] == []
    assert found["verified"] is None
    assert found["layout"] == "megatron-lm"


def test_a_dry_run_shows_every_source_and_writes_nothing(hf, tmp_path):
    result = run(hf, tmp_path / "out", "--dry-run", "--dtype", "bfloat16")
    assert result.exit_code == 0
    lines = [line.strip() for line in result.stdout.splitlines()]
    qkv = next(n for n, line in enumerate(lines) if "self_attention.linear_qkv.weight" in line)
    assert re.search(r"\[4, 192, 64\] +bfloat16 +98,304$", lines[qkv])
    assert lines[qkv + 1 : qkv + 4] == [
        f"< model.layers.{{0..3}}.self_attn.{part}_proj.weight" for part in "qkv"
    ]
    assert sum(line.startswith("<") for line in lines) == 3 + 11
    assert any(re.match(r"memory +[\d.]+ MB of buffers for \d threads?", line) for line in lines)
    assert any(re.match(r"cast +47 tensors from float32 to bfloat16", line) for line in lines)
    assert list(tmp_path.iterdir()) == []


def test_the_json_of_a_dry_run_is_what_is_written_then(hf, tmp_path):
    out = tmp_path / "out"
    planned = json.loads(run(hf, out, "--dry-run", "--json").stdout)
    assert list(tmp_path.iterdir()) == []
    assert planned["dry_run"] is True
    assert (planned["layout"], planned["layers"]) == ("bare", "stacked")
    sources = [name for row in planned["tensors"] for name in row["sources"]]
    assert sorted(sources) == sorted(load_folder(hf))
    run(hf, out)
    written = {
        name: [list(t.shape), str(t.dtype).removeprefix("torch.")]
        for name, t in loaded(out).items()
    }
    assert {row["name"]: [row["shape"], row["dtype"]] for row in planned["tensors"]} == written
    sizes = {row["path"]: row["bytes"] for row in planned["files"]}
    assert sizes == {name: len(content) for name, content in archives(out).items()}
    assert planned["total_bytes"] == sum(sizes.values())


def test_rows_that_pad_the_vocabulary_are_zeros(hf, tmp_path):
    assert run(hf, tmp_path / "out", "--pad-vocab-to-multiple", 128).exit_code == 0
    found, source = loaded(tmp_path / "out"), load_folder(hf)
    for name, of in ((EMBEDDING, "model.embed_tokens"), ("output_layer.weight", "lm_head")):
        assert found[name].shape == (256, 64)
        assert torch.equal(found[name][:251], source[f"{of}.weight"])
        assert found[name][251:].count_nonzero() == 0
    assert ckpt("verify", tmp_path / "out", hf).exit_code == 0


@pytest.mark.slow
def test_without_checksums_torch_reads_what_zip_tools_do_not(hf, tmp_path):
    for name, flag in (("with", "--crc"), ("without", "--no-crc")):
        assert run(hf, tmp_path / name, flag).exit_code == 0
        metadata: Metadata = pickle.loads((tmp_path / name / ".metadata").read_bytes())
        index = next(i for i in metadata.storage_data if i.fqn == EMBEDDING)
        where = metadata.storage_data[index]
        content = (tmp_path / name / where.relative_path).read_bytes()
        archive = io.BytesIO(content[where.offset : where.offset + where.length])
        rows = torch.load(archive, weights_only=True)
        assert torch.equal(rows, load_folder(hf)["model.embed_tokens.weight"])
        bad = zipfile.ZipFile(archive).testzip()
        assert (bad is None) == (name == "with")
        assert ckpt("verify", tmp_path / name, hf).exit_code == 0
    assert_same(loaded(tmp_path / "without"), loaded(tmp_path / "with"))


def test_a_folder_that_is_not_empty_is_kept_unless_told_otherwise(hf, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").touch()
    for flags in ([], ["--dry-run"]):
        assert run(hf, out, *flags).exit_code == 2
        assert [path.name for path in out.iterdir()] == ["mine"]
    assert run(hf, tmp_path / "first").exit_code == 0
    assert run(hf, tmp_path / "first").exit_code == 2
    again = run(hf, tmp_path / "first", "--overwrite", "--dtype", "float16")
    assert again.exit_code == 0
    assert {t.dtype for t in loaded(tmp_path / "first").values()} == {torch.float16}


@pytest.mark.parametrize("layout", ["bare", "megatron-lm"])
def test_what_is_complete_is_not_written_again(hf, tmp_path, layout):
    out = tmp_path / "out"
    words = (hf, out, "--layout", layout, "--dtype", "bfloat16", "--resume", "--verify")
    first = json.loads(run(*words, "--json").stdout)
    before = stats(out)
    again = json.loads(run(*words, "--json").stdout)
    assert stats(out) == before
    assert (first["already_complete"], again["already_complete"]) == (False, True)
    assert again["bytes_per_second"] == 0.0
    for key in ("num_tensors", "total_bytes", "files", "casts", "dropped", "verified", "output"):
        assert again[key] == first[key]
    assert again["verified"] is True
    said = run(*words)
    assert re.match(r"Already complete: 11 tensors, [\d.]+ kB in 1 file in ", said.stdout)
    assert stats(out) == before


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--dtype", "float16"], "is of another checkpoint, other options"),
        (["--layout", "megatron-lm"], "is of another checkpoint, other options"),
        (["--no-crc"], "is of another checkpoint, other options"),
        ([], "common.pt differs; __0_0.distcp.orig is no part of it"),
    ],
)
def test_what_is_something_else_is_refused_with_the_reason(hf, tmp_path, flags, said):
    out = tmp_path / "out"
    assert run(hf, out).exit_code == 0
    if not flags:
        (out / "common.pt").write_bytes(b"")
        (out / "__0_0.distcp.orig").touch()
    before = stats(out)
    result = run(hf, out, "--resume", *flags)
    assert result.exit_code == 2
    assert "exists and is not empty, and is not what would be written" in result.stderr
    for part in said.split("; "):
        assert part in result.stderr
    assert stats(out) == before


def test_an_interrupted_one_goes_on(hf, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("ckpt_tool.plans.reading_back.find_differences", interrupt)
        assert run(hf, out, "--verify").exit_code == 130
    kept = stats(tmp_path / ".out.ckpt-partial")["__0_0.distcp"]
    result = run(hf, out, "--verify", "--resume")
    assert "every bit as planned" in result.stdout
    assert stats(out)["__0_0.distcp"] == kept


def interrupt(*_):
    raise KeyboardInterrupt


def stats(folder: Path) -> dict[str, tuple[int, int]]:
    """What changes when a file is written again, or another one put in its place."""
    found = {str(p.relative_to(folder)): p.stat() for p in folder.rglob("*") if p.is_file()}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}


def test_an_architecture_without_a_table(hf, tmp_path):
    model = rewritten(hf, tmp_path / "hf", config={"model_type": "mamba"})
    result = run(model, tmp_path / "out")
    supported = [name for name, family in FAMILIES.items() if family.megatron]
    assert_refused(result, tmp_path / "out", "'mamba'", *supported)


def test_tensors_that_are_missing_or_left_over_are_all_listed(hf, tmp_path):
    gone = ["model.layers.2.mlp.up_proj.weight", NORM]
    more = "model.layers.4.mlp.up_proj.weight"

    def change(tensors):
        tensors[more] = tensors[gone[0]] + 1
        for name in gone:
            del tensors[name]

    result = run(rewritten(hf, tmp_path / "hf", change), tmp_path / "out")
    said = [f"missing: {name}" for name in gone] + [f"unexpected: {more}", "2 missing"]
    assert_refused(result, tmp_path / "out", *said)


def test_advice_names_only_options_that_exist(hf, tmp_path):
    model = rewritten(hf, tmp_path / "hf", config={"tie_word_embeddings": True})
    assert "--no-tie" not in run(model, tmp_path / "out").stderr


def test_other_checkpoints_are_refused_with_advice(hf, tmp_path):
    tiny = {"model.norm.weight": values(8)}
    fsdp = write_rank(tmp_path / "fsdp", tiny, TINY)
    assert run(hf, tmp_path / "torch_dist").exit_code == 0
    assert_refused(run(fsdp, tmp_path / "out"), tmp_path / "out", "fsdp", "ckpt merge")
    result = run(tmp_path / "torch_dist", tmp_path / "out")
    assert_refused(
        result, tmp_path / "out", "a megatron-core torch_dist", "Make one of it first: ckpt merge "
    )


@pytest.mark.slow
def test_a_config_from_elsewhere(hf, tmp_path):
    model, out = rewritten(hf, tmp_path / "hf"), tmp_path / "out"
    (model / "config.json").unlink()
    file = model / "model.safetensors"
    for given in (model, file):
        assert_refused(run(given, out), out, "config.json", "--config")
    assert run(file, out, "--config", hf).exit_code == 0
    assert run(hf, tmp_path / "reference").exit_code == 0
    assert archives(out) == archives(tmp_path / "reference")
    assert_refused(run(file, tmp_path / "x", "--config", model), tmp_path / "x", "no such file")


def test_a_difference_found_by_verify_is_exit_1(hf, tmp_path, monkeypatch):
    norm = load_folder(hf)[NORM].numpy().tobytes()

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[content.index(norm)] ^= 1
        path.write_bytes(content)

    monkeypatch.setattr("ckpt_tool.plans.reading_back.forget_cached", flip)
    result = run(hf, tmp_path / "out", "--verify")
    assert result.exit_code == 1
    assert "1 tensor did not read back as written" in result.stdout
    assert result.stdout.splitlines()[1:] == [f"  {NORM}"]
    assert list(tmp_path.iterdir()) == []
    found = json.loads(run(hf, tmp_path / "out", "--verify", "--json").stdout)
    assert (found["verified"], found["differences"]) == (False, [NORM])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_torch_is_not_imported(hf, tmp_path):
    code = """if True:
        import sys
        from ckpt_tool.cli.app import app
        app(sys.argv[1:], standalone_mode=False)
        assert "ckpt_tool.operations.to_mcore" in sys.modules
        assert "torch" not in sys.modules
        assert "transformers" not in sys.modules
    """
    words = ["--quiet", "to-mcore", hf, tmp_path / "out", "--verify", "--layout", "megatron-lm"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words), "--dtype", "bfloat16"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "every bit as planned" in done.stdout


def test_inspect_knows_what_it_is(hf, tmp_path):
    assert run(hf, tmp_path / "out").exit_code == 0
    result = ckpt("inspect", tmp_path / "out")
    assert result.exit_code == 0
    assert result.stdout.startswith("megatron-core torch_dist checkpoint")
    assert "tensors   11; 180,352 parameters" in result.stdout
