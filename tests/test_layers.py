"""The shape of the package: who imports whom, how long files are, who prints."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ckpt_tool

ROOT = Path(ckpt_tool.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# Imports go from a layer to layers below it, or within its own room. Rooms of one layer never
# import each other.
CLI = 4
OPERATIONS = 3
ROOMS = {"readers": 2, "mapping": 2, "writers": 2}
GROUND = {
    "lazy",
    "blocks",
    "casts",
    "scaled",
    "fp8",
    "lowrank",
    "fusing",
    "equality",
    "geometry",
    "dtypes",
    "errors",
}
GROUND |= {"compare", "folding", "progress", "sharded", "version", "wording"}
ENTRIES = {"__init__", "__main__"}  # the public API and `python -m ckpt_tool`
CHILD = "megatron"  # a process of its own, which nothing imports
HEAVY = {"torch", "transformers", "accelerate", "megatron", "safetensors", "huggingface_hub"}


def module_of(path: Path) -> str:
    """Dotted name below `ckpt_tool`: `readers.fsdp`; the room itself for its `__init__`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def room_of(path: Path) -> str:
    return module_of(path).split(".", maxsplit=1)[0]


def layer(module: str) -> int:
    room = module.split(".", maxsplit=1)[0]
    if room == "cli" or room in ENTRIES:
        return CLI
    if room in ROOMS:
        return ROOMS[room]
    return 1 if room in GROUND else OPERATIONS


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported, inside of functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module
            yield node.module
            if node.module == "ckpt_tool":
                yield from (f"ckpt_tool.{alias.name}" for alias in node.names)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def forbidden(importer: str, imported: str) -> bool:
    one, other = importer.split(".", maxsplit=1)[0], imported.split(".", maxsplit=1)[0]
    if one == other:
        return False
    if layer(importer) == layer(imported) and one in ROOMS:
        return True
    return layer(imported) > layer(importer)


def test_there_is_something_to_look_at():
    modules = {module_of(path) for path in FILES}
    assert {"lazy", "readers", "readers.fsdp", "cli.app", "merge", "__init__"} <= modules


@pytest.mark.parametrize("path", FILES, ids=[module_of(path) for path in FILES])
def test_imports_go_downward(path):
    module = module_of(path)
    inner = [name.removeprefix("ckpt_tool.") for name in imports(parse(path)) if "." in name]
    ours = [n for n, full in zip(inner, imports_of_ours(path), strict=True) if full]
    wrong = [name for name in ours if forbidden(module, name)]
    assert not wrong, f"{module} imports {wrong}"


def imports_of_ours(path: Path) -> list[bool]:
    return [name.startswith("ckpt_tool.") for name in imports(parse(path)) if "." in name]


@pytest.mark.parametrize(
    ("importer", "imported", "wrong"),
    [
        ("lazy", "geometry", False),
        ("lazy", "readers.base", True),
        ("readers.fsdp", "lazy", False),
        ("readers.fsdp", "readers.base", False),
        ("readers.fsdp", "writers.stream", True),
        ("mapping.hub", "readers", True),
        ("merge", "proofs", False),
        ("merge", "writers.huggingface", False),
        ("merge", "cli.ui", True),
        ("megatron.request", "mapping.megatron.numbers", False),
        ("mapping.hub", "megatron.gpt", True),
        ("writers.stream", "merge", True),
        ("cli.app", "merge", False),
    ],
)
def test_the_rule(importer, imported, wrong):
    assert forbidden(importer, imported) is wrong


@pytest.mark.parametrize("path", FILES, ids=[module_of(path) for path in FILES])
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= 250


@pytest.mark.parametrize("path", FILES, ids=[module_of(path) for path in FILES])
def test_only_the_cli_prints(path):
    if layer(module_of(path)) == CLI:
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


@pytest.mark.parametrize("path", FILES, ids=[module_of(path) for path in FILES])
def test_heavy_packages_are_imported_where_they_are_used(path):
    if room_of(path) == CHILD:
        return
    found = {
        name.split(".")[0]
        for statement in top_level(parse(path))
        if isinstance(statement, (ast.Import, ast.ImportFrom))
        for name in imports(statement)
    }
    assert not found & HEAVY


@pytest.mark.parametrize("path", FILES, ids=[module_of(path) for path in FILES])
def test_megatron_core_stays_in_its_process(path):
    if room_of(path) == CHILD:
        return
    found = [name for name in imports(parse(path)) if name.split(".")[0] == "megatron"]
    found += [name for name in imports(parse(path)) if name.startswith(f"ckpt_tool.{CHILD}")]
    assert not found
