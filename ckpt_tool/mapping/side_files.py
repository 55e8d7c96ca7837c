"""The files that go along with the weights: tokenizer, chat template, code, processors.

They are taken from the folder of the config, the tokenizer's from one folder in any case. What
describes a run, an adapter or weights of another kind is no part of a model: ``from_pretrained``
would believe it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ckpt_tool.common.errors import FormatError, MappingError
from ckpt_tool.common.lfs import PULL, is_pointer
from ckpt_tool.common.untrusted import read_json, read_json_object
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.side_forms import make_preprocessors, rewrite_tokenizer_config

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
    r"|zero_to_fp32\.py|latest(_checkpointed_iteration\.txt)?|data_loader\.json|nohup\.out"
)
_QUANTISATION = frozenset("hf_quant_config.json quantize_config.json quant_config.json".split())
_TOKENIZER = re.compile(
    r"(special_)?token(izer|ization|s)_?[^/]*|vocab[^/]*|merges\.txt|added_tokens\.json"
    r"|chat_template[^/]*|additional_chat_templates/.*|spiece\.model|sentencepiece[^/]*"
    r"|[^/]*\.tiktoken|[^/]*\.spm"
)
_SIDE_FOLDERS = ("additional_chat_templates",)

#: Where ``auto_map`` names code.
_WITH_CODE = (
    "config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
)


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
            yield name, found.read_bytes() if isinstance(found, Path) else found


def gather_side_files(config: ModelConfig, tokenizers: list[Path], *, quantised: bool) -> SideFiles:
    """What goes along with weights, ``quantised`` or not, of this config.

    ``tokenizers``: folders that may have the tokenizer, the first that has one is taken.
    MappingError that lists the files that are pointers of git-lfs; FormatError where one that has
    to be read is damaged.
    """
    files = list_files(config.folder)
    dropped = {} if quantised else _drop_quantisation(files)
    tokenizer = next((folder for folder in tokenizers if list_tokenizer(folder)), None)
    warnings = list(_warn_of_choice(files, tokenizer, config.folder))
    if tokenizer is not None and tokenizer != config.folder:
        kept = {name: path for name, path in files.items() if not _TOKENIZER.fullmatch(name)}
        files = kept | list_tokenizer(tokenizer)
    files |= _list_named_folders(files)
    _refuse_pointers(files)
    modules = _find_modules(config, files)
    warnings += _warn_of_missing_code(modules)
    files |= _list_code_folders(modules)
    return SideFiles(files | _rewrite(files), dropped, tuple(warnings), tokenizer)


def list_files(folder: Path) -> dict[str, Path]:
    """Files to copy from a folder with a config, by relative name."""
    found = {}
    for place in (folder, *(folder / name for name in _SIDE_FOLDERS)):
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            if path.is_file() and _is_side_file(path.name):
                found[str(path.relative_to(folder))] = path
    return found


def list_tokenizer(folder: Path) -> dict[str, Path]:
    """Those of them that are the tokenizer's; none where settings lie there alone."""
    found = {name: path for name, path in list_files(folder).items() if _TOKENIZER.fullmatch(name)}
    return found if found.keys() - {"chat_template.jinja", "chat_template.json"} else {}


def _warn_of_choice(files: dict[str, Path], tokenizer: Path | None, folder: Path) -> Iterator[str]:
    """A line where there are two tokenizers and they differ."""
    if tokenizer is None or tokenizer == folder:
        return
    mine = {n: p.read_bytes() for n, p in files.items() if _TOKENIZER.fullmatch(n)}
    if mine and mine != {n: p.read_bytes() for n, p in list_tokenizer(tokenizer).items()}:
        yield f"the tokenizer is that of {tokenizer}, not of {folder}, which has another"


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


def _list_named_folders(files: dict[str, Path]) -> dict[str, Path]:
    """Everything in the folders that sentence-transformers' ``modules.json`` names.

    They are taken whole: a layer has its config and its weights.
    """
    found: dict[str, Path] = {}
    for path in files.values():
        if path.name == "modules.json":
            for folder in _name_module_folders(path):
                found |= _list_below(path.parent, folder)
    return found


def _name_module_folders(path: Path) -> Iterator[str]:
    try:
        rows = read_json(path)
    except FormatError:
        return  # somebody else's file of that name
    for row in rows if isinstance(rows, list) else ():
        named = row.get("path") if isinstance(row, dict) else None
        if isinstance(named, str) and named and _is_below(named):
            yield named


def _is_below(name: str) -> bool:
    """Whether a relative path stays in its folder."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _list_below(folder: Path, name: str) -> dict[str, Path]:
    return {
        str(path.relative_to(folder)): path
        for path in sorted((folder / name).rglob("*"))
        if path.is_file() and not path.name.startswith(".") and path.suffix != ".pyc"
    }


#: A file of settings, the folder it is in, and the files of code that it names there.
_Modules = list[tuple[str, Path, list[str]]]


def _find_modules(config: ModelConfig, files: dict[str, Path]) -> _Modules:
    """What the ``auto_map`` of each file of settings names."""
    places = {name: files.get(name, config.folder / name) for name in _WITH_CODE}
    return [
        (name, path.parent, _name_modules(read_json_object(path)))
        for name, path in places.items()
        if path.is_file()
    ]


def _warn_of_missing_code(modules: _Modules) -> Iterator[str]:
    """A line for each file of settings that names code which is not there."""
    for settings, folder, names in modules:
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            yield (
                f"{settings}: auto_map names {', '.join(missing)}, not there beside it: classes"
                " of one's own do not open without"
            )


def _list_code_folders(modules: _Modules) -> dict[str, Path]:
    """Everything in the folders of code: a module imports others beside it."""
    found: dict[str, Path] = {}
    for _, folder, names in modules:
        for name in names:
            if "/" in name and (folder / name).is_file():
                found |= _list_below(folder, name.rpartition("/")[0])
    return found


def _name_modules(settings: dict[str, Any]) -> list[str]:
    """Files of this folder in an ``auto_map``; ``repo--module.Class`` is somebody else's."""
    named = settings.get("auto_map")
    values = named.values() if isinstance(named, dict) else []
    classes = [each for value in values for each in (value if isinstance(value, list) else [value])]
    modules = {
        each.rpartition(".")[0] for each in classes if isinstance(each, str) and "--" not in each
    }
    named_here = sorted(module for module in modules if module and "/" not in module)
    return [f"{module.replace('.', '/')}.py" for module in named_here]


def _refuse_pointers(files: dict[str, Path]) -> None:
    """MappingError that lists those that are pointers: nobody opens a model with these."""
    pointers = [str(path) for path in files.values() if is_pointer(path)]
    if pointers:
        raise MappingError(
            f"{len(pointers)} of the files to copy are pointers of git-lfs", pointers, hint=PULL
        )


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
