"""Packages that are imported where they are used, and need not be there for the rest.

A light installation has typer, rich, numpy, xxhash and isal only. What is missing is named together
with the line that installs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from ckpt_tool.common.errors import UsageError
from ckpt_tool.common.wording import join_words

#: What asking transformers about a model takes.
OF_TRANSFORMERS = ("transformers", "torch", "accelerate")
#: What pip calls a module, where that is something else.
_DISTRIBUTIONS = {"megatron": "megatron-core"}


def list_missing(modules: Sequence[str]) -> list[str]:
    """What pip calls those of ``modules`` that are not installed; imports none of them."""
    return [name_distribution(module) for module in modules if not _is_there(module)]


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # the package above it; what a test put in its place
        return False


def name_distribution(module: str) -> str:
    """What pip calls a module.

    >>> name_distribution("megatron.core"), name_distribution("huggingface_hub.errors")
    ('megatron-core', 'huggingface_hub')
    """
    package = module.partition(".")[0]
    return _DISTRIBUTIONS.get(package, package)


def say_missing(packages: Sequence[str]) -> str:
    """``torch is not installed: pip install torch``."""
    are = "is" if len(packages) == 1 else "are"
    return f"{join_words(packages)} {are} not installed: {say_install(packages)}"


def say_install(packages: Sequence[str]) -> str:
    """The line that installs them."""
    return f"pip install {' '.join(packages)}"


def require_packages(what: str, modules: Sequence[str], *, otherwise: str = "") -> None:
    """UsageError where one is not installed: ``what`` needs it; ``otherwise``: what helps, too."""
    missing = list_missing(modules)
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise UsageError(
            f"{what} needs {join_words(missing)}, which {are} not installed",
            hint=f"{say_install(missing)}{otherwise}",
        )
