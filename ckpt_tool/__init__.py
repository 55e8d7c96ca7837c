"""Turn sharded training checkpoints into Hugging Face models: exact, safe, streamed.

The public API is imported when it is first used: ``ckpt --help`` pays for none of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ckpt_tool.version import __version__

if TYPE_CHECKING:
    from ckpt_tool.from_dcp import NameOptions, merge_dcp
    from ckpt_tool.from_megatron import merge_megatron
    from ckpt_tool.inspect import inspect_checkpoint
    from ckpt_tool.lora_plan import LoraOptions
    from ckpt_tool.merge import MergeOptions, merge_fsdp
    from ckpt_tool.output import WriteOptions
    from ckpt_tool.readers import open_checkpoint
    from ckpt_tool.to_mcore import ToMcoreOptions, convert_to_mcore
    from ckpt_tool.upload import Upload, check_upload, upload_folder
    from ckpt_tool.verify import VerifyOptions, verify_checkpoint

__all__ = [
    "LoraOptions",
    "MergeOptions",
    "NameOptions",
    "ToMcoreOptions",
    "Upload",
    "VerifyOptions",
    "WriteOptions",
    "__version__",
    "check_upload",
    "convert_to_mcore",
    "inspect_checkpoint",
    "merge_dcp",
    "merge_fsdp",
    "merge_megatron",
    "open_checkpoint",
    "upload_folder",
    "verify_checkpoint",
]

_HOMES = {
    "LoraOptions": "ckpt_tool.lora_plan",
    "MergeOptions": "ckpt_tool.merge",
    "ToMcoreOptions": "ckpt_tool.to_mcore",
    "Upload": "ckpt_tool.upload",
    "VerifyOptions": "ckpt_tool.verify",
    "WriteOptions": "ckpt_tool.output",
    "check_upload": "ckpt_tool.upload",
    "inspect_checkpoint": "ckpt_tool.inspect",
    "NameOptions": "ckpt_tool.from_dcp",
    "merge_dcp": "ckpt_tool.from_dcp",
    "merge_fsdp": "ckpt_tool.merge",
    "merge_megatron": "ckpt_tool.from_megatron",
    "open_checkpoint": "ckpt_tool.readers",
    "upload_folder": "ckpt_tool.upload",
    "convert_to_mcore": "ckpt_tool.to_mcore",
    "verify_checkpoint": "ckpt_tool.verify",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
