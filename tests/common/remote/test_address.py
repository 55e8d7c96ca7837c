"""Addresses: what is one, what it names, and how it is written."""

from pathlib import Path

import pytest

from ckpt_tool.common.errors import UsageError
from ckpt_tool.common.remote.address import Address, is_remote


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("s3://models/qwen/step_10/", ("s3", "models", "qwen/step_10")),
        ("s3:/models/qwen", ("s3", "models", "qwen")),
        ("gs://models", ("gs", "models", "")),
        ("az://models//twice", ("az", "models", "twice")),
        ("hf://org/name", ("hf", "org/name", "")),
        ("hf://org/name@v1.0/sub/folder", ("hf", "org/name@v1.0", "sub/folder")),
        (
            "https://host:8080/a b/model.safetensors",
            ("https", "host:8080", "a b/model.safetensors"),
        ),
    ],
)
def test_an_address_has_a_scheme_a_bucket_and_a_key(text, found):
    address = Address.parse(text)
    assert (address.scheme, address.bucket, address.key) == found
    assert Address.parse(str(address)) == address
    assert Address.parse(Path(text)) == address  # as a command line hands it on


@pytest.mark.parametrize(
    "text", ["models/qwen", "/data/s3", "C:/models", "s3", "s3x://a/b", "./s3:a"]
)
def test_a_path_is_no_address(text):
    assert Address.parse(text) is None
    assert not is_remote(text)


@pytest.mark.parametrize("text", ["s3://", "s3:", "gs:/", "hf://", "hf://gpt2", "https://"])
def test_an_address_without_a_bucket_is_refused(text):
    with pytest.raises(UsageError, match="names no"):
        Address.parse(text)


def test_what_is_above_and_below():
    address = Address("s3", "bucket", "run/step")
    assert str(address.join("model")) == "s3://bucket/run/step/model"
    assert str(address.parent) == "s3://bucket/run"
    assert str(address.parent.parent) == "s3://bucket"
    assert address.parent.parent.parent is None
    assert str(Address("s3", "bucket", "").join("run")) == "s3://bucket/run"


@pytest.mark.parametrize(
    "text", ["http://host/../../tmp", "s3://bucket/./a", "hf://org/..", "s3://a/b\0c"]
)
def test_an_address_does_not_lead_out_of_its_bucket(text):
    with pytest.raises(UsageError, match="a part that no folder is called"):
        Address.parse(text)
