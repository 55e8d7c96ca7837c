"""What tensors to measure on are filled with.

Every tensor is cut from the same random values, each from a position of its own, so that writing
takes no longer than a copy and tensors that change places are noticed. Imports no torch.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

Shapes = dict[str, tuple[int, ...]]

#: Random values that every tensor is cut from.
_VALUES = 32 << 20
#: Weights that share a scale of INT4, which their largest one is seven times.
_SHARING = 32
#: What names of scales of fp8 end with; with weights of four bits, their numbers and their scales.
FP8_SCALES = "_scale_inv"
MX_BLOCKS, MX_SCALES = "_blocks", "_scales"
INT4_WORDS, INT4_SCALES, INT4_SHAPE = "_packed", "_scale", "_shape"


class Kind(NamedTuple):
    """What tensors of a kind are cut from, and its dtype as safetensors names it."""

    dtype: str
    values: np.ndarray


class Values:
    """Values of each kind of tensor: bfloat16, but for what is quantised, and biases of routers.

    Those of norms are near 1, as in trained models. Codes of fp8 are of both signs, and no NaN.
    """

    def __init__(self) -> None:
        import numpy as np

        self._source = random.Random(0)
        drawn = np.random.default_rng(0)
        numbers = drawn.standard_normal(_VALUES, dtype=np.float32) * 0.02
        small = np.abs(numbers[: 1 << 20]) * np.float32(0.01)
        steps = np.abs(numbers).reshape(-1, _SHARING).max(axis=1) / np.float32(7)
        codes = drawn.integers(0, 254, _VALUES, dtype=np.uint8)
        self._matrices = Kind("BF16", _bfloat16(numbers))
        self._norms = Kind("BF16", _bfloat16(numbers[: 1 << 20] + 1))
        self._codes = Kind("F8_E4M3", codes + (codes >= 127))
        self._ends = {
            "e_score_correction_bias": Kind("F32", numbers[: 1 << 20]),
            FP8_SCALES: Kind("F32", small),
            MX_BLOCKS: Kind("U8", codes),
            MX_SCALES: Kind("U8", 100 + codes[: 1 << 20] % 20),
            INT4_WORDS: Kind("I32", codes.view(np.int32)),
            INT4_SCALES: Kind("BF16", _bfloat16(steps)),
        }

    def of(self, name: str, shapes: Shapes) -> Kind:
        """The kind that a tensor of a model with these tensors is of."""
        if name.endswith(INT4_SHAPE):
            return self._say_shape(name.removesuffix(INT4_SHAPE), shapes)
        if name + FP8_SCALES in shapes:
            return self._codes
        for end, kind in self._ends.items():
            if name.endswith(end):
                return kind
        return self._norms if "norm" in name else self._matrices

    def cut(self, kind: Kind, count: int) -> Iterator[np.ndarray]:
        """``count`` of its values from a random position on, over and over; or all of them."""
        values = kind.values
        at = self._source.randrange(len(values)) if count != len(values) else 0
        while count:
            part = values[at : at + count]
            yield part
            count, at = count - len(part), 0

    @staticmethod
    def _say_shape(stem: str, shapes: Shapes) -> Kind:
        import numpy as np

        rows, words = shapes[stem + INT4_WORDS]
        return Kind("I64", np.array([rows, 8 * words]))


def _bfloat16(numbers: np.ndarray) -> np.ndarray:
    """The upper halves: rounded toward zero."""
    return numbers.view("<u2")[1::2].copy()
