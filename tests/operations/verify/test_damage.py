"""`verify_checkpoint` misses nothing: not a bit of a rank file, and damage is never a verdict."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_tool import open_checkpoint
from ckpt_tool.common.errors import CheckpointError, CkptError
from ckpt_tool.readers.base import Checkpoint
from ckpt_tool.tensors.geometry import dot
from tests.support.verifying import flipped, held_by, merged, save_bins, verify

FLIPPED = ("fsdp2_moe_w2", "fsdp1_nomesh_w3", "fsdp2_tp_w4", "fsdp2_bf16_w2")
EXPERT = 24  # rows of gate_proj and of up_proj in an expert of `qwen3_moe`


@pytest.fixture(scope="module")
def copies(
    checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Checkpoint]:
    """Checkpoints whose rank files may be changed, if they are changed back."""
    folder = tmp_path_factory.mktemp("flipped")
    for case in FLIPPED:
        shutil.copytree(checkpoints[case] / "actor", folder / case)
    return {case: open_checkpoint(folder / case) for case in FLIPPED}


def on_hub(name: str, index: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """Where an element of a fused expert lies on the Hub; other elements stay where they are."""
    stem, _, kind = name.rpartition(".")
    if kind not in ("gate_up_proj", "down_proj") or not stem.endswith(".experts"):
        return name, index
    expert, row, column = index
    if kind == "gate_up_proj":
        kind, row = ("gate_proj", "up_proj")[row // EXPERT], row % EXPERT
    return f"{stem}.{expert}.{kind}.weight", (row, column)


@pytest.mark.parametrize("case", FLIPPED)
@settings(max_examples=25)
@given(data=st.data())
def test_no_flipped_bit_of_a_rank_file_goes_unnoticed(
    checkpoints: dict[str, Path], copies: dict[str, Checkpoint], case: str, data: st.DataObject
) -> None:
    entries = copies[case].entries
    name = data.draw(st.sampled_from([n for n, e in entries.items() if not [*e.replicas()]]))
    entry = entries[name]
    holding = data.draw(st.sampled_from([h for h in entry.holdings if h.box.volume]))
    inside = tuple(data.draw(st.integers(0, size - 1)) for size in holding.box.sizes)
    bit = data.draw(st.integers(0, 8 * entry.dtype.itemsize - 1))
    offset = (
        holding.region.offset
        + dot(inside, holding.region.strides) * entry.dtype.itemsize
        + bit // 8
    )
    with flipped(holding.region.path, offset, bit % 8):
        result = verify(copies[case].path, checkpoints[case] / "reference")
    index = tuple(o + i for o, i in zip(holding.box.offsets, inside, strict=True))
    (found,) = result.mismatched  # the one tensor: every earlier flip was undone
    assert (found.name, found.first_index) == on_hub(name, index)
    assert (found.rank, found.source) == (holding.rank, holding.region.path)
    assert found.stats is not None
    assert found.stats.num_different == 1
    assert not result.equal


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("fsdp2_tp_w4", "model.layers.0.input_layernorm.weight"),  # whole on both ranks of tp
        ("fsdp2_buffers_w2", "positions"),  # buffers are whole everywhere
    ],
)
def test_ranks_that_contradict_each_other_are_no_checkpoint(
    checkpoints: dict[str, Path], tmp_path: Path, case: str, name: str
) -> None:
    actor = tmp_path / "actor"
    shutil.copytree(checkpoints[case] / "actor", actor)
    copy = held_by(actor, name, 1)
    with flipped(copy.region.path, copy.region.offset, 0):
        for sides in ((actor, checkpoints[case]), (checkpoints[case], actor)):
            with pytest.raises(CheckpointError) as error:
                verify(*sides)
            assert [problem.where for problem in error.value.problems] == [name]


# --- damage
def ranks(case: Path, out: Path) -> Path:
    shutil.copytree(case / "actor", out)
    return out


def sharded(case: Path, out: Path) -> Path:
    return merged(case, out, max_shard_size="30KB")


FORMATS = [ranks, sharded, save_bins]


def essential(folder: Path) -> list[Path]:
    """The files without which a checkpoint is not whole: weights, and the index that lists them."""
    patterns = ("*.pt", "*.safetensors", "*.bin", "*.index.json")
    return sorted(path for pattern in patterns for path in folder.glob(pattern))


@pytest.mark.parametrize("build", FORMATS)
def test_a_truncated_file_is_never_equal(
    checkpoints: dict[str, Path], tmp_path: Path, build: Callable[[Path, Path], Path]
) -> None:
    whole = checkpoints["fsdp2_w2"]
    broken = build(whole, tmp_path / "broken")
    assert verify(broken, whole).equal
    assert len(essential(broken)) >= 2
    for path in essential(broken):
        content = path.read_bytes()
        size = len(content.rstrip(b"\n"))
        for kept in (0, 1, 8, size // 3, size - 4096, size - 1):
            path.write_bytes(content[: max(kept, 0)])
            for sides in ((broken, whole), (whole, broken), (broken, broken)):
                with pytest.raises(CkptError):
                    verify(*sides)
        path.write_bytes(content)
    assert verify(broken, whole).equal


@pytest.mark.parametrize("build", FORMATS)
def test_a_missing_file_is_never_equal(
    checkpoints: dict[str, Path], tmp_path: Path, build: Callable[[Path, Path], Path]
) -> None:
    whole = checkpoints["fsdp2_w2"]
    broken = build(whole, tmp_path / "broken")
    for path in essential(broken):
        if path.name.endswith(".index.json"):
            continue
        path.rename(tmp_path / "away")
        for sides in ((broken, whole), (whole, broken), (broken, broken)):
            with pytest.raises(CkptError):
                verify(*sides)
        (tmp_path / "away").rename(path)
    assert verify(broken, whole).equal


@pytest.mark.parametrize("build", [sharded, save_bins])
def test_files_without_their_index_are_never_equal_to_themselves_less_one(
    checkpoints: dict[str, Path], tmp_path: Path, build: Callable[[Path, Path], Path]
) -> None:
    """Their names say how many there should be (``-of-00003``)."""
    broken = build(checkpoints["fsdp2_w2"], tmp_path / "broken")
    index, *_ = broken.glob("*.index.json")
    index.unlink()
    essential(broken)[-1].unlink()
    with pytest.raises(CkptError):
        verify(broken, broken)


def test_one_rank_of_several_is_not_a_checkpoint(checkpoints: dict[str, Path]) -> None:
    folder = checkpoints["fsdp2_w2"] / "actor"
    one = folder / "model_world_size_2_rank_0.pt"
    with pytest.raises(CkptError):
        verify(one, checkpoints["fsdp2_w2"] / "reference")


@settings(max_examples=30)
@given(data=st.data())
def test_no_shorter_file_is_a_checkpoint(
    checkpoints: dict[str, Path], copies: dict[str, Checkpoint], data: st.DataObject
) -> None:
    actor = copies["fsdp1_nomesh_w3"].path
    path = data.draw(st.sampled_from(sorted(actor.glob("*.pt"))))
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    try:
        with pytest.raises(CkptError):
            verify(actor, checkpoints["fsdp1_nomesh_w3"] / "reference")
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model_type": "qwen2"'])
def test_a_damaged_config_is_no_verdict(
    checkpoints: dict[str, Path], tmp_path: Path, text: str
) -> None:
    actor = ranks(checkpoints["fsdp2_w2"], tmp_path / "actor")
    (actor / "huggingface" / "config.json").write_text(text)
    with pytest.raises(CkptError, match=r"config\.json"):
        verify(actor, checkpoints["fsdp2_w2"] / "reference")


def test_a_file_that_the_index_does_not_list_as_it_is(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    broken = sharded(checkpoints["fsdp2_w2"], tmp_path / "broken")
    path = broken / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    name, file = next(iter(index["weight_map"].items()))
    other = next(f for f in index["weight_map"].values() if f != file)
    index["weight_map"][name] = other
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="problem"):
        verify(broken, checkpoints["fsdp2_w2"])
