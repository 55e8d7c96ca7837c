"""Names of nested and otherwise spelled state dicts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.common.errors import MappingError, UsageError
from ckpt_tool.mapping.frameworks.nested import find_prefix, rename_tensors, strip_prefix
from ckpt_tool.mapping.frameworks.training import find_training_kind, is_training_state

MODEL = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "lm_head.weight")


@pytest.mark.parametrize("prefix", ["", "model.", "app.model.", "state_dict.", "a.b.c."])
@pytest.mark.parametrize(
    "names",
    [
        MODEL,
        ("model.language_model.embed_tokens.weight", "model.visual.patch_embed.proj.weight"),
        ("language_model.model.embed_tokens.weight", "vision_tower.x.weight"),
        ("transformer.wte.weight", "transformer.h.0.ln_1.weight"),
        ("tok_embeddings.weight", "layers.0.attention.wq.weight"),
    ],
)
def test_what_is_nested_around_a_model(prefix, names):
    assert find_prefix([prefix + name for name in names]) == prefix


def test_models_without_a_head_and_without_an_embedding():
    assert (
        find_prefix(["state_dict.embed_tokens.weight", "state_dict.norm.weight"]) == "state_dict."
    )
    assert find_prefix(["a.weight", "b.weight"]) == ""


def test_copies_of_the_embedding_in_prediction_layers_are_no_other_model():
    assert find_prefix([*MODEL, "model.layers.3.embed_tokens.weight"]) == ""


def test_two_models_are_to_be_chosen_from():
    with pytest.raises(UsageError, match=r"'', 'ema\.'"):
        find_prefix([*MODEL, *(f"ema.{name}" for name in MODEL)])


def test_what_is_beside_the_prefix_is_listed():
    with pytest.raises(MappingError) as refused:
        strip_prefix({"a.x": 1, "b.y": 2, "c": 3}, "a.")
    assert refused.value.names == ("b.y", "c")
    assert strip_prefix({"a.x": 1}, "a.") == {"x": 1}


@pytest.mark.parametrize(
    ("rename", "old", "new"),
    [
        ("backbone=model", "backbone.norm.weight", "model.norm.weight"),
        ("backbone.=model.", "my.backbone.norm.weight", "my.model.norm.weight"),
        ("^head=lm_head", "head.weight", "lm_head.weight"),
        ("^head=lm_head", "model.head.weight", "model.head.weight"),
        ("_orig_mod=", "_orig_mod.model.norm.weight", "model.norm.weight"),
        ("_orig_mod=", "model._orig_mod.norm.weight", "model.norm.weight"),
        ("h.*.attn=layers.*.self_attn", "model.h.11.attn.q.weight",
         "model.layers.11.self_attn.q.weight"),
        ("e*.w*=x*.y*", "e1.w2.weight", "x1.y2.weight"),
        ("a.*.b=c", "a.7.b.weight", "c.weight"),
        ("norm=ln", "model.normal.weight", "model.normal.weight"),
        ("norm=ln", "model.norm.norm.weight", "model.ln.norm.weight"),
    ],
)  # fmt: skip
def test_renames_by_hand(rename, old, new):
    assert rename_tensors(
        {old: 1, "backbone.x": 2, "a.head": 2, "^": 3} | _touched(rename), [rename]
    )[new]


def _touched(rename: str) -> dict[str, int]:
    """A name that the rename changes, so that it is none that changes nothing."""
    old = rename.split("=", maxsplit=1)[0].removeprefix("^").strip(".").replace("*", "0")
    return {f"{old}.only": 9}


def test_renames_are_applied_in_order():
    assert rename_tensors({"a.w": 1}, ["a=b", "b=c"]) == {"c.w": 1}


@pytest.mark.parametrize("rename", ["a", "=b", "^=b", "a=b*", "*=**", "absent=b"])
def test_renames_that_say_nothing_are_refused(rename):
    with pytest.raises(UsageError, match=r"`names\.rename="):
        rename_tensors({"a.w": 1, "c.w": 2}, [rename])


def test_two_tensors_of_one_name_are_refused():
    with pytest.raises(MappingError, match="1 tensor gets a name that") as refused:
        rename_tensors({"a.w": 1, "b.w": 2}, ["a=b"])
    assert refused.value.names == ("b.w: also a.w",)


@pytest.mark.slow
@given(st.lists(st.from_regex(r"[a-z]{1,3}(\.[a-z]{1,3}){0,3}", fullmatch=True), unique=True))
def test_a_rename_and_its_inverse(names):
    tensors = {f"old.{name}": name for name in names} | {"old.q": "q"}
    assert rename_tensors(rename_tensors(tensors, ["^old=New"]), ["^New=old"]) == tensors


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("optimizer.state.exp_avg.decoder.layers.x", "optimizer"),
        ("chained_0.optimizer.param_groups", "chained_0"),
        ("app.optim.state.model.norm.weight.exp_avg", "app.optim"),
        ("optimizer_states.0.x", "optimizer_states"),
        ("rng_state/shard_0.0_1.1", "rng_state"),
        ("lr_scheduler.step", "lr_scheduler"),
        ("state.train_state.step", "state.train_state"),
    ],
)
def test_state_of_training(name, kind):
    assert is_training_state(name)
    assert find_training_kind(name) == kind


@pytest.mark.parametrize("name", [*MODEL, "decoder.layers.mlp.router.weight", "epochs.weight"])
def test_weights_are_no_state_of_training(name):
    assert not is_training_state(name)
