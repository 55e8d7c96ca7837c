"""Write the fixture that OLMo-core leaves behind, with what its own converter makes of it.

In a virtual environment with torch 2.13, transformers 5.23, safetensors and `ai2-olmo-core==2.4.0`:

    python tests/real/write_olmo_core_fixture.py

which replaces `tests/fixtures/olmo_core2.4_olmo2`: `checkpoint/`, as OLMo-core saved a tiny OLMo 2,
and what its `convert_state_to_hf` and `get_hf_config` make of it.
"""

import json
import shutil
from pathlib import Path

import torch
from olmo_core.distributed.checkpoint import save_model_and_optim_state
from olmo_core.nn.hf.config import get_hf_config
from olmo_core.nn.hf.convert import convert_state_to_hf
from olmo_core.nn.transformer import TransformerBlockType, TransformerConfig
from safetensors.torch import save_file

FOLDER = Path(__file__).resolve().parents[1] / "fixtures" / "olmo_core2.4_olmo2"


def main():
    config = TransformerConfig.llama_like(
        vocab_size=16, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, qk_norm=True,
        block_name=TransformerBlockType.reordered_norm, hidden_size_multiplier=1.0,
        hidden_size_multiple_of=8, layer_norm_eps=1e-6, rope_theta=500000,
    )  # fmt: skip
    model = config.build(init_device="cpu")
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    settings = get_hf_config(model)
    settings.architectures, settings.tie_word_embeddings = ["Olmo2ForCausalLM"], False
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    reference = convert_state_to_hf(settings, dict(model.state_dict()))
    tensors = {name: tensor.contiguous().clone() for name, tensor in reference.items()}
    save_file(tensors, FOLDER / "reference.safetensors")
    (FOLDER / "reference.safetensors").chmod(0o644)
    text = json.dumps(settings.to_dict(), indent=1, sort_keys=True)
    (FOLDER / "config.json").write_text(f"{text}\n")
    save_model_and_optim_state(str(FOLDER / "checkpoint"), model)


if __name__ == "__main__":
    main()
