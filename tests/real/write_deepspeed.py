"""Write the fixtures that real DeepSpeed leaves behind, with its own `zero_to_fp32`'s answer.

With a Python of its own that has DeepSpeed, from the repository's root:

    python3 -m venv /tmp/deepspeed
    /tmp/deepspeed/bin/pip install torch==2.13.0 deepspeed==0.19.8 transformers==5.23.0 peft \
        accelerate==1.15.0 safetensors
    .venv/bin/python -m tests.real.write_deepspeed /tmp/deepspeed/bin/python

which replaces `tests/fixtures/deepspeed0.19_*`. They were written with these versions, on CPU, with
gloo: a tiny Qwen2 is trained for two steps. Each has `ckpt/`, as it was saved, `config.json`, and
`expected.safetensors`, where `zero_to_fp32` has an answer: it takes no stage 0, and none of
`BF16_Optimizer` (`z1_accumulate`), and knows nothing of what is frozen in stage 1.

Older releases are named with a Python that has them, and torch as it is:

    TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 .venv/bin/python -m tests.real.write_deepspeed \
        /tmp/deepspeed-0.14.5/bin/python deepspeed0.14_z0
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_PROJECT = Path(__file__).resolve().parents[2]
FIXTURES = _PROJECT / "tests" / "fixtures"
_START = "deepspeed0.19_"
_TIMEOUT = 300  # seconds; importing takes most of it


@dataclass(frozen=True)
class Case:
    """What is trained, and how: ``zero`` and ``more`` are DeepSpeed's options.

    ``form``: ``plain``, ``lora``, ``frozen`` (the first layer), ``buffers``, ``tiny`` (single
    elements in a group of their own, and none). ``by``: whose loop saves it. ``universal``: it is
    made into a universal checkpoint, which is kept without the optimizer's moments.
    """

    stage: int
    world: int = 2
    dtype: str = "bf16"
    form: str = "plain"
    tied: bool = True
    groups: bool = False
    excluded: bool = False
    is_judged: bool = True
    by: str = "deepspeed"
    universal: bool = False
    zero: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)


CASES = {
    f"{_START}{name}": case
    for name, case in {
        "z0": Case(0, is_judged=False),
        "z1_accumulate": Case(
            1, is_judged=False, more={"data_types": {"grad_accum_dtype": "fp32"}}
        ),
        "z1_lora": Case(1, form="lora"),
        "z2_accelerate": Case(2, by="accelerate"),
        "z2_buffers": Case(2, form="buffers", tied=False),
        "z2_excluded": Case(2, form="lora", excluded=True),
        "z2_round_robin": Case(2, groups=True, zero={"round_robin_gradients": True}),
        "z2_tiny": Case(2, world=3, form="tiny"),
        "z2_trainer": Case(2, dtype="fp32", by="trainer"),
        "z3_buffers": Case(3, world=3, form="buffers", tied=False),
        "z3_frozen": Case(3, dtype="fp16", form="frozen"),
        "z3_groups": Case(3, world=3, groups=True, zero={"sub_group_size": 70}),
        "z3_lora": Case(3, form="lora"),
        "universal_z2": Case(2, form="buffers", tied=False, universal=True),
        "universal_z3": Case(3, form="lora", universal=True),
        "z3_excluded": Case(3, form="lora", excluded=True),
    }.items()
}


#: Of 0.14.5, whose stage 0 in bfloat16 is cut among ranks as stage 1 is, and of 0.16.9.
CASES["deepspeed0.14_z0"] = Case(0, world=3, is_judged=False)
CASES["deepspeed0.16_z3_groups"] = CASES[f"{_START}z3_groups"]


def main(python: str, names: list[str]) -> None:
    """Write the fixtures of these names; without any those of the newest release."""
    for name in names or [name for name in CASES if name.startswith(_START)]:
        folder = FIXTURES / name
        shutil.rmtree(folder, ignore_errors=True)
        run(python, name, folder)
        if CASES[name].universal:
            make_universal(python, folder)
        for script in folder.glob("ckpt/**/*.py"):
            script.unlink()
        print(name, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))


def run(python: str, name: str, folder: Path) -> None:
    """Train and save one case, in as many processes as it has ranks."""
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(CASES[name].world)]
    place = ["--master-port", "29611", "-m", "tests.real.deepspeed_rank", name, str(folder)]
    env = os.environ | {
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_DEEPSPEED": "true",
        "PYTHONPATH": str(_PROJECT),
    }
    subprocess.run([python, *launch, *place], check=True, env=env, timeout=_TIMEOUT)


def make_universal(python: str, folder: Path) -> None:
    """A universal checkpoint in place of the one that was saved."""
    saved, made = folder / "ckpt", folder / "universal"
    script = ["-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    places = ["--input_folder", str(saved / "global_step2"), "--output_folder", str(made)]
    env = os.environ | {"DS_ACCELERATOR": "cpu"}
    subprocess.run([python, *script, *places], check=True, env=env, timeout=_TIMEOUT)
    shutil.rmtree(saved)
    made.rename(saved)
    (folder / "latest_universal").unlink()
    for moment in saved.glob("zero/*/exp_avg*.pt"):
        moment.unlink()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
