"""Each process has its own folder for what lies elsewhere, and is told of others' by address."""

from pathlib import Path

import pytest

from ckpt_tool.common.remote import naming, sending
from ckpt_tool.common.remote.sending import decode, encode


@pytest.fixture
def roots(monkeypatch):
    """Sets the root of this process, as if it were another."""
    monkeypatch.setattr(naming, "_roots", [])
    return naming.set_root


def test_paths_come_out_as_those_of_the_other_process(roots, monkeypatch):
    value = {
        "path": Path("/tmp/ckpt-one/0/s3/bucket/run"),
        "text": "/tmp/ckpt-one/7/s3/bucket/run/rank_0.pt",
        "other": Path("/data/run"),
        "numbers": [1, 2.5, b"/tmp/ckpt-one"],
    }
    roots("/tmp/ckpt-one")
    sent = encode(value)
    roots("/tmp/ckpt-two")
    places = {
        "s3://bucket/run": Path("/tmp/ckpt-two/3/s3/bucket/run"),
        "s3://bucket/run/rank_0.pt": Path("/tmp/ckpt-two/3/s3/bucket/run/rank_0.pt"),
    }
    monkeypatch.setattr(sending, "recall", places.__getitem__)
    assert decode(sent) == {
        "path": Path("/tmp/ckpt-two/3/s3/bucket/run"),
        "text": "/tmp/ckpt-two/3/s3/bucket/run/rank_0.pt",
        "other": Path("/data/run"),
        "numbers": [1, 2.5, b"/tmp/ckpt-one"],
    }


def test_where_nothing_lies_elsewhere_values_are_sent_as_they_are(roots):
    assert decode(encode(("/tmp/ckpt-one", Path("x")))) == ("/tmp/ckpt-one", Path("x"))


def test_texts_call_places_by_their_addresses(roots):
    roots("/tmp/ckpt-one")
    text = "/tmp/ckpt-one/0/s3/bucket/run, /tmp/ckpt-one/12/hf/org/name, /tmp/ckpt-one/0/other"
    assert naming.name_places(text) == "s3://bucket/run, hf://org/name, /tmp/ckpt-one/0/other"
