"""`verify_checkpoint`: casts, tolerances, tied heads and ignored names."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from ckpt_tool.common.errors import UsageError
from tests.support.merging import TINY, values, write_rank
from tests.support.verifying import merged, planted, the_mismatch, verify

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


# --- tied heads
def test_a_head_that_repeats_the_embedding_may_be_on_one_side_only(
    checkpoints: dict[str, Path],
) -> None:
    case = checkpoints["fsdp2_tied_w2"]
    for sides, where in (((case, case / "reference"), "checkpoint"),
                         ((case / "reference", case), "reference")):  # fmt: skip
        result = verify(*sides)
        assert (result.equal, result.num_compared) == (True, 26)
        assert list(result.tied) == [HEAD]
        assert f"only in the {where}, equal to {EMBEDDING}" in result.tied[HEAD]


def test_a_head_on_one_side_only_that_differs_from_the_embedding_is_a_difference(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    tied = checkpoints["fsdp2_tied_w2"] / "reference"

    def add_head(tensors: dict[str, torch.Tensor]) -> None:
        tensors[HEAD] = tensors[EMBEDDING].clone()
        tensors[HEAD][-1, -1] += 2.0**-20

    headed = planted(tied, tmp_path / "headed", add_head)
    extra = verify(headed, tied)
    assert (extra.equal, extra.unexpected, extra.missing, extra.tied) == (False, [HEAD], [], {})
    lacking = verify(tied, headed)
    assert (lacking.equal, lacking.unexpected, lacking.missing) == (False, [], [HEAD])


def test_a_head_is_not_optional_where_no_config_ties_it(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    source = checkpoints["fsdp2_w2"] / "reference"
    headless = planted(source, tmp_path / "headless", lambda tensors: tensors.pop(HEAD))
    repeated = planted(
        source, tmp_path / "repeated", lambda tensors: tensors.update({HEAD: tensors[EMBEDDING]})
    )
    assert verify(headless, repeated).missing == [HEAD]
    assert verify(repeated, headless).unexpected == [HEAD]


def test_a_head_is_not_optional_where_the_embedding_is_not_compared(
    checkpoints: dict[str, Path],
) -> None:
    """Nothing would then say that the head's values are those of the other side."""
    case = checkpoints["fsdp2_tied_w2"]
    result = verify(case, case / "reference", ignore=(EMBEDDING,))
    assert (result.equal, result.unexpected, result.tied) == (False, [HEAD], {})


# --- casts
def test_a_rounded_copy_is_equal_only_if_asked(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    case = checkpoints["fsdp2_w2"]
    rounded = merged(case, tmp_path / "bf16", dtype="bfloat16")
    for one, other in ((rounded, case), (case, rounded)):
        strict = verify(one, other)
        assert {m.kind for m in strict.mismatched} == {"dtype"}
        assert (strict.num_equal, len(strict.mismatched)) == (0, 27)
        side = "reference" if one == rounded else "checkpoint"
        assert {m.hint for m in strict.mismatched} == {
            f"equal after rounding the {side} to bfloat16"
        }
        lenient = verify(one, other, cast_reference=True)
        assert (lenient.equal, lenient.exact, lenient.num_equal) == (True, False, 27)


def test_a_cast_forgives_rounding_and_nothing_else(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    case = checkpoints["fsdp2_w2"]
    rounded = merged(case, tmp_path / "bf16", dtype="bfloat16")

    def one_ulp(tensors: dict[str, torch.Tensor]) -> None:
        tensors[Q_PROJ].view(torch.int16)[3, 5] += 1

    wrong = planted(rounded, tmp_path / "wrong", one_ulp)
    for sides in ((wrong, case), (case, wrong)):
        found = the_mismatch(verify(*sides, cast_reference=True))
        assert (found.name, found.kind, found.first_index) == (Q_PROJ, "values", (3, 5))
        assert found.stats is not None
        assert (found.stats.num_different, found.stats.max_ulp) == (1, 1)
    half = merged(case, tmp_path / "half", dtype="float16")
    neither = verify(half, rounded, cast_reference=True)  # none of the two is the finer one
    assert {m.kind for m in neither.mismatched} == {"dtype"}


# --- tolerance
@pytest.mark.parametrize(
    ("here", "there", "tolerance", "accepted"),
    [
        (1.5, 1.0, (0.5, 0.0), True),
        (1.5, 1.0, (0.499, 0.0), False),
        (1.5, 1.0, (0.0, 0.5), True),
        (1.5, 1.0, (0.0, 0.4), False),
        (1.0, 1.5, (0.0, 0.4), True),  # relative to the reference
        (-1.5, -1.0, (0.25, 0.25), True),
        (0.0, -0.0, (1e-30, 0.0), True),
        (0.0, -0.0, (0.0, 0.0), False),
        (float("nan"), 1.0, (1e30, 0.0), False),
        (1.0, float("nan"), (1e30, 1e30), False),
        (float("inf"), 1.0, (1e30, 0.0), False),
        (float("inf"), float("-inf"), (1.0, 1.0), False),
        (float("inf"), float("inf"), (1.0, 0.0), True),
        (float("nan"), float("nan"), (0.0, 0.0), True),
    ],
)
def test_a_tolerance_accepts_what_it_says(
    tmp_path: Path, here: float, there: float, tolerance: tuple[float, float], accepted: bool
) -> None:
    for side, value in (("ckpt", here), ("reference", there)):
        state = {"a.weight": values(4, 4), "b.weight": values(4, 4)}
        state["a.weight"][2, 1] = value
        write_rank(tmp_path / side, state, TINY)
    result = verify(tmp_path / "ckpt", tmp_path / "reference", *tolerance)
    same_bits = str(here) == str(there)
    assert (result.equal, result.exact) == (accepted, not any(tolerance))
    assert result.close == (["a.weight"] if accepted and not same_bits else [])
    if not accepted:
        found = the_mismatch(result)
        assert (found.name, found.kind, found.first_index) == ("a.weight", "values", (2, 1))


def test_a_tolerance_that_is_no_size_is_refused(checkpoints: dict[str, Path]) -> None:
    case = checkpoints["fsdp2_w2"]
    for flag, value in (("atol", -1e-3), ("rtol", float("nan")), ("atol", float("inf"))):
        with pytest.raises(UsageError, match=f"^{flag} "):
            verify(case, case, **{flag: value})


# --- what is left out
def test_ignored_names_are_those_on_the_hub_of_either_side(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    case = checkpoints["fsdp2_moe_w2"]
    expert = "model.layers.0.mlp.experts.3"

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{expert}.up_proj.weight"] += 1
        del tensors[f"{expert}.gate_proj.weight"]
        tensors[f"{expert}.extra.weight"] = torch.ones(2)

    other = planted(case / "reference", tmp_path / "other", change)
    found = verify(case, other)
    assert (len(found.missing), len(found.unexpected), len(found.mismatched)) == (1, 1, 1)
    result = verify(case, other, ignore=("*.experts.3.[eg]*", f"{expert}.up_proj.weight"))
    assert result.equal
    assert result.exact
    assert result.ignored == [
        f"{expert}.extra.weight",
        f"{expert}.gate_proj.weight",
        f"{expert}.up_proj.weight",
        "model.layers.1.mlp.experts.3.gate_proj.weight",
    ]


def test_nothing_left_to_compare_is_not_equal(checkpoints: dict[str, Path]) -> None:
    case = checkpoints["fsdp2_w2"]
    with pytest.raises(UsageError, match="leaves no tensor to compare"):
        verify(case, case / "reference", ignore=("model.*", "lm_head.*"))


def test_a_head_is_optional_where_one_of_two_configs_ties_it(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    case = checkpoints["fsdp2_tied_w2"]
    shutil.copytree(case / "actor", tmp_path / "actor")
    config = tmp_path / "actor" / "huggingface" / "config.json"
    said = json.loads(config.read_text())
    config.write_text(json.dumps(said | {"tie_word_embeddings": False}))
    assert verify(tmp_path / "actor", case / "reference").tied.keys() == {HEAD}
