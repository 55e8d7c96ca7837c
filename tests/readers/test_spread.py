"""One checkpoint of which every node has a part in a folder of its own."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ckpt_tool import MergeOptions, WriteOptions, merge_dcp, merge_megatron
from ckpt_tool.cli.app import app
from ckpt_tool.common.errors import FormatError, UsageError
from ckpt_tool.common.parallel import form_team_alone
from ckpt_tool.operations.inspect import inspect_checkpoint
from ckpt_tool.readers import open_checkpoint, open_folders
from tests.readers.dcp.test_folder import assert_reads, save
from tests.support.backed import distinct
from tests.support.merging import assert_same, load_folder
from tests.support.shards import shard_name, write_shards

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

FIXTURES = Path(__file__).parents[1] / "fixtures"
STATE = {
    f"model.{name}.weight": tensor for name, tensor in zip("abcd", distinct((4, 6, 2)), strict=True)
}


def spread(folder: Path, suffix: str) -> list[Path]:
    """Move every second file of the suffix to another node's folder; returns both folders."""
    other = folder.with_name("node-1")
    other.mkdir()
    moved = sorted(folder.glob(f"*{suffix}"))[1::2]
    assert moved
    for path in moved:
        path.rename(other / path.name)
    return [folder, other]


@pytest.fixture
def nodes(tmp_path: Path) -> list[Path]:
    """A folder of torch.distributed.checkpoint as two nodes wrote it."""
    return spread(save(tmp_path / "node-0", STATE, thread_count=3), ".distcp")


def said(paths: list[Path]) -> list[tuple[str, str, str]]:
    problems = open_folders(paths).problems
    return [(problem.kind, problem.where, problem.message) for problem in problems]


def test_folders_of_dcp_are_one_checkpoint_in_any_order(nodes):
    for paths in (nodes, nodes[::-1], [*nodes, nodes[0]]):
        found = open_folders(paths)
        assert_reads(found, STATE)
        assert (found.format, found.path, found.named) == ("dcp", nodes[0], tuple(paths))
        assert {Path(file.path).parent for file in found.files} == set(nodes)
    assert list(open_folders(nodes, lambda name: "a" in name)) == ["model.a.weight"]


def test_a_folder_of_a_run_above_each_part_is_searched(nodes, tmp_path):
    paths = []
    for number, node in enumerate(nodes):
        paths.append(tmp_path / f"run-{number}")
        shutil.copytree(node, paths[-1] / "pytorch_model_fsdp_0")
    assert_reads(open_folders(paths), STATE)


def test_one_of_them_alone_is_not_whole(nodes):
    found = open_checkpoint(nodes[0])
    assert {problem.kind for problem in found.problems} == {"missing-file"}
    with pytest.raises(FormatError):
        open_checkpoint(nodes[1])


def test_without_the_metadata_there_is_nothing_to_go_by(nodes, tmp_path):
    (nodes[0] / ".metadata").unlink()
    with pytest.raises(FormatError, match=r"no \.metadata, neither here nor in the other folders"):
        open_folders(nodes)


def test_copies_of_the_metadata_are_the_same(nodes, tmp_path):
    shutil.copy(nodes[0] / ".metadata", nodes[1])
    assert_reads(open_folders(nodes), STATE)
    other = save(tmp_path / "other", {"x": distinct((2,))})
    shutil.copy(other / ".metadata", nodes[1])
    message = f"not the one of {nodes[0]}: these are of two checkpoints"
    assert said(nodes) == [("contradiction", str(nodes[1] / ".metadata"), message)]


def test_a_file_in_two_folders_is_in_one_too_many(nodes):
    name = next(nodes[0].glob("*.distcp")).name
    shutil.copy(nodes[0] / name, nodes[1])
    assert said(nodes) == [("duplicate", str(nodes[1] / name), f"also in {nodes[0]}")]


def test_a_folder_of_something_else_is_refused(nodes, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError, match="nothing here of the torch") as no:
        open_folders([nodes[0], tmp_path / "empty"])
    assert no.value.path == str(tmp_path / "empty")
    with pytest.raises(FormatError, match="nothing here that can be one checkpoint"):
        open_folders([tmp_path / "empty", tmp_path / "empty"])
    with pytest.raises(UsageError, match="no such file or folder"):
        open_folders([nodes[0], tmp_path / "gone"])


def test_merge_and_inspect_take_the_folders(nodes, tmp_path):
    options = MergeOptions(keep_names=True, write=WriteOptions(fsync=False))
    merge_dcp(nodes, tmp_path / "out", options)
    assert_same(load_folder(tmp_path / "out"), STATE)
    result = inspect_checkpoint(nodes, check_crc=form_team_alone(1))
    assert result.ok
    assert result.crc is not None
    assert result.crc.num_files == sum(len([*node.glob("*.distcp")]) for node in nodes)
    assert result.crc.num_records > len(STATE)
    assert CliRunner().invoke(app, ["inspect", *map(str, nodes)]).exit_code == 0


def test_torch_dist_of_two_nodes_is_merged(tmp_path):
    fixture = FIXTURES / "mcore0.16_dense"
    nodes = spread(shutil.copytree(fixture / "checkpoint", tmp_path / "node-0"), ".distcp")
    assert open_folders(nodes).format == "torch_dist"
    options = MergeOptions(config=fixture, write=WriteOptions(fsync=False, check_load=False))
    merge_megatron(nodes, tmp_path / "out", options)
    whole = MergeOptions(config=fixture, write=WriteOptions(fsync=False, check_load=False))
    merge_megatron(fixture / "checkpoint", tmp_path / "whole", whole)
    assert_same(load_folder(tmp_path / "out"), load_folder(tmp_path / "whole"))


def test_shards_of_two_nodes_are_one_model(tmp_path):
    nodes = spread(write_shards(tmp_path / "node-0", STATE), ".safetensors")
    found = open_folders(nodes[::-1])
    assert_reads(found, STATE)
    assert found.format == "sharded-hub"
    (nodes[1] / shard_name(2)).unlink()
    shutil.copy(nodes[0] / shard_name(1), nodes[1])
    kinds = [kind for kind, _, _ in said(nodes)]
    assert kinds[:2] == ["duplicate", "missing-rank"]
    assert set(kinds[2:]) == {"coverage"}
