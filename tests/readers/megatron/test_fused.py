"""One down projection in a rank's file, cut into the two that it is, with numbers by hand."""

import pytest
import torch

from ckpt_tool.common.errors import FormatError
from ckpt_tool.readers import open_checkpoint
from ckpt_tool.readers.megatron.file import Part
from ckpt_tool.readers.megatron.fused import is_fused, separate
from ckpt_tool.tensors.chunks import Region
from ckpt_tool.tensors.dtypes import BY_NAME
from tests.support.rank_files import edit, problems

STEM = "decoder.layers.1.self_attention."


def part(rows: int) -> Part:
    region = Region("file", 1000, (6, 1))
    return Part(f"{STEM}linear_qkv_down_proj.weight", None, (rows, 6), BY_NAME["bfloat16"], region)


def beside(query: int = 8, keys: int = 4) -> dict[str, tuple[int, ...]]:
    ups = {"q": query, "kv": keys}
    return {f"{STEM}linear_{kind}_up_proj.weight": (10, size) for kind, size in ups.items()}


@pytest.mark.parametrize(
    ("rows", "ranks", "query"),
    [
        (14, 1, 8),  # 8 + 4 and 2 for the rotary part
        (14, 2, 8),  # all of it on every rank
        (7, 2, 4),  # a half of both: 4 + 3
    ],
)
def test_rows_of_both(rows, ranks, query):
    first, second = separate(part(rows), beside(), ranks)
    assert first.name == f"{STEM}linear_q_down_proj.weight"
    assert second.name == f"{STEM}linear_kv_down_proj.weight"
    assert (first.shape, second.shape) == ((query, 6), (rows - query, 6))
    assert first.region == Region("file", 1000, (6, 1))
    assert second.region == Region("file", 1000 + query * 6 * 2, (6, 1))
    assert not is_fused(first)
    assert is_fused(part(rows))


@pytest.mark.parametrize(
    ("rows", "ranks", "found"),
    [
        (7, 2, {}),
        (7, 2, beside(query=7)),  # seven rows are no two shares
        (4, 2, beside()),  # nothing is left for keys and values
        (0, 2, beside()),
    ],
)
def test_what_does_not_fit_is_refused(rows, ranks, found):
    with pytest.raises(FormatError, match=f"{STEM}linear_qkv_down_proj.weight"):
        separate(part(rows), found, ranks)


def test_one_without_up_projections_is_a_problem_that_names_file_and_tensor(copied):
    folder = copied("deepseek_v3", "tp2")
    name = f"{STEM}linear_qkv_down_proj.weight"
    for rank in ("00", "01"):
        edit(folder, rank, lambda state: state.update({name: torch.ones(5, 64)}))
        edit(folder, rank, lambda state: state.pop(f"{STEM}linear_q_up_proj.weight"))
    found = [text for kind, text in problems(folder) if kind == "tensor"]
    assert all(name in text and "model.pt" in text for text in found)
    assert len(found) == 2
    assert name not in open_checkpoint(folder).entries
