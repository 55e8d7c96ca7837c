"""Turn sharded training checkpoints into Hugging Face models: exact, safe, streamed.

A checkpoint is a mapping from a tensor's name to a lazy tensor; a conversion is another one, made
of it by geometry; bytes move once, when a writer asks for them. The rooms, from the top floor down
(each imports from the floors below, never from one of its own floor)::

    cli/          parse -> one call -> render: tables, JSON, HTML
    operations/   inspect, merge, to_mcore, verify, upload: data in, data out
    plans/        what will be written, before anything is; then how it appears whole or not at all
    readers/      a folder -> Checkpoint: {name: LazyTensor}, and what is wrong with it
    mapping/      names and layouts: pure geometry, reads no byte, opens no checkpoint
    writers/      planned files -> bytes on disk
    compare/      two lazy tensors: how far apart, and why
    tensors/      lazy tensors, blocks, casts, geometry
    common/       errors, processes and threads, progress, wording

The public API is what stands in ``__all__``; it is imported when it is first used, so that
``ckpt --help`` pays for none of it.
"""

import sys
from itertools import pairwise


def _is_program() -> bool:
    """Whether this is ``python -m ckpt_tool``, with the current folder before all other paths."""
    words = sys.orig_argv
    named = "-mckpt_tool" in words or ("-m", "ckpt_tool") in pairwise(words)
    return named and sys.argv[:1] == ["-m"] and not getattr(sys.flags, "safe_path", False)


if _is_program():  # a json.py or torch.py that came with a checkpoint is not to be imported
    del sys.path[0]

from importlib import import_module  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

from ckpt_tool.common.version import __version__ as __version__  # noqa: E402

if TYPE_CHECKING:
    from ckpt_tool.common.errors import AmbiguousError as AmbiguousError
    from ckpt_tool.common.errors import CheckpointError as CheckpointError
    from ckpt_tool.common.errors import CkptError as CkptError
    from ckpt_tool.common.errors import FormatError as FormatError
    from ckpt_tool.common.errors import LostError as LostError
    from ckpt_tool.common.errors import MappingError as MappingError
    from ckpt_tool.common.errors import OutputError as OutputError
    from ckpt_tool.common.errors import Problem as Problem
    from ckpt_tool.common.errors import StoreError as StoreError
    from ckpt_tool.common.errors import UnknownFormatError as UnknownFormatError
    from ckpt_tool.common.errors import UnsafeContentError as UnsafeContentError
    from ckpt_tool.common.errors import UploadError as UploadError
    from ckpt_tool.common.errors import UsageError as UsageError
    from ckpt_tool.common.parallel import PeerError as PeerError
    from ckpt_tool.compare.mismatch import Mismatch as Mismatch
    from ckpt_tool.compare.stats import Stats as Stats
    from ckpt_tool.compare.stats import Tolerance as Tolerance
    from ckpt_tool.mapping.lora.options import LoraOptions as LoraOptions
    from ckpt_tool.operations.check_folder import FolderResult as FolderResult
    from ckpt_tool.operations.check_folder import check_folder as check_folder
    from ckpt_tool.operations.inspect import Inspection as Inspection
    from ckpt_tool.operations.inspect import inspect_checkpoint as inspect_checkpoint
    from ckpt_tool.operations.merge import merge_checkpoint as merge_checkpoint
    from ckpt_tool.operations.merge import merge_dcp as merge_dcp
    from ckpt_tool.operations.merge import merge_deepspeed as merge_deepspeed
    from ckpt_tool.operations.merge import merge_fsdp as merge_fsdp
    from ckpt_tool.operations.merge import merge_megatron as merge_megatron
    from ckpt_tool.operations.options import MergeOptions as MergeOptions
    from ckpt_tool.operations.options import NameOptions as NameOptions
    from ckpt_tool.operations.options import ToMcoreOptions as ToMcoreOptions
    from ckpt_tool.operations.options import VerifyOptions as VerifyOptions
    from ckpt_tool.operations.to_mcore import convert_to_mcore as convert_to_mcore
    from ckpt_tool.operations.upload import Upload as Upload
    from ckpt_tool.operations.upload import UploadResult as UploadResult
    from ckpt_tool.operations.upload import check_upload as check_upload
    from ckpt_tool.operations.upload import upload_folder as upload_folder
    from ckpt_tool.operations.verify import VerifyResult as VerifyResult
    from ckpt_tool.operations.verify import verify_checkpoint as verify_checkpoint
    from ckpt_tool.plans.options import WriteOptions as WriteOptions
    from ckpt_tool.plans.options import WriteResult as WriteResult
    from ckpt_tool.readers import Checkpoint as Checkpoint
    from ckpt_tool.readers import open_checkpoint as open_checkpoint
    from ckpt_tool.tensors.lazy import LazyTensor as LazyTensor

#: Public names by the module that they live in.
_HOMES = {
    "common.errors": "AmbiguousError CheckpointError CkptError FormatError LostError MappingError"
    " OutputError Problem StoreError UnknownFormatError UnsafeContentError UploadError UsageError",
    "common.parallel": "PeerError",
    "compare.mismatch": "Mismatch",
    "compare.stats": "Stats Tolerance",
    "mapping.lora.options": "LoraOptions",
    "operations.check_folder": "FolderResult check_folder",
    "operations.inspect": "Inspection inspect_checkpoint",
    "operations.merge": "merge_checkpoint merge_dcp merge_deepspeed merge_fsdp merge_megatron",
    "operations.options": "MergeOptions NameOptions ToMcoreOptions VerifyOptions",
    "operations.to_mcore": "convert_to_mcore",
    "operations.upload": "Upload UploadResult check_upload upload_folder",
    "operations.verify": "VerifyResult verify_checkpoint",
    "plans.options": "WriteOptions WriteResult",
    "readers": "Checkpoint open_checkpoint",
    "tensors.lazy": "LazyTensor",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = sorted(_HOME_OF)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
