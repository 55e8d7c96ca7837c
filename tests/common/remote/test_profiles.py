"""What `aws configure` writes is taken for what the environment does not say."""

import pytest

from ckpt_tool.common.remote.profiles import read_profile

CREDENTIALS = """
[default]
aws_access_key_id = mine
aws_secret_access_key = hush

[work]
aws_access_key_id = theirs
aws_secret_access_key = quiet
aws_session_token = once
"""
CONFIG = """
[default]
region = eu-central-1

[profile work]
region = us-west-2
endpoint_url = http://store:9000
"""


@pytest.fixture
def environment(tmp_path):
    """What names the two files."""
    credentials, config = tmp_path / "credentials", tmp_path / "config"
    credentials.write_text(CREDENTIALS)
    config.write_text(CONFIG)
    return {"AWS_SHARED_CREDENTIALS_FILE": str(credentials), "AWS_CONFIG_FILE": str(config)}


def test_the_default_profile(environment):
    assert read_profile(environment) == {
        "access_key_id": "mine",
        "secret_access_key": "hush",
        "region": "eu-central-1",
    }


def test_a_profile_that_is_named(environment):
    assert read_profile({**environment, "AWS_PROFILE": "work"}) == {
        "access_key_id": "theirs",
        "secret_access_key": "quiet",
        "session_token": "once",
        "region": "us-west-2",
        "endpoint": "http://store:9000",
    }


def test_keys_of_the_environment_are_not_mixed_with_those_of_a_file(environment):
    keys = {"AWS_PROFILE": "work", "AWS_ACCESS_KEY_ID": "other"}
    assert read_profile({**environment, **keys}) == {
        "region": "us-west-2",
        "endpoint": "http://store:9000",
    }


@pytest.mark.parametrize("name", ["AWS_REGION", "AWS_DEFAULT_REGION"])
def test_a_region_of_the_environment_counts(environment, name):
    assert "region" not in read_profile({**environment, name: "here"})


def test_without_files_or_with_broken_ones_nothing_is_said(environment, tmp_path):
    (tmp_path / "credentials").write_bytes(b"\xff\xfe no ini")
    (tmp_path / "config").unlink()
    assert read_profile(environment) == {}
