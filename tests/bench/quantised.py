"""``python -m tests.bench.quantised``: how fast one core makes quantised weights wide.

Weights of random bits in files that are in the page cache become bfloat16, in the blocks in which a
merge reads. Seconds are those of the processor; the best of several rounds, which are interleaved.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import torch

from ckpt_tool.tensors.blocks import BLOCK_BYTES, BlockReader, FileTable
from ckpt_tool.tensors.dtypes import BFLOAT16
from ckpt_tool.tensors.fp8 import scale_weight
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.tensors.nibbles import unpack_fp4, unpack_int4, unpack_mxfp4, unpack_nvfp4
from tests.support.backed import backed

_ROUNDS = 7
#: Bytes of output a second, at least.
_RATE = 1e9
#: As GPT-OSS has experts, in rows and columns, and Kimi-K2 its.
_MXFP4, _OTHERS = (4, 2880, 90), (2048, 7168)


def make_weights(folder: Path) -> dict[str, LazyTensor]:
    """By format, one of some tens of megabytes in bfloat16."""
    rows, columns = _OTHERS

    def file(name: str, value: torch.Tensor) -> LazyTensor:
        return backed(folder / name, value)

    codes = torch.randint(0, 126, (rows, columns), dtype=torch.uint8).view(torch.float8_e4m3fn)
    words = torch.randint(-(2**31), 2**31 - 1, (rows, columns // 8), dtype=torch.int32)
    largest = torch.randn(rows, columns // 32, 32).abs().amax(-1)
    factors = (largest * (0.02 / 7)).bfloat16()
    blocks = torch.randint(0, 256, (*_MXFP4, 16), dtype=torch.uint8)
    scales = torch.randint(100, 140, _MXFP4, dtype=torch.uint8)
    said = torch.tensor([rows, columns])
    fp8_scales = torch.rand(rows // 128, columns // 128)
    pairs = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8)
    exponents = torch.randint(100, 140, (rows, columns // 32), dtype=torch.uint8)
    fp8_factors = torch.randint(1, 126, (rows, columns // 16), dtype=torch.uint8)
    nvfp4 = pairs, fp8_factors.view(torch.float8_e4m3fn), torch.tensor([0.0123])
    nvfp4_files = (file(f"n{at}", each) for at, each in enumerate(nvfp4))
    return {
        "fp8": scale_weight(file("a", codes), file("b", fp8_scales), (128, 128), BFLOAT16),
        "MXFP4": unpack_mxfp4(file("c", blocks), file("d", scales), BFLOAT16),
        "FP4": unpack_fp4(file("h", pairs), file("i", exponents), BFLOAT16),
        "NVFP4": unpack_nvfp4(*nvfp4_files, BFLOAT16, is_divisor=True),
        "INT4": unpack_int4(file("e", words), file("f", factors), file("g", said), 32, BFLOAT16),
    }


def measure(tensor: LazyTensor, out: memoryview) -> float:
    """Processor seconds to read all of it."""
    step, size = BLOCK_BYTES // tensor.dtype.itemsize, tensor.dtype.itemsize
    with FileTable() as files:
        reader, began = BlockReader(files), time.process_time()
        for start in range(0, tensor.numel, step):
            stop = min(start + step, tensor.numel)
            reader.read(tensor, start, stop, out[: (stop - start) * size])
        return time.process_time() - began


def main() -> None:
    torch.manual_seed(1)
    best: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        weights = make_weights(Path(folder))
        out = memoryview(bytearray(os.urandom(1) * BLOCK_BYTES))
        for _ in range(_ROUNDS):
            for name, tensor in weights.items():
                best[name] = min(best.get(name, 1e9), measure(tensor, out))
    for name, seconds in best.items():
        rate = weights[name].nbytes / seconds
        verdict = "ok" if rate >= _RATE else "below 1 GB/s"
        each = seconds / weights[name].numel * 1e9
        print(f"{name:<6} {each:5.2f} ns an element  {rate / 1e9:5.2f} GB/s of bfloat16  {verdict}")


if __name__ == "__main__":
    main()
