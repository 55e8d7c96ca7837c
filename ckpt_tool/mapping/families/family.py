"""What a row of the table of families says: :mod:`.table` has the rows."""

from __future__ import annotations

from dataclasses import dataclass

from ckpt_tool.mapping.families.hub_rules import HubRules
from ckpt_tool.mapping.families.megatron_form import MegatronRows
from ckpt_tool.mapping.families.torchtitan_rows import TitanRows


@dataclass(frozen=True, slots=True)
class Legacy:
    """What ``config.json`` of transformers 4 says in another way (:mod:`..legacy_config`).

    ``expert_count``: its key for the number of experts. ``local_rope``: it has two rope thetas at
    the top, ``rope_theta`` and ``rope_local_base_freq``. ``longrope_only``: its ``rope_scaling``
    has the factors of longrope and nothing else.
    """

    expert_count: str = ""
    local_rope: bool = False
    longrope_only: bool = False


@dataclass(frozen=True, slots=True)
class Family:
    """What is known of the models of one type.

    ``architecture``: the class where ``config.json`` names none; empty: transformers is asked.
    ``hub``: what becomes of names in memory on the Hub; None: transformers' own tables say it.
    ``compared``: of a row without such rules, those that a comparison needs.
    ``tied``: the head is the embedding where the config does not say.
    ``float32``: a regular expression, searched in names on the Hub: what its classes create as
    float32 whatever the model's dtype is; empty: nothing; None: transformers is asked, as it is for
    a row without tensors.
    ``conv1d``: linear layers are transformers' ``Conv1D``, whose weights are [in, out].
    ``torchtitan``: its names of the tensors; None: they are unknown.
    ``megatron``: the tensors of megatron-core; None: it is not supported there.
    """

    architecture: str = ""
    hub: HubRules | None = None
    compared: HubRules = ()
    tied: bool = False
    float32: str | None = ""
    conv1d: bool = False
    legacy: Legacy = Legacy()
    torchtitan: TitanRows | None = None
    megatron: MegatronRows | None = None

    @property
    def known_float32(self) -> str | None:
        """:attr:`float32` of a row that says what its tensors are; else None."""
        return None if self.hub is None and self.megatron is None else self.float32
