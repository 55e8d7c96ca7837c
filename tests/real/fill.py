"""Fill a module so that every element of a tensor is distinct.

A reader that swaps, drops or repeats rows of a freshly initialised model can still look right
where values repeat (zero biases, all-one norms, few bf16 values). With distinct elements it cannot.
"""

import zlib

import torch
from torch import Tensor, nn

_NORM_SPREAD = 0.02
_WEIGHT_SCALE = 0.05
# Bit patterns of bfloat16: 1.0 and the weights' largest magnitude, 0.25.
_BF16_ONE = 0x3F80
_BF16_TOP = 0x3E80


def fill_distinct(module: nn.Module) -> None:
    """Overwrite every parameter and persistent buffer with distinct values that depend on its name.

    The same name and shape give the same values in every process, so ranks need not communicate.
    """
    norms = {
        f"{name}.weight" for name, child in module.named_modules() if "Norm" in type(child).__name__
    }
    filled: set[int] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) in filled:
            continue
        filled.add(id(tensor))
        tensor.data.copy_(_values(tensor, zlib.crc32(name.encode()), around_one=name in norms))
        _require_distinct(name, tensor.detach())


def _values(like: Tensor, seed: int, *, around_one: bool) -> Tensor:
    """Distinct values in the shape and dtype of `like`, shuffled by `seed`."""
    count = like.numel()
    if like.dtype == torch.bfloat16:
        ordered = _bf16_sequence(count, around_one=around_one)
    elif like.dtype.is_floating_point:
        ordered = _normal_quantiles(count)
        ordered = 1 + _NORM_SPREAD * ordered if around_one else _WEIGHT_SCALE * ordered
    else:
        ordered = torch.arange(1, count + 1)
        if like.dtype == torch.bool:
            ordered = ordered > 1
    generator = torch.Generator().manual_seed(seed)
    shuffled = ordered[torch.randperm(count, generator=generator)]
    return shuffled.to(like.dtype).reshape(like.shape)


def _normal_quantiles(count: int) -> Tensor:
    """`count` distinct float64 values distributed as a normal sample, so that logits look sane."""
    # The shift keeps the middle of an odd count off zero: -0.0 and 0.0 would compare equal.
    quantiles: Tensor = torch.special.ndtri(
        (torch.arange(count, dtype=torch.float64) + 0.4) / count
    )
    return quantiles


def _bf16_sequence(count: int, *, around_one: bool) -> Tensor:
    """`count` different bf16 bit patterns: neighbours of 1.0, or both signs from 0.25 downwards.

    bf16 has only 256 values per power of two, so thousands of elements reach down to 1e-5.
    """
    steps = torch.arange(count)
    if around_one:
        patterns = _BF16_ONE - count // 2 + steps
    else:
        patterns = _BF16_TOP - steps // 2
        if count and patterns[-1] <= 0:
            raise ValueError(f"{count} elements do not fit the distinct bf16 values below 0.25")
    values = patterns.to(torch.int16).view(torch.bfloat16)
    return values if around_one else torch.where(steps % 2 == 0, values, -values)


def _require_distinct(name: str, tensor: Tensor) -> None:
    ordered = tensor.flatten().sort().values
    assert (ordered[1:] != ordered[:-1]).all(), f"{name} has repeated values"
    assert not tensor.is_floating_point() or tensor.isfinite().all(), f"{name} is not finite"
