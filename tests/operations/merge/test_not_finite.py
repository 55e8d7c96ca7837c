"""Values that are not finite and that no source had: the tensors are named."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from ckpt_tool.cli.app import app
from ckpt_tool.operations.merge import merge_fsdp
from ckpt_tool.operations.options import MergeOptions
from ckpt_tool.plans import stage
from ckpt_tool.plans.options import WriteOptions
from tests.support.merging import TINY, load_folder, values, write_rank

BASE = "base_model.model.model.layers.{}.self_attn.q_proj"
WEIGHT = "model.layers.{}.self_attn.q_proj.weight"


def write_adapted(folder: Path, factor: float, base: float = 1.0) -> Path:
    """Two layers, of which `factor` is in the second's adapter and `base` in its weight."""
    state = {"base_model.model.model.embed_tokens.weight": values(16, 8)}
    for layer in (0, 1):
        name = BASE.format(layer)
        state[f"{name}.base_layer.weight"] = values(8, 8)
        state[f"{name}.lora_A.default.weight"] = values(4, 8)
        state[f"{name}.lora_B.default.weight"] = values(8, 4)
    state[f"{BASE.format(1)}.lora_B.default.weight"][0, 0] = factor
    state[f"{BASE.format(1)}.base_layer.weight"][0, 0] = base
    source = write_rank(folder, state, TINY)
    (source / "lora_train_meta.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}))
    return source


def options(**more) -> MergeOptions:
    return MergeOptions(dtype="keep", write=WriteOptions(check_load=False, fsync=False, **more))


def said(warnings: list[str]) -> list[str]:
    return [line for line in warnings if "not finite" in line]


@pytest.mark.parametrize(
    ("factor", "base", "new"),
    [(1.0, 1.0, False), (3e38, 1.0, True), (1.0, float("nan"), False), (float("inf"), 1.0, False)],
)
def test_what_a_fused_adapter_makes(tmp_path, factor, base, new):
    result = merge_fsdp(write_adapted(tmp_path / "in", factor, base), tmp_path / "out", options())
    found = load_folder(tmp_path / "out")
    assert torch.isfinite(found[WEIGHT.format(0)]).all()
    assert torch.isfinite(found[WEIGHT.format(1)]).all() == (factor == base == 1.0)
    expected = (
        "1 tensor has values that are not finite, made of finite ones by a cast, adapters or fp8"
        f" scales: {WEIGHT.format(1)}"
    )
    assert said(result.warnings) == ([expected] if new else [])
    manifest = json.loads((tmp_path / "out" / "ckpt_manifest.json").read_text())
    assert manifest["not_finite"] == ([WEIGHT.format(1)] if new else [])


def test_it_is_said_on_the_command_line(tmp_path):
    source = write_adapted(tmp_path / "in", 3e38)
    words = ["merge", "fsdp", str(source), str(tmp_path / "out"), "--no-check-load", "--dtype=keep"]
    found = CliRunner(env={"COLUMNS": "300"}).invoke(app, words)
    assert found.exit_code == 0
    assert f"fp8 scales: {WEIGHT.format(1)}" in found.stderr


def test_a_run_that_goes_on_knows_it(tmp_path, monkeypatch):
    source = write_adapted(tmp_path / "in", 3e38)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "_put_small_files", stop)
    with pytest.raises(KeyboardInterrupt):
        merge_fsdp(source, tmp_path / "out", options(resume=True))
    monkeypatch.undo()
    for complete in (False, True):
        result = merge_fsdp(source, tmp_path / "out", options(resume=True))
        assert result.already_complete == complete
        assert len(said(result.warnings)) == 1


@pytest.mark.parametrize(("dtype", "value"), [("bfloat16", 3.4e38), ("float16", -65520.0)])
def test_what_a_plain_cast_makes(tmp_path, dtype, value):
    state = {f"model.layers.{n}.self_attn.q_proj.weight": values(8, 8) for n in range(4)}
    for n, held in ((1, value), (2, float("inf")), (3, value)):
        state[WEIGHT.format(n)][0, 0] = held
    source = write_rank(tmp_path / "in", state, TINY)
    asked = replace(options(), dtype=dtype)
    for _ in range(2):  # the second is complete already
        asked = replace(asked, write=replace(asked.write, resume=True))
        result = merge_fsdp(source, tmp_path / "out", asked)
        names = [WEIGHT.format(n) for n in (1, 3)]
        assert result.warnings == [
            "2 tensors have values that are not finite, made of finite ones by a cast, adapters or"
            f" fp8 scales (some float32 values are too large for {dtype}): {', '.join(names)}"
        ]
        manifest = json.loads((tmp_path / "out" / "ckpt_manifest.json").read_text())
        assert manifest["not_finite"] == names
    unreal = [name for name, t in load_folder(tmp_path / "out").items() if not t.isfinite().all()]
    assert sorted(unreal) == [WEIGHT.format(n) for n in (1, 2, 3)]


def test_what_fusing_into_a_narrow_base_makes(tmp_path):
    source = write_adapted(tmp_path / "in", 1.0)
    (source / "lora_train_meta.json").write_text(json.dumps({"r": 4, "lora_alpha": 1e6}))
    result = merge_fsdp(source, tmp_path / "out", replace(options(), dtype="float16"))
    assert result.warnings
    found = load_folder(tmp_path / "out")
    unreal = sorted(name for name, tensor in found.items() if not tensor.isfinite().all())
    assert unreal == [WEIGHT.format(0), WEIGHT.format(1)]
    manifest = json.loads((tmp_path / "out" / "ckpt_manifest.json").read_text())
    assert manifest["not_finite"] == unreal
