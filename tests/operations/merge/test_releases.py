"""What each release of megatron-core saved, merged and verified.

The fixtures are written by `tests/real/write_release_fixtures.py`, which says how.
"""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from ckpt_tool import (
    MergeOptions,
    WriteOptions,
    merge_megatron,
    open_checkpoint,
    verify_checkpoint,
)
from tests.real.write_release_fixtures import CASES, FIXTURES
from tests.support.merging import assert_same, load_folder
from tests.support.versions import require_transformers_5

EVERY = {
    f"mcore{release}_{name}": case
    for release, cases in CASES.items()
    for name, case in cases.items()
}
#: Transformers 4 holds its router's bias in another dtype.
OF_5 = ("mcore0.19_fsdp_latent",)
#: Without those that have no model; see `test_masters`.
ALL = [name for name, case in EVERY.items() if case.form != "optimizer"]


@pytest.fixture(params=ALL)
def fixture(request: pytest.FixtureRequest) -> Path:
    """A folder with `checkpoint/` and, as a Hugging Face model, what that was saved from."""
    return FIXTURES / request.param


def test_the_fixtures_are_all_there():
    assert sorted(path.name for path in FIXTURES.glob("mcore*")) == sorted(EVERY)


def test_a_checkpoint_is_sound(fixture):
    checkpoint = open_checkpoint(fixture / "checkpoint")
    assert not checkpoint.problems
    assert any(name.endswith("word_embeddings.weight") for name in checkpoint)


def test_the_merged_model_is_the_one_that_was_saved(fixture, tmp_path):
    if fixture.name in OF_5:
        require_transformers_5()
    options = MergeOptions(config=fixture, check_replicas=True, write=WriteOptions(fsync=False))
    result = merge_megatron(fixture / "checkpoint", tmp_path / "out", options)
    merged = load_folder(tmp_path / "out")
    assert result.num_tensors == len(merged)
    assert_same(merged, load_file(fixture / "reference.safetensors"))


def test_a_checkpoint_equals_the_model(fixture):
    assert verify_checkpoint(fixture / "checkpoint", fixture).exact
