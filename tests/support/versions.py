"""What is installed: a test that needs a newer library says so, and is skipped without it."""

import re
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from tests.real.fsdp_cases import ALL_CASES, Case


def release(package: str) -> tuple[int, ...]:
    """The first two numbers of the installed version, as in (0, 16)."""
    return tuple(int(part) for part in re.findall(r"\d+", version(package))[:2])


MEGATRON_CORE = release("megatron-core")
TORCH = release("torch")
TRANSFORMERS = release("transformers")

#: Models of `tests.real` that transformers 4 does not have, or not in this form.
_NEW_MODELS = {"gpt_oss", "qwen3_vl_moe", "qwen2_5_vl", "qwen2_vl+lora"}

_NEEDS_5 = "transformers 4 has other models, and no tables of their names on the Hub"
#: transformers 4 wants an older one, which finds out some things only when it sends.
needs_hub_1 = pytest.mark.skipif(
    release("huggingface_hub") < (1, 0),
    reason="huggingface_hub 0 checks less, and goes by other ways",
)
#: torch's own reckoning of blocks, a private function, has another name before.
needs_torch_2_7 = pytest.mark.skipif(TORCH < (2, 7), reason="torch 2.6 calls it otherwise")
#: It writes neither uint64 nor complex64 before.
needs_safetensors_0_5 = pytest.mark.skipif(
    release("safetensors") < (0, 5), reason="safetensors 0.4 does not write every dtype"
)
needs_transformers_5 = pytest.mark.skipif(TRANSFORMERS < (5, 0), reason=_NEEDS_5)


def require_transformers_5() -> None:
    """Skip the test that builds a model as transformers 5 has it in memory."""
    if TRANSFORMERS < (5, 0):
        pytest.skip(_NEEDS_5)


def torch_dtype(name: str) -> torch.dtype:
    """The dtype; the test is skipped where torch does not have it yet."""
    if not hasattr(torch, name):
        pytest.skip(f"torch {torch.__version__} has no {name}")
    found: torch.dtype = getattr(torch, name)
    return found


def refusal(case: Case) -> str:
    """Why the installed libraries cannot write the case; empty where they can."""
    if case.model in _NEW_MODELS and TRANSFORMERS < (5, 0):
        return f"transformers {version('transformers')} cannot build {case.model}"
    if case.sharding == "fsdp2_tp" and TORCH < (2, 7):
        return f"torch {version('torch')} cuts nothing unevenly by FSDP and tensor parallelism"
    return ""


class Written(dict[str, Path]):
    """Case -> its folder; a test that asks for a case that could not be written is skipped."""

    def __missing__(self, name: str) -> Path:
        if name not in ALL_CASES:
            raise KeyError(name)
        pytest.skip(refusal(ALL_CASES[name]))
