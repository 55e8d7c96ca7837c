"""What ``aws configure`` has written: keys and region, as obstore's S3Store takes them.

The files are INI, by default ``~/.aws/credentials`` (``[NAME]``) and ``~/.aws/config``
(``[profile NAME]``, ``[default]``). Source: "Configuration and credential file settings" in the
user guide of the AWS command line interface.
"""

from __future__ import annotations

import configparser
from collections.abc import Mapping
from pathlib import Path

_FILES = (
    ("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
    ("AWS_CONFIG_FILE", "config"),
)
_KEYS = {
    "aws_access_key_id": "access_key_id",
    "aws_secret_access_key": "secret_access_key",
    "aws_session_token": "session_token",
    "region": "region",
    "endpoint_url": "endpoint",
}
_OF_KEYS = ("access_key_id", "secret_access_key", "session_token")


def read_profile(environment: Mapping[str, str]) -> dict[str, str]:
    """What the profile says that ``AWS_PROFILE`` names, or ``default``, but the environment not.

    Empty where there is no such file. Keys of the environment are never mixed with those of a file.
    """
    name = environment.get("AWS_PROFILE") or "default"
    found: dict[str, str] = {}
    for variable, file in _FILES:
        path = Path(environment.get(variable) or Path("~/.aws", file)).expanduser()
        section = _read_section(path, name)
        for key, called in _KEYS.items():
            if key in section:
                found.setdefault(called, section[key])
    if environment.get("AWS_ACCESS_KEY_ID"):
        found = {key: value for key, value in found.items() if key not in _OF_KEYS}
    if any(environment.get(each) for each in ("AWS_REGION", "AWS_DEFAULT_REGION")):
        found.pop("region", None)
    return found


def _read_section(path: Path, name: str) -> Mapping[str, str]:
    parser = configparser.RawConfigParser()
    try:
        parser.read(path, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError, OSError):
        return {}
    section = next((each for each in (name, f"profile {name}") if parser.has_section(each)), None)
    return {} if section is None else dict(parser.items(section))
