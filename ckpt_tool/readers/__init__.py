"""Shard loading: any known folder or file as a :class:`~ckpt_tool.readers.base.Checkpoint`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ckpt_tool.common.errors import FormatError, UsageError
from ckpt_tool.readers.base import Checkpoint
from ckpt_tool.readers.dcp.folder import locate_dcp, open_dcp, refuse_zarr
from ckpt_tool.readers.fsdp.ranks import locate, open_fsdp
from ckpt_tool.readers.huggingface import is_model_folder, open_huggingface
from ckpt_tool.readers.megatron.ranks import locate_ranks, open_megatron_ranks
from ckpt_tool.readers.torch_file import open_torch_file

__all__ = ["Checkpoint", "open_checkpoint", "open_fsdp_folders"]


def open_checkpoint(path: str | Path, wanted: Callable[[str], bool] | None = None) -> Checkpoint:
    """Read the metadata of the checkpoint at ``path``, whatever its format.

    With ``wanted``, tensors of a folder of torch.distributed.checkpoint whose names it does not
    want are left alone: they are in ``left_out``.

    Raises UsageError where there is nothing at ``path``, FormatError where nothing there is
    known, UnsafeContentError where a pickle asks for code. Damage within a known format is in the
    result's ``problems``.
    """
    path = Path(path)
    _require_exists(path)
    if path.is_file():
        return open_huggingface(path) if path.suffix == ".safetensors" else open_torch_file(path)
    ranks = locate(path)
    if ranks is not None:
        return open_fsdp([ranks])
    planned = locate_dcp(path)
    if planned is not None:
        return open_dcp(planned, wanted) if wanted else open_dcp(planned)
    megatron = locate_ranks(path)
    if megatron is not None:
        return open_megatron_ranks(megatron)
    refuse_zarr(path)
    if is_model_folder(path):
        return open_huggingface(path)
    raise FormatError(f"{path}: no checkpoint of a known format in this folder", hint=_EXPECTED)


def open_fsdp_folders(paths: Sequence[str | Path]) -> Checkpoint:
    """The FSDP checkpoint whose rank files lie in ``paths`` (one folder per node, or one)."""
    folders = []
    for path in map(Path, paths):
        _require_exists(path)
        folder = locate(path)
        if folder is None:
            raise FormatError(
                f"{path}: no FSDP rank files (model_world_size_W_rank_R.pt) here",
                hint=f"See what is there with: ckpt inspect {path}",
            )
        folders.append(folder)
    return open_fsdp(folders)


_EXPECTED = (
    "Expected FSDP rank files (model_world_size_W_rank_R.pt), a torch_dist or other folder of"
    " torch.distributed.checkpoint (.metadata, *.distcp), rank files of Megatron"
    " (mp_rank_*/model*.pt), or a Hugging Face folder (*.safetensors, pytorch_model*.bin)."
)


def _require_exists(path: Path) -> None:
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder")
