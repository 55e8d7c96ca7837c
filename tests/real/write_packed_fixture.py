"""Writes ``tests/fixtures/compressed_tensors0.20_int4``: weights that the library packed, and what
it says itself that they are.

Run where compressed-tensors 0.20 is installed: ``python write_packed_fixture.py FOLDER``. Of each
weight the file has what a checkpoint has, and in ``expected.safetensors`` what `decompress` gives.
"""

import sys
from pathlib import Path

import torch
from compressed_tensors.compressors import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import save_file

#: Shape, size of groups, dtype of scales.
WEIGHTS = {
    "model.layers.1.mlp.experts.0.up_proj": ((6, 64), 32, torch.bfloat16),
    "model.layers.1.mlp.experts.0.gate_proj": ((5, 96), 16, torch.float32),
    "model.layers.1.mlp.experts.0.down_proj": ((3, 256), 128, torch.float16),
}


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    packed, expected = {}, {}
    torch.manual_seed(7)
    for name, (shape, group, dtype) in WEIGHTS.items():
        weight = torch.randn(shape).to(dtype)
        scale = weight.float().reshape(shape[0], -1, group).abs().amax(-1) / 7.5
        arguments = QuantizationArgs(num_bits=4, type="int", strategy="group", group_size=group)
        scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
        state = {"weight": weight, "weight_scale": scale.to(dtype)}
        found = PackedQuantizationCompressor.compress(state, scheme)
        packed |= {f"{name}.{key}": value.contiguous() for key, value in found.items()}
        whole = PackedQuantizationCompressor.decompress(found, scheme)
        expected[f"{name}.weight"] = whole["weight"].contiguous()
    save_file(packed, folder / "model.safetensors")
    save_file(expected, folder / "expected.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
