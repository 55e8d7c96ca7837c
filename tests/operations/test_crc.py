"""Storages that are not what was written: found by every command, in every kind of archive."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch.serialization import set_crc32_options
from typer.testing import CliRunner

from ckpt_tool import (
    LoraOptions,
    MergeOptions,
    ToMcoreOptions,
    convert_to_mcore,
    merge_dcp,
    merge_fsdp,
    merge_megatron,
    verify_checkpoint,
)
from ckpt_tool.cli.app import app
from ckpt_tool.common.errors import CheckpointError
from ckpt_tool.common.parallel import PeerError
from ckpt_tool.operations.merge import Job, merge_as_team
from ckpt_tool.operations.options import VerifyOptions
from ckpt_tool.plans.options import CrcCheck, WriteOptions
from ckpt_tool.readers import open_checkpoint
from tests.support.merging import TINY, load_folder, values, write_rank
from tests.support.teams import run_as_team

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
WIDE = 3_000_000  # bytes of a tensor that is read in more than one block


def options(check_crc: bool | None = None, **more) -> MergeOptions:
    write = WriteOptions(check_crc=check_crc, **more)
    return MergeOptions(keep_names=True, dtype="keep", write=write)


def save_fsdp(folder: Path) -> Path:
    state = {"a.weight": values(5, WIDE // 20), "b.weight": values(7)}
    return write_rank(folder, state)


def save_megatron(folder: Path) -> Path:
    (folder / "mp_rank_00").mkdir(parents=True)
    state = {
        "embedding.word_embeddings.weight": values(4, 8),
        "a.weight": values(5, 6),
        "decoder.final_layernorm.weight": values(8),
    }
    torch.save({"model": state}, folder / "mp_rank_00" / "model_optim_rng.pt")
    return folder


def save_dcp(folder: Path) -> Path:
    state = {"embed_tokens.weight": values(4, 8), "a.weight": values(5, 6)}
    dcp.save({"model": state, "optim": {"step": values(3)}}, checkpoint_id=folder)
    return folder


SAVED = {
    "fsdp": (save_fsdp, merge_fsdp),
    "megatron": (save_megatron, merge_megatron),
    "dcp": (save_dcp, merge_dcp),
}
each = pytest.mark.parametrize(("save", "merge"), SAVED.values(), ids=SAVED)


def damage(folder: Path, name: str) -> Path:
    """Flip a bit of the tensor's last element; its file."""
    checkpoint = open_checkpoint(folder)
    (found,) = [entry for key, entry in checkpoint.entries.items() if key.endswith(name)]
    region = found.holdings[-1].region
    file, at = Path(region.path), region.offset + found.nbytes - 1
    content = bytearray(file.read_bytes())
    content[at] ^= 4
    file.write_bytes(content)
    return file


def entries_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@each
def test_a_merge_says_what_it_has_checked(tmp_path, save, merge):
    source = save(tmp_path / "c")
    result = merge(source, tmp_path / "out", options())
    assert result.crc == CrcCheck(result.num_tensors, 1, 0, [])


@each
@pytest.mark.parametrize("check_crc", [None, True])
def test_nothing_is_written_of_a_damaged_checkpoint(tmp_path, save, merge, check_crc):
    source = save(tmp_path / "c")
    file = damage(source, "a.weight")
    with pytest.raises(CheckpointError, match="1 record of this checkpoint is damaged") as raised:
        merge(source, tmp_path / "out", options(check_crc))
    (problem,) = raised.value.problems
    assert (problem.kind, problem.where) == ("crc", str(file))
    assert "a.weight. Copy the file again" in problem.message
    assert f"inspect `check_crc=True` {source}" in raised.value.hint
    assert entries_of(tmp_path) == ["c"]


@each
def test_unless_nobody_wants_to_know(tmp_path, save, merge):
    source = save(tmp_path / "c")
    damage(source, "a.weight")
    assert merge(source, tmp_path / "out", options(check_crc=False)).crc is None


def test_every_damaged_record_is_listed(tmp_path):
    source = save_fsdp(tmp_path / "c")
    for name in ("a.weight", "b.weight"):
        damage(source, name)
    with pytest.raises(CheckpointError, match="2 records of this checkpoint are") as raised:
        merge_fsdp(source, tmp_path / "out", options())
    said = [problem.message.split("In it: ")[1].split(".")[0] for problem in raised.value.problems]
    assert said == ["a", "b"]


@each
def test_what_was_written_without_checksums_is_said_and_not_refused(tmp_path, save, merge):
    set_crc32_options(False)
    try:
        source = save(tmp_path / "c")
    finally:
        set_crc32_options(True)
    file = damage(source, "a.weight")  # nobody can know
    for check_crc in (None, True):
        out = tmp_path / f"out-{check_crc}"
        assert merge(source, out, options(check_crc)).crc == CrcCheck(0, 0, 0, [str(file)])


def save_halves(folder: Path) -> Path:
    """Tensors that are views: of one storage a half is a tensor, of the other all but a little."""
    large, small = values(1000, 300), values(1000, 300)
    return write_rank(folder, {"a.weight": large[:500], "b.weight": small[1:]})


def test_what_little_is_missing_of_a_record_is_read(tmp_path):
    result = merge_fsdp(save_halves(tmp_path / "c"), tmp_path / "out", options())
    assert result.crc == CrcCheck(0, 0, 2, [])  # a half is not little, and both are one question
    small = values(1000, 300)[1:]
    source = write_rank(tmp_path / "d", {"b.weight": small})
    assert merge_fsdp(source, tmp_path / "out-d", options()).crc == CrcCheck(1, 1, 0, [])


def test_and_with_the_option_all_that_is_missing(tmp_path):
    source = save_halves(tmp_path / "c")
    assert merge_fsdp(source, tmp_path / "out", options(True)).crc == CrcCheck(2, 1, 0, [])
    assert load_folder(tmp_path / "out")["a.weight"].equal(values(1000, 300)[:500])
    file = source / "model_world_size_1_rank_0.pt"
    content = bytearray(file.read_bytes())
    content[open_checkpoint(source).entries["a.weight"].holdings[0].region.offset + 900_000] ^= 1
    file.write_bytes(content)  # in the half that is no tensor's
    merge_fsdp(source, tmp_path / "out-2", options())
    with pytest.raises(CheckpointError, match="1 record"):
        merge_fsdp(source, tmp_path / "out-3", options(True))


@pytest.mark.parametrize(("rows", "size"), [(30, 1), (12, 2)], ids=["alone", "two processes"])
def test_and_with_the_option_gaps_between_pieces_too(tmp_path, rows: int, size: int):
    """Two tensors have other columns of one storage, as long runs of bytes; nobody has the rest."""
    base = values(rows, 4096)
    state = {"a.weight": base[:, :2048], "b.weight": base[:, 2048:3000], "c.weight": values(99)}
    job = Job(write_rank(tmp_path / "c", state), tmp_path / "out", "fsdp")
    told = replace(options(True), max_shard_size="50KB")
    found = run_as_team(size, lambda team: merge_as_team(job, told, team).crc)
    assert [crc for crc, _ in found] == [CrcCheck(2, 1, 0, [])] * size


def test_tensors_that_are_cast_and_cut_into_files_are_followed(tmp_path):
    state = {f"{n}.weight": values(WIDE // 12, start=n) for n in range(4)}
    source = write_rank(tmp_path / "c", state)
    told = replace(options(), dtype="bfloat16", max_shard_size="600KB")
    assert merge_fsdp(source, tmp_path / "out", told).crc == CrcCheck(4, 1, 0, [])
    damage(source, "2.weight")
    with pytest.raises(CheckpointError, match="1 record"):
        merge_fsdp(source, tmp_path / "out-2", told)


def save_shared(folder: Path) -> Path:
    """One storage, of which each of four tensors, in as many files, is a quarter."""
    whole = values(4, WIDE // 16)
    return write_rank(folder, {f"{n}.weight": whole[n] for n in range(4)})


SHARED = replace(options(), max_shard_size="800KB")


def test_a_record_that_several_processes_read_is_put_together(tmp_path):
    source = save_shared(tmp_path / "c")
    job = Job(source, tmp_path / "out", "fsdp")
    found = run_as_team(2, lambda team: merge_as_team(job, SHARED, team).crc)
    assert [crc for crc, _ in found] == [CrcCheck(1, 1, 0, [])] * 2


def test_damage_stops_all_processes(tmp_path):
    source = save_shared(tmp_path / "c")
    damage(source, "3.weight")
    job = Job(source, tmp_path / "out", "fsdp")

    def merge(team) -> str:
        with pytest.raises((CheckpointError, PeerError)) as raised:
            merge_as_team(job, SHARED, team)
        return raised.value.message

    said = [message for message, _ in run_as_team(2, merge)]
    assert said == [f"{source}: 1 record of this checkpoint is damaged"] * 2
    assert entries_of(tmp_path) == ["c"]


def test_a_run_that_goes_on_reads_again_what_the_first_has_read(tmp_path, monkeypatch):
    """Nobody knows what the run that was interrupted has seen."""
    state = {f"{n}.weight": values(WIDE // 12, start=n) for n in range(3)}
    source = write_rank(tmp_path / "c", state)
    told = replace(options(resume=True), max_shard_size="1MB")
    stop_before_publishing(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        merge_fsdp(source, tmp_path / "out", told)
    monkeypatch.undo()
    assert merge_fsdp(source, tmp_path / "out", told).crc == CrcCheck(3, 1, 0, [])
    assert merge_fsdp(source, tmp_path / "out", told).crc is None  # nothing is read
    asked = replace(options(check_crc=True, resume=True), max_shard_size="1MB")
    assert merge_fsdp(source, tmp_path / "out", asked).crc == CrcCheck(3, 1, 0, [])


def stop_before_publishing(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ckpt_tool.plans.stage._put_small_files", stop)


def test_an_adapter_is_fused_of_what_was_written(tmp_path):
    """Factors are read by every thread, and more than once."""
    base = "base_model.model.model.layers.0.self_attn.q_proj"
    state = {
        "base_model.model.model.embed_tokens.weight": values(16, 8),
        f"{base}.base_layer.weight": values(2000, 300),
        f"{base}.lora_A.default.weight": values(4, 300),
        f"{base}.lora_B.default.weight": values(2000, 4),
    }
    source = write_rank(tmp_path / "c", state, TINY)
    (source / "lora_train_meta.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}))
    told = MergeOptions(dtype="keep", write=WriteOptions(check_load=False))
    result = merge_fsdp(source, tmp_path / "out", told)
    assert result.lora is not None
    assert result.crc == CrcCheck(4, 1, 0, [])
    damage(source, "lora_A.default.weight")
    with pytest.raises(CheckpointError, match="1 record"):
        merge_fsdp(source, tmp_path / "out-2", told)


@pytest.mark.parametrize("kind", ["base", "fill_from"])
def test_damage_of_a_model_that_is_read_too_is_said_of_that(tmp_path, kind):
    layer, embedding = "model.layers.0.self_attn.q_proj", "model.embed_tokens.weight"
    other = tmp_path / "other"
    other.mkdir()
    torch.save({embedding: values(16, 8), f"{layer}.weight": values(8, 8)},
               other / "pytorch_model.bin")  # fmt: skip
    (other / "config.json").write_text(json.dumps(TINY))
    if kind == "base":
        name = f"base_model.model.{layer}"
        state = {f"{name}.lora_A.weight": values(2, 8), f"{name}.lora_B.weight": values(8, 2)}
        more = {"lora": LoraOptions(base=other, alpha=4)}
    else:
        state, more = {f"{layer}.weight": values(8, 8)}, {"fill_from": other}
    source = write_rank(tmp_path / "c", state, TINY)
    told = MergeOptions(dtype="keep", write=WriteOptions(check_load=False), **more)
    assert merge_fsdp(source, tmp_path / "out", told).crc.num_files == 2
    file = damage(other, embedding)
    with pytest.raises(CheckpointError, match="^" + re.escape(f"{other}: 1 record of")) as raised:
        merge_fsdp(source, tmp_path / "out-2", told)
    (problem,) = raised.value.problems
    assert problem.where == str(file)
    assert embedding in problem.message
    assert raised.value.hint.endswith(f" {other}")
    assert inspect(other)["code"] == 2
    damage(source, next(iter(state)))
    with pytest.raises(CheckpointError, match="2 records of these checkpoints are") as raised:
        merge_fsdp(source, tmp_path / "out-2", told)
    assert raised.value.message.startswith(f"{other}, {source}: ")
    assert next(iter(state)) in raised.value.problems[1].message
    assert entries_of(tmp_path) == ["c", "other", "out"]


def inspect(*words: object) -> dict:
    found = CliRunner().invoke(app, ["inspect", "--json", "--check-crc", *map(str, words)])
    return {**json.loads(found.stdout), "code": found.exit_code}


@each
def test_inspect_reads_every_record(tmp_path, save, merge):
    source = save(tmp_path / "c")
    found = inspect(source)
    assert (found["ok"], found["code"], found["crc"]["damaged"], found["crc"]["unsaid"]) == (
        True,
        0,
        0,
        [],
    )
    assert found["crc"]["records"] > found["num_tensors"]
    file = damage(source, "a.weight")
    found = inspect(source)
    assert (found["ok"], found["code"], found["crc"]["damaged"]) == (False, 2, 1)
    (problem,) = found["problems"]
    assert (problem["kind"], problem["where"]) == ("crc", str(file))
    assert "a.weight. Copy" in problem["message"]


def test_inspect_reads_what_lies_beside_too(tmp_path):
    source = save_fsdp(tmp_path / "c")
    optimizer = source / "optim_world_size_1_rank_0.pt"
    torch.save({"m": values(40)}, optimizer)
    (source / "notes.pt").write_text("no archive")
    assert inspect(source)["crc"]["files"] == 2
    content = bytearray(optimizer.read_bytes())
    content[content.index(values(40).numpy().tobytes()) + 3] ^= 8
    optimizer.write_bytes(content)
    found = inspect(source)
    assert [problem["where"] for problem in found["problems"]] == [str(optimizer)]
    assert "record optim_world_size_1_rank_0/data/0 is damaged" in found["problems"][0]["message"]


def test_inspect_says_that_safetensors_have_no_checksums(tmp_path):
    save_file({"a": values(4)}, tmp_path / "model.safetensors")
    found = inspect(tmp_path)
    path = str(tmp_path / "model.safetensors")
    assert found["crc"] == {"files": 0, "records": 0, "damaged": 0, "bytes": 0, "unsaid": [path]}
    text = CliRunner().invoke(app, ["inspect", "--check-crc", str(tmp_path)]).stdout
    assert "not checked: 1 file has no checksums" in text


def test_a_damaged_pickle_is_said_once(tmp_path):
    source = save_fsdp(tmp_path / "c")
    file = source / "model_world_size_1_rank_0.pt"
    content = bytearray(file.read_bytes())
    content[content.index(b"b.weight")] ^= 1
    file.write_bytes(content)
    said = [problem["message"] for problem in inspect(source)["problems"]]
    assert sum("data.pkl is damaged" in message for message in said) == 1


def save_bin(folder: Path) -> Path:
    folder.mkdir()
    torch.save({"a.weight": values(5, 6)}, folder / "pytorch_model.bin")
    return folder


OTHERS: dict[str, Callable[[Path], Path]] = {
    "pytorch_model.bin": save_bin,
    "a lone file": lambda folder: save_bin(folder) / "pytorch_model.bin",
    "a rank's file": lambda folder: save_fsdp(folder) / "model_world_size_1_rank_0.pt",
    **{name: save for name, (save, _) in SAVED.items()},
}


@pytest.mark.parametrize("save", OTHERS.values(), ids=OTHERS)
def test_verify_has_no_verdict_on_damage(tmp_path, save):
    source = save(tmp_path / "c")
    shutil.copytree(tmp_path / "c", tmp_path / "d")
    other = tmp_path / "d" / source.relative_to(tmp_path / "c")
    check = VerifyOptions(keep_names=True, check_crc=True)
    found = verify_checkpoint(source, other, check)
    assert found.equal
    assert found.crc is not None
    assert (found.crc.num_files, found.crc.num_unchecked) == (2, 0)
    for side in (source, other):
        damage(side, "a.weight")
    assert verify_checkpoint(source, other, VerifyOptions(keep_names=True)).equal
    with pytest.raises(CheckpointError, match="1 record of this checkpoint is damaged"):
        verify_checkpoint(source, other, check)


def test_to_mcore_reads_archives_so_too(tmp_path):
    config = {
        "model_type": "mistral", "hidden_size": 4, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 5, "vocab_size": 6,
        "tie_word_embeddings": True, "torch_dtype": "float32",
    }  # fmt: skip
    shapes = {"embed_tokens": (6, 4), "norm": (4,), "layers.0.input_layernorm": (4,)}
    shapes |= {"layers.0.post_attention_layernorm": (4,), "layers.0.mlp.down_proj": (4, 5)}
    shapes |= {f"layers.0.mlp.{part}_proj": (5, 4) for part in ("gate", "up")}
    shapes |= {f"layers.0.self_attn.{part}_proj": (4, 4) for part in "qkvo"}
    weights = {f"model.{name}.weight": values(*shape) for name, shape in shapes.items()}
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    torch.save(weights, tmp_path / "hf" / "pytorch_model.bin")
    result = convert_to_mcore(tmp_path / "hf", tmp_path / "out", ToMcoreOptions())
    assert result.crc == CrcCheck(len(weights), 1, 0, [])
    assert inspect(tmp_path / "out")["ok"]
    damage(tmp_path / "hf", "q_proj.weight")
    with pytest.raises(CheckpointError, match="1 record"):
        convert_to_mcore(tmp_path / "hf", tmp_path / "out-2", ToMcoreOptions())


def test_without_fsync_nobody_reckons_unless_asked(tmp_path):
    source = save_fsdp(tmp_path / "c")
    assert merge_fsdp(source, tmp_path / "out", options(fsync=False)).crc is None
    asked = options(check_crc=True, fsync=False)
    assert merge_fsdp(source, tmp_path / "out-2", asked).crc == CrcCheck(2, 1, 0, [])
