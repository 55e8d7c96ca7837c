"""How tensors in memory become those on the Hub: what a family's row is made of.

In memory is what ``model.state_dict()`` of transformers 5 has, which is what FSDP shards; on the
Hub, in vLLM and in transformers 4 the experts of most families are separate tensors. Checkpoints
of transformers 4 have Hub names already: no rule applies to them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SplitExperts:
    """Fused experts ``<path>.gate_up_proj`` [E, 2I, H] and ``<path>.down_proj`` [E, H, I].

    They become ``<target>.<e>.<name>.weight``; ``gate`` is the first half of gate_up's rows.
    ``stays``: on the Hub they are fused as well, and split only to be compared with those of a
    checkpoint that has each by itself. ``turned``: they are [E, H, 2I] and [E, I, H] there.
    """

    path: str
    target: str
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    stays: bool = False
    turned: bool = False


@dataclass(frozen=True, slots=True)
class TransposeExperts:
    """Experts stay fused, but on the Hub as [E, H, 2I] and [E, I, H]."""

    path: str


@dataclass(frozen=True, slots=True)
class Rename:
    """A part of the name that is spelled differently; ``start``: only at its beginning."""

    old: str
    new: str
    start: bool = False


Rule = SplitExperts | TransposeExperts | Rename
HubRules = tuple[Rule, ...]

#: Names on the Hub are those in memory.
SAME: HubRules = ()
EXPERTS: HubRules = (SplitExperts("mlp.experts", "mlp.experts"),)
FUSED_EXPERTS: HubRules = (SplitExperts("mlp.experts", "mlp.experts", stays=True),)
ERNIE_EXPERTS: HubRules = (
    *EXPERTS,
    Rename(".mlp.gate.moe_statics.", ".mlp.moe_statics."),
)
MIXTRAL_EXPERTS: HubRules = (
    SplitExperts("mlp.experts", "block_sparse_moe.experts", "w1", "w3", "w2"),
    Rename(".mlp.gate.weight", ".block_sparse_moe.gate.weight"),
)
MINIMAX_M2_EXPERTS: HubRules = (
    *MIXTRAL_EXPERTS,
    Rename(".mlp.e_score_correction_bias", ".block_sparse_moe.e_score_correction_bias"),
)
JAMBA_EXPERTS: HubRules = (SplitExperts("feed_forward.experts", "feed_forward.experts"),)
LLAMA4_EXPERTS: HubRules = (
    SplitExperts("feed_forward.experts", "feed_forward.experts", stays=True, turned=True),
)
TRANSPOSED_EXPERTS: HubRules = (TransposeExperts("mlp.experts"),)
QWEN_VL: HubRules = (
    Rename("model.visual.", "visual.", start=True),
    Rename("model.language_model.", "model.", start=True),
)
GPT_NEOX: HubRules = (Rename("lm_head.", "embed_out.", start=True),)
