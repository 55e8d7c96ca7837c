"""The table of FSDP checkpoints that `write_fsdp` can write.

Imports neither torch nor transformers: the tests choose cases from here in a process that should
stay light, while only the processes that write pay for the heavy imports.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One checkpoint folder: which model, sharded how, over which device mesh.

    `model` names an entry of `fsdp_models.MODELS`, `sharding` one of `fsdp_sharding.SHARDINGS`.
    `mesh_names` is empty where FSDP gets a process group instead of a mesh (ShardedTensor files).
    """

    name: str
    model: str
    sharding: str
    mesh_shape: tuple[int, ...]
    mesh_names: tuple[str, ...] = ("fsdp",)
    dtype: str = "float32"
    # What verl leaves in actor/huggingface/config.json where that is not the class of the model:
    # it builds critics from the actor's config and saves the config as it came.
    config_architecture: str | None = None
    # Where in nested dictionaries the ranks save the model once more, with DCP, in `dcp/`; with
    # the state of an optimizer beside it where there is a dictionary around both.
    dcp_nesting: str | None = None
    # Of a model with LoRA adapters: where rank and alpha are written (`lora_train_meta.json`,
    # `lora_adapter`; empty: nowhere), and whether the ranks save the adapters alone.
    lora: str | None = None
    adapter_alone: bool = False

    @property
    def world_size(self) -> int:
        """How many rank processes, thus rank files, the case has."""
        return math.prod(self.mesh_shape)

    @property
    def fsdp_version(self) -> int:
        """The number verl records in fsdp_config.json."""
        return 1 if self.sharding.startswith("fsdp1") else 2


_CASES = (
    Case("world1_w1", "llama", "fsdp1", (1,)),
    Case("fsdp1_w2", "qwen2", "fsdp1", (2,)),
    Case("fsdp1_nomesh_w3", "qwen2", "fsdp1_nomesh", (3,), (), dcp_nesting="model"),
    Case("fsdp1_hsdp_w4", "qwen2", "fsdp1", (2, 2), ("ddp", "fsdp")),
    Case("fsdp2_w2", "qwen2", "fsdp2", (2,)),
    Case("fsdp2_w3", "qwen2", "fsdp2", (3,), dcp_nesting="app.model"),
    Case("fsdp2_hsdp_w4", "qwen2", "fsdp2", (2, 2), ("ddp", "fsdp")),
    Case("fsdp2_tp_w4", "qwen2", "fsdp2_tp", (2, 2), ("fsdp", "tp"), dcp_nesting="app.model"),
    Case("fsdp2_bf16_w2", "qwen2", "fsdp2", (2,), dtype="bfloat16"),
    Case("fsdp2_tied_w2", "qwen2_tied", "fsdp2", (2,), dcp_nesting="model"),
    Case("fsdp2_shard1_w2", "qwen2", "fsdp2_shard1", (2,)),
    Case("fsdp2_veomni_w2", "qwen2", "fsdp2", (2,), ("dp_shard",)),
    Case("fsdp2_buffers_w2", "buffers", "fsdp2", (2,)),
    Case("fsdp2_moe_w2", "qwen3_moe", "fsdp2", (2,), dcp_nesting=""),
    Case("fsdp2_mixtral_w2", "mixtral", "fsdp2", (2,)),
    Case("fsdp2_deepseek_w2", "deepseek_v3", "fsdp2", (2,)),
    Case("fsdp2_vlm_w2", "qwen2_5_vl", "fsdp2", (2,), dcp_nesting="state_dict"),
    Case("fsdp2_qwen3vlmoe_w2", "qwen3_vl_moe", "fsdp2", (2,)),
    Case("fsdp2_gptoss_w2", "gpt_oss", "fsdp2", (2,)),
    Case(
        "fsdp2_tokencls_w2",
        "qwen2_token_classification",
        "fsdp2",
        (2,),
        config_architecture="Qwen2ForCausalLM",
    ),
    Case(
        "fsdp2_seqcls_w2",
        "qwen2_sequence_classification",
        "fsdp2",
        (2,),
        config_architecture="Qwen2ForCausalLM",
    ),
    Case("fsdp2_valuehead_w2", "qwen2_value_head", "fsdp2", (2,)),
    Case(
        "fsdp2_valuehead_tied_w2",
        "qwen2_tied_value_head",
        "fsdp2",
        (2,),
        dtype="bfloat16",
        dcp_nesting="app.model",
    ),
    Case("fsdp1_valuehead_w2", "qwen2_tied_value_head", "fsdp1", (2,)),
    Case("fsdp2_layers12_w2", "qwen3_12_layers", "fsdp2", (2,)),
)

_META, _ADAPTER = "lora_train_meta.json", "lora_adapter"
_LORA_CASES = (
    Case("lora_w2", "qwen2+lora", "fsdp2", (2,), lora=_META, dcp_nesting="model"),
    Case("lora_fsdp1_w2", "qwen2+lora", "fsdp1", (2,), lora=_ADAPTER),
    Case("lora_bf16_w3", "qwen2+lora", "fsdp2", (3,), dtype="bfloat16", lora=_META),
    Case("lora_tied_w2", "qwen2_tied+lora", "fsdp2", (2,), lora=_META),
    Case("lora_moe_w2", "qwen3_moe+lora", "fsdp2", (2,), lora=_META),
    Case("lora_vlm_w2", "qwen2_vl+lora", "fsdp2", (2,), lora=_META),
    Case("lora_patterns_w2", "qwen2+patterns", "fsdp2", (2,), lora=_ADAPTER),
    Case("lora_dora_w2", "qwen2+dora", "fsdp2", (2,), lora=_META),
    Case("lora_gpt2_w2", "gpt2+lora", "fsdp2", (2,), lora=_META),
    Case("lora_critic_w2", "qwen2_critic+lora", "fsdp2", (2,), lora=_META),
    Case("lora_experts_w2", "qwen3_moe+experts", "fsdp2", (2,), lora=_ADAPTER),
    Case("lora_tokens_w2", "qwen2_tied+tokens", "fsdp2", (2,), lora=_ADAPTER),
    Case("lora_unknown_w1", "qwen2+lora", "fsdp2", (1,), lora=""),
    Case("lora_alone_w2", "qwen2+lora", "fsdp2", (2,), lora=_META, adapter_alone=True),
    Case("lora_alone_vlm_w2", "qwen2_vl+lora", "fsdp2", (2,), lora=_META, adapter_alone=True),
)

CASES = {case.name: case for case in _CASES}
LORA_CASES = {case.name: case for case in _LORA_CASES}
ALL_CASES = CASES | LORA_CASES

#: Models with a value head like trl's: merged, they hold the head under a second name.
VALUE_HEADS = tuple(name for name in CASES if "valuehead" in name)
#: Whose merged folder is `reference/`, tensor by tensor.
WITH_REFERENCE = tuple(sorted(CASES.keys() - {"fsdp2_buffers_w2", *VALUE_HEADS}))


def select_cases(names: Sequence[str] | None) -> list[Case]:
    """The named cases, or all of them; an unknown name is an error that lists the known ones."""
    unknown = sorted(set(names or ()) - ALL_CASES.keys())
    if unknown:
        raise ValueError(f"unknown cases {unknown}; known: {sorted(ALL_CASES)}")
    return [ALL_CASES[name] for name in (ALL_CASES if names is None else dict.fromkeys(names))]
