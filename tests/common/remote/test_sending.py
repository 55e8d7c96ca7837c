"""Each process has its own folder for what lies elsewhere, and is told of others' by address."""

from pathlib import Path

import pytest

from ckpt_tool.common.remote import naming
from ckpt_tool.common.remote.sending import decode, encode


@pytest.fixture
def roots(monkeypatch):
    """Sets the root of this process, as if it were another."""
    monkeypatch.setattr(naming, "_roots", [])
    return naming.set_root


def test_paths_come_out_as_those_of_the_other_process(roots):
    value = {
        "path": Path("/tmp/ckpt-one/s3/bucket/run"),
        "text": "/tmp/ckpt-one/s3/bucket/run/rank_0.pt",
        "other": Path("/data/run"),
        "numbers": [1, 2.5, b"/tmp/ckpt-one"],
    }
    roots("/tmp/ckpt-one")
    sent = encode(value)
    roots("/tmp/ckpt-two-is-longer")
    assert decode(sent) == {
        "path": Path("/tmp/ckpt-two-is-longer/s3/bucket/run"),
        "text": "/tmp/ckpt-two-is-longer/s3/bucket/run/rank_0.pt",
        "other": Path("/data/run"),
        "numbers": [1, 2.5, b"/tmp/ckpt-one"],
    }


def test_where_nothing_lies_elsewhere_values_are_sent_as_they_are(roots):
    assert decode(encode(("/tmp/ckpt-one", Path("x")))) == ("/tmp/ckpt-one", Path("x"))


def test_texts_call_places_by_their_addresses(roots):
    roots("/tmp/ckpt-one")
    text = "/tmp/ckpt-one/s3/bucket/run: like /tmp/ckpt-one/hf/org/name, not /tmp/ckpt-one/other"
    assert naming.name_places(text) == (
        "s3://bucket/run: like hf://org/name, not /tmp/ckpt-one/other"
    )
