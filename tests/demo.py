"""``make demo``: real FSDP2 writes a small sharded checkpoint, then the tool is shown on it.

The merged model becomes a megatron-core checkpoint, which megatron-core loads, and that one a model
again. transformers opens it, and its logits must be those of the model that was sharded, bit for
bit. Last comes a checkpoint that DeepSpeed wrote, against what its own tool makes of it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from tests.real.write_deepspeed import FIXTURES
from tests.real.write_fsdp import write_cases

CASE = "fsdp2_layers12_w2"
DEEPSPEED = "deepspeed0.19_z3_groups"


def main(folder: Path) -> int:
    """Run the demo in ``folder``, which is made anew; the exit status says whether it held."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    print("Two gloo processes shard a small Qwen3 with torch FSDP2 and save it as verl does ...")
    case = write_cases(folder, [CASE])[CASE]
    run_name, merged, mcore = folder / "global_step_100", folder / "merged", folder / "mcore"
    again = folder / "merged_again"
    case.rename(run_name)
    actor = run_name / "actor"
    steps = (
        ["ckpt", "inspect", str(actor)],
        ["ckpt", "inspect", str(actor), "--shards", "--filter", "*.0.self_attn.*"],
        ["ckpt", "merge", str(actor), str(merged), "--verify", "--check-load"],
        ["ckpt", "verify", str(actor), str(merged)],
        ["ckpt", "inspect", str(merged)],
        ["ckpt", "to-mcore", str(merged), str(mcore), "--verify", "--check-load"],
        ["ckpt", "inspect", str(mcore)],
        ["ckpt", "verify", str(mcore), str(merged)],
        ["ckpt", "merge", str(mcore), str(again), "--config", str(merged), "--verify"],
        ["ckpt", "verify", str(again), str(actor)],
    )
    for step in steps:
        show(step)
    status = compare_logits(run_name / "logits.safetensors", again)
    show_deepspeed(folder)
    program = Path(sys.executable).with_name("ckpt")
    print(f"\nAll of this is in {folder}. Try your own: {program} inspect FOLDER")
    return status


def show_deepspeed(folder: Path) -> None:
    """A checkpoint of ZeRO-3, merged and held against the answer of DeepSpeed's `zero_to_fp32`."""
    print("\nThree ranks of real DeepSpeed 0.19 saved this one, of ZeRO-3: a fixture.")
    run_name, merged = folder / "deepspeed", folder / "deepspeed_merged"
    shutil.copytree(FIXTURES / DEEPSPEED, run_name)
    checkpoint, answer = run_name / "ckpt", run_name / "expected.safetensors"
    config = ["--config", str(run_name)]
    show(["ckpt", "inspect", str(checkpoint)])
    show(["ckpt", "verify", str(checkpoint), str(answer), "--config", "none"])
    show(["ckpt", "merge", str(checkpoint), str(merged), *config, "--verify", "--check-load"])
    show(["ckpt", "verify", str(checkpoint), str(merged), "--cast-reference"])


def show(command: list[str]) -> None:
    """Print a command as one would type it, and run it."""
    print(f"\n$ {shlex.join(command)}", flush=True)
    program = [sys.executable, "-m", "ckpt_tool", *command[1:]]
    subprocess.run(program, check=True, env=os.environ | {"COLUMNS": "100"})


def compare_logits(recorded: Path, merged: Path) -> int:
    """Open the merged model with transformers and compare with the logits from before sharding."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from tests.real.fsdp_reference import logits_of

    logging.disable_progress_bar()
    print(f"\nOpening {merged} with transformers ...")
    model = AutoModelForCausalLM.from_pretrained(
        merged, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    known = load_file(recorded)
    logits = logits_of(model, known["input_ids"])
    if torch.equal(logits, known["logits"]):
        print(f"Logits {list(logits.shape)} are identical to those of the model that was sharded.")
        return 0
    print("Logits differ from those of the model that was sharded.")
    return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo")))
