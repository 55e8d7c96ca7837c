"""What transformers 4 calls by another name than transformers 5."""

from typing import Any

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel

IS_OLD = int(transformers.__version__.partition(".")[0]) < 5


def from_config(
    model_class: type[PreTrainedModel], config: PretrainedConfig, dtype: torch.dtype
) -> PreTrainedModel:
    """A model of this dtype, with eager attention and experts.

    What it computes then depends on no kernel that another machine may lack. `_from_config` rather
    than `.to(dtype)`, which would round the rotary frequencies too.
    """
    options: dict[str, Any] = {"dtype": dtype, "experts_implementation": "eager"}
    if IS_OLD:
        options = {"torch_dtype": dtype}
    model: PreTrainedModel = model_class._from_config(
        config, attn_implementation="eager", **options
    )
    return model
