"""Models at `s3://`: what a folder would hold, seen when all of it is there, or not at all."""

import json
from collections.abc import Callable
from pathlib import Path

import obstore
import pytest
import torch
from obstore.store import S3Store

from ckpt_tool.common.errors import CheckpointError, OutputError, StoreError, UsageError
from ckpt_tool.common.remote import stores
from ckpt_tool.common.remote.address import Address
from ckpt_tool.operations.merge import Job, merge, merge_checkpoint, merge_fsdp, preview_merge
from ckpt_tool.operations.options import MergeOptions, ToMcoreOptions
from ckpt_tool.operations.to_mcore import convert_to_mcore
from ckpt_tool.operations.upload import Upload
from ckpt_tool.plans.options import WriteOptions
from ckpt_tool.writers.target import PARTIAL
from tests.support.merging import values, write_rank
from tests.support.objects.buckets import Bucket
from tests.support.objects.faults import ALWAYS
from tests.support.tiny_models import build

#: Small enough that the model has several files, and an index.
SEVERAL = "40KB"


def read(folder: Path) -> dict[str, bytes]:
    """Every file, by its name in the folder; without what rclone keeps there of uploads."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".rclone_")
    }


def find_store(sink: Bucket) -> S3Store:
    address = Address.parse(sink.url)
    assert address is not None
    store: S3Store = stores.open_store(address)
    return store


def look(sink: Bucket) -> set[str]:
    """What somebody sees who lists the bucket."""
    return {row["path"] for row in obstore.list(find_store(sink)).collect()}


def states(count: int = 3, start: int = 1) -> dict[str, torch.Tensor]:
    """Tensors of 16 KiB, each in a file of its own where these are small."""
    return {f"layers.{n}.weight": values(64, 64, start=start + 4096 * n) for n in range(count)}


def bare(**write: object) -> MergeOptions:
    """Weights alone, a file for each tensor."""
    return MergeOptions(keep_names=True, max_shard_size="20KB", write=WriteOptions(**write))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_rank(tmp_path / "run" / "global_step_7" / "actor", states())


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that does not answer is not asked for half a minute."""
    monkeypatch.setitem(stores._RETRY, "max_retries", 1)


@pytest.mark.parametrize("case", ["fsdp2_w2", "fsdp2_moe_w2"])
def test_a_model_at_s3_is_that_of_a_folder(
    checkpoints: dict[str, Path], sink: Bucket, tmp_path: Path, case: str
) -> None:
    options = MergeOptions(max_shard_size=SEVERAL)
    local = merge_fsdp(checkpoints[case], tmp_path / "model", options)
    there = merge_fsdp(checkpoints[case], f"{sink.url}/models/qwen", options)
    assert read(sink.folder / "models" / "qwen") == read(tmp_path / "model")
    assert str(there.output) == f"{sink.url}/models/qwen"
    assert (there.files, there.load_check) == (local.files, local.load_check)


def test_nothing_is_seen_before_all_of_it_has_left(source: Path, sink: Bucket) -> None:
    seen: list[set[str]] = []
    sink.fail(method="PUT", times=ALWAYS, before=lambda: seen.append(look(sink)))
    merge_checkpoint(source, f"{sink.url}/out", bare())
    assert len(seen) == 1 + 3 + 1 + 1 + 1  # mark, tensors, index, manifest, the mark once more
    assert set().union(*seen) <= {f"out/{PARTIAL}"}
    assert PARTIAL not in read(sink.folder / "out")


def test_objects_appear_in_the_order_in_which_they_make_a_model(source: Path, sink: Bucket) -> None:
    (source / "huggingface").mkdir()
    (source / "huggingface" / "config.json").write_text('{"model_type": "unheard-of"}')
    merge_checkpoint(source, sink.url, MergeOptions(max_shard_size="20KB"))
    shown = [r.key for r in sink.requests if r.method == "POST" and "uploadId" in r.query]
    weights = {f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)}
    assert set(shown[:3]) == weights
    assert shown[3:] == [
        "README.md",
        "ckpt_manifest.json",
        "model.safetensors.index.json",
        "config.json",
    ]


def test_parts_that_threads_fill_in_any_order_arrive_in_theirs(
    sink: Bucket, tmp_path: Path
) -> None:
    """52 MB in one file: several parts, none of which ends where a block does."""
    tensor = torch.arange(13_000_001, dtype=torch.int32)
    folder = write_rank(tmp_path / "run", {"a.weight": tensor.view(torch.float32)})
    options = MergeOptions(keep_names=True, jobs=4)
    merge_checkpoint(folder, tmp_path / "out", options)
    merge_checkpoint(folder, f"{sink.url}/out", options)
    assert read(sink.folder / "out") == read(tmp_path / "out")
    parts = [r for r in sink.requests if r.method == "PUT" and "partNumber" in r.query]
    assert len(parts) == 6 + 1 + 1  # what is left over waits for the end; the manifest


def test_megatron_core_files_at_s3_are_those_of_a_folder(sink: Bucket, tmp_path: Path) -> None:
    build("qwen2").save_pretrained(model := tmp_path / "model")
    for layout in ("bare", "megatron-lm"):
        options = ToMcoreOptions(layout=layout, write=WriteOptions(verify=True))
        convert_to_mcore(model, tmp_path / layout, options)
        result = convert_to_mcore(model, f"{sink.url}/{layout}", options)
        assert result.verified
        assert read(sink.folder / layout) == read(tmp_path / layout)


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 503, "code": "SlowDown", "times": 3},
        {"status": 500, "code": "InternalError", "times": 2},
    ],
)
@pytest.mark.parametrize("method", ["PUT", "POST"])
def test_a_store_that_is_busy_is_asked_again(
    source: Path, sink: Bucket, tmp_path: Path, method: str, fault: dict[str, object]
) -> None:
    sink.fail(method=method, **fault)
    merge_checkpoint(source, sink.url, bare())
    merge_checkpoint(source, tmp_path / "out", bare())
    assert read(sink.folder) == read(tmp_path / "out")


def test_a_connection_that_breaks_in_an_upload_is_made_again(
    source: Path, sink: Bucket, tmp_path: Path
) -> None:
    def hang_up() -> None:
        raise ConnectionResetError

    sink.fail(method="PUT", key="model-*", times=2, before=hang_up)
    merge_checkpoint(source, sink.url, bare())
    merge_checkpoint(source, tmp_path / "out", bare())
    assert read(sink.folder) == read(tmp_path / "out")


@pytest.mark.parametrize("key", [PARTIAL, "model-00002-*", "ckpt_manifest.json"])
def test_who_may_not_write_is_told_so_and_leaves_nothing(
    source: Path, sink: Bucket, key: str
) -> None:
    sink.fail(method="PUT", key=f"out/{key}", status=403, code="AccessDenied", times=ALWAYS)
    with pytest.raises(StoreError, match="403 AccessDenied") as raised:
        merge_checkpoint(source, f"{sink.url}/out", bare())
    assert str(raised.value).startswith(f"{sink.url}/out/")
    assert "AWS_ACCESS_KEY_ID" in raised.value.hint
    sink.proxy.faults.planned.clear()
    assert look(sink) == set()


@pytest.mark.usefixtures("impatient")
def test_a_store_that_is_gone_in_the_middle_leaves_nothing_that_is_seen(
    source: Path, sink: Bucket
) -> None:
    sink.fail(method="PUT", key="model-00002-*", status=500, code="Lost", times=ALWAYS)
    with pytest.raises(StoreError, match=r"model-00002-of-00003\.safetensors.*500 Lost"):
        merge_checkpoint(source, f"{sink.url}/out", bare())
    assert look(sink) == set()


def refuse_late(sink: Bucket, key: str) -> None:
    """Have the store refuse to complete an object, when all of it has arrived."""
    sink.fail(
        method="PUT",
        key=key,
        before=lambda: sink.fail(method="POST", key=key, status=403, code="AccessDenied"),
    )


def test_what_has_appeared_is_removed_where_the_rest_cannot(source: Path, sink: Bucket) -> None:
    refuse_late(sink, "out/ckpt_manifest.json")
    with pytest.raises(StoreError, match=r"out/ckpt_manifest\.json: refused: 403") as raised:
        merge_checkpoint(source, f"{sink.url}/out", bare())
    assert "is gone" not in raised.value.hint
    shown = [r.key for r in sink.requests if r.method == "POST" and "uploadId" in r.query]
    assert "out/model-00001-of-00003.safetensors" in shown
    assert look(sink) == set()


def test_what_is_there_stays_unless_it_is_to_be_replaced(source: Path, sink: Bucket) -> None:
    (sink.folder / "out").mkdir()
    (sink.folder / "out" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"is not empty \(mine.txt\)") as raised:
        merge_checkpoint(source, f"{sink.url}/out", bare())
    assert "`write.overwrite=True`" in raised.value.hint
    assert read(sink.folder) == {"out/mine.txt": b"mine"}
    assert not [each for each in sink.requests if each.method in ("PUT", "DELETE")]


def test_a_model_is_replaced_when_the_new_one_has_left(
    source: Path, sink: Bucket, tmp_path: Path
) -> None:
    old = write_rank(tmp_path / "old", states(4, start=9))
    merge_checkpoint(old, f"{sink.url}/out", bare())
    before = read(sink.folder)
    seen: list[dict[str, bytes]] = []
    sink.fail(
        method="PUT", key="out/*m*", times=ALWAYS, before=lambda: seen.append(read(sink.folder))
    )
    merge_checkpoint(source, f"{sink.url}/out", bare(overwrite=True))
    merge_checkpoint(source, tmp_path / "out", bare())
    assert read(sink.folder / "out") == read(tmp_path / "out")
    assert all(before.items() <= each.items() for each in seen)
    assert seen
    gone = [r for r in sink.requests if r.method == "POST" and r.query.startswith("delete")]
    assert len(gone) == 2 + 2  # both runs' marks; what makes a model of the old one, and the rest


def test_a_model_that_was_half_replaced_is_said_to_be_gone(
    source: Path, sink: Bucket, tmp_path: Path
) -> None:
    merge_checkpoint(write_rank(tmp_path / "old", states(4)), f"{sink.url}/out", bare())
    refuse_late(sink, "out/ckpt_manifest.json")
    with pytest.raises(StoreError) as raised:
        merge_checkpoint(source, f"{sink.url}/out", bare(overwrite=True))
    assert f"What was at {sink.url}/out is gone: it was being replaced." in raised.value.hint
    assert look(sink) == set()


def test_who_may_not_remove_anything_is_told_of_the_mark(source: Path, sink: Bucket) -> None:
    sink.fail(method="POST", key="", status=403, code="AccessDenied")
    result = merge_checkpoint(source, f"{sink.url}/out", bare())
    (said,) = result.warnings
    assert said.startswith(f"{sink.url}/out/{PARTIAL} could not be removed: ")
    assert merge_checkpoint(source, f"{sink.url}/out", bare(resume=True)).already_complete
    assert PARTIAL not in look(sink)


def test_a_whole_bucket_is_not_replaced(source: Path, sink: Bucket) -> None:
    (sink.folder / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="is a whole bucket"):
        merge_checkpoint(source, sink.url, bare(overwrite=True))
    assert read(sink.folder) == {"mine.txt": b"mine"}


def test_a_checkpoint_is_not_replaced_by_its_model(sink: Bucket) -> None:
    write_rank(sink.folder / "run" / "global_step_7", states())
    (sink.folder / "run" / "global_step_7" / "optim").mkdir()
    (sink.folder / "run" / "global_step_7" / "optim" / "state").write_text("needed")
    before = read(sink.folder)
    checkpoint = f"{sink.url}/run/global_step_7"
    for out, said in (
        (checkpoint, "is or contains the checkpoint itself"),
        (f"{sink.url}/run", "is or contains the checkpoint itself"),
        (f"{checkpoint}/optim", "is a part of the checkpoint"),
    ):
        with pytest.raises(OutputError, match=said):
            merge_checkpoint(checkpoint, out, bare(overwrite=True))
    assert read(sink.folder) == before
    merge_checkpoint(checkpoint, f"{checkpoint}/hf", bare())
    assert "run/global_step_7/hf/ckpt_manifest.json" in look(sink)


def test_what_is_complete_is_not_written_again(source: Path, sink: Bucket, tmp_path: Path) -> None:
    out = f"{sink.url}/out"
    first = merge_checkpoint(source, out, bare())
    asked = len(sink.requests)
    again = merge_checkpoint(source, out, bare(resume=True))
    assert again.already_complete
    assert again.files == first.files
    later = sink.requests[asked:]
    assert {each.method for each in later} <= {"GET", "HEAD"}
    assert not [each for each in later if each.key.endswith(".safetensors")]
    write_rank(source, states(start=100))  # another content, of the same size
    assert not merge_checkpoint(source, out, bare(resume=True, overwrite=True)).already_complete
    merge_checkpoint(source, tmp_path / "out", bare())
    assert read(sink.folder / "out") == read(tmp_path / "out")


def test_of_an_incomplete_model_it_is_said_what_is_wrong(source: Path, sink: Bucket) -> None:
    merge_checkpoint(source, f"{sink.url}/out", bare())
    obstore.put(find_store(sink), "out/more.safetensors", b"more")
    obstore.delete(find_store(sink), "out/model.safetensors.index.json")
    with pytest.raises(OutputError) as raised:
        merge_checkpoint(source, f"{sink.url}/out", bare(resume=True))
    assert "model.safetensors.index.json is missing" in str(raised.value)
    assert "more.safetensors is no part of it" in str(raised.value)


def damage(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def test_what_does_not_read_back_is_not_kept(source: Path, sink: Bucket) -> None:
    assert merge_checkpoint(source, f"{sink.url}/good", bare(verify=True)).verified
    sink.fail(method="GET", key="bad/model-00002-*", times=ALWAYS, change=damage)
    result = merge_checkpoint(source, f"{sink.url}/bad", bare(verify=True))
    assert result.differences == ["layers.1.weight"]
    assert {name.partition("/")[0] for name in look(sink)} == {"good"}


def test_a_source_that_changes_meanwhile_leaves_nothing(source: Path, sink: Bucket) -> None:
    sink.fail(method="PUT", key="out/model-00003-*", before=lambda: write_rank(source, states()))
    with pytest.raises(CheckpointError, match="changed while it was read"):
        merge_checkpoint(source, f"{sink.url}/out", bare())
    assert look(sink) == set()


def test_a_dry_run_asks_whether_one_may_write_and_puts_nothing(source: Path, sink: Bucket) -> None:
    job = Job(source, f"{sink.url}/out")
    assert str(preview_merge(job, bare()).out) == f"{sink.url}/out"
    assert look(sink) == set()
    assert not [each for each in sink.requests if each.method == "PUT"]
    sink.fail(method="POST", status=403, code="AccessDenied")
    with pytest.raises(StoreError, match="403 AccessDenied"):
        preview_merge(job, bare())
    missing = f"{sink.url}x"
    with pytest.raises(StoreError, match="there is no bucket"):
        preview_merge(Job(source, f"{missing}/out"), bare())


REFUSED: list[tuple[str, dict[str, object], str]] = [
    ("hf://org/name", {}, "nothing is written to hf:// addresses"),
    ("https://example.org/model", {}, "nothing is written to https:// addresses"),
    ("s3://bucket/out", {"fsync": False}, "`write.fsync=False`: is about files on a disk"),
    ("s3://bucket/out", {"direct": True}, "`write.direct=True`: is about files on a disk"),
]


@pytest.mark.parametrize(("out", "options", "said"), REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_read(
    out: str, options: dict[str, object], said: str
) -> None:
    for run in (merge_checkpoint, lambda *job: preview_merge(Job(*job[:2]), job[2])):
        with pytest.raises(UsageError, match=said):
            run("/nowhere", out, bare(**options))


def test_a_model_elsewhere_is_not_sent_to_the_hub(sink: Bucket) -> None:
    with pytest.raises(UsageError, match="`upload`: sends a folder, and OUT is s3://"):
        merge(Job("/nowhere", sink.url), bare(), upload=Upload("org/name"))


def test_megatron_core_loads_nothing_from_a_store(sink: Bucket) -> None:
    options = ToMcoreOptions(write=WriteOptions(check_load=True))
    with pytest.raises(UsageError, match="megatron-core loads folders only"):
        convert_to_mcore("/nowhere", f"{sink.url}/out", options)


@pytest.mark.parametrize("refuse", [lambda out: f"{out}", lambda out: out.replace("//", "/")])
def test_a_manifest_says_nothing_of_where_it_lies(
    source: Path, sink: Bucket, refuse: Callable[[str], str]
) -> None:
    merge_checkpoint(source, Path(refuse(f"{sink.url}/out")), bare())
    manifest = (sink.folder / "out" / "ckpt_manifest.json").read_text()
    assert sink.name not in manifest
    assert json.loads(manifest)["source"]["step"] == 7
