"""What a config of Step-3.5 says of its layers with a window."""

from typing import Any

import pytest

from ckpt_tool.common.untrusted import Fields
from ckpt_tool.mapping.megatron.step import read_sliding_sizes


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, (4, 2, 8)),
        ({"num_sliding_attention_heads": 6}, (6, 2, 8)),
        ({"num_attention_heads": 6}, (6, 2, 8)),
        ({"num_attention_heads": 6, "num_attention_groups": 3, "head_dim": 10}, (6, 3, 10)),
    ],
    ids=["nothing", "by transformers", "as released", "all of it"],
)
def test_sizes_of_layers_with_a_window(
    tmp_path, said: dict[str, Any], expected: tuple[int, ...]
) -> None:
    config = said if "num_sliding_attention_heads" in said else {"attention_other_setting": said}
    heads, groups, head = expected
    assert read_sliding_sizes(Fields(config, tmp_path), 4, 2, 8) == {
        "sliding_heads": heads,
        "sliding_groups": groups,
        "sliding_head": head,
        "sliding_query": heads * head,
        "sliding_key": groups * head,
    }
