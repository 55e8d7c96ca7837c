"""What a merge reads of ``config.json``, what it changes there, and which files it copies."""

import json
from pathlib import Path

import pytest

from ckpt_tool.common.errors import FormatError, UsageError
from ckpt_tool.mapping.config import load_config
from ckpt_tool.tensors.dtypes import BFLOAT16, FLOAT16, FLOAT32
from tests.support.saved import write_config


def written(config) -> dict:
    return json.loads(config.to_bytes())


@pytest.mark.parametrize(
    ("raw", "dtype"),
    [
        ({"dtype": "bfloat16"}, BFLOAT16),
        ({"torch_dtype": "bfloat16"}, BFLOAT16),
        ({"torch_dtype": "torch.bfloat16"}, BFLOAT16),
        ({"dtype": "float32", "torch_dtype": "bfloat16"}, FLOAT32),
        ({"text_config": {"dtype": "float16"}}, FLOAT16),
        ({"text_config": {"torch_dtype": "torch.float16"}}, FLOAT16),
        ({"dtype": "bfloat16", "text_config": {"dtype": "float32"}}, BFLOAT16),
        ({"dtype": None, "text_config": {"dtype": "float16"}}, FLOAT16),
        ({"dtype": None, "torch_dtype": "float16"}, FLOAT16),
        ({"vision_config": {"dtype": "float16"}}, None),
        ({"dtype": None}, None),
        ({"dtype": "auto"}, None),
        ({"dtype": 16, "text_config": "none"}, None),
        ({}, None),
    ],
    ids=str,
)
def test_dtype_is_read_wherever_versions_put_it(raw, dtype, tmp_path):
    assert write_config(tmp_path, **raw).dtype == dtype


@pytest.mark.parametrize(
    ("raw", "tied"),
    [
        ({"tie_word_embeddings": True}, True),
        ({"tie_word_embeddings": False}, False),
        ({"text_config": {"tie_word_embeddings": True}}, True),
        ({"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}, False),
        ({"tie_word_embeddings": None, "text_config": {"tie_word_embeddings": False}}, False),
        ({}, None),
        ({"model_type": "llama"}, None),
        *(
            ({"model_type": kind}, True)
            for kind in "gemma gemma2 gemma3 gpt2 cohere falcon smollm3 starcoder2".split()
        ),
        ({"model_type": "gemma2", "tie_word_embeddings": False}, False),
    ],
    ids=str,
)
def test_whether_the_head_is_tied(raw, tied, tmp_path):
    assert write_config(tmp_path, **raw).tied is tied


def test_text_part_is_the_nested_config_or_all_of_it(tmp_path):
    assert write_config(tmp_path, a=1).text == {"a": 1}
    assert write_config(tmp_path, a=1, text_config={"b": 2}).text == {"b": 2}
    assert write_config(tmp_path, a=1, text_config=None).text == {"a": 1, "text_config": None}


def test_architecture_is_the_first_named_or_the_changed_one(tmp_path):
    config = write_config(tmp_path, architectures=["A", "B"])
    assert config.architecture == "A"
    assert config.with_changes(architectures=["C"]).architecture == "C"
    assert write_config(tmp_path).architecture == ""
    assert write_config(tmp_path, architectures=None).architecture == ""
    assert write_config(tmp_path, architectures=[]).architecture == ""


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("top", [{}, {"tie_word_embeddings": True}, {"tie_word_embeddings": False}])
@pytest.mark.parametrize(
    "text", [{}, {"tie_word_embeddings": True}, {"tie_word_embeddings": False}]
)
def test_tying_is_written_at_both_levels(tied, top, text, tmp_path):
    # 4.57 ties by the nested value, whose absence means its own default; 5.23 by the top one.
    config = write_config(tmp_path, **top, text_config={"x": 1, **text}).with_tied(tied)
    assert written(config)["tie_word_embeddings"] is tied
    assert written(config)["text_config"] == {"x": 1, "tie_word_embeddings": tied}


@pytest.mark.parametrize("tied", [True, False, None])
def test_tying_a_text_model_is_written_where_it_is_another(tied, tmp_path):
    config = write_config(tmp_path, tie_word_embeddings=True)
    assert written(config.with_tied(tied)) == {"tie_word_embeddings": tied is not False}


@pytest.mark.parametrize("said", [[], {}, [1], "x"])
def test_what_is_no_word_on_tied_heads_is_replaced_by_one(tmp_path, said):
    config = write_config(tmp_path, tie_word_embeddings=said)
    assert written(config.with_tied(True)) == {"tie_word_embeddings": True}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"dtype": "float32"}, {"dtype": "bfloat16"}),
        ({"torch_dtype": "float32"}, {"torch_dtype": "bfloat16"}),
        ({"torch_dtype": "torch.float32"}, {"torch_dtype": "bfloat16"}),
        (
            {"dtype": "float32", "torch_dtype": "float32"},
            {"dtype": "bfloat16", "torch_dtype": "bfloat16"},
        ),
        ({}, {"torch_dtype": "bfloat16"}),
        (
            {"dtype": "float32", "text_config": {"dtype": "float32", "x": 1}},
            {"dtype": "bfloat16", "text_config": {"dtype": "bfloat16", "x": 1}},
        ),
        (
            {"dtype": "float32", "text_config": {"x": 1}},
            {"dtype": "bfloat16", "text_config": {"x": 1}},
        ),
        (
            {"text_config": {"torch_dtype": "float32"}},
            {"torch_dtype": "bfloat16", "text_config": {"torch_dtype": "bfloat16"}},
        ),
        (
            {"dtype": "float32", "vision_config": {"dtype": "float32"}},
            {"dtype": "bfloat16", "vision_config": {"dtype": "bfloat16"}},
        ),
        (
            {"dtype": "bfloat16", "text_config": {"dtype": "float32"}},
            {"dtype": "bfloat16", "text_config": {"dtype": "bfloat16"}},
        ),
    ],
    ids=str,
)
def test_dtype_is_written_at_every_level_that_names_it(raw, expected, tmp_path):
    found = written(write_config(tmp_path, **raw).with_dtype(BFLOAT16))
    for part in (found, *(v for v in found.values() if isinstance(v, dict))):
        if "dtype" in part:  # transformers 4 and vLLM read the old key
            assert part.pop("torch_dtype") == part["dtype"]
    expected = json.loads(json.dumps(expected))
    for part in (expected, *(v for v in expected.values() if isinstance(v, dict))):
        if "dtype" in part:
            part.pop("torch_dtype", None)
    assert found == expected


def test_changes_of_dtype_and_tying_add_up(tmp_path):
    raw = {"dtype": "float32", "tie_word_embeddings": False, "text_config": {"dtype": "float32"}}
    config = write_config(tmp_path, **raw).with_tied(True).with_dtype(BFLOAT16)
    found = written(config.with_changes(architectures=["A"]))
    assert (found["dtype"], found["tie_word_embeddings"]) == ("bfloat16", True)
    assert (found["text_config"]["dtype"], found["text_config"]["tie_word_embeddings"]) == (
        "bfloat16",
        True,
    )
    assert found["architectures"] == ["A"]
    assert config.raw == raw


ODD_BYTES = '{"torch_dtype":"bfloat16",\n\n  "tie_word_embeddings": true, "ä": 1.50e1}'.encode()


def test_unchanged_config_is_written_byte_for_byte(tmp_path):
    (tmp_path / "config.json").write_bytes(ODD_BYTES)
    config = load_config(tmp_path)
    assert config.to_bytes() == ODD_BYTES
    assert config.with_tied(True).with_tied(None).with_dtype(BFLOAT16).to_bytes() == ODD_BYTES
    assert config.with_dtype(None).to_bytes() == ODD_BYTES
    assert config.with_changes(torch_dtype="bfloat16").to_bytes() == ODD_BYTES


def test_changed_config_keeps_what_is_not_ascii(tmp_path):
    (tmp_path / "config.json").write_bytes(ODD_BYTES)
    changed = load_config(tmp_path).with_tied(False).to_bytes()
    assert '"ä": 15.0' in changed.decode()
    assert json.loads(changed) == {"torch_dtype": "bfloat16", "tie_word_embeddings": False, "ä": 15}


def test_config_must_be_there(tmp_path):
    with pytest.raises(UsageError, match=r"config\.json: no such file") as refused:
        load_config(tmp_path)
    assert "`config`" in refused.value.hint
    with pytest.raises(UsageError, match=r"config\.json: no such file"):
        load_config(Path(tmp_path, "none"))


def test_what_may_have_been_meant_for_its_folder_is_said(tmp_path):
    """The file itself, and a repository as the Hub's cache has it."""
    kept = tmp_path / "models--ORG--NAME" / "snapshots" / "abc"
    kept.mkdir(parents=True)
    (kept / "config.json").write_text("{}")
    for named in (kept / "config.json", tmp_path / "models--ORG--NAME"):
        with pytest.raises(UsageError) as refused:
            load_config(named)
        assert refused.value.hint.endswith(f"config.json: {kept}")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "not JSON"),
        (b"", "not JSON"),
        (b'{"a": "\xff"}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'"x"', "not a JSON object"),
    ],
    ids=["cut", "empty", "not UTF-8", "too deep", "list", "string"],
)
def test_damaged_config_is_a_format_error(content, reason, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(FormatError, match=reason):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("said", "architecture"),
    [
        ("FSDPLlamaForCausalLM", "LlamaForCausalLM"),
        ("LlamaForCausalLM", "LlamaForCausalLM"),
        *((name, "") for name in ("PeftModelForCausalLM", "PeftModel", "PeftMixedModel",
          "OptimizedModule", "FullyShardedDataParallel", "DistributedDataParallel")),
        ("Fsdp2Model", "Fsdp2Model"),
    ],
)  # fmt: skip
def test_wrappers_are_no_classes(said, architecture, tmp_path):
    config = write_config(tmp_path, architectures=[said])
    assert (config.said_architecture, config.architecture) == (said, architecture)


def test_keys_can_be_left_out(tmp_path):
    config = write_config(tmp_path, a=1, b=2).with_changes(c=3).without("a", "c")
    assert written(config) == {"b": 2}
    assert config.raw == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("raw", "ties"),
    [
        ({"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}, True),
        ({"tie_word_embeddings": True, "text_config": {"tie_word_embeddings": False}}, True),
        ({"tie_word_embeddings": False}, False),
        ({}, False),
    ],
    ids=str,
)
def test_whether_any_level_ties_the_head(raw, ties, tmp_path):
    assert write_config(tmp_path, **raw).ties_somewhere is ties


ABSURD = [
    ("num_hidden_layers", 2**31),
    ("num_hidden_layers", 100_001),
    ("num_hidden_layers", -1),
    ("num_hidden_layers", 2.0),
    ("num_hidden_layers", True),
    ("num_experts", 2**31),
    ("n_routed_experts", 10**400),
    ("num_local_experts", float("inf")),
    ("num_nextn_predict_layers", 10**6),
    ("num_attention_heads", 2**31),
    ("vocab_size", float("nan")),
]


@pytest.mark.parametrize("level", ["", "text_config", "vision_config"])
@pytest.mark.parametrize(("key", "value"), ABSURD)
def test_sizes_that_no_model_has_are_refused_by_file_and_key(key, value, level, tmp_path):
    raw = {key: value}
    (tmp_path / "config.json").write_text(json.dumps({level: raw} if level else raw))
    with pytest.raises(FormatError, match=rf"config\.json: {key} is .*, expected a size up to"):
        load_config(tmp_path)


def test_sizes_of_some_families_are_lists_and_objects(tmp_path):
    raw = {
        "num_attention_heads": [1, 2, 5, 8],
        "num_hidden_layers": {"vision": 5},
        "head_dim": None,
    }
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert load_config(tmp_path).raw == raw


def test_text_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "config.json").write_bytes(b'{"model_type": "llama", "name": "\\ud800"}')
    with pytest.raises(FormatError, match=r"name: .* has half of a surrogate pair"):
        load_config(tmp_path)
