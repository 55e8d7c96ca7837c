"""``--check-load``: a plan that transformers opens passes, anything else is named exactly."""

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

from ckpt_tool.common.errors import MappingError, UsageError
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.hub.form import View
from ckpt_tool.operations.merge import merge_fsdp
from ckpt_tool.operations.merge_plan import make_plan
from ckpt_tool.operations.options import MergeOptions
from ckpt_tool.plans.checks.question import Question
from ckpt_tool.plans.checks.transformers import TransformersJudge
from ckpt_tool.plans.options import LoadCheck, WriteOptions
from tests.support.loading import Shapes, check_load
from tests.support.versions import needs_transformers_5

Planned = Callable[[str], tuple[ModelConfig, Shapes]]

SOUND = {
    "fsdp2_w2": "Qwen2ForCausalLM",
    "fsdp2_tied_w2": "Qwen2ForCausalLM",
    "fsdp2_bf16_w2": "Qwen2ForCausalLM",
    "fsdp2_moe_w2": "Qwen3MoeForCausalLM",
    "fsdp2_mixtral_w2": "MixtralForCausalLM",
    "fsdp2_deepseek_w2": "DeepseekV3ForCausalLM",
    "fsdp2_vlm_w2": "Qwen2_5_VLForConditionalGeneration",
    "fsdp2_qwen3vlmoe_w2": "Qwen3VLMoeForConditionalGeneration",
    "fsdp2_gptoss_w2": "GptOssForCausalLM",
    "fsdp2_tokencls_w2": "Qwen2ForTokenClassification",
    "fsdp2_seqcls_w2": "Qwen2ForSequenceClassification",
}


@pytest.fixture(scope="module")
def planned(checkpoints: dict[str, Path]) -> Planned:
    """Case name -> the config and the shapes that a merge would write; the shapes are a copy."""
    done: dict[str, tuple[ModelConfig, Shapes]] = {}

    def get(case: str) -> tuple[ModelConfig, Shapes]:
        if case not in done:
            plan = make_plan(checkpoints[case] / "actor", "fsdp")
            assert plan.config is not None
            done[case] = plan.config, {name: t.shape for name, t in plan.tensors.items()}
        config, shapes = done[case]
        return config, dict(shapes)

    return get


def shapes_in(path: Path) -> Shapes:
    with safe_open(path, "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def faults(config: ModelConfig, shapes: Shapes) -> list[str]:
    with pytest.raises(MappingError, match=r"`write\.check_load`") as refused:
        check_load(config, shapes)
    return sorted(refused.value.names)


def missing(shapes: Shapes) -> list[str]:
    return [f"missing: {name} {list(shape)}" for name, shape in shapes.items()]


@pytest.mark.parametrize("case", list(SOUND))
def test_what_a_merge_writes_opens(case, planned):
    config, shapes = planned(case)
    found = check_load(config, shapes)
    assert (found.architecture, found.num_tensors) == (SOUND[case], len(shapes))


@needs_transformers_5
def test_missing_tensor_is_named_with_its_shape(planned):
    config, shapes = planned("fsdp2_w2")
    del shapes["model.norm.weight"]
    assert faults(config, shapes) == ["missing: model.norm.weight [32]"]


@pytest.mark.parametrize("name", ["model.layers.2.mlp.up_proj.weight", "extra"])
def test_extra_tensor_is_named(name, planned):
    config, shapes = planned("fsdp2_w2")
    assert faults(config, {**shapes, name: (3,)}) == [f"unexpected: {name}"]


@needs_transformers_5
def test_wrong_shape_is_named_with_both_shapes(planned):
    config, shapes = planned("fsdp2_w2")
    name = "model.layers.1.mlp.down_proj.weight"
    shapes[name] = (51, 32)
    assert faults(config, shapes) == [f"mismatched: {name}: [51, 32], expected [32, 51]"]


@needs_transformers_5
@pytest.mark.parametrize("expert", [0, 4])
def test_every_tensor_of_a_missing_expert_is_named(expert, planned):
    config, shapes = planned("fsdp2_moe_w2")
    stem = f"model.layers.1.mlp.experts.{expert}"
    kinds = {"down_proj": (32, 24), "gate_proj": (24, 32), "up_proj": (24, 32)}
    gone = {f"{stem}.{kind}.weight": shape for kind, shape in kinds.items()}
    assert gone.items() <= shapes.items()
    left = {name: shape for name, shape in shapes.items() if name not in gone}
    assert faults(config, left) == missing(gone)


@needs_transformers_5
def test_all_faults_are_listed_together(planned):
    config, shapes = planned("fsdp2_w2")
    shapes["model.extra"] = shapes.pop("model.norm.weight")
    shapes["lm_head.weight"] = (1, 32)
    assert faults(config, shapes) == [
        "mismatched: lm_head.weight: [1, 32], expected [97, 32]",
        "missing: model.norm.weight [32]",
        "unexpected: model.extra",
    ]


@needs_transformers_5
@pytest.mark.parametrize("case", ["fsdp2_moe_w2", "fsdp2_mixtral_w2", "fsdp2_vlm_w2"])
def test_names_as_in_memory_are_refused(case, checkpoints, planned):
    config, on_hub = planned(case)
    in_memory = shapes_in(checkpoints[case] / "raw_state_dict.safetensors")
    gone = {name: shape for name, shape in on_hub.items() if name not in in_memory}
    added = [f"unexpected: {name}" for name in in_memory if name not in on_hub]
    assert gone
    assert added
    assert faults(config, in_memory) == sorted(missing(gone) + added)


def test_experts_with_the_axes_of_memory_are_refused(checkpoints, planned):
    config, _ = planned("fsdp2_qwen3vlmoe_w2")
    in_memory = shapes_in(checkpoints["fsdp2_qwen3vlmoe_w2"] / "raw_state_dict.safetensors")
    expected = []
    for layer in (0, 1):
        stem = f"model.language_model.layers.{layer}.mlp.experts"
        expected += [
            f"mismatched: {stem}.down_proj: [3, 32, 24], expected [3, 24, 32]",
            f"mismatched: {stem}.gate_up_proj: [3, 48, 32], expected [3, 32, 48]",
        ]
    assert faults(config, in_memory) == expected


@needs_transformers_5
def test_names_without_the_prefix_of_the_base_model_are_refused(planned):
    config, shapes = planned("fsdp2_w2")
    body = {name: shape for name, shape in shapes.items() if name.startswith("model.")}
    assert len(body) == len(shapes) - 1
    bare = {name.removeprefix("model."): shape for name, shape in shapes.items()}
    added = [f"unexpected: {name.removeprefix('model.')}" for name in body]
    assert faults(config, bare) == sorted(missing(body) + added)


@needs_transformers_5
def test_names_below_one_more_are_told_how_to_be_taken(planned):
    config, shapes = planned("fsdp2_w2")
    below = {f"_forward_module.{name}": shape for name, shape in shapes.items()}
    with pytest.raises(MappingError) as refused:
        check_load(config, {**below, "other.norm.weight": (3,)})
    assert "`names.prefix='_forward_module'`" in refused.value.hint
    del below["_forward_module.model.norm.weight"]
    with pytest.raises(MappingError) as refused:
        check_load(config, below)
    assert "names.prefix" not in refused.value.hint
    with pytest.raises(MappingError) as refused:
        check_load(config, {**shapes, "extra": (3,)})
    assert "fill_from" not in refused.value.hint


@needs_transformers_5
def test_tensors_that_the_loader_would_pass_over_are_named(planned):
    config, shapes = planned("fsdp2_tied_w2")
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    shapes[name] = shapes["model.embed_tokens.weight"]
    assert faults(config, shapes) == [f"unexpected: {name}"]


@needs_transformers_5
def test_a_tied_copy_may_be_there_in_its_own_shape_only(planned):
    config, shapes = planned("fsdp2_tied_w2")
    head = {"lm_head.weight": shapes["model.embed_tokens.weight"]}
    assert not shapes.keys() & head.keys()
    assert check_load(config, shapes | head).num_tensors == len(shapes) + 1
    assert faults(config, shapes | {"lm_head.weight": (96, 32)}) == [
        "mismatched: lm_head.weight: [96, 32], expected [97, 32]"
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architectures": ["Qwen2ForTelepathy"]}, "has no class 'Qwen2ForTelepathy'"),
        ({"model_type": "no_such_family"}, "does not know it"),
    ],
    ids=str,
)
def test_what_transformers_does_not_know_is_said(change, said, planned):
    config, shapes = planned("fsdp2_w2")
    other = config.with_changes(**change)
    with pytest.raises(UsageError, match=said) as refused:
        check_load(other, shapes)
    assert "`write.check_load=False`" in refused.value.hint
    judge = TransformersJudge([Question.of(View(other, frozenset()), shapes)], {}, must=False)
    judge.start()
    verdict = judge.finish(None)
    assert verdict.check is None
    assert said in verdict.warnings[0]


@pytest.mark.parametrize("named", ["QWen2ForCausalLM", "Qwen_2_ForCausalLm"])
def test_a_class_may_be_named_in_other_capitals_than_transformers_has(named, planned):
    """As released LLaMA and K-EXAONE do: Auto classes go by the model type."""
    config, shapes = planned("fsdp2_w2")
    other = config.with_changes(architectures=[named])
    assert check_load(other, shapes).architecture == "Qwen2ForCausalLM"
    assert faults(other, shapes | {"extra.weight": (1,)}) == ["unexpected: extra.weight"]
    stranger = other.with_changes(model_type="qwen3")
    with pytest.raises(UsageError, match=f"has no class '{named}'"):
        check_load(stranger, shapes)


def test_model_that_cannot_be_built_is_an_error(planned):
    config, shapes = planned("fsdp2_w2")
    with pytest.raises(MappingError, match="cannot build Qwen2For") as refused:
        check_load(config.with_changes(num_attention_heads=0), shapes)
    assert "`write.check_load=False`" in refused.value.hint


def test_remote_code_is_never_run(planned, tmp_path):
    config, shapes = planned("fsdp2_w2")
    ran = tmp_path / "ran"
    (tmp_path / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    auto_map = {"AutoConfig": f"{tmp_path}--own.Own"}
    with pytest.raises(UsageError, match="does not know it"):
        check_load(config.with_changes(model_type="own", auto_map=auto_map), shapes)
    assert not ran.exists()


@needs_transformers_5
def test_checking_needs_no_memory_for_the_weights(planned):
    config, shapes = planned("fsdp2_w2")
    rows = 2**31 - 1  # embedding and head of 256 GiB each
    wide = {name: (rows, 32) if shape[0] == 97 else shape for name, shape in shapes.items()}
    assert wide != shapes
    assert check_load(config.with_changes(vocab_size=rows), wide).num_tensors == len(shapes)


def test_merge_checks_before_it_writes(checkpoints, tmp_path):
    actor = checkpoints["fsdp2_w2"] / "actor"
    options = MergeOptions(write=WriteOptions(check_load=True))
    found = merge_fsdp([actor], tmp_path / "good", options).load_check
    assert isinstance(found, LoadCheck)
    assert found.architecture == "Qwen2ForCausalLM"
    config = (actor / "huggingface" / "config.json").read_text()
    assert '"intermediate_size": 51' in config
    (tmp_path / "config.json").write_text(config.replace('_size": 51', '_size": 50'))
    options = MergeOptions(config=tmp_path, write=options.write)
    with pytest.raises(MappingError) as refused:
        merge_fsdp([actor], tmp_path / "bad", options)
    assert all(".mlp." in name for name in refused.value.names)
    assert len(refused.value.names) % 3 == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "good"]
