"""What the verify tests share: a model in every format, and copies with one thing changed."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ckpt_tool import MergeOptions, VerifyOptions, merge_fsdp, open_checkpoint, verify_checkpoint
from ckpt_tool.compare.mismatch import Mismatch
from ckpt_tool.compare.stats import Tolerance
from ckpt_tool.operations.verify import VerifyResult
from ckpt_tool.readers.base import Holding
from ckpt_tool.tensors.geometry import make_strides
from tests.support.merging import load_folder

Tensors = dict[str, torch.Tensor]
Plant = Callable[..., VerifyResult]


def verify(
    ckpt: Path, reference: Path, atol: float = 0.0, rtol: float = 0.0, **options: Any
) -> VerifyResult:
    """`verify_checkpoint` with its options as keywords."""
    return verify_checkpoint(
        ckpt, reference, VerifyOptions(tolerance=Tolerance(atol, rtol), **options)
    )


def the_mismatch(result: VerifyResult) -> Mismatch:
    """The only difference of a comparison."""
    assert not result.missing
    assert not result.unexpected
    (found,) = result.mismatched
    return found


def merged(case: Path, out: Path, **options: Any) -> Path:
    merge_fsdp([case], out, MergeOptions(**options))
    return out


def planted(source: Path, out: Path, change: Callable[[Tensors], object]) -> Path:
    """A copy of a Hugging Face folder with the tensors that `change` leaves behind."""
    tensors = load_folder(source)
    change(tensors)
    out.mkdir()
    shutil.copy(source / "config.json", out)
    save(tensors, out / "model.safetensors")
    return out


def judge(case: Path, out: Path, change: Callable[[Tensors], object]) -> VerifyResult:
    """What is said of a case's model with a change of its tensors, by the case's rank files."""
    return verify(planted(case / "reference", out, change), case)


def save(tensors: Tensors, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {k: t.clone().contiguous() for k, t in tensors.items()}, path, metadata={"format": "pt"}
    )
    return path


def save_bins(case: Path, out: Path) -> Path:
    """What transformers wrote before safetensors: two pickled files and their index."""
    tensors = load_folder(case / "reference")
    out.mkdir()
    shutil.copy(case / "reference" / "config.json", out)
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: tensors[name] for name in part}, out / file)
        weight_map |= dict.fromkeys(part, file)
    (out / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return out


def in_every_format(case: Path, out: Path) -> dict[str, Path]:
    """One model as rank files and as everything that it can be compared with."""
    reference = load_folder(case / "reference")
    (out / "one_bin").mkdir(parents=True)
    torch.save(reference, out / "one_bin" / "pytorch_model.bin")
    # As it was in memory: fused experts, modules in the order and by the names of the model.
    torch.save(load_file(case / "raw_state_dict.safetensors"), out / "state_dict.pt")
    return {
        "ranks": case,
        "merged": merged(case, out / "merged"),
        "kept": merged(case, out / "kept", dtype="keep"),
        "sharded": merged(case, out / "sharded", max_shard_size="20KB"),
        "transformers": case / "reference",
        "file": save(reference, out / "alone" / "weights.safetensors"),
        "one bin": out / "one_bin",
        "bins": save_bins(case, out / "bins"),
        "bin file": out / "one_bin" / "pytorch_model.bin",
        "state dict": out / "state_dict.pt",
    }


def held_by(folder: Path, name: str, rank: int) -> Holding:
    """What a rank's file holds of a tensor, which must be one contiguous block."""
    entry = open_checkpoint(folder).entries[name]
    (holding,) = (held for held in entry.holdings if held.rank == rank)
    assert holding.region.strides == make_strides(holding.box.sizes)
    return holding


def read_block(folder: Path, name: str, rank: int) -> torch.Tensor:
    holding = held_by(folder, name, rank)
    tensor = open_checkpoint(folder)[name].read()
    for dim, (offset, size) in enumerate(zip(holding.box.offsets, holding.box.sizes, strict=True)):
        tensor = tensor.narrow(dim, offset, size)
    return tensor.clone()


def write_block(folder: Path, name: str, rank: int, values: torch.Tensor) -> None:
    """Overwrite what a rank's file holds of a tensor, in place."""
    holding = held_by(folder, name, rank)
    assert holding.box.sizes == tuple(values.shape)
    with open(holding.region.path, "r+b") as file:
        file.seek(holding.region.offset)
        file.write(values.contiguous().flatten().view(torch.uint8).numpy().tobytes())


@contextmanager
def flipped(path: str | Path, offset: int, bit: int) -> Iterator[None]:
    """A file with one bit of the byte at `offset` flipped, until the block ends."""

    def flip() -> None:
        with open(path, "r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 1 << bit]))

    flip()
    try:
        yield
    finally:
        flip()
