"""What may be imported: everything that a run needs is, before it begins; nothing else is then."""

from __future__ import annotations

import pkgutil
import sys
import tempfile
from functools import lru_cache
from importlib import import_module
from pathlib import Path

import numpy  # noqa: F401 - of casts and updates
import rich._unicode_data

import ckpt_tool
from tests.fuzz.case import Case, run_case

#: What needs a library, or is a process of its own.
_LEFT_OUT = ("megatron_child", "transformers_child", "__main__", "conversion_tensor",
             "transformers_tables", "inverse", "loader")  # fmt: skip


@lru_cache(maxsize=1)
def import_all() -> None:
    """What is imported when it is needed: by a command, or by what a file holds."""
    for _, name, _ in pkgutil.walk_packages(ckpt_tool.__path__, "ckpt_tool."):
        if not any(left in name.split(".") for left in _LEFT_OUT):
            import_module(name)
    for _, name, _ in pkgutil.iter_modules(rich._unicode_data.__path__, "rich._unicode_data."):
        import_module(name)
    for name in ("8_sig", "16", "16_le", "16_be", "32", "32_le", "32_be"):  # json.loads guesses
        import_module(f"encodings.utf_{name}")
    _show_something()


def _show_something() -> None:
    """A checkpoint of one tensor and a problem, which has rich import what it prints with."""
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    with tempfile.TemporaryDirectory() as folder:
        ck = Path(folder, "ck")
        ck.mkdir()
        (ck / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
        (ck / "b.safetensors").write_bytes(b"")
        for number in range(0, 16, 2):
            outcome = run_case(Case("merge", "fsdp"), Path(folder), number)
            assert outcome.kind == "refused", outcome.said


def hide_libraries() -> None:
    """Have this process do without the libraries that models are built with."""
    for name in ("torch", "transformers"):
        sys.modules[name] = None  # type: ignore[assignment]
