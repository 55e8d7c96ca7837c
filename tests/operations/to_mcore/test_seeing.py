"""Models that see or hear, whole: what transformers computes of text, real megatron-core does."""

import pytest
import torch
from safetensors.torch import load_file

from ckpt_tool.mapping.families.table import FAMILIES, Family
from tests.support.megatron import SEEING

#: Those of which there is no such model, and why.
WITHOUT = {
    "NemotronH_Nano_VL_V2": "transformers has no class of it",
    "NemotronH_Nano_Omni_Reasoning_V3": "transformers has no class of it",
    "ernie4_5_moe_vl": "no megatron-core has its two pools of experts",
    "ernie4_5_vl_moe": "no megatron-core has its two pools of experts",
    "internvl_chat": "transformers has no class of it",
    "kimi_vl": "transformers has no class of it",
    "llava_onevision1_5": "transformers has no class of it",
    "minimax_m3_vl": "no megatron-core has its attention",
    "ovis2_5": "transformers has no class of it",
    "qwen3_asr": "transformers' own class has another form",
    "step3p7": "the heads that layers have by their kind are tried in Step-3.5 alone",
}


def test_every_family_that_sees_or_hears_is_here():
    seeing = {name for name, family in FAMILIES.items() if _sees(family)}
    assert seeing == {*SEEING, *WITHOUT}


def _sees(family: Family) -> bool:
    return family.megatron is not None and family.megatron.around.sees


@pytest.mark.parametrize("name", SEEING)
def test_logits_of_text_are_those_of_the_whole_model(megatron_cases, name):
    folder = megatron_cases / "seeing" / name
    expected = load_file(folder / "reference.safetensors")["logits"]
    found = load_file(folder / "logits.safetensors")["logits"]
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
