"""Every operation on torchtitan's tensors: as torchtitan does it, and undone by its inverse."""

from pathlib import Path

import pytest
import torch

from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.frameworks.torchtitan_ops import make_op
from tests.support.backed import backed, distinct, same

HEADS, GROUPS, SIZE, EXPERTS = 6, 3, 4, 5
CONFIG = ModelConfig(
    Path("/nowhere"),
    {
        "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS,
        "head_dim": SIZE,
        "num_experts": EXPERTS,
    },
    {},
)


def halves(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """As Llama's conversion, and torchtitan's adapter, permute rows."""
    split = rows.view(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return split.transpose(1, 2).reshape(rows.shape)


def groups(rows: torch.Tensor) -> list[torch.Tensor]:
    """As torchtitan's fused layer cuts itself apart when it saves."""
    share = HEADS // GROUPS
    whole = rows.reshape(GROUPS, share + 2, SIZE, *rows.shape[1:])
    parts = whole[:, :share], whole[:, share], whole[:, share + 1]
    return [part.reshape(-1, *rows.shape[1:]) for part in parts]


def halved_groups(rows: torch.Tensor) -> list[torch.Tensor]:
    query, key, value = groups(rows)
    return [halves(query, HEADS), halves(key, GROUPS), value]


FUSED = (HEADS + 2 * GROUPS) * SIZE
CASES = {
    "same": ([(3, 2)], lambda a: [a]),
    "halve_query": ([(HEADS * SIZE, 3)], lambda a: [halves(a, HEADS)]),
    "halve_query, bias": ([(HEADS * SIZE,)], lambda a: [halves(a, HEADS)]),
    "halve_key": ([(GROUPS * SIZE, 3)], lambda a: [halves(a, GROUPS)]),
    "split_groups": ([(FUSED, 3)], groups),
    "split_groups, bias": ([(FUSED,)], groups),
    "split_halved": ([(FUSED, 3)], halved_groups),
    "split_halved, bias": ([(FUSED,)], halved_groups),
    "experts": ([(EXPERTS, 3, 2)], lambda a: list(a.unbind(0))),
    "transpose": ([(EXPERTS, 3, 2)], lambda a: [a.transpose(1, 2)]),
    "join_columns": (
        [(EXPERTS, 3, 2)] * 2,
        lambda a, b: [torch.cat([a.transpose(1, 2), b.transpose(1, 2)], -1)],
    ),
}


def numbered(shapes: list[tuple[int, ...]]) -> list[torch.Tensor]:
    """Tensors no two elements of which are equal, also across tensors."""
    sizes = [torch.Size(shape).numel() for shape in shapes]
    pieces = distinct((sum(sizes),)).split(sizes)
    return [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]


@pytest.mark.parametrize("case", CASES)
def test_an_operation_and_its_inverse(tmp_path, case):
    shapes, expected = CASES[case]
    op = make_op(case.partition(",")[0], CONFIG)
    given = numbered(shapes)
    lazy = [backed(tmp_path / str(number), tensor) for number, tensor in enumerate(given)]
    made = op.to_hub(lazy)
    for tensor, wanted in zip(made, expected(*given), strict=True):
        assert same(tensor.read(), wanted)
    for tensor, wanted in zip(op.to_titan(made), given, strict=True):
        assert same(tensor.read(), wanted)


@pytest.mark.parametrize(
    ("kind", "shapes"),
    [
        ("halve_query", [(HEADS * SIZE + 1, 3)]),
        ("halve_key", [()]),
        ("split_groups", [(FUSED - 4, 3)]),
        ("experts", [(EXPERTS - 1, 3, 2)]),
        ("transpose", [(EXPERTS, 3)]),
        ("join_columns", [(EXPERTS, 3, 2), (EXPERTS, 4, 2)]),
    ],
)
def test_what_does_not_fit(tmp_path, kind, shapes):
    lazy = [backed(tmp_path / str(at), tensor) for at, tensor in enumerate(numbered(shapes))]
    with pytest.raises(ValueError, match=r"\[|\("):
        make_op(kind, CONFIG).to_hub(lazy)


@pytest.mark.parametrize(
    ("kind", "shapes"),
    [
        ("split_groups", [(24, 3), (12, 3), (8, 3)]),
        ("join_columns", [(EXPERTS, 2, 3)]),
    ],
)
def test_what_does_not_fit_on_the_way_back(tmp_path, kind, shapes):
    lazy = [backed(tmp_path / str(at), tensor) for at, tensor in enumerate(numbered(shapes))]
    with pytest.raises(ValueError, match="expected"):
        make_op(kind, CONFIG).to_titan(lazy)
