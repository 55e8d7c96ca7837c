"""Rank files of Megatron: what is read from real ones."""

import pytest
import torch

from ckpt_tool.readers import open_checkpoint
from tests.support import megatron
from tests.support.rank_files import edit


@pytest.mark.parametrize(
    ("name", "size", "mesh", "ranks"),
    [
        ("llama", "tp1", (1, 1, 1), ["0 0 0"]),
        ("llama", "tp4", (4, 1, 1), ["0 0 0", "1 0 0", "2 0 0", "3 0 0"]),
        ("qwen2", "pp2", (1, 2, 1), ["0 0 0", "0 1 0"]),
        # The same names of folders: what is in the files tells the one from the other.
        ("qwen3_moe", "ep2", (1, 1, 2), ["0 0 0", "0 0 1"]),
        ("qwen3_moe", "tp2_ep2", (2, 1, 2), ["0 0 0", "1 0 1"]),
        ("qwen3_moe", "pp2_ep2", (1, 2, 2), ["0 0 0", "0 0 1", "0 1 0", "0 1 1"]),
    ],
    ids=str,
)
def test_every_file_is_of_a_rank(megatron_cases, name, size, mesh, ranks):
    checkpoint = open_checkpoint(megatron.ranks(megatron_cases, name, size))
    assert checkpoint.format == "megatron-ranks"
    assert checkpoint.mesh is not None
    assert checkpoint.mesh.shape == mesh
    assert checkpoint.mesh.dim_names == ("tp", "pp", "ep")
    found = [file.parallel for file in checkpoint.files]
    assert found == [dict(zip(("tp", "pp", "ep"), map(int, r.split()), strict=True)) for r in ranks]
    assert not checkpoint.problems


def test_layers_are_numbered_through_all_chunks(megatron_cases):
    """Two stages of two chunks each: chunk v of stage p has layer 2 v + p, as number 0."""
    folder = megatron.ranks(megatron_cases, "qwen3", "vpp2")
    whole = open_checkpoint(folder)
    for layer in range(4):
        name = f"decoder.layers.{layer}.self_attention.linear_qkv.weight"
        (holding,) = whole.entries[name].holdings
        path = folder / "model" / f"mp_rank_00_{layer % 2:03d}" / "model.pt"
        assert holding.region.path == str(path)
        local = torch.load(path, weights_only=False)[layer // 2]
        assert torch.equal(whole[name].read(), local[name.replace(f".{layer}.", ".0.")])


def test_experts_lie_along_a_dimension_of_their_own(megatron_cases):
    whole = open_checkpoint(megatron.ranks(megatron_cases, "qwen3_moe", "etp2_ep2"))
    entry = whole.entries["decoder.layers.2.mlp.experts.experts.linear_fc1.weight"]
    assert entry.shape == (4, 80, 64)
    assert entry.placements == "ep Shard(0), tp Shard(1), gated"
    boxes = [h.box.offsets for h in entry.holdings if "mp_rank_01_001" in h.region.path]
    assert boxes == [(2, 20, 0), (2, 60, 0), (3, 20, 0), (3, 60, 0)]


def test_config_and_the_last_iteration_are_found(megatron_cases, tmp_path):
    folder = megatron.ranks(megatron_cases, "qwen2", "pp2")
    step = tmp_path / "global_step_3" / "actor"
    step.parent.mkdir()
    step.symlink_to(folder)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("3")
    for path in (folder, folder / "model", tmp_path):
        checkpoint = open_checkpoint(path)
        assert len(checkpoint.files) == 2
        assert checkpoint.side_files is not None
        assert checkpoint.side_files.name == "hf_config_and_tokenizer"
    folder = megatron.ranks(megatron_cases, "llama", "tp2_pp2")
    assert open_checkpoint(folder).path == folder / "iter_0000007"
    assert open_checkpoint(folder).side_files is None
    (tmp_path / "release").symlink_to(folder / "iter_0000007")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("release\n")
    assert open_checkpoint(tmp_path).path == tmp_path / "release"


def test_wrappers_in_names_are_left_out(copied):
    folder = copied("llama", "tp2")
    names = set(open_checkpoint(folder))

    def wrap(state: dict) -> None:
        for name in list(state):
            state[f"module.module.{name}"] = state.pop(name)

    edit(folder, "00", wrap)
    edit(folder, "01", wrap)
    assert set(open_checkpoint(folder)) == names
