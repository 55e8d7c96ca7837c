"""The rule of the house: imports go to a lower floor or stay in their room, and never in a circle.

A module is known by its name below the package: ``readers.fsdp.ranks``; a package by its own.
"""

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

#: Rooms from the top floor to the ground. Rooms of one floor never import each other.
FLOORS: Sequence[frozenset[str]] = (
    frozenset({"__main__"}),
    frozenset({"cli", ""}),  # "": the public API, ``__init__``
    frozenset({"operations"}),
    frozenset({"plans"}),
    frozenset({"readers", "mapping", "writers", "compare"}),
    frozenset({"tensors"}),
    frozenset({"common"}),
)


def module_of(path: Path, root: Path) -> str:
    """``readers.fsdp``; a package itself for its ``__init__``, empty for that of the root."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    return module.split(".", maxsplit=1)[0]


def floor_of(module: str) -> int:
    """0 is the top; a room that is on no floor is an error."""
    return next(at for at, rooms in enumerate(FLOORS) if room_of(module) in rooms)


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Every dotted name that is imported, in functions and for type checkers too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise AssertionError(f"line {node.lineno}: imports are absolute")
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_of(root: Path) -> dict[str, set[str]]:
    """Which modules of the package ``root`` each of them imports."""
    paths = {module_of(path, root): path for path in sorted(root.rglob("*.py"))}
    return {
        module: {
            target
            for name in imported_names(ast.parse(path.read_text(), str(path)))
            if (target := _owner(name, root.name, paths)) is not None and target != module
        }
        for module, path in paths.items()
    }


def _owner(name: str, package: str, modules: Mapping[str, Path]) -> str | None:
    """The module that an imported name is, or is of; None where it is of another package."""
    parts = name.split(".")
    if parts.pop(0) != package:
        return None
    while parts and ".".join(parts) not in modules:
        parts.pop()
    return ".".join(parts)


def wrong_imports(imports: Mapping[str, Iterable[str]]) -> list[str]:
    """``A imports B``, for each import that goes up or sideways."""
    return [
        f"{importer} imports {target}"
        for importer, targets in imports.items()
        for target in sorted(targets)
        if room_of(importer) != room_of(target) and floor_of(importer) >= floor_of(target)
    ]


def circles(imports: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Groups of modules that import each other in a circle, by Tarjan's algorithm."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        number[module] = low[module] = len(number)
        stack.append(module)
        for target in sorted(imports.get(module, ())):
            if target not in number:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in stack:
                low[module] = min(low[module], number[target])
        if low[module] == number[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                found.append(sorted(group))

    for module in imports:
        if module not in number:
            visit(module)
    return found
