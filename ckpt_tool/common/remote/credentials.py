"""Whether there can be any answer to who asks, before anybody is asked for half a minute."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from pathlib import Path

from ckpt_tool.common.errors import StoreError
from ckpt_tool.common.remote.address import Address
from ckpt_tool.common.remote.failures import say_who

#: What obstore asks last, on a machine of that cloud: who the machine is.
_SERVICES = {
    "s3": "169.254.169.254",
    "gs": "metadata.google.internal",
    "az": "169.254.169.254",
}
#: Variables that say who asks, or how to find out, or that nobody does.
_NAMED = {
    scheme: re.compile(
        rf"{prefix}_\w*(KEY|TOKEN|CREDENTIALS|SERVICE_ACCOUNT|SIGNATURE|CLIENT|IDENTITY|METADATA|CLI)"
        r"|.*EMULATOR"
    )
    for scheme, prefix in (("s3", "AWS"), ("gs", "GOOGLE"), ("az", "AZURE"))
}
#: What `gcloud auth application-default login` writes.
_OF_GCLOUD = "application_default_credentials.json"
_SECONDS = 2


def require_credentials(address: Address, environment: Mapping[str, str]) -> None:
    """StoreError where nothing says who asks, and this is no machine of the cloud."""
    named = _NAMED[address.scheme]
    if any(value and named.match(name) for name, value in environment.items()):
        return
    gcloud = Path(environment.get("CLOUDSDK_CONFIG") or "~/.config/gcloud").expanduser()
    if address.scheme == "gs" and (gcloud / _OF_GCLOUD).exists():
        return
    try:
        socket.create_connection((_SERVICES[address.scheme], 80), _SECONDS).close()
    except OSError as error:
        raise StoreError(
            f"{address}: there are no credentials in the environment", hint=say_who(address)
        ) from error
