"""What a HybridModel of megatron-core, since 0.18, has otherwise than a GPTModel.

Attention and the MLP of a decoder layer are layers of their own there, so that there are twice as
many, and the last norm has another name. `--check-load` builds the same model.
"""

import re
from typing import Any

_LAYER = re.compile(r"^(decoder\.layers\.)(\d+)\.")
_PREDICTION = re.compile(r"^(mtp\.layers\.\d+\.)mtp_model_layer\.layers\.\d+\.")


def make_pattern(
    kinds: list[bool], stages: int, ahead: int, *, latent: bool, linear: set[int]
) -> str:
    """The symbols of all layers; `kinds`: for each decoder layer, whether it has experts.

    The pipeline has `stages`, and the model predicts `ahead` further tokens. `linear`: the layers
    that have gated DeltaNet for their attention.
    """
    whole = "+" if latent else "*"
    mlps = ["E" if experts else "-" for experts in kinds]
    layers = [("G" if number in linear else whole) + mlp for number, mlp in enumerate(mlps)]
    size = len(layers) // stages
    cut = ["".join(layers[i : i + size]) for i in range(0, len(layers), size)]
    return "|".join(cut) + f"/{whole}{mlps[-1]}" * ahead


def gpt_name(model: Any, name: str) -> str:
    """The name in a GPTModel of a parameter of `model`, which may be a HybridModel."""
    if not hasattr(model.decoder, "layer_type_list"):
        return name
    name = _LAYER.sub(lambda found: f"{found[1]}{int(found[2]) // 2}.", name)
    name = _PREDICTION.sub(r"\1transformer_layer.", name)
    return name.replace("decoder.final_norm.", "decoder.final_layernorm.")
