"""What an operation takes: a checkpoint opened and proven sound, its base, its config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from ckpt_tool.common.errors import CheckpointError, UsageError
from ckpt_tool.common.progress import Progress
from ckpt_tool.common.wording import count_noun, format_bytes
from ckpt_tool.mapping.config import ModelConfig, load_config
from ckpt_tool.mapping.frameworks.training import find_training_kind, is_training_state
from ckpt_tool.mapping.megatron.keys import is_megatron
from ckpt_tool.mapping.megatron.masters import is_master
from ckpt_tool.mapping.side_files import list_tokenizer
from ckpt_tool.operations.beside import Wanted, add_optimizer, lacks_model, open_base, open_filler
from ckpt_tool.operations.options import ModelOptions, NameOptions
from ckpt_tool.readers import find_format, open_folders
from ckpt_tool.readers.base import Checkpoint
from ckpt_tool.readers.weight_files import is_model_folder

#: Whose weights are taken.
WEIGHTS = ("model", "optimizer")


@dataclass(frozen=True)
class Source:
    """A checkpoint; the base of its adapters and the model that fills it, if these were named."""

    checkpoint: Checkpoint
    base: Checkpoint | None = None
    filler: Checkpoint | None = None

    def list_named(self, *asked: str | Path | None) -> list[Path]:
        """All that the user named, with what was ``asked`` for beside the checkpoint."""
        folders = [Path(path) for path in asked if path is not None]
        return [*list_roots(self.checkpoint), *folders, *(o.path for o in self._list_others())]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What lies beside any of them and was not used."""
        every = (self.checkpoint, *self._list_others())
        return tuple(f"{each.path}: {said}" for each in every for said in each.warnings)

    def _list_others(self) -> tuple[Checkpoint, ...]:
        return tuple(each for each in (self.base, self.filler) if each is not None)

    def with_others(self) -> Checkpoint:
        """The checkpoint with the files of the others beside its own: all that may be read."""
        others = self._list_others()
        every = (self.checkpoint, *others)
        files = {file.path: file for each in every for file in each.files}
        sums = {path: found for each in every for path, found in each.sums.items()}
        return replace(self.checkpoint, files=tuple(files.values()), sums=sums, others=others)


def open_source(
    paths: Sequence[Path],
    options: ModelOptions,
    progress: Progress,
    named: Sequence[Path] = (),
) -> Source:
    """Open the checkpoint at ``paths``, of any format, and the base that the options name.

    ``named``: the folders of runs in which the paths were found, if these were named instead.
    State of training is left alone, and what the options do not select; a Hugging Face model is
    taken whole. ``progress`` is told of files. Raises what opening raises; CheckpointError with all
    that is wrong, also where nothing is left.
    """
    names = options.names
    wanted = _choose_wanted(names, options.weights)
    checkpoint = open_folders(paths, wanted, progress)
    if options.weights == "optimizer":
        checkpoint = add_optimizer(checkpoint, wanted, progress)
    if named:
        checkpoint = replace(checkpoint, named=tuple(named))
    if not is_named(checkpoint):
        checkpoint = _leave_out(checkpoint, wanted)
    if not checkpoint.entries and not checkpoint.problems:
        _refuse_without_weights(checkpoint, names)
    checkpoint.require_sound()
    return Source(checkpoint, open_base(checkpoint, options), open_filler(options))


def list_roots(checkpoint: Checkpoint) -> tuple[Path, ...]:
    """Where all that is read beside its weights has to lie: what the user named."""
    return checkpoint.named or (checkpoint.path,)


def is_named(checkpoint: Checkpoint) -> bool:
    """Whether names are the Hub's, so that nothing has to be said about them."""
    return find_format(checkpoint.format).names == "hub"


def is_adapter_of_peft(checkpoint: Checkpoint) -> bool:
    """Whether this is what peft's ``save_pretrained`` leaves: adapters, by names in memory."""
    return is_named(checkpoint) and lacks_model(checkpoint)


def find_config(source: Source, options: ModelOptions) -> ModelConfig | None:
    """The config of the model: the one that was named, the base's, or that of the checkpoint.

    None where names are kept, or where there is none; FormatError where it is damaged,
    CheckpointError where it leads out of what was named.
    """
    if options.keep_names:
        return None
    folder = source.checkpoint.side_files
    if options.config is not None:
        folder = Path(options.config)
    elif source.base is not None and source.base.side_files is not None:
        folder = source.base.side_files
    if folder is None:
        return None
    return load_config(folder, source.list_named(options.config))


def list_adapter_folders(checkpoint: Checkpoint) -> list[Path]:
    """Where what describes adapters may lie: with the shards, above those, or with the config.

    verl 0.8 with Megatron has it in ``huggingface/adapter/``.
    """
    found = [Path(file.path).parent for file in checkpoint.files]
    found += [checkpoint.path] if checkpoint.path.is_dir() else []
    found += [path.parent for path in found if path.name.startswith("pytorch_model_fsdp_")]
    side = checkpoint.side_files
    found += [side, side / "adapter"] if side is not None else []
    return list(dict.fromkeys(found))


def list_tokenizer_folders(
    checkpoint: Checkpoint, config: ModelConfig, asked: str | Path | None
) -> list[Path]:
    """Where the tokenizer may be, the first that has one counts: with the shards, with the config.

    UsageError where one was ``asked`` for and is not there.
    """
    if asked is not None:
        if not list_tokenizer(Path(asked)):
            raise UsageError(
                f"`tokenizer={str(asked)!r}`: no tokenizer there",
                hint="Name a folder with tokenizer.json, or what else a tokenizer is made of.",
            )
        return [Path(asked)]
    near = [checkpoint.path] if checkpoint.path.is_dir() else []
    near += [checkpoint.side_files] if checkpoint.side_files is not None else []
    return [*dict.fromkeys([*near, checkpoint.path.parent, config.folder])]


def describe_left_out(checkpoint: Checkpoint) -> dict[str, str]:
    """Patterns of names and what they are, one for each kind of state or first part of a name."""
    kinds: dict[tuple[str, str], list[int]] = {}
    for name, entry in checkpoint.left_out.items():
        if name.endswith("_extra_state"):
            kind = ("*._extra_state", "state of Transformer Engine's kernels, no weights")
        elif is_training_state(name):
            kind = (find_training_kind(name), "state of training")
        else:
            kind = (name.split(".", maxsplit=1)[0], "not selected")
        kinds.setdefault(kind, []).append(entry.nbytes)
    return {
        f"{start}.*": f"{why}: {count_noun(len(sizes), 'tensor')}, {format_bytes(sum(sizes))}"
        for (start, why), sizes in kinds.items()
    }


def holds_megatron(checkpoint: Checkpoint) -> bool:
    """Whether the tensors are megatron-core's, even where its folder has lost a file."""
    names = find_format(checkpoint.format).names
    return names == "megatron" or (names == "nested" and is_megatron(checkpoint.entries))


def _choose_wanted(names: NameOptions, weights: str = "model") -> Wanted:
    """Which tensors are opened at all; state of training only where it is asked for."""
    if weights not in WEIGHTS:
        raise UsageError(f"`weights={weights!r}`: expected one of {', '.join(WEIGHTS)}")

    def wanted(name: str) -> bool:
        if weights == "optimizer" and is_master(name):
            return True
        if not name.startswith(names.start):
            return False
        if names.select:
            return any(fnmatchcase(name, pattern) for pattern in names.select)
        return not is_training_state(name.removeprefix(names.start))

    return wanted


def leave_out_training(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint without state of training; a Hugging Face model as it is."""
    wanted = _choose_wanted(NameOptions())
    return checkpoint if is_named(checkpoint) else _leave_out(checkpoint, wanted)


def _leave_out(checkpoint: Checkpoint, wanted: Wanted) -> Checkpoint:
    """The checkpoint without what is not wanted, whichever reader opened it."""
    gone = {name: entry for name, entry in checkpoint.entries.items() if not wanted(name)}
    if not gone:
        return checkpoint
    kept = {name: entry for name, entry in checkpoint.entries.items() if name not in gone}
    return replace(checkpoint, entries=kept, left_out=checkpoint.left_out | gone)


def _refuse_without_weights(checkpoint: Checkpoint, names: NameOptions) -> None:
    """An error that says what is there instead, and where the weights may be."""
    if not checkpoint.left_out:
        raise CheckpointError(
            f"{checkpoint.path}: there is no tensor in this checkpoint",
            hint=_find_weights_beside(checkpoint.side_files),
        )
    if names.prefix or names.select:
        some = ", ".join(list(checkpoint.left_out)[:4])
        raise UsageError(
            f"{checkpoint.path}: no tensor is under `names.prefix` or matches `names.select`",
            hint=f"Names are like: {some}",
        )
    if any(map(is_master, checkpoint.left_out)):
        raise CheckpointError(
            f"{checkpoint.path}: no weights of a model but those in the optimizer's state",
            hint="Take those, which are float32, with `weights='optimizer'`.",
        )
    held = ", ".join(f"{name} ({what})" for name, what in describe_left_out(checkpoint).items())
    raise CheckpointError(
        f"{checkpoint.path}: {held}, and no weights of a model", hint=_find_weights(checkpoint)
    )


def _find_weights(checkpoint: Checkpoint) -> str:
    for folder in (checkpoint.path.parent, checkpoint.path.parent.parent):
        if (folder / "model" / "dist_ckpt").is_dir():
            return f"The weights are in {folder / 'model'}: name {folder} instead."
    return _find_weights_beside(checkpoint.side_files) or (
        "A run that saves the optimizer by itself leaves the weights in another folder, or under"
        " another step."
    )


def _find_weights_beside(folder: Path | None) -> str:
    """Where verl with mbridge has the weights, if it is here; empty otherwise."""
    if folder is None or not is_model_folder(folder):
        return ""
    return (
        f"The weights are in {folder}, as a Hugging Face model already: verl with mbridge saves"
        " them there. There is nothing to merge."
    )
