"""What faults happen to: merges, a `to-mcore` and an upload, each in a folder of its own."""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import huggingface_hub

from ckpt_tool.common.errors import CkptError
from ckpt_tool.operations.merge import merge_fsdp
from ckpt_tool.operations.options import MergeOptions, ToMcoreOptions
from ckpt_tool.operations.to_mcore import convert_to_mcore
from ckpt_tool.operations.upload import Upload, upload_folder
from ckpt_tool.plans.options import WriteOptions
from ckpt_tool.writers import replacing, target
from tests.faults.shim import Shim
from tests.support.hub_server import WRITES, Hub, serving
from tests.support.merging import TINY, values, write_rank

Files = dict[str, bytes]


def read_all(folder: Path) -> Files | None:
    """Every file of a folder but those of a run that is under way; None where there is none."""
    if not folder.exists():
        return None
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".ckpt-" not in str(path.relative_to(folder))
    }


@dataclass
class Case:
    """An operation in `folder`: from `in` to `out`. `before`: what is in `out`; None: nothing.

    ``may_be_absent``: `out` may be missing after a kill, where two renames make the exchange;
    ``may_be_open``: or lack what completes it, in a mount point.
    """

    name: str
    folder: Path
    before: Files | None = None
    may_be_absent: bool = False
    may_be_open: bool = False
    expected: Files = field(default_factory=dict)

    @property
    def source(self) -> Path:
        return self.folder / "in"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def set_up(self) -> None:
        """What is there before; `in` stays from case to case."""
        for path in self.folder.iterdir():
            if path.name != "in":
                target.shutil.rmtree(path) if path.is_dir() else path.unlink()
        if self.before is not None:
            self.out.mkdir()
            for name, content in self.before.items():
                (self.out / name).write_bytes(content)

    def warm_up(self) -> None:
        """Do it once where it has all been imported for the processes that are forked."""
        self.set_up()
        self.run(again=True)

    def prepare(self) -> None:
        """In the process that does it."""

    def run(self, *, resume: bool = False, again: bool = False) -> None:
        """Do it; ``again``: after a fault, when what is there may be replaced."""
        raise NotImplementedError

    def find_faults(self, *, is_done: bool, was_killed: bool, said: str) -> Iterator[str]:
        """What is wrong after a fault, a line each."""
        found = read_all(self.out)
        states = [self.expected, self.before]
        if was_killed and self.may_be_absent:
            states.append(None)
        if was_killed and self.may_be_open and found is not None and "config.json" not in found:
            return
        if found not in states and not (found == {} and self.before is None):
            yield f"out is torn: {sorted(found or ())}"
        elif is_done and found != self.expected:
            yield "it says that it is done, and out is not complete"
        elif said and found == self.expected != self.before and "in its place" not in said:
            yield f"out is complete, and it says: {said}"

    def find_faults_at_last(self) -> Iterator[str]:
        """What is wrong when it has been done again."""
        found = read_all(self.out)
        if found != self.expected:
            yield f"done again, out is another: {sorted(found or ())}"
        left = {path.name for path in self.folder.iterdir()} - {"in", "out"}
        left |= {path.name for path in self.out.iterdir() if ".ckpt-" in path.name}
        if left:
            yield f"done again, these are left: {sorted(left)}"


def options(*, resume: bool, overwrite: bool, verify: bool = False) -> WriteOptions:
    return WriteOptions(
        check_load=False, resume=resume, overwrite=overwrite, verify=verify, direct=False
    )


@dataclass
class Merge(Case):
    """`verify`: read back, too. `can_exchange`: in one step. `is_mount`: `out` is a mount point."""

    verify: bool = False
    can_exchange: bool = True
    is_mount: bool = False

    def prepare(self) -> None:
        if not self.can_exchange:
            replacing.exchange = lambda *_: False
        if self.is_mount:
            plain, out = os.path.ismount, self.out
            os.path.ismount = lambda path: Path(path) == out or plain(path)
            target._mount_id = lambda folder: ""

    def run(self, *, resume: bool = False, again: bool = False) -> None:
        overwrite = self.before is not None or (again and not resume)
        how = options(resume=resume, overwrite=overwrite, verify=self.verify)
        merge_fsdp(self.source, self.out, MergeOptions(max_shard_size="2KB", jobs=1, write=how))


@dataclass
class ToMcore(Case):
    """To megatron-core's own format."""

    def run(self, *, resume: bool = False, again: bool = False) -> None:
        overwrite = self.before is not None or (again and not resume)
        how = options(resume=resume, overwrite=overwrite, verify=True)
        convert_to_mcore(self.source, self.out, ToMcoreOptions(jobs=1, write=how))


@dataclass
class Send(Case):
    """A merged model goes to a hub; ``out`` is what is sent, and stays what it is."""

    hub: Hub = field(default_factory=Hub)

    def set_up(self) -> None:
        super().set_up()
        self.hub.repos.clear()
        self.hub.objects.clear()
        self.expected = self.before or {}

    def warm_up(self) -> None:
        super().warm_up()
        for name in ("close_session", "reset_sessions"):  # no connection is shared with children
            getattr(huggingface_hub.utils, name, lambda: None)()

    def run(self, *, resume: bool = False, again: bool = False) -> None:
        upload_folder(self.out, Upload("lab/model"))

    def find_faults(self, *, is_done: bool, was_killed: bool, said: str) -> Iterator[str]:
        if read_all(self.out) != self.before:
            yield "what is sent has changed"
        states = [commit for repo in self.hub.repos.values() for commit in repo.commits]
        if any(state not in ({}, self.before) for state in states):
            yield "the hub has half of it"
        if is_done and self.before not in states:
            yield "it says that it is done, and the hub has nothing"

    def find_faults_at_last(self) -> Iterator[str]:
        yield from super().find_faults_at_last()
        if self.hub.repos["lab/model"].files != self.before:
            yield "sent again, the hub has something else"


def write_source(folder: Path) -> None:
    """Four weight files of 1 kB each, and files that go along."""
    state = {f"layers.{n}.weight": values(16, 16, start=n << 8) for n in range(4)}
    write_rank(folder, state, TINY)
    (folder / "huggingface" / "tokenizer.json").write_text("{}")
    (folder / "huggingface" / "tokenizer_config.json").write_text("{}")


def write_hub_model(folder: Path) -> None:
    """A Llama of one layer, as Hugging Face has it."""
    from safetensors.torch import save_file

    config = {**TINY, "model_type": "mistral", "intermediate_size": 6, "tie_word_embeddings": True}
    config["architectures"] = ["MistralForCausalLM"]
    shapes = {"embed_tokens": (16, 8), "norm": (8,), "layers.0.input_layernorm": (8,),
              "layers.0.post_attention_layernorm": (8,), "layers.0.mlp.gate_proj": (6, 8),
              "layers.0.mlp.up_proj": (6, 8), "layers.0.mlp.down_proj": (8, 6)}  # fmt: skip
    shapes |= {f"layers.0.self_attn.{part}_proj": (8, 8) for part in "qkvo"}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {
        f"model.{name}.weight": values(*shape, start=number << 8)
        for number, (name, shape) in enumerate(shapes.items())
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


OLD: Files = {"config.json": b"before", "old.safetensors": b"before"}


@contextmanager
def make_cases(folder: Path, names: str = "") -> Iterator[list[Case]]:
    """All cases, or those whose names begin so, each in a folder below ``folder``."""
    made: dict[str, Callable[[str, Path], Case]] = {
        "merge": Merge,
        "merge --verify": partial(Merge, verify=True),
        "merge --overwrite": partial(Merge, before=OLD),
        "merge --overwrite without renameat2": partial(
            Merge, before=OLD, may_be_absent=True, can_exchange=False
        ),
        "merge --overwrite of a mount": partial(Merge, before=OLD, may_be_open=True, is_mount=True),
        "to-mcore": ToMcore,
        "to-mcore --overwrite": partial(ToMcore, before=OLD),
    }
    cases = []
    for name, make in made.items():
        if name.startswith(names):
            place = folder / name.replace(" ", "_")
            place.mkdir(parents=True)
            (write_hub_model if name.startswith("to-mcore") else write_source)(place / "in")
            cases.append(make(name, place))
    with _offer_hub(folder, names) as sent:
        yield [*cases, *sent]


@contextmanager
def _offer_hub(folder: Path, names: str) -> Iterator[list[Case]]:
    if not "upload".startswith(names):
        yield []
        return
    from huggingface_hub import constants

    place = folder / "upload"
    (place / "in").mkdir(parents=True)
    before = {f"model-0000{n}-of-00002.safetensors": bytes([n]) * 999 for n in (1, 2)}
    before |= {"config.json": b"{}", "tokenizer.json": b"{}"}
    with serving() as hub:
        constants.ENDPOINT, constants.HF_HUB_OFFLINE = hub.url, False
        constants.HF_HUB_DISABLE_XET = True
        constants.HF_TOKEN_PATH = str(place / "token")
        os.environ["HF_TOKEN"] = WRITES
        yield [Send("upload", place, before, hub=hub)]


def attempt(case: Case, shim: Shim | None, **how: bool) -> str:
    """Do it in this process, which is to end; what it says, empty where it is done."""
    time.sleep = lambda _: None  # huggingface_hub waits before it tries again
    logging.disable()
    case.prepare()
    if shim is not None:
        shim.install()
    try:
        case.run(**how)
    except (CkptError, OSError) as error:
        return str(error) or type(error).__name__
    finally:
        if shim is not None:
            with suppress(AttributeError):
                shim._is_on = False
    return ""
