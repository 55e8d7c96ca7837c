"""What a config of Step-3.5 says of its layers with a window."""

from pathlib import Path
from typing import Any

import pytest

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.untrusted import Fields
from ckpt_tool.mapping.megatron.step import find_kinds_ahead, read_sliding_sizes


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


def test_a_layer_with_other_heads_by_itself_is_refused(tmp_path: Path) -> None:
    """``per_layer_config`` is what transformers writes, and what its layers read."""
    layers = {"1": {"num_attention_heads": 6}, "3": {}}
    said = {"num_sliding_attention_heads": 6, "per_layer_config": layers}
    assert read_sliding_sizes(Fields(said, tmp_path), 4, 2, 8)["sliding_heads"] == 6
    with pytest.raises(MappingError, match=r"per_layer_config\.1\.num_attention_heads is 6, but"):
        read_sliding_sizes(Fields(said | {"num_sliding_attention_heads": 8}, tmp_path), 4, 2, 8)


def test_kinds_of_layers_ahead_are_said_once(tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention"]
    said = {"layer_types": kinds, "num_nextn_predict_layers": 1, "mtp_layer_types": kinds[1:]}
    assert find_kinds_ahead(Fields(said, tmp_path), 1, 1) == ("sliding_attention",)
    other = said | {"mtp_layer_types": kinds[:1]}
    with pytest.raises(MappingError, match="mtp_layer_types is full_attention, but layer_types"):
        find_kinds_ahead(Fields(other, tmp_path), 1, 1)
