"""The shape of the package: its rooms, who imports whom, how long files are, who prints."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ckpt_tool
from tests.support.house import (
    FLOORS,
    circles,
    floor_of,
    imported_names,
    imports_of,
    module_of,
    room_of,
    wrong_imports,
)

ROOT = Path(ckpt_tool.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
IDS = [module_of(path, ROOT) or "__init__" for path in FILES]
CHILD = "plans.checks.megatron_child"  # a process of its own, which nothing imports
HEAVY = {"torch", "transformers", "accelerate", "megatron", "safetensors", "huggingface_hub"}

every_file = pytest.mark.parametrize("path", FILES, ids=IDS)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def is_of_child(path: Path) -> bool:
    return module_of(path, ROOT).startswith(CHILD)


def test_the_package_holds_its_rooms_and_nothing_else():
    rooms = {room for floor in FLOORS for room in floor} - {"", "__main__"}
    found = {path.name for path in ROOT.iterdir() if path.name != "__pycache__"}
    assert found - {"README.md", "py.typed"} == {*rooms, "__init__.py", "__main__.py"}


def test_every_folder_of_code_is_a_package():
    folders = {path.parent for path in ROOT.rglob("*.py")}
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


def test_imports_go_to_a_lower_floor_or_stay_in_their_room():
    assert wrong_imports(imports_of(ROOT)) == []


def test_there_is_no_circle():
    assert circles(imports_of(ROOT)) == []


def test_the_guard_sees_what_it_is_to_see():
    imports = imports_of(ROOT)
    assert {"tensors.lazy", "readers.fsdp.ranks", "cli.app", "operations.merge", ""} <= set(imports)
    assert "common.errors" in imports["readers.fsdp.ranks"]  # an import from a room below
    assert "operations.merge" in imports["cli.merge"]  # one inside of a function


PLANTED = {
    "__init__.py": "def f():\n    from planted.operations import merge\n",
    "cli/__init__.py": "",
    "cli/app.py": "import planted.operations.merge\n",
    "operations/__init__.py": "",
    "operations/merge.py": "from planted.readers import base\nfrom planted.tensors.lazy import a\n",
    "readers/__init__.py": "",
    "readers/base.py": "def f():\n    from planted.operations.merge import g\n",
    "writers/__init__.py": "",
    "writers/files.py": (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import planted.readers.base\n"
    ),
    "tensors/__init__.py": "",
    "tensors/lazy.py": "from planted.tensors.deep.blocks import b\n",
    "tensors/deep/__init__.py": "",
    "tensors/deep/blocks.py": "from planted.tensors import casts\n",
    "tensors/casts.py": "def f():\n    import planted.tensors.lazy\n",
}


def test_the_guard_names_what_is_planted(tmp_path):
    root = tmp_path / "planted"
    for name, text in PLANTED.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    imports = imports_of(root)
    assert wrong_imports(imports) == [
        "readers.base imports operations.merge",  # up
        "writers.files imports readers.base",  # sideways
    ]
    assert sorted(circles(imports)) == [
        ["operations.merge", "readers.base"],
        ["tensors.casts", "tensors.deep.blocks", "tensors.lazy"],
    ]


def test_a_room_that_is_on_no_floor_is_an_error():
    with pytest.raises(StopIteration):
        floor_of("attic.box")


@every_file
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= 250


@every_file
def test_only_the_cli_prints(path):
    if room_of(module_of(path, ROOT)) in ("cli", "__main__"):
        return
    calls = [node for node in ast.walk(parse(path)) if isinstance(node, ast.Call)]
    printing = [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]
    assert not printing


def top_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements that run on import: not in functions, not for type checkers only."""
    for node in tree.body:
        if isinstance(node, ast.If):
            if "TYPE_CHECKING" not in ast.unparse(node.test):
                yield node
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node


@every_file
def test_heavy_packages_are_imported_where_they_are_used(path):
    if is_of_child(path):
        return
    found = {
        name.split(".")[0]
        for statement in top_level(parse(path))
        if isinstance(statement, (ast.Import, ast.ImportFrom))
        for name in imported_names(statement)
    }
    assert not found & HEAVY


@every_file
def test_megatron_core_stays_in_its_process(path):
    if is_of_child(path):
        return
    names = list(imported_names(parse(path)))
    assert not [name for name in names if name.split(".")[0] == "megatron"]
    assert not [name for name in names if name.startswith(f"ckpt_tool.{CHILD}")]


#: What reads bytes, or opens what is on disk. Names and layouts are geometry: they need neither.
READING = ("tensors.blocks", "tensors.equality")


@every_file
def test_mapping_reads_no_byte_and_opens_no_checkpoint(path):
    if room_of(module_of(path, ROOT)) != "mapping":
        return
    tree = parse(path)
    names = [name.removeprefix("ckpt_tool.") for name in imported_names(tree)]
    assert not [name for name in names if name.startswith(READING)]
    called = [n.func.attr for n in ast.walk(tree)
              if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]  # fmt: skip
    assert not [name for name in called if name in ("read", "open_checkpoint")]
