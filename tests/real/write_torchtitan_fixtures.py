"""Write the fixtures that torchtitan leaves behind, with what its own adapters make of them.

torchtitan is no package of the tests'. For each release, in a virtual environment of its own that
has torch 2.13, transformers 5.23, safetensors and `torchtitan==0.3.0 triton`, or `==0.2.2`:

    python -m torch.distributed.run --nproc-per-node 2 tests/real/write_torchtitan_fixtures.py 0.3

which replaces `tests/fixtures/torchtitan0.3_*`: `config.json` of transformers; `titan.safetensors`,
the state dict of torchtitan's class; `reference.safetensors`, that by the `to_hf` of its adapter;
`fused.safetensors`, where one linear layer has query, key and value, the parameters as they are in
memory, which 0.3 cuts apart when it saves; and for some `checkpoint/`, saved by two ranks of FSDP2
on the CPU. Adapters leave out what they do not know: dense layers of Llama 4, experts of GPT-OSS.
"""

import json
import sys
from pathlib import Path

import torch
import transformers as hf
from safetensors.torch import save_file
from torch import distributed as dist
from torch.distributed import checkpoint as dcp
from torch.distributed.fsdp import fully_shard

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
WHOLE = ("0.3_llama3", "0.3_qwen3_moe", "0.2_gpt_oss")
FUSED = ("0.3_llama3", "0.3_gpt_oss")

VOCAB, DIM, LAYERS, HEADS, GROUPS, HEAD, WIDE, NARROW, EXPERTS = 16, 16, 2, 4, 2, 4, 12, 6, 4
GQA = {"n_layers": LAYERS, "dim": DIM, "n_heads": HEADS, "n_kv_heads": GROUPS}
MLA = {"kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}


def config_of(kind, **more):
    """transformers' config of the same sizes."""
    sizes = {
        "vocab_size": VOCAB, "hidden_size": DIM, "intermediate_size": WIDE, "head_dim": HEAD,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": GROUPS,
        "num_experts_per_tok": 2, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    }  # fmt: skip
    if kind.startswith("Deepseek"):
        sizes |= MLA | {"num_key_value_heads": HEADS, "moe_intermediate_size": NARROW}
        sizes |= {"n_routed_experts": EXPERTS, "n_shared_experts": 2, "first_k_dense_replace": 1}
        del sizes["head_dim"]
    made = getattr(hf, f"{kind}Config")(**sizes | more)
    made.architectures = [f"{kind.removesuffix('Text')}ForCausalLM"]
    return made


# --- 0.3
def wrap(norm):
    """What all of its models have around their layers."""
    from torchtitan.models import common

    head = common.Linear.Config(in_features=DIM, out_features=VOCAB)
    embedding = common.Embedding.Config(num_embeddings=VOCAB, embedding_dim=DIM, param_init=None)
    return {"vocab_size": VOCAB, "dim": DIM, "norm": norm(DIM), "lm_head": head} | {
        "tok_embeddings": embedding
    }


def plain_norm(dim):
    from torchtitan.models.common import RMSNorm

    return RMSNorm.Config(normalized_shape=dim)


def rope(kind, theta):
    from torchtitan.models import common

    return getattr(common, f"{kind}RoPE").Config(dim=4, max_seq_len=64, theta=theta)


def llama3():
    from torchtitan.models import llama3 as m

    layers = m._build_llama3_layers(
        **GQA, hidden_dim=WIDE, rope=rope("Complex", 5e5), attn_backend="flex", fuse_qkv=True
    )
    config = m.Llama3Model.Config(layers=layers, **wrap(plain_norm))
    return config, m.Llama3StateDictAdapter, config_of("Llama", rope_theta=5e5)


def qwen3_moe():
    from torchtitan.models import qwen3 as m

    layers = m._build_qwen3_moe_layers(
        **GQA, head_dim=HEAD, moe_hidden_dim=NARROW, num_experts=EXPERTS, top_k=2,
        rope=rope("CosSin", 1e6), attn_backend="flex", moe_comm_backend="standard",
    )  # fmt: skip
    config = m.Qwen3Model.Config(layers=layers, **wrap(m._qwen3_norm))
    told = {"num_experts": EXPERTS, "moe_intermediate_size": NARROW, "norm_topk_prob": True}
    return config, m.Qwen3StateDictAdapter, config_of("Qwen3Moe", rope_theta=1e6, **told)


def deepseek_v3():
    from torchtitan.models import deepseek_v3 as m

    layers = m._build_dsv3_layers(
        n_layers=LAYERS, n_dense_layers=1, dim=DIM, n_heads=HEADS, q_lora_rank=6, **MLA,
        dense_hidden_dim=WIDE, moe_hidden_dim=NARROW, num_experts=EXPERTS, num_shared_experts=2,
        router_top_k=2, router_score_func="sigmoid", attn_backend="flex", mscale=1.0,
        moe_comm_backend="standard", non_blocking_capacity_factor=None,
        rope=rope("Complex", 1e4), router_route_norm=True, router_route_scale=2.5,
    )  # fmt: skip
    ahead = m._build_mtp_layers(layers[-1], dim=DIM, num_mtp_layers=1)
    config = m.DeepSeekV3Model.Config(layers=layers, mtp_layers=ahead, **wrap(plain_norm))
    told = {"q_lora_rank": 6, "num_nextn_predict_layers": 1, "n_group": 1, "topk_group": 1}
    return config, m.DeepSeekV3StateDictAdapter, config_of("DeepseekV3", **told)


def gpt_oss():
    from torchtitan.models import gpt_oss as m

    sizes, made = {"n_heads": HEADS, "n_kv_heads": GROUPS, "head_dim": HEAD}, []
    attention = m._make_gptoss_attn_config
    m._make_gptoss_attn_config = lambda **more: attention(**more, **sizes)
    made = m._build_gptoss_layers(
        dim=DIM, n_layers=LAYERS, hidden_dim=NARROW, num_experts=EXPERTS, top_k=2, fuse_qkv=True,
        load_balance_coeff=1e-3, attn_backend="flex", moe_comm_backend="standard",
        rope=rope("CosSin", 150000.0),
    )  # fmt: skip
    config = m.GptOssModel.Config(layers=made, **wrap(plain_norm))
    told = {"intermediate_size": NARROW, "num_local_experts": EXPERTS}
    told["rope_parameters"] = {"rope_type": "default", "rope_theta": 150000.0}
    return config, m.GptOssStateDictAdapter, config_of("GptOss", **told)


# --- 0.2
def old_experts(**more):
    from torchtitan.models.moe import MoEArgs

    return MoEArgs(num_experts=EXPERTS, use_grouped_mm=False, **more)


def llama4():
    from torchtitan.models import llama4 as m

    args = m.TransformerModelArgs(
        **GQA, vocab_size=VOCAB, multiple_of=8, max_seq_len=64, moe_args=old_experts()
    )
    told = {"num_local_experts": EXPERTS, "num_experts_per_tok": 1, "interleave_moe_layer_step": 2}
    told |= {"intermediate_size": 24, "intermediate_size_mlp": 48, "use_qk_norm": False}
    return m.Transformer(args), m.Llama4StateDictAdapter, args, config_of("Llama4Text", **told)


def deepseek(kind, q_lora_rank, **told):
    from torchtitan.models.deepseek_v3 import DeepSeekV3Model, DeepSeekV3ModelArgs
    from torchtitan.models.deepseek_v3.model.state_dict_adapter import DeepSeekV3StateDictAdapter

    DeepSeekV3ModelArgs.moe_impl = "standard"  # the adapter of 0.2.2 asks for it
    args = DeepSeekV3ModelArgs(
        vocab_size=VOCAB, dim=DIM, inter_dim=WIDE, moe_inter_dim=NARROW, n_layers=LAYERS,
        n_heads=HEADS, max_seq_len=64, q_lora_rank=q_lora_rank, **MLA,
        moe_args=old_experts(num_shared_experts=2, top_k=2),
    )  # fmt: skip
    config = config_of(kind, q_lora_rank=q_lora_rank or None, **told)
    return DeepSeekV3Model(args), DeepSeekV3StateDictAdapter, args, config


def old_gpt_oss():
    from torchtitan.models.gpt_oss import GptOssModel, GptOssModelArgs
    from torchtitan.models.gpt_oss.model.state_dict_adapter import GptOssStateDictAdapter

    args = GptOssModelArgs(
        **GQA, vocab_size=VOCAB, moe_inter_dim=NARROW, head_dim=HEAD, max_seq_len=64,
        rope_factor=1.0, moe_args=old_experts(num_shared_experts=0, gate_bias=True, top_k=2),
    )  # fmt: skip
    config = config_of("GptOss", intermediate_size=NARROW, num_local_experts=EXPERTS)
    return GptOssModel(args), GptOssStateDictAdapter, args, config


RELEASES = {
    "0.3": {f.__name__: f for f in (llama3, qwen3_moe, deepseek_v3, gpt_oss)},
    "0.2": {
        "llama4": llama4,
        "deepseek_v2": lambda: deepseek("DeepseekV2", 0),
        "deepseek_v3": lambda: deepseek("DeepseekV3", 6, num_nextn_predict_layers=0),
        "gpt_oss": old_gpt_oss,
    },
}
ALL = [f"{release}_{name}" for release, families in RELEASES.items() for name in families]


def build(release, name):
    """The model with random weights, its adapter, and transformers' config."""
    if release == "0.3":
        args, adapter, config = RELEASES[release][name]()
        model = args.build()
    else:
        model, adapter, args, config = RELEASES[release][name]()
    generator = torch.Generator().manual_seed(11)
    biases = [buffer for name, buffer in model.named_buffers() if "expert_bias" in name]
    with torch.no_grad():
        for tensor in (*model.parameters(), *biases):
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return model, adapter(args, None), config


def save(tensors, path):
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    path.chmod(0o644)


def write(release, name):
    folder = FIXTURES / f"torchtitan{release}_{name}"
    model, adapter, config = build(release, name)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if dist.get_rank() == 0:
        folder.mkdir(exist_ok=True)
        save(state, folder / "titan.safetensors")
        save(adapter.to_hf(dict(state)), folder / "reference.safetensors")
        if f"{release}_{name}" in FUSED:
            save(dict(model.named_parameters()), folder / "fused.safetensors")
        text = json.dumps(config.to_dict(), indent=1, sort_keys=True)
        (folder / "config.json").write_text(f"{text}\n")
    if f"{release}_{name}" in WHOLE:
        for layer in model.layers.values():
            fully_shard(layer)
        fully_shard(model)
        dcp.save(model.state_dict(), checkpoint_id=folder / "checkpoint")


if __name__ == "__main__":
    dist.init_process_group("gloo")
    for family in RELEASES[sys.argv[1]]:
        write(sys.argv[1], family)
    dist.destroy_process_group()
