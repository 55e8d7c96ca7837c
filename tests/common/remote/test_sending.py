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


def test_paths_come_out_as_those_of_the_other_process(roots, monkeypatch, tmp_path):
    run = tmp_path / "one" / "0" / "s3" / "bucket" / "run"
    run.mkdir(parents=True)
    rank = run / "rank_0.pt"
    rank.touch()
    other = {"said": f"{rank}: is damaged", "path": tmp_path, "numbers": [1, 2.5, bytes(run)]}
    roots(str(tmp_path / "one"))
    sent = encode({"path": run, "text": str(rank), "again": str(rank), "other": other})
    there = tmp_path / "two" / "3" / "s3" / "bucket" / "run"
    roots(str(tmp_path / "two"))
    places = {"s3://bucket/run": there, "s3://bucket/run/rank_0.pt": there / "rank_0.pt"}
    monkeypatch.setattr(sending, "recall", places.__getitem__)
    assert decode(sent) == {
        "path": there,
        "text": str(there / "rank_0.pt"),
        "again": str(there / "rank_0.pt"),
        "other": other,
    }


def test_where_nothing_lies_elsewhere_values_are_sent_as_they_are(roots):
    assert decode(encode(("/tmp/ckpt-one", Path("x")))) == ("/tmp/ckpt-one", Path("x"))


def test_texts_call_places_by_their_addresses(roots):
    roots("/tmp/ckpt-one")
    text = "/tmp/ckpt-one/0/s3/bucket/run, /tmp/ckpt-one/12/hf/org/name, /tmp/ckpt-one/0/other"
    assert naming.name_places(text) == "s3://bucket/run, hf://org/name, /tmp/ckpt-one/0/other"
