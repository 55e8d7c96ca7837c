"""What settings beside the weights name: modules of code, folders of layers. All of it comes along.

A name stays in the folder of the settings; one that does not is none of a module.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ckpt_tool.common.links import list_below
from ckpt_tool.common.untrusted import read_json, read_json_object
from ckpt_tool.mapping.config import ModelConfig

#: Where ``auto_map`` names code, besides config.json.
_WITH_CODE = ("tokenizer_config.json", "processor_config.json", "preprocessor_config.json")


def list_named_folders(files: dict[str, Path], named: Sequence[Path]) -> dict[str, Path]:
    """Everything in the folders that sentence-transformers' ``modules.json`` names.

    They are taken whole: a layer has its config and its weights.
    """
    found: dict[str, Path] = {}
    for path in files.values():
        if path.name == "modules.json":
            for folder in _name_module_folders(path):
                found |= _list_below(path.parent, folder, named)
    return found


def _name_module_folders(path: Path) -> Iterator[str]:
    rows = read_json(path)
    for row in rows if isinstance(rows, list) else ():  # else somebody else's file of that name
        named = row.get("path") if isinstance(row, dict) else None
        if isinstance(named, str) and PurePosixPath(named).parts and _is_below(named):
            yield named


def _is_below(name: str) -> bool:
    """Whether a relative path stays in its folder."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _is_there(folder: Path, name: str) -> bool:
    return _is_below(name) and os.path.lexists(folder / name)


def _list_below(folder: Path, name: str, named: Sequence[Path]) -> dict[str, Path]:
    return {
        str(path.relative_to(folder)): path
        for path in list_below(folder / name, named)
        if not path.name.startswith(".") and path.suffix != ".pyc"
    }


#: A file of settings, the folder it is in, and the files of code that it names there.
Modules = list[tuple[str, Path, list[str]]]


def find_modules(config: ModelConfig, files: dict[str, Path]) -> Modules:
    """What the ``auto_map`` of each file of settings names."""
    places = {"config.json": config.folder / "config.json"}
    places |= {name: files[name] for name in _WITH_CODE if name in files}
    return [
        (name, path.parent, _name_modules(read_json_object(path)))
        for name, path in places.items()
        if path.is_file()
    ]


def warn_of_missing_code(modules: Modules) -> Iterator[str]:
    """A line for each file of settings that names code which is not there."""
    for settings, folder, names in modules:
        missing = [name for name in names if not _is_there(folder, name)]
        if missing:
            yield (
                f"{settings}: auto_map names {', '.join(missing)}, not there beside it: classes"
                " of one's own do not open without"
            )


def list_code_folders(modules: Modules, named: Sequence[Path]) -> dict[str, Path]:
    """Everything in the folders of code: a module imports others beside it."""
    found: dict[str, Path] = {}
    for _, folder, names in modules:
        for name in names:
            if "/" in name and _is_there(folder, name):
                found |= _list_below(folder, name.rpartition("/")[0], named)
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
