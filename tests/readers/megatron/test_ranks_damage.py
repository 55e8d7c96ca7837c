"""Rank files of Megatron: what is said of those that are missing, damaged or at odds."""

import json
import pickle
import shutil

import pytest
import torch

from ckpt_tool.common.errors import CheckpointError, FormatError
from ckpt_tool.readers import open_checkpoint
from tests.support.rank_files import add_one, differing, edit, problems

NORM = "decoder.layers.0.input_layernorm.weight"


def test_a_missing_file_is_named_by_its_rank(copied):
    folder = copied("qwen3_moe", "etp2_ep2")
    shutil.rmtree(folder / "mp_rank_01_000")
    ((kind, text),) = problems(folder)
    assert kind == "missing-rank"
    assert "no file of tp 1, pp 0, ep 0" in text
    with pytest.raises(CheckpointError):
        dict(open_checkpoint(folder))


@pytest.mark.parametrize(("stage", "end"), [("000", "first"), ("001", "last")])
def test_a_missing_end_of_the_pipeline_is_noticed(copied, stage, end):
    folder = copied("qwen2", "pp2")
    shutil.rmtree(folder / f"mp_rank_00_{stage}")
    assert any(f"the {end} pipeline stage is missing" in text for _, text in problems(folder))


def test_the_arguments_tell_of_ranks_that_left_nothing(copied):
    folder = copied("llama", "tp2_pp2")
    for path in folder.glob("mp_rank_01_*"):
        shutil.rmtree(path)
    texts = [text for _, text in problems(folder)]
    assert len(texts) == 2
    assert all(f"no file of tp 1, pp {pp}, ep 0" in texts[pp] for pp in (0, 1))


def test_a_file_that_cannot_be_read_still_tells_of_its_rank(copied):
    """Without it the others would look like all of a run that does not cut its experts."""
    folder = copied("qwen3_moe", "etp2_ep2")
    shutil.rmtree(folder / "mp_rank_00_001")
    (folder / "mp_rank_01_000" / "model.pt").write_bytes(b"PK")
    assert [kind for kind, _ in problems(folder)] == ["unreadable", "missing-rank"]


def test_a_lone_file_of_millions_is_one_problem(copied):
    folder = copied("llama", "tp1")
    (folder / "mp_rank_00").rename(folder / "mp_rank_9999_9999_9999")
    ((kind, text),) = [p for p in problems(folder) if "ranks have a file" in p[1]]
    assert kind == "missing-rank"
    assert "1 of 1000000000000 ranks" in text


@pytest.mark.parametrize("size", [0, 100, -100])
def test_a_truncated_file_is_a_problem_that_names_it(copied, size):
    folder = copied("llama", "tp2")
    path = folder / "mp_rank_01" / "model.pt"
    content = path.read_bytes()
    path.write_bytes(content[:size])
    found = problems(folder)
    assert [kind for kind, _ in found] == ["unreadable"]
    assert str(path) in found[0][1]


def test_what_some_ranks_lack_is_named(copied):
    folder = copied("qwen3_moe", "etp2_ep2")
    edit(folder, "01_001", lambda state: state.pop(NORM))
    ((kind, text),) = problems(folder)
    assert kind == "missing-on-rank"
    assert NORM in text
    assert "tp 1, pp 0, ep 1" in text


def test_shapes_that_contradict_each_other_name_both_files(copied):
    folder = copied("llama", "tp2")
    name = "decoder.layers.1.mlp.linear_fc2.weight"
    edit(folder, "01", lambda state: state.update({name: state[name][:, :-1].clone()}))
    texts = [text for kind, text in problems(folder) if kind == "contradiction"]
    assert any(name in text for text in texts)
    assert all("mp_rank_01/model.pt" in text and "mp_rank_00/model.pt" in text for text in texts)


def test_dtypes_that_contradict_each_other_are_problems(copied):
    folder = copied("llama", "tp2")
    edit(folder, "00", lambda state: state.update({NORM: state[NORM].bfloat16()}))
    assert [kind for kind, _ in problems(folder)] == ["contradiction"]


def test_odd_rows_of_gate_and_up_leave_a_gap(copied):
    folder = copied("llama", "tp1")
    first, second = (f"decoder.layers.1.mlp.linear_fc{n}.weight" for n in (1, 2))

    def cut(state: dict) -> None:
        state[first] = state[first][:-1].clone()

    edit(folder, "00", cut)
    assert problems(folder) == []  # not twice what the second layer takes: no gate, and whole
    assert open_checkpoint(folder)[first].shape == (191, 64)
    assert open_checkpoint(folder)[second].shape == (64, 96)


def test_chunks_that_some_ranks_lack_are_a_problem(copied):
    folder = copied("qwen3", "vpp2")
    path = folder / "mp_rank_00_001" / "model.pt"
    torch.save(torch.load(path, weights_only=False)[:1], path)
    assert ("chunks", "model: files have [1, 2] pipeline chunks") in problems(folder)


def test_gaps_in_the_numbers_of_layers_are_a_problem(copied):
    folder = copied("llama", "tp1")

    def skip(state: dict) -> None:
        for name in [name for name in state if ".layers.3." in name]:
            state[name.replace(".3.", ".5.")] = state.pop(name)

    edit(folder, "00", skip)
    ((kind, text),) = problems(folder)
    assert kind == "layers"
    assert "decoder.layers.*" in text
    assert "0, 1, 2, 5" in text


def test_gaps_in_the_numbers_of_experts_are_a_problem(copied):
    folder = copied("qwen3_moe", "etp2")
    name = "decoder.layers.1.mlp.experts.linear_fc1.weight"
    edit(folder, "01", lambda state: state.update({f"{name}7": state.pop(f"{name}3")}))
    kinds = {(kind, text) for kind, text in problems(folder) if kind == "experts"}
    assert len(kinds) == 1
    assert "0, 1, 2, 7 (mp_rank_01/model.pt)" in kinds.pop()[1]


def test_grouped_experts_need_a_router_to_be_told_apart(copied):
    folder = copied("mixtral", "etp2")
    for rank in ("00", "01"):
        edit(folder, rank, lambda state: state.pop("decoder.layers.1.mlp.router.weight"))
    texts = [text for kind, text in problems(folder) if kind == "tensor"]
    assert len(texts) == 4
    assert all("decoder.layers.1.mlp.experts.weight" in text for text in texts)


@pytest.mark.parametrize(
    ("case", "rank", "name", "index"),
    [
        (("llama", "tp2"), "01", NORM.replace(".0.", ".2."), (5,)),
        (("llama", "tp2"), "01", "decoder.final_layernorm.weight", (63,)),
        (("qwen2_moe", "tp2_ep2"), "01_001", "decoder.layers.3.mlp.router.weight", (2, 9)),
        (("qwen3_moe", "etp2_ep2"), "00_001", "decoder.layers.3.mlp.router.weight", (2, 9)),
        (
            ("deepseek_v3_mtp", "tp2"),
            "01",
            "decoder.layers.2.self_attention.linear_kv_down_proj.weight",
            (23, 1),
        ),
        (
            ("qwen3_moe", "pp2_ep2"),
            "00_000_001",
            "decoder.layers.1.self_attention.linear_qkv.weight",
            (3, 3),
        ),
        # Nothing but equality says that these are copies: it is proven to the last element.
        (("qwen3_moe", "tp2"), "01", "decoder.layers.0.mlp.experts.linear_fc2.weight3", (63, 39)),
        (("deepseek_v3_mtp", "pp2"), "00_001", "embedding.word_embeddings.weight", (250, 63)),
    ],
    ids=str,
)
def test_copies_that_differ_are_named(copied, case, rank, name, index):
    folder = copied(*case)
    assert differing(open_checkpoint(folder)) == {}
    path = edit(folder, rank, add_one(name, *index))
    ((where, text),) = differing(open_checkpoint(folder)).items()
    assert where.split(".experts.")[0] == name.split(".experts.")[0]
    assert f"{path.parent.name}/{path.name} differs from mp_rank_00" in text


@pytest.mark.parametrize("content", [[1, 2], 5, {"model": [1]}, [{"a": 1}, 3]], ids=str)
def test_what_is_no_state_of_a_model_is_a_problem(copied, content):
    folder = copied("llama", "tp1")
    torch.save(content, folder / "mp_rank_00" / "model.pt")
    assert "unreadable" in {kind for kind, _ in problems(folder)}


def test_a_folder_of_ranks_without_files_is_of_no_known_format(tmp_path):
    (tmp_path / "mp_rank_00").mkdir()
    (tmp_path / "mp_rank_00" / "distrib_optim.pt").write_bytes(pickle.dumps({}))
    (tmp_path / "notes.json").write_text(json.dumps({}))
    with pytest.raises(FormatError, match="no checkpoint of a known format"):
        open_checkpoint(tmp_path)


def test_a_legacy_model_of_megatron_lm_is_called_one(tmp_path):
    """`--use-legacy-models`, and all before 0.5: names that megatron-core never had."""
    embedding = {"word_embeddings": {"weight": torch.ones(4, 2)}}
    (tmp_path / "mp_rank_00").mkdir()
    state = {"model": {"language_model": {"embedding": embedding, "encoder": {}}}, "iteration": 3}
    torch.save(state, tmp_path / "mp_rank_00" / "model_optim_rng.pt")
    (problem,) = [each for each in open_checkpoint(tmp_path).problems if each.kind == "unreadable"]
    assert "legacy model of Megatron-LM" in problem.message
