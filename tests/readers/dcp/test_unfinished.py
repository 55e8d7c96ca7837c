"""A folder of torch.distributed.checkpoint in which rank 0 has not written its part."""

import pytest
import torch
import torch.distributed.checkpoint as dcp

from ckpt_tool.common.errors import AmbiguousError, FormatError
from ckpt_tool.operations.runs import choose_step, list_run
from ckpt_tool.readers import list_titles, open_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture
def run(tmp_path):
    """Two steps, the second without metadata: what a job that is killed while it saves leaves."""
    for step in (9, 10):
        state = {"norm.weight": torch.arange(4.0) + step}
        dcp.save(state, checkpoint_id=tmp_path / f"step-{step}")
    (tmp_path / "step-10" / ".metadata").unlink()
    return tmp_path


def test_it_is_known_for_what_it_is(run):
    with pytest.raises(FormatError, match=r"no \.metadata") as refused:
        open_checkpoint(run / "step-10")
    assert "not finished" in refused.value.hint
    assert "another node" in refused.value.hint


def test_the_step_before_it_is_not_taken_for_the_last(run):
    assert choose_step(run, "latest") == run / "step-10"
    with pytest.raises(AmbiguousError):
        open_checkpoint(run)
    titles = [each.format.title for each in list_run(run).checkpoints]
    assert [title.startswith("unfinished") for title in titles] == [False, True]


def test_nobody_is_told_to_have_one():
    assert not any("unfinished" in title for title in list_titles("dcp"))
