"""The files that go along with the weights: tokenizer, chat template, code, processors.

They are taken from the folder of the config, the tokenizer's from one folder in any case. What
describes a run, an adapter or weights of another kind is no part of a model: ``from_pretrained``
would believe it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ckpt_tool.common.links import is_inside
from ckpt_tool.common.regular import is_regular, read_regular
from ckpt_tool.common.untrusted import read_json_object
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.side_checks import find_faults, refuse_faults
from ckpt_tool.mapping.side_code import (
    find_modules,
    list_code_folders,
    list_named_folders,
    warn_of_missing_code,
)
from ckpt_tool.mapping.side_forms import make_preprocessors, rewrite_tokenizer_config
from ckpt_tool.mapping.side_tokens import warn_of_tokens

#: Files that hold weights, optimizer state, or describe a folder of them.
_WEIGHT_SUFFIXES = frozenset(
    ".safetensors .bin .pt .pth .ckpt .h5 .msgpack .gguf .ggml .onnx .distcp .npz .npy".split()
)
#: The one such file that is no weights: voices of Qwen2.5-Omni's talker.
_VOICES = "spk_dict.pt"
_NOT_COPIED = frozenset(
    "config.json fsdp_config.json ckpt_manifest.json lora_train_meta.json README.md".split()
)
#: What trainers leave in a folder: states and logs of a run, and settings of an adapter.
_OF_A_RUN = re.compile(
    r"adapter_config\.json|(trainer|training|train|eval|all|predict|test)_[^.]*\.jsonl?"
    r"|(optimizer|scheduler|rng_state|random_states?)[^/]*|events\.out\.tfevents.*|.*\.log"
    r"|zero_to_(fp32|torch)\.py|latest(_checkpointed_iteration\.txt)?|data_loader\.json|nohup\.out"
)
_QUANTISATION = frozenset("hf_quant_config.json quantize_config.json quant_config.json".split())
_TOKENIZER = re.compile(
    r"(special_)?token(izer|ization|s)_?[^/]*|vocab[^/]*|merges\.txt|added_tokens\.json"
    r"|chat_template[^/]*|additional_chat_templates/.*|spiece\.model|sentencepiece[^/]*"
    r"|[^/]*\.tiktoken|[^/]*\.spm"
)
#: Ends of names that are a file's: a folder is in the place of one.
_OF_A_FILE = frozenset(".json .jinja .txt .model .py .tiktoken .spm".split())
_SIDE_FOLDERS = ("additional_chat_templates",)


@dataclass(frozen=True)
class SideFiles:
    """``files``: what is written, by relative name: a file to copy, or the content itself.

    ``dropped``: files of the folder that are left out, each with the reason. ``tokenizer``: the
    folder that the tokenizer is of; None: there is none.
    """

    files: dict[str, Path | bytes] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    tokenizer: Path | None = None

    def read(self) -> Iterator[tuple[str, bytes]]:
        """Names and contents, one at a time."""
        for name, found in self.files.items():
            yield name, read_regular(found) if isinstance(found, Path) else found


def gather_side_files(
    config: ModelConfig, tokenizers: list[Path], *, quantised: bool, named: Sequence[Path] = ()
) -> SideFiles:
    """What goes along with weights, ``quantised`` or not, of this config.

    ``tokenizers``: folders that may have the tokenizer, the first that has one is taken.
    ``named``: what the user named; by default all of these folders. CheckpointError that lists what
    cannot be copied: links out of it, what is no file, is empty, no JSON, a pointer of git-lfs, or
    cannot be read.
    """
    named = named or (config.folder, *tokenizers)
    files = list_files(config.folder)
    dropped = {} if quantised else _drop_quantisation(files)
    tokenizer = next((folder for folder in tokenizers if list_tokenizer(folder)), None)
    warnings = list(_warn_of_choice(files, tokenizer, config.folder, named))
    if tokenizer is not None and tokenizer != config.folder:
        kept = {name: path for name, path in files.items() if not _TOKENIZER.fullmatch(name)}
        files = kept | list_tokenizer(tokenizer)
    faults = find_faults(files, named)
    sound = {name: path for name, path in files.items() if name not in faults}
    modules = find_modules(config, sound)
    below = list_named_folders(sound, named) | list_code_folders(modules, named)
    faults |= find_faults(below, named)
    refuse_faults(list(faults.values()), named)
    files |= below
    warnings += [*warn_of_missing_code(modules), *warn_of_tokens(files, config)]
    return SideFiles(files | _rewrite(files), dropped, tuple(warnings), tokenizer)


def list_files(folder: Path) -> dict[str, Path]:
    """What to copy from a folder with a config, by relative name; not all of it need be files."""
    found = {}
    for place in (folder, *(folder / name for name in _SIDE_FOLDERS)):
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            is_other = path.is_dir() and path.suffix not in _OF_A_FILE
            if _is_side_file(path.name) and not is_other:
                found[str(path.relative_to(folder))] = path
    return found


def list_tokenizer(folder: Path) -> dict[str, Path]:
    """Those of them that are the tokenizer's; none where settings lie there alone."""
    found = {name: path for name, path in list_files(folder).items() if _TOKENIZER.fullmatch(name)}
    return found if found.keys() - {"chat_template.jinja", "chat_template.json"} else {}


def _warn_of_choice(
    files: dict[str, Path], tokenizer: Path | None, folder: Path, named: Sequence[Path]
) -> Iterator[str]:
    """A line where there are two tokenizers and they differ, as far as both may be read."""
    if tokenizer is None or tokenizer == folder:
        return
    mine = {name: path for name, path in files.items() if _TOKENIZER.fullmatch(name)}
    other = list_tokenizer(tokenizer)
    if mine and (mine.keys() != other.keys() or not _are_equal(mine, other, named)):
        yield f"the tokenizer is that of {tokenizer}, not of {folder}, which has another"


def _are_equal(mine: dict[str, Path], other: dict[str, Path], named: Sequence[Path]) -> bool:
    pairs = [(mine[name], other[name]) for name in mine]
    may_be_read = (is_regular(path) and is_inside(path, named) for pair in pairs for path in pair)
    return all(may_be_read) and all(read_regular(a) == read_regular(b) for a, b in pairs)


def _is_side_file(name: str) -> bool:
    if name.startswith(".") or name in _NOT_COPIED or name.endswith(".index.json"):
        return False
    if _OF_A_RUN.fullmatch(name):
        return False
    return name == _VOICES or Path(name).suffix not in _WEIGHT_SUFFIXES


def _drop_quantisation(files: dict[str, Path]) -> dict[str, str]:
    """Takes out what promises quantised weights."""
    gone = sorted(files.keys() & _QUANTISATION)
    for name in gone:
        del files[name]
    return dict.fromkeys(gone, "none of these weights is quantised")


def _rewrite(files: dict[str, Path]) -> dict[str, bytes]:
    """Files that older libraries do not read as they are, and those that they look for."""
    written: dict[str, bytes] = {}
    if "tokenizer_config.json" in files:
        content = rewrite_tokenizer_config(read_json_object(files["tokenizer_config.json"]))
        if content is not None:
            written["tokenizer_config.json"] = content
    if "processor_config.json" in files:
        made = make_preprocessors(read_json_object(files["processor_config.json"]))
        written |= {name: content for name, content in made.items() if name not in files}
    return written
