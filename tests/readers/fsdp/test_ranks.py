"""FSDP rank files: what torch wrote reads back bit for bit, and every fault is named."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from itertools import product
from math import prod
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from ckpt_tool.common.errors import (
    AmbiguousError,
    CheckpointError,
    CkptError,
    FormatError,
    UsageError,
)
from ckpt_tool.readers import Checkpoint, open_checkpoint, open_folders
from ckpt_tool.tensors.geometry import make_strides
from tests.real.fsdp_cases import CASES
from tests.support.backed import raw, same
from tests.support.crafted import (
    FLOAT32,
    SHARDED,
    Call,
    Name,
    archive,
    dtensor,
    dumps,
    floats,
    longs,
    mesh,
    placement,
    storage,
    subclass,
    tensor,
)
from tests.support.versions import needs_torch_2_7

FIXTURES = Path(__file__).parents[2] / "fixtures"
OLD_TORCH = sorted(path.name for path in FIXTURES.glob("torch[0-9]*"))
NORM = "model.layers.1.input_layernorm.weight"
HEAD = "lm_head.weight"


def rank_file(rank: int, world: int = 2) -> str:
    return f"model_world_size_{world}_rank_{rank}.pt"


def assert_reads(checkpoint: Checkpoint, expected: dict[str, torch.Tensor]) -> None:
    assert checkpoint.problems == ()
    assert set(checkpoint) == set(expected)
    for name, value in expected.items():
        assert same(checkpoint[name].read(), value), name


def kinds(checkpoint: Checkpoint) -> set[str]:
    return {problem.kind for problem in checkpoint.problems}


def assert_refused(checkpoint: Checkpoint) -> None:
    """No tensor is handed out, and the error carries every problem."""
    assert checkpoint.problems
    for name in checkpoint:
        with pytest.raises(CheckpointError) as caught:
            checkpoint[name]
        assert caught.value.problems == checkpoint.problems
    with pytest.raises(CheckpointError):
        checkpoint.require_sound()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_what_fsdp_writes_reads_back(checkpoints, case):
    folder = checkpoints[case.name]
    checkpoint = open_checkpoint(folder / "actor")
    assert_reads(checkpoint, load_file(folder / "raw_state_dict.safetensors"))
    assert (checkpoint.format, checkpoint.world_size) == ("fsdp", case.world_size)
    assert [file.rank for file in checkpoint.files] == list(range(case.world_size))
    assert all(Path(file.path).stat().st_size == file.bytes for file in checkpoint.files)
    has_config = (folder / "actor" / "huggingface").is_dir()
    assert checkpoint.side_files == (folder / "actor" / "huggingface" if has_config else None)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_mesh_is_the_one_that_wrote(checkpoints, case):
    found = open_checkpoint(checkpoints[case.name]).mesh
    if case.mesh_names and case.world_size > 1:
        assert found is not None
        assert (found.shape, found.dim_names) == (case.mesh_shape, case.mesh_names)
    elif not case.mesh_names:
        assert found is None


@pytest.mark.parametrize("name", OLD_TORCH)
def test_what_older_torch_wrote_reads_back(name):
    checkpoint = open_checkpoint(FIXTURES / name)
    assert_reads(checkpoint, load_file(FIXTURES / name / "reference.safetensors"))


def test_the_fixtures_are_there():
    assert len(OLD_TORCH) == 5


def test_every_element_is_read_from_exactly_one_rank(checkpoints):
    """Replicas (HSDP) are many holdings, but each block of the tensor has one owner."""
    checkpoint = open_checkpoint(checkpoints["fsdp2_hsdp_w4"])
    for entry in checkpoint.entries.values():
        assert sum(box.volume for box in entry.owners()) == entry.numel
        assert sum(h.box.volume for h in entry.holdings) == 2 * entry.numel
        assert all(h.replicated for h in entry.holdings)
        for owner, other in entry.replicas():
            assert owner.rank < other.rank
            assert owner.box == other.box


def test_replicated_buffers_are_read_once(checkpoints):
    checkpoint = open_checkpoint(checkpoints["fsdp2_buffers_w2"])
    assert checkpoint.entries["scale"].shape == ()
    assert len(checkpoint.entries["scale"].holdings) == 2
    assert len(checkpoint["positions"].chunks) == 1
    assert not any(h.replicated for h in checkpoint.entries["positions"].holdings)


def test_tied_weights_are_the_same_memory(checkpoints):
    names = (HEAD, "model.embed_tokens.weight")
    for case, shared in (("fsdp2_tied_w2", True), ("fsdp2_w2", False)):
        head, embedding = map(open_checkpoint(checkpoints[case]).__getitem__, names)
        assert (head.chunks == embedding.chunks) is shared


# --- where a checkpoint may lie


@pytest.fixture
def actor(checkpoints, tmp_path) -> Path:
    """A copy of a small checkpoint of two ranks, to be damaged."""
    return Path(shutil.copytree(checkpoints["fsdp2_w2"] / "actor", tmp_path / "actor"))


@pytest.fixture
def raw_state(checkpoints) -> dict[str, torch.Tensor]:
    return load_file(checkpoints["fsdp2_w2"] / "raw_state_dict.safetensors")


def test_a_step_with_one_role_is_that_role(actor):
    assert open_checkpoint(actor.parent).path == actor
    shutil.move(actor, actor.with_name("critic"))
    assert open_checkpoint(actor.parent).path == actor.with_name("critic")


def test_actor_and_critic_must_be_told_apart(actor):
    shutil.copytree(actor, actor.with_name("critic"))
    with pytest.raises(AmbiguousError, match="actor and a critic") as caught:
        open_checkpoint(actor.parent)
    assert caught.value.choices == (str(actor), str(actor.with_name("critic")))
    assert open_checkpoint(actor).problems == ()


def test_an_empty_critic_is_no_ambiguity(actor):
    actor.with_name("critic").mkdir()
    assert open_checkpoint(actor.parent).path == actor


@pytest.mark.parametrize("text", ["40", "40\n", " 40 \n"])
def test_the_tracker_names_the_step(actor, tmp_path, text):
    run = tmp_path / "run"
    shutil.move(actor, run / "global_step_40" / "actor")
    (run / "global_step_20" / "actor").mkdir(parents=True)
    (run / "latest_checkpointed_iteration.txt").write_text(text)
    assert open_checkpoint(run).path == run / "global_step_40" / "actor"


@pytest.mark.parametrize("text", [b"50", b"", b"\xff\xfe\x00", b"4/../4", b"x" * 5000, b"40\x00"])
def test_a_tracker_that_names_no_step_is_refused(tmp_path, text):
    (tmp_path / "global_step_4").mkdir()
    (tmp_path / "latest_checkpointed_iteration.txt").write_bytes(text)
    with pytest.raises(CkptError):
        open_checkpoint(tmp_path)


def test_a_tracker_that_names_its_own_folder_is_refused(tmp_path):
    (tmp_path / "global_step_4").mkdir()
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("4/..")
    with pytest.raises(CkptError):
        open_checkpoint(tmp_path)


def test_other_files_beside_the_ranks_are_ignored(actor, raw_state):
    for name in (
        "optim_world_size_2_rank_0.pt",
        "extra_state_world_size_2_rank_1.pt",
        "model_world_size_2_rank_0.pt.tmp",
        "xmodel_world_size_9_rank_0.pt",
    ):
        (actor / name).write_bytes(b"not read")
    assert_reads(open_checkpoint(actor), raw_state)


def test_config_beside_the_shards_is_found(actor):
    shutil.move(actor / "huggingface" / "config.json", actor / "config.json")
    assert open_checkpoint(actor).side_files == actor


def test_ranks_on_two_nodes(actor, raw_state):
    other = actor.with_name("node1")
    other.mkdir()
    shutil.move(actor / rank_file(1), other / rank_file(1))
    checkpoint = open_folders([actor, other])
    assert_reads(checkpoint, raw_state)
    assert_reads(open_folders([other, actor]), raw_state)
    assert {Path(file.path).parent for file in checkpoint.files} == {actor, other}
    assert kinds(open_folders([other])) == {"missing-rank"}


def test_a_folder_without_ranks_is_refused(tmp_path, actor):
    with pytest.raises(FormatError, match="nothing here of the FSDP checkpoint in "):
        open_folders([actor, tmp_path / "actor" / "huggingface"])
    with pytest.raises(UsageError, match="no such file"):
        open_folders([tmp_path / "gone"])


# --- faults


def test_missing_ranks_are_named(checkpoints, tmp_path):
    folder = Path(shutil.copytree(checkpoints["fsdp2_tp_w4"] / "actor", tmp_path / "actor"))
    (folder / rank_file(1, 4)).unlink()
    checkpoint = open_checkpoint(folder)
    (problem,) = checkpoint.problems
    assert (problem.kind, problem.where) == ("missing-rank", str(folder))
    assert "rank 1 of 4" in problem.message
    assert_refused(checkpoint)
    for rank in (0, 2):
        (folder / rank_file(rank, 4)).unlink()
    (problem,) = open_checkpoint(folder).problems
    assert "rank 0-2 of 4" in problem.message


def test_the_missing_last_rank_is_noticed(checkpoints, tmp_path):
    """Also where its blocks are empty, or repeat another rank's."""
    for case in ("fsdp2_hsdp_w4", "fsdp2_w3", "fsdp1_nomesh_w3", "fsdp2_buffers_w2"):
        world = CASES[case].world_size
        folder = Path(shutil.copytree(checkpoints[case] / "actor", tmp_path / case))
        (folder / rank_file(world - 1, world)).unlink()
        assert kinds(open_checkpoint(folder)) == {"missing-rank"}


def test_a_rank_of_another_world_size(actor, checkpoints):
    stray = actor / rank_file(0, 3)
    shutil.copy(checkpoints["fsdp2_w3"] / "actor" / stray.name, stray)
    (problem,) = open_checkpoint(actor).problems
    assert (problem.kind, problem.where) == ("world-size", str(stray))
    assert "world size 3 among ranks of 2" in problem.message


def test_a_rank_beyond_the_world(actor):
    shutil.copy(actor / rank_file(0), actor / rank_file(5))
    checkpoint = open_checkpoint(actor)
    (problem,) = checkpoint.problems
    assert (problem.kind, problem.where) == ("world-size", str(actor / rank_file(5)))
    assert_refused(checkpoint)


def test_a_world_of_nobody(tmp_path):
    (tmp_path / rank_file(0, 0)).write_bytes(b"")
    assert_refused_or_raises(tmp_path)


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (600 << 20, 600 << 20))
from ckpt_tool.common.errors import CkptError
from ckpt_tool.readers import open_checkpoint
try:
    print(bool(open_checkpoint(sys.argv[1]).problems))
except CkptError:
    print(True)
"""


def test_a_world_of_billions_is_refused_without_counting_it(tmp_path):
    (tmp_path / rank_file(0, 99_999_999_999)).write_bytes(b"")
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, timeout=30, check=False)
    assert done.stdout == b"True\n", done.stderr.decode()[-500:]


def assert_refused_or_raises(path: Path) -> None:
    """A CkptError, or a checkpoint with problems; never anything else."""
    with suppress(CkptError):
        assert open_checkpoint(path).problems


def test_a_rank_in_two_folders(actor):
    other = Path(shutil.copytree(actor, actor.with_name("node1")))
    checkpoint = open_folders([actor, other])
    found = {(problem.kind, problem.where) for problem in checkpoint.problems}
    assert found == {("duplicate-rank", str(other / rank_file(rank))) for rank in (0, 1)}
    assert_refused(checkpoint)


@pytest.mark.parametrize("cut", [1, 100, 30_000])
def test_a_truncated_rank_file(actor, cut):
    path = actor / rank_file(1)
    path.write_bytes(path.read_bytes()[:-cut])
    checkpoint = open_checkpoint(actor)
    (problem,) = checkpoint.problems
    assert (problem.kind, problem.where) == ("unreadable", str(path))
    assert "truncated" in problem.message
    assert_refused(checkpoint)


def test_a_zero_byte_rank_file(actor):
    (actor / rank_file(0)).write_bytes(b"")
    (problem,) = open_checkpoint(actor).problems
    assert (problem.kind, problem.where) == ("unreadable", str(actor / rank_file(0)))
    assert "empty" in problem.message


def test_a_dangling_link_and_a_folder_in_place_of_ranks(actor, tmp_path):
    (actor / rank_file(1)).unlink()
    (actor / rank_file(1)).symlink_to(tmp_path / "gone")
    (actor / rank_file(0)).unlink()
    (actor / rank_file(0)).mkdir()
    found = {(p.kind, p.where) for p in open_checkpoint(actor).problems}
    assert found == {("unreadable", str(actor / rank_file(rank))) for rank in (0, 1)}


def test_two_swapped_rank_files_are_noticed(actor):
    swap(actor / rank_file(0), actor / rank_file(1))
    checkpoint = open_checkpoint(actor)
    assert kinds(checkpoint) >= {"tensor"}
    assert any("file name says" in problem.message for problem in checkpoint.problems)
    assert_refused(checkpoint)


@pytest.mark.parametrize("name", OLD_TORCH)
def test_swapped_files_of_older_torch_are_noticed_or_read_right(tmp_path, name):
    """Even splits have the same shapes on both ranks: swapping must not swap the values."""
    folder = Path(shutil.copytree(FIXTURES / name, tmp_path / name))
    ranks = sorted(folder.glob("model_world_size_*.pt"))
    swap(ranks[0], ranks[1])
    checkpoint = open_checkpoint(folder)
    if checkpoint.problems:
        assert_refused(checkpoint)
    else:
        assert_reads(checkpoint, load_file(folder / "reference.safetensors"))


def swap(one: Path, other: Path) -> None:
    contents = one.read_bytes(), other.read_bytes()
    one.write_bytes(contents[1])
    other.write_bytes(contents[0])


def test_fsdp_config_that_contradicts(actor):
    path = actor / "fsdp_config.json"
    path.write_text(json.dumps({"FSDP_version": 2, "world_size": 8}))
    (problem,) = open_checkpoint(actor).problems
    assert (problem.kind, problem.where) == ("world-size", str(path))
    assert "8" in problem.message
    assert "2" in problem.message


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "7", "null", "[" * 100_000, '{"world_size":' * 9999]
)
def test_fsdp_config_that_is_no_json_object(actor, text):
    (actor / "fsdp_config.json").write_text(text)
    (problem,) = open_checkpoint(actor).problems
    assert (problem.kind, problem.where) == ("fsdp-config", str(actor / "fsdp_config.json"))


def test_fsdp_config_is_read_in_what_was_named_only(actor, raw_state, tmp_path):
    path, secret = actor / "fsdp_config.json", tmp_path / "secret.json"
    path.unlink(missing_ok=True)
    secret.write_text('{"world_size": 31337}')
    path.symlink_to(secret)
    (problem,) = open_checkpoint(actor).problems
    assert (problem.kind, problem.where) == ("link", str(path))
    assert "31337" not in problem.message
    assert str(secret) in problem.message
    path.unlink()
    (actor / "same.json").write_text("{}")
    path.symlink_to("same.json")
    assert_reads(open_checkpoint(actor), raw_state)


@pytest.mark.parametrize("spoil", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("gone")])
def test_fsdp_config_that_is_no_file(actor, spoil):
    path = actor / "fsdp_config.json"
    path.unlink(missing_ok=True)
    spoil(path)
    (problem,) = open_checkpoint(actor).problems
    assert (problem.kind, problem.where) == ("no-file", str(path))
    assert "copy the file there" in problem.message


def test_fsdp_config_may_be_absent_or_silent(actor, raw_state):
    (actor / "fsdp_config.json").write_text("{}")
    assert_reads(open_checkpoint(actor), raw_state)
    (actor / "fsdp_config.json").unlink()
    assert_reads(open_checkpoint(actor), raw_state)


# --- faults inside of rank files, in plain entries that torch.save writes without a process group


def save_ranks(folder: Path, *states: dict) -> Path:
    folder.mkdir(exist_ok=True)
    for rank, state in enumerate(states):
        torch.save(state, folder / rank_file(rank, len(states)))
    return folder


def test_a_tensor_that_some_ranks_lack(tmp_path):
    whole = {"a": torch.arange(3.0), "b": torch.arange(4.0)}
    folder = save_ranks(tmp_path / "c", whole, {"a": whole["a"]}, whole, {"a": whole["a"]})
    checkpoint = open_checkpoint(folder)
    (problem,) = checkpoint.problems
    assert (problem.kind, problem.where) == ("missing-on-rank", "b")
    assert "rank 1, 3" in problem.message
    assert_refused(checkpoint)


def test_another_dtype_on_one_rank(tmp_path):
    one = torch.arange(4.0)
    checkpoint = open_checkpoint(save_ranks(tmp_path / "c", {"a": one}, {"a": one.bfloat16()}))
    (problem,) = checkpoint.problems
    assert (problem.kind, problem.where) == ("contradiction", "a")
    assert "bfloat16 [4] on rank 1, float32 [4] on rank 0" in problem.message


def test_another_shape_on_one_rank(tmp_path):
    states = {"a": torch.zeros(2, 3)}, {"a": torch.zeros(2, 3)}, {"a": torch.zeros(3, 2)}
    (problem,) = open_checkpoint(save_ranks(tmp_path / "c", *states)).problems
    assert (problem.kind, problem.where) == ("contradiction", "a")
    assert "[3, 2] on rank 2" in problem.message


@pytest.mark.parametrize("value", [7, "text", None, [torch.zeros(2)], {"x": torch.zeros(2)}])
def test_a_value_that_is_no_tensor(tmp_path, value):
    folder = save_ranks(tmp_path / "c", {"a": torch.zeros(2), "b": value})
    (problem,) = open_checkpoint(folder).problems
    assert problem.kind == "tensor"
    assert problem.where.startswith("b (rank 0")
    assert type(value).__name__ in problem.message


@pytest.mark.parametrize("state", [[], 7, None, (torch.zeros(2),), torch.zeros(2)])
def test_a_file_that_holds_no_state_dict(tmp_path, state):
    folder = save_ranks(tmp_path / "c", state)
    (problem,) = open_checkpoint(folder).problems
    assert (problem.kind, problem.where) == ("unreadable", str(folder / rank_file(0, 1)))


@pytest.mark.slow
@settings(max_examples=60)
@given(st.sampled_from(OLD_TORCH), st.data())
def test_changed_bytes_of_a_pickle_give_problems_or_harmless_changes(tmp_path_factory, name, data):
    """No other exception than ours, whatever the pickle says of meshes, placements and shapes."""
    folder = tmp_path_factory.getbasetemp() / f"changed-{name}"
    if not folder.exists():
        shutil.copytree(FIXTURES / name, folder)
    rank = data.draw(st.sampled_from(sorted(path.name for path in folder.glob("*_rank_*.pt"))))
    content = bytearray((FIXTURES / name / rank).read_bytes())
    end = content.find(b"PK\x03\x04", 4)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(64, end - 1))] = data.draw(st.integers(0, 255))
    try:
        (folder / rank).write_bytes(content)
        for path in (folder, folder / rank):
            with suppress(CkptError):
                checkpoint = open_checkpoint(path)
                assert all(str(problem) for problem in checkpoint.problems)
                assert all(entry.nbytes >= 0 for entry in checkpoint.entries.values())
                if not checkpoint.problems:
                    assert all(tensor.numel >= 0 for tensor in checkpoint.values())
    finally:
        shutil.copy(FIXTURES / name / rank, folder / rank)


def test_names_that_are_no_text_are_refused(tmp_path):
    """As text 1 and "1" would be one name, and a long number cannot be shown."""
    for key in (1, b"1", None, 10**5000):
        states = {"1": torch.zeros(2), key: torch.ones(2)}
        assert_refused_or_raises(save_ranks(tmp_path / "c", states))


def test_all_faults_at_once_are_all_listed(checkpoints, tmp_path):
    folder = Path(shutil.copytree(checkpoints["fsdp2_hsdp_w4"] / "actor", tmp_path / "actor"))
    shutil.copy(folder / rank_file(3, 4), folder / rank_file(3, 6))
    (folder / rank_file(1, 4)).unlink()
    (folder / rank_file(2, 4)).write_bytes((folder / rank_file(2, 4)).read_bytes()[:5000])
    torch.save({HEAD: torch.zeros(3), "extra": 7}, folder / rank_file(3, 4))
    (folder / "fsdp_config.json").write_text('{"world_size": 6}')
    checkpoint = open_checkpoint(folder)
    found = {(problem.kind, Path(problem.where).name) for problem in checkpoint.problems}
    assert found >= {
        ("world-size", rank_file(3, 6)),
        ("missing-rank", "actor"),
        ("unreadable", rank_file(2, 4)),
        ("world-size", "fsdp_config.json"),
        ("contradiction", HEAD),
        ("missing-on-rank", NORM),
        ("tensor", f"extra (rank 3, {rank_file(3, 4)})"),
    }
    assert_refused(checkpoint)


# --- crafted DTensors: what torch would not write, or writes only on machines that are not here


def shard(dim: int) -> Call:
    return placement("Shard", dim)


REPLICATE = placement("Replicate")


def mesh_of(*shape: int, strides: tuple[int, ...] | None = None) -> Call:
    """A mesh of the ranks in the storage `mesh`."""
    ranks = storage("mesh", prod(shape), "LongStorage")
    return mesh(tensor(ranks, shape, strides or make_strides(shape)))


def write_blocks(
    folder: Path,
    blocks: Iterable[torch.Tensor],
    shape: tuple[int, ...],
    placements: Iterable[Call],
    device_mesh: Call,
) -> Path:
    """One rank file per block, each a DTensor `w`, on a mesh as torch <= 2.8 stores it."""
    folder.mkdir(exist_ok=True)
    blocks = list(blocks)
    for rank, block in enumerate(blocks):
        local = tensor(storage("0", block.numel()), tuple(block.shape), tuple(block.stride()))
        value = dtensor(local, shape, placements, device_mesh)
        archive(
            folder / rank_file(rank, len(blocks)),
            dumps({"w": value}),
            {"0": raw(block), "mesh": longs(*range(len(blocks)))},
        )
    return folder


def test_a_crafted_checkpoint_is_good(tmp_path):
    whole = torch.arange(14.0).reshape(7, 2)
    folder = write_blocks(tmp_path / "c", whole.split(4), (7, 2), [shard(0)], mesh_of(2))
    assert_reads(open_checkpoint(folder), {"w": whole})
    assert open_checkpoint(folder).entries["w"].placements == "Shard(0)"


def test_padded_storage_does_not_matter(tmp_path):
    """FSDP2 keeps the padding: 3 + 2 rows in storages of 3 rows each."""
    whole = torch.arange(10.0).reshape(5, 2)
    padded = torch.cat([whole[3:], torch.full((1, 2), -1.0)])[:2]
    folder = write_blocks(tmp_path / "c", [whole[:3], padded], (5, 2), [shard(0)], mesh_of(2))
    assert_reads(open_checkpoint(folder), {"w": whole})


@pytest.mark.parametrize("sizes", [(3, 4), (4, 4), (5, 2)])
def test_a_wrong_local_shape(tmp_path, sizes):
    whole = torch.arange(20.0).reshape(10, 2)
    blocks = [whole[: sizes[0]], whole[: sizes[1]]]
    checkpoint = open_checkpoint(
        write_blocks(tmp_path / "c", blocks, (7, 2), [shard(0)], mesh_of(2))
    )
    assert kinds(checkpoint) >= {"tensor"}
    assert any("local shape" in problem.message for problem in checkpoint.problems)
    assert all("w (rank" in p.where for p in checkpoint.problems if p.kind == "tensor")


@pytest.mark.parametrize("kind", ["Partial", "_Partial", "_MaskPartial", "Unheard"])
def test_partial_placements_are_refused_by_name(tmp_path, kind):
    blocks = [torch.zeros(4), torch.zeros(4)]
    folder = write_blocks(tmp_path / "c", blocks, (4,), [placement(kind)], mesh_of(2))
    checkpoint = open_checkpoint(folder)
    assert kinds(checkpoint) == {"tensor"}
    assert all(kind in problem.message for problem in checkpoint.problems)


def test_more_placements_than_mesh_dimensions_are_refused(tmp_path):
    folder = write_blocks(tmp_path / "c", torch.zeros(4).split(2), (4,), [shard(0)] * 2, mesh_of(2))
    assert kinds(open_checkpoint(folder)) == {"tensor"}


def test_a_mesh_that_is_a_transposed_view_is_refused_or_read_right(tmp_path):
    """Ranks [[0, 2], [1, 3]], stored as 0 1 2 3 with strides (1, 2)."""
    whole = torch.arange(8.0)
    owner = [0, 2, 1, 3]  # the quarter that each rank holds
    blocks = [whole[2 * q : 2 * q + 2] for q in owner]
    placements = [shard(0), shard(0)]
    folder = write_blocks(tmp_path / "c", blocks, (8,), placements, mesh_of(2, 2, strides=(1, 2)))
    checkpoint = open_checkpoint(folder)
    if not checkpoint.problems:
        assert same(checkpoint["w"].read(), whole)


def flattened(**layout: object) -> Call:
    """A mesh of one dimension over four ranks, as torch >= 2.9 stores it."""
    kind = Name("torch.distributed._mesh_layout", "_MeshLayout")
    state = {"_layout": Call(kind, (), layout), "_mesh_dim_names": ("dp_cp",)}
    ranks = tensor(storage("mesh", 4, "LongStorage"), (4,), (1,))
    return Call(
        Name("torch.distributed.device_mesh", "DeviceMesh"), (), {**state, "_rank_map": ranks}
    )


FLAT = Call(
    Name("torch.distributed._mesh_layout", "_FlatLayout"), (), {"shape": (2, 2), "stride": (1, 2)}
)


@pytest.mark.parametrize(
    "device_mesh",
    [flattened(shape=((2, 2),), stride=((1, 2),)), flattened(axes=(FLAT,))],
    ids=["torch 2.9", "torch 2.13"],
)
def test_a_flattened_mesh_dimension(tmp_path, device_mesh):
    """Sizes (2, 2) with strides (1, 2): in the order of the mesh the ranks are 0, 2, 1, 3."""
    whole = torch.arange(8.0)
    blocks = [whole[2 * at : 2 * at + 2] for at in (0, 2, 1, 3)]
    checkpoint = open_checkpoint(
        write_blocks(tmp_path / "c", blocks, (8,), [shard(0)], device_mesh)
    )
    assert_reads(checkpoint, {"w": whole})
    assert checkpoint.mesh is not None
    assert checkpoint.mesh.shape == (4,)


@pytest.mark.parametrize(
    ("order", "factors"),
    [
        ((0, 1, 2), (None, None, None)),
        ((2, 1, 0), (4, 2, None)),
        ((1, 2, 0), (4, None, None)),
        ((0, 2, 1), (None, 2, None)),
        ((1, 0, 2), (2, None, None)),  # not nested: the last dimension cuts after all
        ((2, 0, 1), (2, 2, None)),
    ],
)
def test_strided_shards_cut_where_their_split_factor_says(tmp_path, order, factors):
    """`factors` are those that torch's DTensorSpec gives for this order of cuts.

    A factor is the number of pieces that the later mesh dimensions cut before this one did. A
    reader that cannot follow must refuse: all blocks have the same shape and tile the tensor.
    """
    whole = torch.arange(16.0)
    blocks = []
    for coordinate in product(range(2), repeat=3):
        block = whole
        for dim in order:
            block = block.chunk(2)[coordinate[dim]]
        blocks.append(block)
    placements = [
        shard(0) if factor is None else placement("_StridedShard", dim=0, split_factor=factor)
        for factor in factors
    ]
    folder = write_blocks(tmp_path / "c", blocks, (16,), placements, mesh_of(2, 2, 2))
    checkpoint = open_checkpoint(folder)
    if not checkpoint.problems:
        assert same(checkpoint["w"].read(), whole)


@needs_torch_2_7
def test_the_factors_above_are_torchs():
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor import _utils as torch_utils
    from torch.distributed.tensor.placement_types import _StridedShard

    cases = {
        (2, 1, 0): (4, 2, None),
        (1, 2, 0): (4, None, None),
        (0, 2, 1): (None, 2, None),
        (1, 0, 2): (2, None, None),
        (2, 0, 1): (2, 2, None),
    }
    for order, factors in cases.items():
        theirs = [Shard(0) if f is None else _StridedShard(0, split_factor=f) for f in factors]
        for at in product(range(2), repeat=3):
            block = torch.arange(16)
            for dim in order:
                block = block.chunk(2)[at[dim]]
            found = torch_utils._compute_local_shape_and_global_offset(
                (16,), (2, 2, 2), list(at), theirs
            )
            assert found == ((2,), (block[0].item(),)), (order, at)


def test_a_rank_that_is_not_in_the_mesh(tmp_path):
    folder = write_blocks(tmp_path / "c", torch.zeros(6).split(2), (6,), [shard(0)], mesh_of(3))
    archive(
        folder / rank_file(2, 3),
        dumps({"w": dtensor(tensor(storage("0", 2), (2,), (1,)), (6,), [shard(0)], mesh_of(3))}),
        {"0": floats(0, 0), "mesh": longs(0, 1, 7)},
    )
    checkpoint = open_checkpoint(folder)
    assert any(
        p.kind == "tensor" and "rank 2 is not in the device mesh" in p.message
        for p in checkpoint.problems
    )


def test_overlapping_and_missing_blocks_are_coverage_problems(tmp_path):
    """Meshes that contradict each other: rank 1 believes to be rank 0 of the same cut."""
    whole = torch.arange(4.0)
    folder = tmp_path / "c"
    write_blocks(folder, whole.split(2), (4,), [shard(0)], mesh_of(2))
    local = tensor(storage("0", 2), (2,), (1,))
    value = dtensor(local, (4,), [shard(0)], mesh_of(2))
    archive(folder / rank_file(1), dumps({"w": value}), {"0": floats(2, 3), "mesh": longs(1, 0)})
    checkpoint = open_checkpoint(folder)
    (problem,) = checkpoint.problems
    assert (problem.kind, problem.where) == ("coverage", "w")
    assert "missing [2:4] of [4]" in problem.message
    assert_refused(checkpoint)


def sharded(
    shards: Iterable[tuple[Call, list, list]], shape: object, dtype: object = FLOAT32
) -> Call:
    """A ShardedTensor; each shard is its tensor, offsets and sizes."""
    rows = [
        Call(
            Name("torch.distributed._shard.sharded_tensor.shard", "Shard"),
            (),
            {
                "tensor": ref,
                "metadata": Call(
                    Name("torch.distributed._shard.metadata", "ShardMetadata"),
                    (),
                    {"shard_offsets": offsets, "shard_sizes": sizes},
                ),
            },
        )
        for ref, offsets, sizes in shards
    ]
    return subclass(SHARDED, dtype, shape, (rows, None))


def open_single(path: Path, value: object, **storages: bytes) -> Checkpoint:
    """The checkpoint of one rank whose state dict has `value` as `w`."""
    path.mkdir(exist_ok=True)
    archive(path / rank_file(0, 1), dumps({"w": value}), {"0": floats(*range(8)), **storages})
    return open_checkpoint(path)


def part(*size: int) -> Call:
    return tensor(storage("0", 8), size, tuple(torch.empty(size).stride()))


def test_a_sharded_tensor_of_several_shards(tmp_path):
    value = sharded([(part(2, 2), [0, 0], [2, 2]), (part(1, 2), [2, 0], [1, 2])], (3, 2))
    expected = torch.tensor([[0.0, 1.0], [2.0, 3.0], [0.0, 1.0]])
    assert_reads(open_single(tmp_path / "c", value), {"w": expected})


SHARDED_FAULTS = {
    "shape differs": sharded([(part(2, 2), [0, 0], [3, 2])], (3, 2)),
    "out of bounds": sharded([(part(2, 2), [2, 0], [2, 2])], (3, 2)),
    "negative offset": sharded([(part(2, 2), [-1, 0], [2, 2])], (3, 2)),
    "rank differs": sharded([(part(2), [0], [2])], (3, 2)),
    "offsets of text": sharded([(part(2), ["0"], [2])], (2,)),
    "no shards": sharded([], (3, 2)),
    "overlap": sharded([(part(2), [0], [2]), (part(2), [1], [2])], (3,)),
    "gap": sharded([(part(2), [1], [2])], (3,)),
    "no tensor": sharded([("text", [0], [2])], (2,)),
    "no state": subclass(SHARDED, FLOAT32, (2,), None),
    "a number as state": subclass(SHARDED, FLOAT32, (2,), 7),
    "no shape": subclass(SHARDED, FLOAT32, None, ([], None)),
    "called without a shell": Call(SHARDED, (), ([], None)),
    "called with text": Call(SHARDED, ("a", "b"), ([], None)),
    "called with lists": Call(SHARDED, ([1], [2]), ([], None)),
}


@pytest.mark.parametrize("value", SHARDED_FAULTS.values(), ids=SHARDED_FAULTS.keys())
def test_malformed_sharded_tensors(tmp_path, value):
    with suppress(CkptError):
        checkpoint = open_single(tmp_path / "c", value)
        assert checkpoint.problems
        assert_refused(checkpoint)
    with suppress(CkptError):  # one rank of several may hold anything; it must only not crash
        open_checkpoint(tmp_path / "c" / rank_file(0, 1))


def test_a_sharded_tensor_whose_shards_have_another_dtype(tmp_path):
    """The shell says float16, the shard is float32: read as the shell says it would be garbage."""
    value = sharded([(part(2), [0], [2])], (2,), Name("torch", "float16"))
    assert_refused(open_single(tmp_path / "c", value))


def test_a_sharded_tensor_whose_dtype_is_none(tmp_path):
    for dtype in (None, "float32", 7, Name("torch", "FloatStorage")):
        value = sharded([(part(2), [0], [2])], (2,), dtype)
        assert_usable_or_refused(tmp_path / "c", value)


def assert_usable_or_refused(path: Path, value: object) -> None:
    with suppress(CkptError):
        checkpoint = open_single(path, value)
        assert checkpoint.problems
        for entry in checkpoint.entries.values():
            assert entry.nbytes >= 0


ONE = mesh_of(1)
HUGE = 10**5000
DTENSOR_FAULTS = {
    "no mesh": dtensor(part(2), (2,), [shard(0)], None),
    "a mesh of text": dtensor(part(2), (2,), [shard(0)], "mesh"),
    "a mesh without ranks": dtensor(part(2), (2,), [shard(0)], mesh(None)),
    "a mesh of floats": dtensor(part(2), (2,), [shard(0)], mesh(part(2))),
    "an empty mesh": dtensor(part(2), (2,), [shard(0)], mesh(part(0))),
    "a dimension that is not there": dtensor(part(2), (2,), [shard(3)], ONE),
    "a huge dimension": dtensor(part(2), (2,), [shard(HUGE)], ONE),
    "a dimension of text": dtensor(part(2), (2,), [placement("Shard", dim="0")], ONE),
    "no dimension": dtensor(part(2), (2,), [placement("Shard")], ONE),
    "placements of text": dtensor(part(2), (2,), ["S(0)"], ONE),
    "a local that is no tensor": dtensor("local", (2,), [shard(0)], ONE),
    "a huge shape": dtensor(part(2), (HUGE,), [shard(0)], ONE),
    "a huge shape of nothing": dtensor(part(0), (0, HUGE), [shard(0)], ONE),
    "another shape": dtensor(part(2), (3,), [shard(0)], ONE),
    "more dimensions": dtensor(part(2), (2, 1), [shard(0)], ONE),
    "the coordinate of another": dtensor(
        part(2),
        (2,),
        [shard(0)],
        mesh(tensor(storage("mesh", 1, "LongStorage"), (1,), (1,)), _coordinate_on_dim=(1,)),
    ),
    "a coordinate of text": dtensor(
        part(2),
        (2,),
        [shard(0)],
        mesh(tensor(storage("mesh", 1, "LongStorage"), (1,), (1,)), _coordinate_on_dim=7),
    ),
}


@pytest.mark.parametrize("value", DTENSOR_FAULTS.values(), ids=DTENSOR_FAULTS.keys())
def test_malformed_dtensors(tmp_path, value):
    try:
        checkpoint = open_single(tmp_path / "c", value, mesh=longs(0))
    except CkptError:
        return
    assert checkpoint.problems
    with suppress(CkptError):
        open_checkpoint(tmp_path / "c" / rank_file(0, 1))


def test_huge_numbers_never_surface_as_other_errors(tmp_path):
    """Python refuses to print numbers of more than 4300 digits: a message must not try."""
    values = [
        sharded([(part(0), [0], [0])], (HUGE,)),
        sharded([(part(0, 2), [0, 0], [0, 2])], (0, HUGE)),
        tensor(storage("0", HUGE), (2,), (1,)),
        tensor(storage("0", 8), (2,), (HUGE,)),
        tensor(storage("0", 8), (0, HUGE), (1, 1)),
    ]
    for value in values:
        for path in (tmp_path / "c", tmp_path / "c" / rank_file(0, 1)):
            with suppress(CkptError):
                open_single(tmp_path / "c", value)
                open_checkpoint(path)


def test_a_dtensor_called_without_its_shell_is_refused_or_sound(tmp_path):
    """The class itself, called with a list as its shape: later code must not trip over it."""
    spec = Call(
        Name("torch.distributed.tensor._dtensor_spec", "DTensorSpec"),
        (),
        {"mesh": ONE, "placements": (shard(0),)},
    )
    for shape, local in [([2], part(2)), ([3], part(3)), ("ab", part(2)), ((2.0,), part(2))]:
        kind = Name("torch.distributed.tensor", "DTensor")
        state = {"_local_tensor": local, "_spec": spec}
        for value in (Call(kind, (FLOAT32, shape), state), Call(kind, (None, shape), state)):
            with suppress(CkptError):
                checkpoint = open_single(tmp_path / "c", value, mesh=longs(0))
                if not checkpoint.problems:
                    assert checkpoint["w"].shape == (2,) or checkpoint["w"].shape == (3,)
                    assert checkpoint["w"].read().shape == checkpoint["w"].shape
