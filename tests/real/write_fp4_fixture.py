"""Writes ``tests/fixtures/compressed_tensors0.20_fp4``: weights that the library packed as NVFP4
and MXFP4, and what it says itself that they are.

Run where compressed-tensors 0.20 is installed: ``python write_fp4_fixture.py FOLDER``. Of each
weight the file has what a checkpoint has, and in ``expected.safetensors`` what `decompress` gives,
in float32 before it is rounded and in bfloat16.
"""

import sys
from pathlib import Path

import torch
from compressed_tensors.compressors.mxfp4.base import MXFP4PackedCompressor
from compressed_tensors.compressors.nvfp4 import base as nvfp4
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize
from safetensors.torch import save_file
from torch import Tensor

#: Shape and size of groups: 16 is NVFP4.
WEIGHTS = {
    "model.layers.1.mlp.experts.0.up_proj": ((6, 64), 16),
    "model.layers.1.mlp.experts.0.gate_proj": ((37, 80), 16),
    "model.layers.1.mlp.experts.0.down_proj": ((5, 96), 32),
}


def compress(weight: Tensor, group: int) -> tuple[dict[str, Tensor], QuantizationScheme]:
    largest = weight.float().reshape(len(weight), -1, group).abs().amax(-1)
    kind = {"num_bits": 4, "type": "float", "symmetric": True, "group_size": group}
    strategy = "tensor_group" if group == 16 else "group"
    scheme = QuantizationScheme(
        targets=["Linear"], weights=QuantizationArgs(strategy=strategy, **kind)
    )
    state = {"weight": weight}
    if group == 16:
        over = (448 * 6 / weight.float().abs().max()).reshape(1)
        state |= {"weight_global_scale": over, "weight_scale": largest / 6 * over}
        return nvfp4.NVFP4PackedCompressor.compress(state, scheme), scheme
    state["weight_scale"] = torch.exp2((largest / 6).log2().ceil())
    return MXFP4PackedCompressor.compress(state, scheme), scheme


def decompress_exactly(found: dict[str, Tensor], scheme: QuantizationScheme) -> Tensor:
    """What `decompress` computes before it rounds."""
    packed = found["weight_packed"]
    numbers = nvfp4.unpack_fp4_from_uint8(packed, packed.shape[0], packed.shape[1] * 2)
    scale = nvfp4.NVFP4PackedCompressor._decompress_scale(found["weight_scale"], torch.bfloat16)
    over = found["weight_global_scale"]
    return dequantize(numbers, scale, args=scheme.weights, global_scale=over, dtype=torch.float32)


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    packed, expected = {}, {}
    torch.manual_seed(7)
    for name, (shape, group) in WEIGHTS.items():
        found, scheme = compress(torch.randn(shape).bfloat16(), group)
        packed |= {f"{name}.{key}": value.contiguous() for key, value in found.items()}
        kind = nvfp4.NVFP4PackedCompressor if group == 16 else MXFP4PackedCompressor
        expected[f"{name}.weight"] = kind.decompress(found, scheme)["weight"].contiguous()
        if group == 16:
            expected[f"{name}.weight.exact"] = decompress_exactly(found, scheme)
    save_file(packed, folder / "model.safetensors")
    save_file(expected, folder / "expected.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
