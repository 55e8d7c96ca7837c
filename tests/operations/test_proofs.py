"""Proofs on bytes: copies on several ranks agree, and a tied head is its embedding."""

import shutil
from pathlib import Path

import pytest
import torch

from ckpt_tool.common.errors import CheckpointError, MappingError, UsageError
from ckpt_tool.common.parallel import ALONE, Team
from ckpt_tool.common.progress import NoProgress
from ckpt_tool.operations.replicas import prove_replicas
from ckpt_tool.operations.tied_head import TiedHead, find_tied_head
from ckpt_tool.readers import Checkpoint, open_checkpoint
from tests.support.backed import distinct
from tests.support.saved import write_config

NORM = "model.layers.1.post_attention_layernorm.weight"
TEAM = Team(ALONE, 2, NoProgress())
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def damaged(source: Path, target: Path, damages: list[tuple[str, int, int]]) -> Checkpoint:
    """A copy of the checkpoint with one bit flipped per (tensor, rank, element of its block)."""
    shutil.copytree(source / "actor", target)
    checkpoint = open_checkpoint(target)
    for name, rank, element in damages:
        entry = checkpoint.entries[name]
        (holding,) = (h for h in entry.holdings if h.rank == rank)
        with open(holding.region.path, "r+b") as file:
            file.seek(holding.region.offset + element * entry.dtype.itemsize)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 1]))
    return checkpoint


def differing(checkpoint: Checkpoint, *, recorded_too: bool) -> dict[str, str]:
    """What `prove_replicas` says, by tensor; a tensor with two problems is not expected."""
    with pytest.raises(CheckpointError) as refused:
        prove_replicas(checkpoint, recorded_too, TEAM)
    assert {problem.kind for problem in refused.value.problems} == {"replica"}
    found = {problem.where: problem.message for problem in refused.value.problems}
    assert len(found) == len(refused.value.problems)
    said = "1 copy differs" if len(found) == 1 else f"{len(found)} copies differ"
    assert f"{said} between ranks" in refused.value.message
    return found


@pytest.mark.parametrize("recorded_too", [False, True])
@pytest.mark.parametrize(
    "case", ["fsdp2_buffers_w2", "fsdp1_hsdp_w4", "fsdp2_hsdp_w4", "fsdp2_tp_w4", "fsdp2_w3"]
)
def test_copies_that_agree_pass(case, recorded_too, checkpoints):
    checkpoint = open_checkpoint(checkpoints[case] / "actor")
    prove_replicas(checkpoint, recorded_too, TEAM)


@pytest.mark.parametrize(
    ("name", "element"),
    [("positions", 7), ("scale", 0), ("mask", 1), ("layers.0.history", 11), ("steps", 0)],
)
@pytest.mark.parametrize("recorded_too", [False, True])
def test_buffers_that_differ_are_named(name, element, recorded_too, checkpoints, tmp_path):
    source = checkpoints["fsdp2_buffers_w2"]
    checkpoint = damaged(source, tmp_path / "x", [(name, 1, element)])
    box = str(checkpoint.entries[name].holdings[0].box)
    message = f"rank 1 differs from rank 0 at element {element} of {box}"
    assert differing(checkpoint, recorded_too=recorded_too) == {name: message}


def test_every_copy_that_differs_is_listed_with_its_first_element(checkpoints, tmp_path):
    damages = [("positions", 1, 9), ("positions", 1, 3), ("scale", 0, 0)]
    checkpoint = damaged(checkpoints["fsdp2_buffers_w2"], tmp_path / "x", damages)
    found = differing(checkpoint, recorded_too=False)
    assert sorted(found) == ["positions", "scale"]
    assert "element 3 of" in found["positions"]


@pytest.mark.parametrize("case", ["fsdp1_hsdp_w4", "fsdp2_hsdp_w4"])
def test_copies_that_the_mesh_records_are_read_when_asked_for(case, checkpoints, tmp_path):
    checkpoint = damaged(checkpoints[case], tmp_path / "x", [(EMBEDDING, 3, 5)])
    prove_replicas(checkpoint, False, TEAM)
    message = "rank 3 differs from rank 1 at element 5 of [49:97, 0:32]"
    assert differing(checkpoint, recorded_too=True) == {EMBEDDING: message}


@pytest.mark.parametrize("recorded_too", [False, True])
def test_norms_under_tensor_parallelism_are_always_compared(recorded_too, checkpoints, tmp_path):
    checkpoint = damaged(checkpoints["fsdp2_tp_w4"], tmp_path / "x", [(NORM, 3, 2)])
    message = "rank 3 differs from rank 2 at element 2 of [16:32]"
    assert differing(checkpoint, recorded_too=recorded_too) == {NORM: message}


class Recorded:
    def __init__(self) -> None:
        self.phases: list[tuple[str, int]] = []
        self.done = 0

    def start(self, what: str, total: int) -> None:
        self.phases.append((what, total))

    def advance(self, amount: int) -> None:
        self.done += amount


def test_only_what_is_compared_is_announced(checkpoints):
    hsdp = open_checkpoint(checkpoints["fsdp2_hsdp_w4"] / "actor")
    progress = Recorded()
    prove_replicas(hsdp, False, Team(ALONE, 1, progress))
    assert progress.phases == []
    prove_replicas(hsdp, True, Team(ALONE, 1, progress))
    total = sum(entry.nbytes for entry in hsdp.entries.values())
    assert progress.phases == [("replicas", total)]
    assert progress.done == total


DROPPED = TiedHead(True, dropped=True, name=HEAD, embedding=EMBEDDING)
HEADS = ("equal", "aliased", "different", "absent")
#: (what config.json says, the flag) -> what becomes of each of HEADS
TABLE = {
    (True, None): (DROPPED, DROPPED, MappingError, True),
    (True, True): (DROPPED, DROPPED, MappingError, True),
    (True, False): (UsageError, UsageError, False, UsageError),
    (False, None): (False, False, False, False),
    (False, True): (DROPPED, DROPPED, MappingError, True),
    (False, False): (False, False, False, False),
    (None, None): (None, None, None, None),
    (None, True): (DROPPED, DROPPED, MappingError, True),
    (None, False): (False, False, False, False),
}


def model(folder: Path, head: str, embedding: str = EMBEDDING) -> Checkpoint:
    """A model file with an embedding and this kind of head."""
    weight = distinct((6, 4))
    tensors = {"model.norm.weight": distinct((4,)), embedding: weight}
    if head == "different":
        tensors[HEAD] = weight.clone()
        tensors[HEAD][5, 3] += 1
    elif head != "absent":
        tensors[HEAD] = weight if head == "aliased" else weight.clone()
    torch.save(tensors, folder / "model.pt")
    return open_checkpoint(folder / "model.pt")


def config_saying(folder: Path, tied: bool | None):
    said = {} if tied is None else {"tie_word_embeddings": tied}
    return write_config(folder, model_type="llama", **said)


@pytest.mark.parametrize(
    ("said", "flag", "head", "expected"),
    [
        (said, flag, head, expected)
        for (said, flag), row in TABLE.items()
        for head, expected in zip(HEADS, row, strict=True)
    ],
)
def test_head_is_dropped_kept_or_refused(said, flag, head, expected, tmp_path):
    checkpoint, config = model(tmp_path, head), config_saying(tmp_path, said)
    if isinstance(expected, type):
        with pytest.raises(expected) as refused:
            find_tied_head(checkpoint, config, flag, TEAM)
        assert (HEAD in refused.value.message) == (head != "absent")
        assert ("tie_word_embeddings" in refused.value.message) == (flag is not None)
    elif isinstance(expected, TiedHead):
        assert find_tied_head(checkpoint, config, flag, TEAM) == expected
    else:
        found = find_tied_head(checkpoint, config, flag, TEAM)
        assert (found.tied, found.dropped) == (expected, False)


def test_shared_storage_is_equal_without_reading(tmp_path):
    checkpoint = model(tmp_path, "aliased")
    (tmp_path / "model.pt").unlink()
    assert find_tied_head(checkpoint, config_saying(tmp_path, True), None, TEAM) == DROPPED


@pytest.mark.parametrize(
    "embedding",
    [
        "model.language_model.embed_tokens.weight",
        "transformer.wte.weight",
        "transformer.word_embeddings.weight",
        "gpt_neox.embed_in.weight",
    ],
)
def test_embedding_is_found_under_the_names_families_give_it(embedding, tmp_path):
    checkpoint = model(tmp_path, "equal", embedding)
    found = find_tied_head(checkpoint, config_saying(tmp_path, True), None, TEAM)
    assert found == TiedHead(True, dropped=True, name=HEAD, embedding=embedding)


@pytest.mark.parametrize("said", [False, None])
def test_head_that_nothing_ties_is_not_read(said, tmp_path):
    checkpoint = model(tmp_path, "equal")
    (tmp_path / "model.pt").unlink()
    assert find_tied_head(checkpoint, config_saying(tmp_path, said), None, TEAM) == TiedHead(said)


@pytest.mark.parametrize("said", [False, None])
def test_untied_head_may_have_a_shape_of_its_own(said, tmp_path):
    torch.save({EMBEDDING: distinct((6, 4)), HEAD: distinct((7, 4))}, tmp_path / "model.pt")
    checkpoint, config = open_checkpoint(tmp_path / "model.pt"), config_saying(tmp_path, said)
    assert find_tied_head(checkpoint, config, None, TEAM) == TiedHead(said)


@pytest.mark.parametrize(
    "other",
    [distinct((7, 4), torch.float16), distinct((6, 4), torch.bfloat16)],
    ids=["shape", "dtype"],
)
def test_tied_head_of_another_shape_or_dtype_is_refused(other, tmp_path):
    weight = distinct((6, 4), torch.float16)  # the same bits as `other`
    torch.save({EMBEDDING: weight, HEAD: other}, tmp_path / "model.pt")
    checkpoint, config = open_checkpoint(tmp_path / "model.pt"), config_saying(tmp_path, True)
    with pytest.raises(MappingError, match=HEAD):
        find_tied_head(checkpoint, config, None, TEAM)
    assert find_tied_head(checkpoint, config, False, TEAM).tied is False


def test_sharded_head_is_compared_with_the_embedding(checkpoints, tmp_path):
    config = config_saying(tmp_path, True)
    tied = open_checkpoint(checkpoints["fsdp2_tied_w2"] / "actor")
    assert find_tied_head(tied, config, None, TEAM) == DROPPED
    untied = open_checkpoint(checkpoints["fsdp2_w2"] / "actor")
    with pytest.raises(MappingError, match="they differ"):
        find_tied_head(untied, config, None, TEAM)
