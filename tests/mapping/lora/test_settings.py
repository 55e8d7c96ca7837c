"""Rank and alpha, from the files beside a checkpoint."""

import json
from math import sqrt

import pytest

from ckpt_tool.common.errors import FormatError, UsageError
from ckpt_tool.mapping.lora.options import LoraOptions
from ckpt_tool.mapping.lora.settings import Settings, read_settings

META, ADAPTER = "lora_train_meta.json", "lora_adapter/adapter_config.json"


def written(folder, **files):
    for name, content in files.items():
        path = folder / {"meta": META, "adapter": ADAPTER}[name]
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return [folder / "elsewhere", folder]


def test_training_meta_comes_first(tmp_path):
    meta = {"r": 8, "lora_alpha": 16, "task_type": "TaskType.CAUSAL_LM"}
    adapter = {"r": 8, "lora_alpha": 16, "use_rslora": True}
    found = read_settings(written(tmp_path, meta=meta, adapter=adapter), None)
    assert (found.alpha, found.rank, found.task_type) == (16.0, 8, "CAUSAL_LM")
    assert found.source == META
    assert found.scale("q", 8) == 16 / sqrt(8)  # what only the other file says counts too


def test_the_adapter_of_verl_0_4(tmp_path):
    found = read_settings(written(tmp_path, adapter={"r": 4, "lora_alpha": 10}), 10.0)
    assert (found.alpha, found.source) == (10.0, "adapter_config.json")
    assert found.scale("q", 4) == 2.5


def test_alpha_from_the_command_where_nothing_says_it(tmp_path):
    found = read_settings(written(tmp_path), 12.0)
    assert (found.alpha, found.source, found.rank) == (12.0, "`lora.alpha`", None)


def test_alpha_0_is_what_a_merger_wrote_that_did_not_know_it(tmp_path):
    folders = written(tmp_path, adapter={"r": 4, "lora_alpha": 0})
    with pytest.raises(UsageError, match="or 0, which would fuse nothing"):
        read_settings(folders, None)
    assert read_settings(folders, 8.0).alpha == 8.0


@pytest.mark.parametrize(
    ("files", "alpha", "message"),
    [
        ({}, None, "neither lora_train_meta.json nor lora_adapter/adapter_config.json in"),
        ({"meta": {"r": 8}}, None, "says nothing of alpha"),
        ({"meta": {"lora_alpha": 8}}, 9.0, "alpha is 8 by .*, 9 by `lora.alpha`"),
        ({"meta": {"lora_alpha": 8}, "adapter": {"lora_alpha": 9}}, None, "alpha is 8 by .*, 9 by"),
        ({"adapter": {"peft_type": "VERA"}}, 1.0, "adapters of VERA, expected LORA"),
        ({"adapter": {"lora_alpha": 1, "use_qalora": True}}, None, "LoRA with use_qalora"),
        ({"adapter": {"alora_invocation_tokens": [1]}}, 1.0, "alora_invocation_tokens"),
    ],
)
def test_what_is_unknown_or_contradicts(tmp_path, files, alpha, message):
    with pytest.raises(UsageError, match=message):
        read_settings(written(tmp_path, **files), alpha)


@pytest.mark.parametrize("content", ["{", "[1]", '{"alpha_pattern": {"(": 1}}'])
def test_damaged_files(tmp_path, content):
    with pytest.raises(FormatError, match=r"adapter_config\.json"):
        read_settings(written(tmp_path, adapter=content), 1.0)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("model.layers.0.q_proj", (4.0, 3)),
        ("q_proj", (4.0, 3)),
        ("model.layers.0.xq_proj", (10.0, 8)),  # the end of a name begins at a dot
        ("model.layers.1.v_proj", (6.0, 8)),
        ("model.layers.11.v_proj", (10.0, 8)),
    ],
)
def test_patterns_match_as_peft_matches_them(module, expected):
    config = {
        "rank_pattern": {"q_proj": 3},
        "alpha_pattern": {"q_proj": 4, r"layers\.1\.v_proj": 6},
    }
    found = Settings(10.0, "x", 8, None, config)
    assert (found.scale(module, 1), found.expected_rank(module)) == expected


ABSURD = [
    ("lora_alpha", float("nan"), "a finite number"),
    ("lora_alpha", float("inf"), "a finite number"),
    ("lora_alpha", 1e308, "a finite number up to 1e\\+06"),
    ("lora_alpha", 10**400, "a finite number"),
    ("lora_alpha", "16", "a finite number"),
    ("lora_alpha", True, "a finite number"),
    ("r", 0, "a rank from 1 to 1,000,000"),
    ("r", -1, "a size up to"),
    ("r", 2**31, "a size up to"),
    ("r", 8.5, "a size up to"),
    ("r", "8", "a finite number"),
    ("task_type", 1, "a text"),
    ("peft_type", ["LORA"], "a text"),
    ("target_modules", 1, "a list of texts"),
    ("target_modules", [1], "a list of texts"),
    ("target_parameters", "w", "a list of texts"),
    ("trainable_token_indices", [-1], "a list of sizes"),
    ("trainable_token_indices", {"embed": 5}, "a list of sizes"),
    ("rank_pattern", ["q"], "an object"),
    ("rank_pattern", {"q": 0}, "has rank 0"),
    ("rank_pattern", {"q": "8"}, "a size"),
    ("alpha_pattern", {"q": float("nan")}, "a finite number"),
    ("alpha_pattern", {"q": 1, "v": [1]}, "a finite number"),
    ("alpha_pattern", {"q": None}, "has no alpha"),
    ("alpha_pattern", {"q": 1, ".*": 0}, r"'\.\*' has alpha 0, expected a finite number other"),
    ("lora_alpha", -1e308, "a finite number up to 1e\\+06"),
    ("rank_pattern", {"q": None}, "a size"),
    ("trainable_token_indices", {"embed": None}, "has no rows"),
    ("target_modules", "(", "no regular expression"),
    ("exclude_modules", "a{5000}", "repeats more than"),
]


@pytest.mark.parametrize(("key", "value", "said"), ABSURD)
def test_numbers_and_types_that_are_none_are_refused_by_file_and_key(tmp_path, key, value, said):
    with pytest.raises(FormatError, match=said) as refused:
        read_settings(written(tmp_path, adapter={"lora_alpha": 1, "r": 1} | {key: value}), None)
    assert refused.value.path == str(tmp_path / ADAPTER)


BOOLEANS = ("use_rslora", "use_dora", "fan_in_fan_out", "lora_bias", "use_qalora")


@pytest.mark.parametrize("key", BOOLEANS)
@pytest.mark.parametrize("value", ["false", "true", "", [0], [], {}, 2, 0.0])
def test_a_setting_that_is_no_boolean_is_refused(tmp_path, key, value):
    with pytest.raises(FormatError, match=f"{key} is .*, expected true or false"):
        read_settings(written(tmp_path, adapter={"lora_alpha": 1, key: value}), None)


@pytest.mark.parametrize(("value", "scale"), [(True, 4), (1, 4), (False, 2), (0, 2), (None, 2)])
def test_booleans_that_peft_reads_as_we_do(tmp_path, value, scale):
    adapter = {"lora_alpha": 8, "use_rslora": value}
    assert read_settings(written(tmp_path, adapter=adapter), None).scale("q", 4) == scale


NO_ALPHAS = [float("nan"), float("inf"), -float("inf"), 1e308, -1e308, 0, -0.0]


@pytest.mark.parametrize("alpha", NO_ALPHAS)
def test_an_alpha_that_was_given_is_one_that_a_file_may_say(tmp_path, alpha):
    with pytest.raises(UsageError, match=r"`lora.alpha=.*: expected a finite number other than 0"):
        LoraOptions(alpha=alpha)
    adapter = {"lora_alpha": 1, "alpha_pattern": {"q": alpha}}
    with pytest.raises(FormatError, match=r"alpha_pattern.* alpha 0|q is .*finite number"):
        read_settings(written(tmp_path, adapter=adapter), None)
    with pytest.raises((FormatError, UsageError), match=r"or 0, which would|a finite number"):
        read_settings(written(tmp_path, adapter={"lora_alpha": alpha}), None)


def test_an_alpha_below_0_takes_the_update_away_wherever_it_is_said(tmp_path):
    adapter = {"lora_alpha": -8, "alpha_pattern": {"q": -2, "v": 1e6}}
    found = read_settings(written(tmp_path, adapter=adapter), None)
    assert [found.scale(name, 4) for name in ("k", "q", "v")] == [-2, -0.5, 250_000]
    given = read_settings(written(tmp_path, adapter={"r": 4}), LoraOptions(alpha=-8).alpha)
    assert given.scale("k", 4) == -2


def test_a_pattern_that_takes_for_ever_does_not(tmp_path):
    patterns = {"rank_pattern": {"(a+)+b": 8}, "alpha_pattern": {"((a|a)*)*b": 4}}
    found = read_settings(written(tmp_path, adapter={"lora_alpha": 1, **patterns}), None)
    name = "a" * 200
    assert (found.expected_rank(name), found.scale(name, 2)) == (None, 0.5)
    assert (found.expected_rank(name + "b"), found.scale(name + "b", 2)) == (8, 2.0)
