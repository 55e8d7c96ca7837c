"""Names of other trainers, given by `--rename` as `mapping/README.md` has the lines."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ckpt_tool
from ckpt_tool import (
    MergeOptions,
    NameOptions,
    VerifyOptions,
    WriteOptions,
    merge_dcp,
    verify_checkpoint,
)
from tests.support import megatron
from tests.support.merging import assert_same, load_folder
from tests.support.resaving import save_dcp
from tests.support.versions import needs_transformers_5

pytestmark = [
    needs_transformers_5,
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
]

OLMO = Path(__file__).parents[2] / "fixtures" / "olmo_core2.4_olmo2"
README = Path(ckpt_tool.__file__).parent / "mapping" / "README.md"


def names_of(trainer: str) -> NameOptions:
    """The options for a trainer, read from the block of the documentation."""
    text = README.read_text()
    block = re.search(rf"```bash\n# {re.escape(trainer)}\n(.*?)```", text, re.DOTALL)
    assert block, trainer
    words = shlex.split(block[1].replace("\\\n", " "))
    given = list(pairwise(words))
    renames = tuple(value for word, value in given if word == "--rename")
    prefix = next((value for word, value in given if word == "--prefix"), None)
    assert len(renames) == words.count("--rename")
    return NameOptions(prefix=prefix, rename=renames)


def merge(source: Path, out: Path, config: Path, names: NameOptions) -> dict[str, torch.Tensor]:
    merge_dcp(source, out, MergeOptions(config, names=names, write=WriteOptions(fsync=False)))
    return load_folder(out)


def test_olmo_core(tmp_path):
    names = names_of("OLMo-core, OLMo 2")
    merged = merge(OLMO / "checkpoint", tmp_path / "out", OLMO, names)
    assert_same(merged, load_file(OLMO / "reference.safetensors"))
    options = VerifyOptions(config=OLMO, names=names)
    assert verify_checkpoint(OLMO / "checkpoint", tmp_path / "out", options).equal


def stack(hub: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """The tensors of all experts, where ``name`` has a ``*`` for their number."""
    start, end = name.split("*")
    count = sum(key.startswith(start) and key.endswith(end) for key in hub)
    return torch.stack([hub.pop(f"{start}{number}{end}") for number in range(count)])


def as_prime_rl(hub: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As its conversion has it: experts stacked, the router one level down."""
    found = dict(hub)
    for name in [key for key in hub if key.endswith(".experts.0.gate_proj.weight")]:
        at = name.removesuffix("experts.0.gate_proj.weight")
        for new, old in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")):
            found[f"{at}experts.{new}"] = stack(found, f"{at}experts.*.{old}.weight")
            shared = found.pop(f"{at}shared_experts.{old}.weight", None)
            if shared is not None:
                found[f"{at}shared_expert.{new}"] = shared
        found[f"{at}router.gate.weight"] = found.pop(f"{at}gate.weight")
        bias = found.pop(f"{at}gate.e_score_correction_bias", None)
        if bias is not None:
            found[f"{at}expert_bias"] = bias
    return found


@pytest.mark.parametrize("family", ["qwen3_moe", "glm4_moe"])
def test_prime_rl(megatron_cases, tmp_path, family):
    folder = megatron.hf(megatron_cases, family)
    expected = load_folder(folder)
    state = as_prime_rl(expected)
    assert any(name.endswith(".experts.w1") for name in state)
    given = names_of("prime-rl")
    if family == "qwen3_moe":  # a line that changes nothing is an error
        kept = tuple(r for r in given.rename if "shared" not in r and "bias" not in r)
        given = NameOptions(rename=kept)
    source = save_dcp(state, tmp_path / "in")
    assert_same(merge(source, tmp_path / "out", folder, given), expected)
