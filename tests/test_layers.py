"""The shape of the package: its rooms, who imports whom, how long files are, who prints."""

import ast
from collections.abc import Callable, Iterable, Iterator
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
#: module -> its text, parsed
TREES = {
    module_of(path, ROOT): ast.parse(path.read_text(), str(path))
    for path in sorted(ROOT.rglob("*.py"))
}
CHILD = "plans.checks.megatron_child"  # a process of its own, which nothing imports
HEAVY = {"torch", "transformers", "accelerate", "megatron", "safetensors", "huggingface_hub"}


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    return imports_of(ROOT)


def test_the_package_holds_its_rooms_and_nothing_else():
    rooms = {room for floor in FLOORS for room in floor} - {"", "__main__"}
    found = {path.name for path in ROOT.iterdir() if path.name != "__pycache__"}
    assert found - {"README.md", "py.typed"} == {*rooms, "__init__.py", "__main__.py"}


def test_every_folder_of_code_is_a_package():
    folders = {path.parent for path in ROOT.rglob("*.py")}
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


def test_imports_go_to_a_lower_floor_or_stay_in_their_room(imports):
    assert wrong_imports(imports) == []


def test_there_is_no_circle(imports):
    assert circles(imports) == []


def test_the_guard_sees_what_it_is_to_see(imports):
    assert {"tensors.lazy", "readers.fsdp.ranks", "cli.app", "operations.merge", ""} <= set(imports)
    assert "common.errors" in imports["readers.fsdp.ranks"]  # an import from a room below
    assert "operations.merge" in imports["cli.merging"]  # one inside of a function


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


def test_files_are_short():
    lengths = {path: len(path.read_text().splitlines()) for path in ROOT.rglob("*.py")}
    assert len(lengths) == len(TREES) > 100
    assert {path: lines for path, lines in lengths.items() if lines > 250} == {}


def lines_that(found: Callable[[ast.AST], bool], rooms: Callable[[str], bool]) -> list[str]:
    """``module:line`` of what is found in the modules of the rooms."""
    return [
        f"{module}:{getattr(node, 'lineno', 0)}"
        for module, tree in TREES.items()
        if rooms(room_of(module))
        for node in ast.walk(tree)
        if found(node)
    ]


def is_print(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    )


def test_only_the_cli_prints():
    assert lines_that(is_print, lambda room: room == "cli") != []
    assert lines_that(is_print, lambda room: room not in ("cli", "__main__")) == []


def top_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements that run on import: not in functions, not for type checkers only."""
    for node in tree.body:
        if isinstance(node, ast.If):
            if "TYPE_CHECKING" not in ast.unparse(node.test):
                yield node
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node


def wrong_names(
    names_of: Callable[[ast.Module], Iterable[str]], wrong: Callable[[str], bool]
) -> list[str]:
    """``module imports name``, but for the process of megatron-core's own."""
    return [
        f"{module} imports {name}"
        for module, tree in TREES.items()
        if not module.startswith(CHILD)
        for name in names_of(tree)
        if wrong(name)
    ]


def imported_at_once(tree: ast.Module) -> Iterator[str]:
    for statement in top_level(tree):
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            yield from imported_names(statement)


def test_heavy_packages_are_imported_where_they_are_used():
    assert wrong_names(imported_names, lambda name: name.split(".")[0] in HEAVY) != []
    assert wrong_names(imported_at_once, lambda name: name.split(".")[0] in HEAVY) == []


def test_megatron_core_stays_in_its_process():
    def is_of_megatron_core(name: str) -> bool:
        return name.split(".", maxsplit=1)[0] == "megatron" or name.startswith(f"ckpt_tool.{CHILD}")

    assert wrong_names(imported_names, is_of_megatron_core) == []


#: What reads bytes, or opens what is on disk. Names and layouts are geometry: they need neither.
READING = ("ckpt_tool.tensors.blocks", "ckpt_tool.tensors.equality")


def is_reading(node: ast.AST) -> bool:
    """A call of ``.read`` or ``.open_checkpoint``, or an import of what reads."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return any(name.startswith(READING) for name in imported_names(node))
    called = node.func if isinstance(node, ast.Call) else None
    return isinstance(called, ast.Attribute) and called.attr in ("read", "open_checkpoint")


def test_mapping_reads_no_byte_and_opens_no_checkpoint():
    assert lines_that(is_reading, lambda room: room == "operations") != []
    assert lines_that(is_reading, lambda room: room == "mapping") == []
