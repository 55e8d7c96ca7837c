"""The rows of DeciLM (Llama-Nemotron Super and Ultra): Llama's, where a layer has them.

Source: ``llama_nemotron/`` of Megatron-Bridge 0.6.2, and ``models/gpt/heterogeneous/`` of
megatron-core 0.19.
"""

from __future__ import annotations

from dataclasses import replace

from ckpt_tool.mapping.families.megatron_form import MegatronRows
from ckpt_tool.mapping.families.megatron_rows import DENSE, GROUPED

DECI = MegatronRows(
    tuple(replace(row, when="attention") for row in GROUPED if not row.when),
    tuple(replace(row, when="mlp") for row in DENSE if not row.when),
    flags={"blocks": True},
    differing=True,
)
