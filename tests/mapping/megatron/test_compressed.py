"""How DeepSeek-V4's layers attend and choose experts, in each of the ways that a config says it."""

from pathlib import Path

import pytest

from ckpt_tool.common.errors import CkptError, MappingError
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.megatron.numbers import Numbers, read_numbers
from tests.support.deepseek_v4 import KINDS, LAYERS, PUBLISHED

LETTERS = {"sliding": "S", "heavily": "H", "compressed": "C"}


def numbers(**changes: object) -> Numbers:
    raw = {key: value for key, value in (PUBLISHED | changes).items() if value is not None}
    return read_numbers(ModelConfig(Path("model"), raw, {}))


def spell(kinds: tuple[str, ...]) -> str:
    """A letter for each kind, a small one where tokens have their experts in a table."""
    found = ""
    for kind in kinds:
        letter = LETTERS[kind.removeprefix("hash, ").partition("_")[0]]
        found += letter.lower() if kind.startswith("hash, ") else letter
    return found


#: What a config says of four layers, and what they are.
SAID = {
    "ratios, of what predicts further too": ({}, "shCH"),
    "ratios of the layers alone": ({"compress_ratios": [4, 4, 0, 128]}, "ccSH"),
    "as transformers saves it": (
        {
            "compress_ratios": None,
            "num_hash_layers": None,
            "layer_types": KINDS,
            "mlp_layer_types": ["hash_moe", "moe", "moe", "hash_moe"],
        },
        "sHCh",
    ),
    "both, which agree": ({"layer_types": KINDS}, "shCH"),
    "nothing": ({"compress_ratios": None, "num_hash_layers": None}, "hhhC"),
    "no tables": ({"num_hash_layers": 0}, "SHCH"),
}


@pytest.mark.parametrize(("said", "expected"), SAID.values(), ids=SAID.keys())
def test_of_which_kinds_layers_are(said: dict, expected: str) -> None:
    found = numbers(**said)
    assert spell(found.kinds) == expected
    assert found.moe == frozenset(range(LAYERS))


def test_sizes_are_those_of_streams_and_groups() -> None:
    sizes = numbers().sizes
    names = (
        "streams",
        "streams_in",
        "streams_out",
        "out_group",
        "out_rank",
        "csa_rate",
        "hca_rate",
    )
    assert [sizes[name] for name in names] == [2, 64, 8, 32, 12, 4, 128]
    rates = {"compressed_sparse_attention": 2, "heavily_compressed_attention": 8}
    assert [numbers(compress_rates=rates).sizes[name] for name in names[5:]] == [2, 8]
    assert numbers(compress_rate_csa=2).sizes["csa_rate"] == 2


def test_a_rate_that_is_said_twice_is_one() -> None:
    rates = {"compress_rates": {"compressed_sparse_attention": 2}}
    assert numbers(**rates, compress_rate_csa=2).sizes["csa_rate"] == 2
    with pytest.raises(CkptError, match="compressed_sparse_attention is 2, but compress_rate_csa"):
        numbers(**rates, compress_rate_csa=8)


@pytest.mark.parametrize(
    "said",
    [
        {"compress_ratios": [0, 128, 4]},
        {"compress_ratios": [0, 128, 4, 128, 0, 0]},
        {"compress_ratios": [0, 128, 4, 8]},
        {"layer_types": KINDS[::-1]},
        {"compress_ratios": None, "layer_types": KINDS[:3]},
        {"compress_ratios": None, "layer_types": ["full_attention"] * 4},
    ],
    ids=str,
)
def test_attention_that_cannot_be_is_refused(said: dict) -> None:
    with pytest.raises(MappingError, match="layer_types or compress_ratios is"):
        numbers(**said)


def test_what_predicts_further_does_not_compress() -> None:
    with pytest.raises(MappingError, match="multi-token prediction that compresses"):
        numbers(compress_ratios=[0, 128, 4, 128, 4])


@pytest.mark.parametrize("kinds", [["hash_moe"], ["moe", "moe", "moe", "dense"]], ids=str)
def test_experts_that_cannot_be_are_refused(kinds: list[str]) -> None:
    with pytest.raises(MappingError, match="mlp_layer_types is"):
        numbers(mlp_layer_types=kinds)


@pytest.mark.parametrize("said", [{"compress_ratios": ["a"]}, {"layer_types": [1] * 4}], ids=str)
def test_what_is_no_list_of_these_is_refused(said: dict) -> None:
    with pytest.raises(CkptError, match="a list of"):
        numbers(**said)
