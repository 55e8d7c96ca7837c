"""What Megatron-FSDP saves (`--ckpt-format fsdp_dtensor`), and what is wrong with damaged ones.

That whole ones are read is in `test_releases.py`.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from ckpt_tool import (
    MergeOptions,
    VerifyOptions,
    WriteOptions,
    merge_checkpoint,
    verify_checkpoint,
)
from ckpt_tool.common.errors import CheckpointError, MappingError
from tests.real.write_release_fixtures import FIXTURES
from tests.support.merging import assert_same, load_folder
from tests.support.resaving import save_dcp, tensors_of
from tests.support.versions import needs_transformers_5

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

DENSE, LM = FIXTURES / "mcore0.19_fsdp_dense", FIXTURES / "mcore0.19_fsdp_lm"
HYBRID = FIXTURES / "mcore0.19_fsdp_hybrid"
MOE, LATENT = FIXTURES / "mcore0.19_fsdp_moe", FIXTURES / "mcore0.19_fsdp_latent"
FC1 = "model.module.decoder.layers.1.mlp.linear_fc1.weight"


def merge(source: Path, out: Path, config: Path, **options):
    return merge_checkpoint(
        source, out, MergeOptions(config=config, write=WriteOptions(fsync=False), **options)
    )


def without(fixture: Path, out: Path, *names: str) -> Path:
    """The fixture's tensors but these, in a folder of torch.distributed.checkpoint."""
    tensors = tensors_of(fixture / "checkpoint")
    assert set(names) < tensors.keys()
    return save_dcp({name: it for name, it in tensors.items() if name not in names}, out)


def test_the_optimizer_is_left_out_and_its_weights_are_rounded_as_asked(tmp_path):
    """A run in bfloat16, whose weights are saved as they are trained: in float32."""
    result = merge(LM / "checkpoint", tmp_path / "out", LM, dtype="bfloat16")
    expected = load_file(LM / "reference.safetensors")
    assert {tensor.dtype for tensor in expected.values()} == {torch.float32}
    assert_same(load_folder(tmp_path / "out"), {n: t.bfloat16() for n, t in expected.items()})
    assert "state of training: 30 tensors" in result.dropped["optimizer.*"]


@needs_transformers_5  # which wrote the configs
@pytest.mark.parametrize("fixture", [DENSE, HYBRID], ids=lambda path: path.name)
def test_the_model_computes_what_the_saved_one_did(fixture, tmp_path):
    shutil.copyfile(fixture / "config.json", tmp_path / "config.json")
    shutil.copyfile(fixture / "reference.safetensors", tmp_path / "model.safetensors")
    merge(fixture / "checkpoint", tmp_path / "out", fixture)
    ids = torch.arange(12)[None]
    logits = [
        transformers.AutoModelForCausalLM.from_pretrained(folder)(ids).logits
        for folder in (tmp_path, tmp_path / "out")
    ]
    assert torch.equal(*logits)


def test_either_side_of_a_verification(tmp_path):
    assert verify_checkpoint(MOE, MOE / "checkpoint").exact
    same = without(MOE, tmp_path / "same")
    assert verify_checkpoint(MOE / "checkpoint", same, VerifyOptions(config=MOE)).exact


def test_a_file_that_is_gone_is_named(tmp_path):
    shutil.copytree(DENSE / "checkpoint", tmp_path / "in")
    (gone,) = tmp_path.glob("in/iter_*/__1_0.distcp")
    gone.unlink()
    with pytest.raises(CheckpointError) as refused:
        merge(tmp_path / "in", tmp_path / "out", DENSE)
    assert [one.where for one in refused.value.problems if one.kind == "missing-file"] == [
        str(gone)
    ]


@pytest.mark.parametrize("half", "wv")
def test_a_half_that_is_gone_is_named(half, tmp_path):
    source = without(DENSE, tmp_path / "in", f"{FC1}_{half}")
    with pytest.raises(MappingError, match="gate and up") as refused:
        merge(source, tmp_path / "out", DENSE)
    assert refused.value.names == (f"decoder.layers.1.mlp.linear_fc1.weight_{half}",)


@pytest.mark.parametrize(
    ("fixture", "name", "says"),
    [
        (MOE, "linear_fc2.weight0", "experts 1, of 1 shapes"),
        (MOE, "linear_fc2.weight1", "expected [2]"),
        (LATENT, "local_experts.2.linear_fc2.weight", "experts 0, 1, 3, of 1 shapes"),
    ],
)
def test_an_expert_that_is_gone_is_named(fixture, name, says, tmp_path):
    prefix = "decoder.layers.1.mlp.experts."
    source = without(fixture, tmp_path / "in", f"model.module.{prefix}{name}")
    with pytest.raises(MappingError) as refused:
        merge(source, tmp_path / "out", fixture)
    (fault,) = refused.value.names
    assert fault.startswith(f"{prefix}experts.linear_fc2.weight")
    assert says in fault


def test_shapes_that_are_not_the_config_s_are_listed(tmp_path):
    config = json.loads((DENSE / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 14}))
    with pytest.raises(MappingError) as refused:
        merge(DENSE / "checkpoint", tmp_path / "out", tmp_path)
    assert "model.layers.0.mlp.gate_proj.weight: [12, 16], expected [14, 16]" in str(
        refused.value.names
    )
