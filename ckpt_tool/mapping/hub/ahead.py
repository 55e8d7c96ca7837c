"""Layers for multi-token prediction: which names on the Hub are theirs.

No class of transformers has a place for them.
"""

from __future__ import annotations

from ckpt_tool.mapping.config import MTP_KEYS, ModelConfig

#: What is before the layers of a language model on the Hub: alone, or beside a tower.
_TRUNKS = ("model.", "model.language_model.", "language_model.model.")


def list_ahead(config: ModelConfig) -> tuple[str, ...]:
    """What the names of such layers begin with.

    They are behind the last one that a model has, as many as the config says by any of its keys; or
    where the family's rows have them by themselves, however many these are.
    """
    layers, counts = config.text.get("num_hidden_layers"), map(config.text.get, MTP_KEYS)
    more = max((count for count in counts if isinstance(count, int)), default=0)
    behind = range(layers, layers + more) if isinstance(layers, int) else ()
    rows = config.family.megatron
    trunks = {*_TRUNKS, rows.around.trunk} if rows is not None else _TRUNKS
    found = [f"{trunk}layers.{layer}." for trunk in trunks for layer in behind]
    if rows is not None and rows.mtp.rows and "{after}" not in rows.mtp.prefix:
        found.append(rows.mtp.top or rows.mtp.prefix.partition("{")[0])
    return tuple(found)
