"""`--check-load`: real megatron-core loads what `to-mcore` writes, and what is wrong is named."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from ckpt_tool.common import packages
from ckpt_tool.common.errors import MappingError, UsageError
from ckpt_tool.common.parallel import ALONE, Team
from ckpt_tool.common.progress import NoProgress
from ckpt_tool.operations.merge import merge_fsdp
from ckpt_tool.operations.options import ToMcoreOptions
from ckpt_tool.operations.to_mcore import convert_to_mcore, plan_to_mcore
from ckpt_tool.plans.checks import child
from ckpt_tool.plans.checks.megatron import check_mcore_load, make_request
from ckpt_tool.plans.mcore import McorePlan
from ckpt_tool.plans.options import LoadCheck, WriteOptions
from ckpt_tool.plans.write import write as write_plan
from ckpt_tool.tensors.tiled import TiledTensor
from ckpt_tool.writers.torch_dist.layout import plan_torch_dist
from tests.operations.to_mcore.test_inputs import Tensors, rewritten
from tests.real.megatron_models import NAMES, write_model
from tests.support.megatron import REFUSED, UNKNOWN
from tests.support.versions import MEGATRON_CORE

LIBRARY = f"megatron-core {version('megatron-core')}"
UNSYNCED = WriteOptions(fsync=False)
CHECKED = WriteOptions(fsync=False, check_load=True)
#: Beginnings of the names of models whose layers are not all alike.
DIFFERING = (
    "deepseek",
    "moonlight",
    "glm4_moe",
    "glm_moe",
    "kimi",
    "dots1",
    "ernie4_5_moe",
    "qwen3_moe_mlp_only",
)
DIFFERING += ("hy_v3", "bailing", "sarvam", "exaone_moe", "llama4", "mimo_v2", "step3p5")
GATED = ("qwen3_next", "qwen3_5")
DIFFERING += GATED
#: Models that load since 0.16.
HELD = (*GATED, "step3p5")
#: What no HybridModel has: towers, norms beside attention and MLP, layers that differ in heads.
NO_HYBRID = ("qwen2_5_vl", "glm4", "gemma4_text", "gemma4_moe", "step3p5", "bailing_hybrid")
#: Models whose layers trainers bring themselves, and what is said of them.
FOREIGN = {
    "mimo_v2": "bring an attention of their own",
    "gemma4": "Megatron-Bridge's own",
    "falcon_h1": "no layer with Mamba beside attention",
}

#: Models that are a HybridModel whatever is asked for.
MIXED = ("nemotron_h", "falcon_h1")
#: Many requests in one process, as starting megatron-core takes seconds.
DRIVER = """
import json, sys
from pathlib import Path
from ckpt_tool.plans.checks.megatron_child.__main__ import answer
from ckpt_tool.plans.checks.megatron_child.cpu import hide_gpus, set_up
from ckpt_tool.plans.checks.megatron_child.request import Request
requests, answers = map(Path, sys.argv[1:])
hide_gpus()
set_up()
from ckpt_tool.plans.checks.megatron_child import load
load.GROUP_BYTES = 20_000  # no tensor of all layers fits, so that stacks are loaded in parts
asked = json.loads(requests.read_text())
answers.write_text(json.dumps({name: answer(Request.of(it)) for name, it in asked.items()}))
"""


def write(plan: McorePlan, out: Path, options: WriteOptions = UNSYNCED) -> McorePlan:
    write_plan(plan, out, options, Team(ALONE, 2, NoProgress()))
    return plan


def with_config(model: Path, out: Path, **changes: Any) -> Path:
    """A copy of the folder whose config.json says something else."""
    out.mkdir()
    for file in model.glob("*.safetensors*"):
        (out / file.name).symlink_to(file)
    config = json.loads((model / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | changes))
    return out


def write_mimo(qwen2: Path, out: Path) -> Path:
    """A MiMo: Qwen2 with a layer for multi-token prediction, here a copy of the first layer."""

    def add(tensors: Tensors) -> None:
        first, added = "model.layers.0.", "model.mtp_layers.0."
        norm = tensors["model.norm.weight"]
        for name in [name for name in tensors if name.startswith(first)]:
            tensors[added + name.removeprefix(first)] = tensors[name].clone()
        for name in ("token_layernorm", "hidden_layernorm", "final_layernorm"):
            tensors[f"{added}{name}.weight"] = norm.clone()
        tensors[f"{added}input_proj.weight"] = norm.repeat(len(norm), 2)

    said = {"model_type": "mimo", "num_nextn_predict_layers": 1}
    return rewritten(qwen2, out, add, said)


def write_deepseek(dots1: Path, out: Path) -> Path:
    """A DeepSeek-MoE: a dots1 whose heads have no norms, and whose routers no biases."""

    def take(tensors: Tensors) -> None:
        more = ("_norm.weight", "e_score_correction_bias")
        for name in [name for name in tensors if name.endswith(more)]:
            del tensors[name]

    return rewritten(dots1, out, take, {"model_type": "deepseek", "moe_layer_freq": 1})


def list_layouts(name: str) -> tuple[str, ...]:
    if name in MIXED:
        return ("hybrid",)
    if name == "nemotron-nas":
        return ("per-layer",)
    plain = ("per-layer",) if name.startswith(DIFFERING) else ("stacked", "per-layer")
    return plain if name in NO_HYBRID else (*plain, "hybrid")


def models(folder: Path, vlm: Path) -> Iterator[tuple[str, Path]]:
    for name in (name for name in NAMES if name not in UNKNOWN):
        yield name, write_model(name, folder / name)
    merge_fsdp([vlm], folder / "qwen2_5_vl")
    yield "qwen2_5_vl", folder / "qwen2_5_vl"
    yield "mimo", write_mimo(folder / "qwen2" / "hf", folder / "mimo")
    kimi = {"model_type": "kimi_k2"}
    yield "kimi_k2", with_config(folder / "deepseek_v3_mtp" / "hf", folder / "kimi_k2", **kimi)
    if "dots1" not in UNKNOWN:
        yield "deepseek", write_deepseek(folder / "dots1" / "hf", folder / "deepseek")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model("llama", tmp_path_factory.mktemp("llama"))


def test_every_family_loads_in_every_layout(checkpoints, tmp_path):
    requests, sizes = {}, {}
    for name, model in models(tmp_path, checkpoints["fsdp2_vlm_w2"] / "actor"):
        for layers in list_layouts(name):
            case, out = f"{name}/{layers}", tmp_path / name / layers
            tower = "megatron" if name == "qwen2_5_vl" else ""
            plan = write(plan_to_mcore(model, ToMcoreOptions(layers=layers, tower=tower)), out)
            requests[case] = make_request(plan.rules, out)
            sizes[case] = len(plan.folder.tensors) - (name == "qwen2_5_vl")  # without patch_embed
    asked, answered = tmp_path / "requests.json", tmp_path / "answers.json"
    asked.write_text(json.dumps(requests))
    subprocess.run([sys.executable, "-W", "ignore", "-c", DRIVER, asked, answered], check=True)
    found = json.loads(answered.read_text())
    assert found.keys() == requests.keys()
    for case, why in [(c, why) for c in found for n, why in FOREIGN.items() if c.startswith(n)]:
        assert why in found.pop(case)["unusable"]
        del sizes[case]
    for case in [case for case in found if case.startswith(HELD) and MEGATRON_CORE < (0, 16)]:
        what = "gated DeltaNet is" if case.startswith(GATED) else "heads have gates"
        assert f"{what} there since 0.16" in found.pop(case)["unusable"]
        del sizes[case]
    refused = [name for name in REFUSED if not name.startswith(HELD)]
    for case in [case for case in found if case.partition("/")[0] in refused]:
        said = found.pop(case)["unusable"]
        assert "0.19" in said or "imports triton" in said
        del sizes[case]
    for case in [case for case in found if "unusable" in found[case] and case.endswith("/hybrid")]:
        since = re.search(r"since 0\.(\d+)", found.pop(case)["unusable"])
        assert since is not None
        assert (0, int(since[1])) > MEGATRON_CORE
        del sizes[case]
    assert "llama/hybrid" in sizes or MEGATRON_CORE < (0, 16)
    assert found == {case: {"library": LIBRARY, "num_tensors": n} for case, n in sizes.items()}


@pytest.mark.real
def test_check_and_verify_go_together(llama, tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise SystemExit('not the real torch')")
    monkeypatch.chdir(tmp_path)  # what lies where the user works is not imported
    options = ToMcoreOptions(
        layout="megatron-lm",
        vocab_multiple=128 * 3,  # 256 rows become 384
        write=replace(CHECKED, verify=True),
    )
    result = convert_to_mcore(llama, "out", options)
    assert result.verified
    assert result.load_check == LoadCheck("GPTModel", 9, LIBRARY)
    assert plan_to_mcore(llama, options).folder.tensors["output_layer.weight"].shape == (384, 64)


@pytest.mark.real
def test_all_faults_are_named_and_nothing_is_published(llama, tmp_path):
    plan = plan_to_mcore(llama)
    tensors = dict(plan.folder.tensors)
    del tensors["decoder.final_layernorm.weight"]
    tensors["decoder.layers.mlp.linear_fc3.weight"] = tensors[
        "decoder.layers.mlp.linear_fc2.weight"
    ]
    tensors["output_layer.weight"] = tensors["decoder.layers.mlp.linear_fc1.weight"]
    whole = tensors["decoder.layers.mlp.linear_fc2.weight"]
    tensors["decoder.layers.mlp.linear_fc2.weight"] = TiledTensor(
        whole.shape, whole.blocks[1:], whole.sources
    )
    gone = "decoder.layers.self_attention.linear_proj._extra_state/shard_2_4"
    objects = [name for name in plan.folder.objects if name != gone]
    folder = plan_torch_dist(tensors, objects, prefix="", sums=False)
    assert len(objects) == len(plan.folder.objects) - 1
    with pytest.raises(MappingError) as refused:
        write(replace(plan, folder=folder, files=folder.files), tmp_path / "out", CHECKED)
    assert str(refused.value) == f"`write.check_load`: GPTModel of {LIBRARY} does not load this"
    assert sorted(refused.value.names) == [
        "incomplete: decoder.layers.mlp.linear_fc2.weight:"
        " blocks of 18,432 elements, expected 24,576",
        "mismatched: output_layer.weight: [4, 192, 64], expected [256, 64]",
        "missing: decoder.final_layernorm.weight [64]",
        f"missing: {gone}",
        "unexpected: decoder.layers.mlp.linear_fc3.weight",
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.real
def test_truncated_file_is_an_error_that_quotes_megatron_core(llama, tmp_path, monkeypatch):
    plan = write(plan_to_mcore(llama), tmp_path)
    file = tmp_path / "__0_0.distcp"
    os.truncate(file, file.stat().st_size - 1000)
    monkeypatch.setenv("RANK", "1")  # of the run that writes; the check is alone
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MappingError, match=r"fails to load this: .*Error: ") as refused:
        check_mcore_load(plan.rules, tmp_path)
    assert str(refused.value).startswith(f"`write.check_load`: GPTModel of {LIBRARY} ")
    assert "\n" not in str(refused.value)


@pytest.mark.real
def test_model_that_megatron_core_refuses_is_a_usage_error(llama, tmp_path):
    plan = plan_to_mcore(llama)
    rules = replace(plan.rules, numbers=replace(plan.rules.numbers, heads=0))
    with pytest.raises(UsageError, match=f"{LIBRARY} cannot build this llama: "):
        check_mcore_load(rules, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("code", ["sys.exit(7)", "print('hello')", "print('[]')"])
def test_child_without_an_answer_is_an_error_with_its_last_words(
    code, llama, tmp_path, monkeypatch
):
    said = f"import sys; print('the last words', file=sys.stderr); {code}"
    monkeypatch.setattr(child, "_START", said)
    with pytest.raises(MappingError, match=r"ended with [07]$"):
        convert_to_mcore(llama, tmp_path / "out", ToMcoreOptions(write=CHECKED))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["torch", "megatron.core"])
def test_missing_package_is_refused_before_anything_is_written(
    missing, llama, tmp_path, monkeypatch
):
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == missing else True)
    with pytest.raises(UsageError, match="not installed") as refused:
        convert_to_mcore(llama, tmp_path / "out", ToMcoreOptions(write=CHECKED))
    assert "pip install" in refused.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_parent_imports_neither_torch_nor_megatron_core():
    code = (
        "import sys, ckpt_tool.operations.to_mcore, ckpt_tool.plans.checks.megatron as check\n"
        "check.require_megatron()\n"
        "assert not {'torch', 'megatron.core'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_the_child_imports_with_whatever_release_is_installed():
    """The oldest has neither HybridModel nor layers for multi-token prediction."""
    code = "import ckpt_tool.plans.checks.megatron_child.gpt"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
