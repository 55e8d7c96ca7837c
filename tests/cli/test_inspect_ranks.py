"""`ckpt inspect` of files that have several numbers of a rank: those of Megatron."""

import shutil

from tests.cli.test_inspect import run, run_json
from tests.support import megatron


def test_the_json_has_every_files_ranks(megatron_cases):
    folder = megatron.ranks(megatron_cases, "qwen3_moe", "etp2_ep2")
    found = run_json(folder)
    assert found["format"] == "megatron-ranks"
    assert found["mesh"] == {"shape": [2, 1, 2], "dim_names": ["tp", "pp", "ep"]}
    assert found["ok"] is True
    ranks = [(row["path"].split("/")[-2], row["parallel"]) for row in found["files"]]
    assert ranks == [
        ("mp_rank_00_000", {"tp": 0, "pp": 0, "ep": 0}),
        ("mp_rank_00_001", {"tp": 0, "pp": 0, "ep": 1}),
        ("mp_rank_01_000", {"tp": 1, "pp": 0, "ep": 0}),
        ("mp_rank_01_001", {"tp": 1, "pp": 0, "ep": 1}),
    ]
    assert {row["rank"] for row in found["files"]} == {None}
    rows = {row["name"]: row for row in found["tensors"]}
    row = rows["decoder.layers.1.mlp.experts.experts.linear_fc2.weight"]
    assert (row["shape"], row["placements"]) == ([4, 64, 40], "ep Shard(0), tp Shard(2)")


def test_other_files_have_no_such_numbers(checkpoints):
    found = run_json(checkpoints["fsdp2_w3"])
    assert [(row["rank"], row["parallel"]) for row in found["files"]] == [
        (n, None) for n in range(3)
    ]


def test_shards_have_global_offsets_and_local_shapes(megatron_cases):
    folder = megatron.ranks(megatron_cases, "llama", "tp2_pp2")
    name = "decoder.layers.3.mlp.linear_fc1.weight"
    found = run_json(folder, "--shards", "--filter", name)
    pieces = [(row["file"].split("/")[-2], row["offsets"], row["shape"]) for row in found["shards"]]
    assert pieces == [
        ("mp_rank_00_001", [0, 0], [48, 64]),
        ("mp_rank_00_001", [96, 0], [48, 64]),
        ("mp_rank_01_001", [48, 0], [48, 64]),
        ("mp_rank_01_001", [144, 0], [48, 64]),
    ]
    text = run(folder, "--shards", "--filter", name).stdout
    assert f"{name}  [192, 64]  float32  tp Shard(0), gated" in text
    assert "    tp 1, pp 1, ep 0  [48, 64]  at [144, 0]" in text


def test_people_see_the_ranks_of_the_files(megatron_cases):
    text = run(megatron.ranks(megatron_cases, "qwen3_moe", "tp2_ep2")).stdout
    assert "Megatron rank files" in text
    assert "tp 2 x pp 1 x ep 2" in text
    assert "mp_rank_00_000/model_optim_rng.pt  tp 0, pp 0, ep 0" in text
    assert "mp_rank_01_001/model_optim_rng.pt  tp 1, pp 0, ep 1" in text
    assert "ep Shard(0)" in text


def test_many_files_are_not_all_listed(megatron_cases, tmp_path):
    for number in range(25):
        source = megatron.ranks(megatron_cases, "llama", "tp1") / "model" / "mp_rank_00"
        shutil.copytree(source, tmp_path / f"mp_rank_{number:02d}_000")
    text = run(tmp_path).stdout
    assert "mp_rank_19_000/model.pt" in text
    assert "mp_rank_20_000/model.pt" not in text
    assert "and 5 more: --json lists them" in text


def test_what_is_missing_is_listed(megatron_cases, tmp_path):
    folder = tmp_path / "ranks"
    shutil.copytree(megatron.ranks(megatron_cases, "qwen3_moe", "etp2_ep2"), folder)
    shutil.rmtree(folder / "model" / "mp_rank_01_001")
    result = run(folder, "--problems", width=200)
    assert result.exit_code == 2
    assert "missing-rank" in result.stdout
    assert "no file of tp 1, pp 0, ep 1" in result.stdout
