"""The safetensors library opens every file that was written: ours are made by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ckpt_tool.common.errors import OutputError
from ckpt_tool.common.packages import list_missing, say_missing
from ckpt_tool.writers.planned import PlannedFile


def warn_of_no_library() -> list[str]:
    """A warning where the library is not there to open what was written."""
    missing = list_missing(["safetensors"])
    return [f"not opened by the safetensors library: {say_missing(missing)}"] if missing else []


def require_readable(planned: PlannedFile, path: Path) -> None:
    """OutputError unless the library finds each planned name, dtype and shape, and no other."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            found = {name: (it.get_dtype(), list(it.get_shape())) for name, it in slices.items()}
    except (SafetensorError, OSError) as error:
        raise OutputError(
            f"{planned.name}: the safetensors library does not open what was written: {error}",
            hint="An older one does not know every dtype: pip install --upgrade safetensors.",
        ) from error
    faults = list(_list_faults(planned, found))
    if faults:
        raise OutputError(
            f"{planned.name}: the safetensors library finds something else than was planned:"
            f" {'; '.join(faults[:3])}"
        )


def _list_faults(planned: PlannedFile, found: dict[str, tuple[str, list[int]]]) -> Iterator[str]:
    wanted = {
        name: (tensor.dtype.safetensors, list(tensor.dtype.to_header(tensor.shape)))
        for name, tensor in zip(planned.names, planned.tensors, strict=True)
    }
    for name in wanted.keys() | found.keys():
        if wanted.get(name) != found.get(name):
            yield f"{name} is {found.get(name, 'missing')}, expected {wanted.get(name, 'none')}"
