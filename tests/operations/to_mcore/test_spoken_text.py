"""The text of models that hear: their language model computes what that of its own family does.

That one's logits are those of real megatron-core modules, and its tensors in Megatron are the same
(`test_towers`).
"""

import pytest
import torch
import transformers

from tests.support.every_class import build_tiny
from tests.support.versions import needs_transformers_5

#: Model type, the class that thinks, and that of its language model's family.
THINKING = {
    "qwen2_5_omni_thinker": ("Qwen2_5OmniThinkerForConditionalGeneration", "Qwen2ForCausalLM"),
    "qwen3_omni_moe_thinker": (
        "Qwen3OmniMoeThinkerForConditionalGeneration",
        "Qwen3MoeForCausalLM",
    ),
    "qwen3_asr": ("Qwen3ASRForConditionalGeneration", "Qwen3ForCausalLM"),
}
TRUNK = "model.language_model."


@needs_transformers_5
@pytest.mark.parametrize("kind", THINKING)
def test_text_alone_is_that_of_the_family(kind):
    thinking, plain = THINKING[kind]
    if not hasattr(transformers, thinking):
        pytest.skip("transformers has no such")
    model = build_tiny(kind, thinking).float()
    inner = getattr(transformers, plain)
    said = model.config.text_config.to_dict()
    own = {"model_type": inner.config_class.model_type, "tie_word_embeddings": False}
    config = inner.config_class(**said | own)
    config._attn_implementation = model.config.text_config._attn_implementation
    text = inner(config).eval()
    state = {
        name.replace(TRUNK, "model.", 1): tensor
        for name, tensor in model.state_dict().items()
        if name.startswith((TRUNK, "lm_head."))
    }
    text.load_state_dict(state)
    vocabulary = model.config.text_config.vocab_size
    ids = torch.randint(3, min(vocabulary, 20), (2, 7), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, expected = model(input_ids=ids).logits, text(ids).logits
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
