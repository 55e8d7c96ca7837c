"""`--weights optimizer`: a model of the float32 weights that Megatron's optimizer saved.

What the fixtures' optimizers have is what their models have, times a number that no bfloat16 has.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ckpt_tool import (
    MergeOptions,
    VerifyOptions,
    WriteOptions,
    merge_checkpoint,
    merge_megatron,
    open_checkpoint,
    verify_checkpoint,
)
from ckpt_tool.common.errors import CheckpointError, MappingError, UsageError
from ckpt_tool.operations.merge import merge_fsdp
from tests.support.merging import assert_same, load_folder
from tests.support.resaving import resaved

FIXTURES = Path(__file__).parents[2] / "fixtures"
#: As `tests.real.release_rank.FINER` has it, which imports megatron-core.
FINER = 1 + 2**-12
#: 0.13's has no model beside it, and its weights are in pieces: of expert and data
#: parallel processes. 0.19's are whole.
WRITTEN = ["mcore0.13_optimizer", "mcore0.19_optimizer"]


def merge(name: str, out: Path, **options):
    fixture = FIXTURES / name
    write = WriteOptions(fsync=False, verify=True)
    given = {"weights": "optimizer", "config": fixture, "dtype": "keep", "write": write, **options}
    return merge_megatron(fixture / "checkpoint", out, MergeOptions(**given))


def finer(name: str) -> dict[str, torch.Tensor]:
    reference = load_file(FIXTURES / name / "reference.safetensors")
    return {name: tensor.float() * FINER for name, tensor in reference.items()}


@pytest.mark.parametrize("name", WRITTEN)
def test_the_model_is_the_optimizers(tmp_path, name):
    result = merge(name, tmp_path / "out")
    assert result.verified
    assert not result.warnings
    assert_same(load_folder(tmp_path / "out"), finer(name))
    options = VerifyOptions(weights="optimizer", config=FIXTURES / name)
    assert verify_checkpoint(FIXTURES / name / "checkpoint", tmp_path / "out", options).exact


def test_the_other_side_of_a_comparison_keeps_its_own(tmp_path):
    """The same folder on both sides: the optimizer's weights of one, the model's of the other."""
    name = "mcore0.19_optimizer"
    options = VerifyOptions(weights="optimizer", config=FIXTURES / name)
    folder = FIXTURES / name / "checkpoint"
    result = verify_checkpoint(folder, folder, options)
    assert not result.equal
    assert result.num_compared == 21
    rounded = VerifyOptions(weights="optimizer", config=FIXTURES / name, cast_reference=True)
    assert verify_checkpoint(folder, folder, rounded).equal


def test_it_is_rounded_once_as_the_config_says(tmp_path):
    merge("mcore0.13_optimizer", tmp_path / "out", dtype="auto")
    expected = {name: it.bfloat16() for name, it in finer("mcore0.13_optimizer").items()}
    assert_same(load_folder(tmp_path / "out"), expected)


def test_the_models_own_are_taken_unless_the_optimizers_are_asked_for(tmp_path):
    name = "mcore0.19_optimizer"
    result = merge(name, tmp_path / "own", weights="model")
    assert_same(load_folder(tmp_path / "own"), load_file(FIXTURES / name / "reference.safetensors"))
    assert not any("model's own" in why for why in result.dropped.values())
    result = merge(name, tmp_path / "out")
    own = {start: why for start, why in result.dropped.items() if "model's own" in why}
    assert own == {
        "embedding.*": "the model's own: 1 tensor",
        "decoder.*": "the model's own: 7 tensors",
        "output_layer.*": "the model's own: 1 tensor",
    }


def test_a_checkpoint_of_an_optimizer_alone_says_how_to_take_it(tmp_path):
    with pytest.raises(CheckpointError, match="but those in the optimizer's state") as caught:
        merge("mcore0.13_optimizer", tmp_path / "out", weights="model")
    assert "weights='optimizer'" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_what_was_not_trained_is_the_models_own_and_said(tmp_path):
    name = "mcore0.19_optimizer"
    frozen = ("embedding.word_embeddings.weight", "output_layer.weight")

    def change(found):
        masters = tuple(f"state.param.{name}" for name in frozen)
        return {key: it for key, it in found.items() if not key.endswith(masters)}

    source = resaved(FIXTURES / name / "checkpoint", tmp_path / "in", change)
    options = MergeOptions(config=FIXTURES / name, weights="optimizer", dtype="keep")
    result = merge_megatron(source, tmp_path / "out", options)
    (said,) = result.warnings
    assert "2 tensors that the optimizer does not have" in said
    assert all(key in said for key in frozen)
    plain = load_file(FIXTURES / name / "reference.safetensors")
    ends = ("model.embed_tokens.weight", "lm_head.weight")
    expected = finer(name) | {end: plain[end] for end in ends}
    assert_same(load_folder(tmp_path / "out"), expected)


def test_verl_has_the_optimizer_in_a_folder_of_its_own(tmp_path):
    """Since 0.9; what is not trained, as biases of routers, is with the model alone."""
    fixture = FIXTURES / "mcore0.19_optimizer"
    norm = "decoder.final_layernorm.weight"

    def pick(masters: bool):
        return lambda found: {
            name: tensor
            for name, tensor in found.items()
            if ("optimizer." in name) == masters and name != f"optimizer.state.param.{norm}"
        }

    actor = tmp_path / "global_step_3" / "actor"
    for part, masters in (("model", False), ("optimizer", True)):
        (actor / part).mkdir(parents=True)
        resaved(fixture / "checkpoint", actor / part / "dist_ckpt", pick(masters))
    options = MergeOptions(config=fixture, weights="optimizer", dtype="keep")
    for named in (actor, actor / "model"):
        out = tmp_path / f"of {named.name}"
        merge_megatron(named, out, options)
        plain = load_file(fixture / "reference.safetensors")
        expected = finer(fixture.name) | {"model.norm.weight": plain["model.norm.weight"]}
        assert_same(load_folder(out), expected)


def test_flat_buckets_are_refused_with_what_to_do(tmp_path):
    with pytest.raises(UsageError, match="no weights in an optimizer's state") as caught:
        merge("mcore0.16_lm", tmp_path / "out")
    assert "--dist-ckpt-optim-fully-reshardable" in caught.value.hint
    with pytest.raises(UsageError) as caught:
        merge("mcore0.16_dense", tmp_path / "out")
    assert caught.value.hint.startswith("Leave `weights` out")


def test_without_a_config_nothing_says_how_pieces_go_together(tmp_path):
    with pytest.raises(UsageError, match=r"no config\.json, which says how"):
        merge("mcore0.13_optimizer", tmp_path / "out", config=None, keep_names=True)


def test_other_formats_have_none(tmp_path, checkpoints):
    options = MergeOptions(weights="optimizer")
    with pytest.raises(UsageError, match="only Megatron's torch_dist"):
        merge_fsdp(checkpoints["fsdp2_w2"] / "actor", tmp_path / "out", options)
    with pytest.raises(UsageError, match="expected one of model, optimizer"):
        merge_checkpoint(FIXTURES, tmp_path / "out", MergeOptions(weights="both"))
    models = [FIXTURES / name for name in ("mcore0.16_dense", "mcore0.16_moe")]
    for model in models:
        (tmp_path / model.name).mkdir()
        for found, called in (("reference", "model"), ("config.json", "config.json")):
            source = next(model.glob(f"{found}*"))
            suffix = "" if called.endswith(".json") else ".safetensors"
            (tmp_path / model.name / f"{called}{suffix}").symlink_to(source)
    both = [tmp_path / model.name for model in models]
    with pytest.raises(UsageError, match="both are Hugging Face models"):
        verify_checkpoint(*both, VerifyOptions(weights="optimizer"))


@pytest.mark.parametrize("change", ["a piece too few", "of another shape", "twice"])
def test_pieces_that_are_not_what_the_config_says_are_named(tmp_path, change):
    key = "chained_0.optimizer.state.fp32_param.decoder.layers.mlp.router.weight"

    def damage(found):
        if change == "a piece too few":
            return found | {key: found[key][:1].clone()}
        if change == "of another shape":
            return found | {key: found[key].repeat(1, 1, 1, 2)}
        return found | {key.replace("chained_0.", "chained_1."): found[key].clone()}

    fixture = FIXTURES / "mcore0.13_optimizer"
    source = resaved(fixture / "checkpoint", tmp_path / "in", damage)
    with pytest.raises(MappingError) as caught:
        merge_megatron(source, tmp_path / "out", MergeOptions(config=fixture, weights="optimizer"))
    said = f"{caught.value} {caught.value.names}"
    assert ("several optimizers" if change == "twice" else "mlp.router.weight") in said
    assert not (tmp_path / "out").exists()


def test_names_of_both_kinds_are_there():
    names = {"mcore0.13_optimizer": "fp32_param", "mcore0.19_optimizer": "param"}
    for name, kind in names.items():
        found = open_checkpoint(FIXTURES / name / "checkpoint")
        assert any(f"optimizer.state.{kind}." in key for key in found)
