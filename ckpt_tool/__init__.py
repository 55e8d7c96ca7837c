"""Turn sharded training checkpoints into Hugging Face models: exact, safe, streamed.

The public API is imported when it is first used: ``ckpt --help`` pays for none of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ckpt_tool.common.version import __version__

if TYPE_CHECKING:
    from ckpt_tool.mapping.lora.options import LoraOptions
    from ckpt_tool.operations.from_dcp import NameOptions, merge_dcp
    from ckpt_tool.operations.from_megatron import merge_megatron
    from ckpt_tool.operations.inspect import inspect_checkpoint
    from ckpt_tool.operations.merge import MergeOptions, merge_fsdp
    from ckpt_tool.operations.to_mcore import ToMcoreOptions, convert_to_mcore
    from ckpt_tool.operations.upload import Upload, check_upload, upload_folder
    from ckpt_tool.operations.verify import VerifyOptions, verify_checkpoint
    from ckpt_tool.plans.output import WriteOptions
    from ckpt_tool.readers import open_checkpoint

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
    "LoraOptions": "ckpt_tool.mapping.lora.options",
    "MergeOptions": "ckpt_tool.operations.merge",
    "ToMcoreOptions": "ckpt_tool.operations.to_mcore",
    "Upload": "ckpt_tool.operations.upload",
    "VerifyOptions": "ckpt_tool.operations.verify",
    "WriteOptions": "ckpt_tool.plans.output",
    "check_upload": "ckpt_tool.operations.upload",
    "inspect_checkpoint": "ckpt_tool.operations.inspect",
    "NameOptions": "ckpt_tool.operations.from_dcp",
    "merge_dcp": "ckpt_tool.operations.from_dcp",
    "merge_fsdp": "ckpt_tool.operations.merge",
    "merge_megatron": "ckpt_tool.operations.from_megatron",
    "open_checkpoint": "ckpt_tool.readers",
    "upload_folder": "ckpt_tool.operations.upload",
    "convert_to_mcore": "ckpt_tool.operations.to_mcore",
    "verify_checkpoint": "ckpt_tool.operations.verify",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
