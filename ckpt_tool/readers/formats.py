"""The table of the formats that are read."""

from __future__ import annotations

from ckpt_tool.readers.base import Format, Parts
from ckpt_tool.readers.dcp.folder import open_dcp, open_dcp_folders
from ckpt_tool.readers.dcp.places import (
    locate_dcp,
    locate_dcp_part,
    locate_torch_dist,
    locate_zarr,
    refuse_unfinished,
    refuse_zarr,
)
from ckpt_tool.readers.deepspeed.folder import locate_deepspeed
from ckpt_tool.readers.deepspeed.join import locate_deepspeed_config, open_deepspeed
from ckpt_tool.readers.find import locate_config
from ckpt_tool.readers.fsdp.files import RANK_FILES
from ckpt_tool.readers.fsdp.ranks import locate_fsdp, open_fsdp
from ckpt_tool.readers.huggingface import locate_huggingface, open_huggingface
from ckpt_tool.readers.megatron.ranks import locate_megatron_ranks, open_megatron_ranks
from ckpt_tool.readers.sharded_hub.folder import (
    locate_sharded_hub,
    open_sharded_hub,
    open_sharded_hub_folders,
)
from ckpt_tool.readers.torch_file import (
    locate_file_config,
    locate_rank_file,
    locate_torch_file,
    open_flat_file,
    open_torch_file,
)

#: What is read, asked in this order: a run's folder may hold several, its shards before the model.
FORMATS: tuple[Format, ...] = (
    Format(
        "fsdp",
        "FSDP checkpoint",
        f"FSDP rank files ({RANK_FILES})",
        locate_fsdp,
        lambda folder: open_fsdp([folder]),
        merge_command="fsdp",
        config=locate_config,
        parts=Parts(locate_fsdp, lambda folders, _: open_fsdp(folders)),
    ),
    Format(
        "torch_dist",
        "megatron-core torch_dist checkpoint",
        "a torch_dist folder (.metadata, metadata.json, *.distcp)",
        locate_torch_dist,
        open_dcp,
        open_wanted=open_dcp,
        merge_command="megatron",
        names="megatron",
    ),
    Format(
        "dcp",
        "torch.distributed.checkpoint folder",
        "another folder of torch.distributed.checkpoint (.metadata, *.distcp)",
        locate_dcp,
        open_dcp,
        open_wanted=open_dcp,
        merge_command="dcp",
        names="nested",
        parts=Parts(locate_dcp_part, open_dcp_folders),
    ),
    Format(
        "megatron-ranks",
        "Megatron rank files",
        "rank files of Megatron (mp_rank_*/model*.pt)",
        locate_megatron_ranks,
        open_megatron_ranks,
        merge_command="megatron",
        names="megatron",
    ),
    Format(
        "deepspeed",
        "DeepSpeed checkpoint",
        "a step of DeepSpeed (*mp_rank_*_model_states.pt)",
        locate_deepspeed,
        open_deepspeed,
        merge_command="deepspeed",
        config=locate_deepspeed_config,
        names="nested",
    ),
    Format("zarr", "zarr checkpoint of megatron-core", "", locate_zarr, refuse_zarr),
    Format(
        "sharded-hub",
        "sharded Hugging Face model",
        "shards of a Hugging Face model (shard-RRRRR-model-*.safetensors)",
        locate_sharded_hub,
        open_sharded_hub,
        open_wanted=open_sharded_hub,
        merge_command="dcp",
        names="nested",
        parts=Parts(locate_sharded_hub, open_sharded_hub_folders),
    ),
    Format(
        "huggingface",
        "Hugging Face model",
        "a Hugging Face folder (*.safetensors, pytorch_model*.bin)",
        locate_huggingface,
        open_huggingface,
        names="hub",
    ),
    Format(
        "dcp-unfinished",
        "unfinished torch.distributed.checkpoint folder",
        "",
        locate_dcp_part,
        refuse_unfinished,
        merge_command="dcp",
        names="nested",
    ),
    Format("fsdp-rank", "FSDP rank file (local tensors)", "", locate_rank_file, open_flat_file),
    Format(
        "torch",
        "state dict in one file of torch.save",
        "",
        locate_torch_file,
        open_torch_file,
        open_wanted=open_torch_file,
        merge_command="dcp",
        config=locate_file_config,
        names="nested",
    ),
)


def find_format(name: str) -> Format:
    """The row of :data:`FORMATS` that ``name``, a checkpoint's ``format``, is of; else KeyError."""
    return {row.name: row for row in FORMATS}[name]


def list_titles(merge_command: str) -> list[str]:
    """What ``ckpt merge`` with this word takes, as people call it; without: all that it takes."""
    taken = [row for row in FORMATS if row.merge_command and row.open is not refuse_unfinished]
    return [row.title for row in taken if row.merge_command == (merge_command or row.merge_command)]
