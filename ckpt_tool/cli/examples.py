"""The examples in the help of each command: a command, and behind two spaces what it is for."""

from __future__ import annotations

#: By what one types for the command; of the program itself by nothing.
EXAMPLES = {
    "": """
ckpt inspect run                                  what is there, and how to merge each
ckpt merge global_step_100/actor model            a checkpoint becomes a model
ckpt merge run 'hf/{step}' --steps all            each checkpoint of a run does
ckpt verify global_step_100/actor model           is the model the checkpoint, bit for bit
""",
    "inspect": """
ckpt inspect global_step_100/actor                what is it, is it whole
ckpt inspect run                                  its steps and roles, with the command for each
ckpt inspect actor --shards --filter '*.0.*'      which rank holds what
ckpt inspect model --check-crc --json             every byte held against its checksum
""",
    "verify": """
ckpt verify model                                 is it what ckpt wrote
ckpt verify global_step_100/actor model           is the model the checkpoint, bit for bit
ckpt verify actor model-bf16 --cast-reference     equal, once rounded to bfloat16
ckpt verify step-200 step-100 --heatmap           which layers did training move
ckpt verify A B --report report.html              all of it as one file
""",
    "to-mcore": """
ckpt to-mcore Qwen3-8B qwen3-mcore --verify       for dist_checkpointing and verl
ckpt to-mcore model out --layout megatron-lm      for --load of Megatron-LM
ckpt to-mcore model out --dry-run                 what becomes of each tensor
ckpt to-mcore model out --check-load              megatron-core loads it before OUT appears
""",
    "merge": """
ckpt merge global_step_100/actor model --verify   any format; read back, bit for bit
ckpt merge actor model --dtype bfloat16           cast, with the largest error said
ckpt merge node0 node1 model                      ranks on the disks of several nodes
ckpt merge actor model --config Qwen/Qwen3-8B     where the checkpoint has no config.json
ckpt merge actor model --dry-run                  what would be written
ckpt merge actor model --upload me/model          and onto the Hub
ckpt merge actor s3://models/mine                 straight into a bucket
""",
    "merge fsdp": """
ckpt merge fsdp global_step_100/actor model --verify
ckpt merge fsdp node0/actor node1/actor model
ckpt merge fsdp actor model --check-replicas
""",
    "merge megatron": """
ckpt merge megatron global_step_100/actor model --verify
ckpt merge megatron checkpoints/iter_0000100 model --config Qwen/Qwen3-8B
ckpt merge megatron iter_0000100 model --weights optimizer --dtype float32
""",
    "merge dcp": """
ckpt merge dcp step-100 model --config Qwen/Qwen2.5-0.5B
ckpt merge dcp last.ckpt model --config DIR --rename backbone=model
ckpt merge dcp step-100 model --config DIR --prefix app.model
""",
    "merge deepspeed": """
ckpt merge deepspeed checkpoint-500 model --verify
ckpt merge deepspeed global_step100 model --config DIR --dtype bfloat16
""",
}
