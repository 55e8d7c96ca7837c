"""Object stores, opened: obstore's client for a bucket, told what the user's environment says.

obstore asks the environment itself (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``,
``GOOGLE_APPLICATION_CREDENTIALS``, ``AZURE_STORAGE_ACCOUNT_NAME``, ...) and the metadata service of
a cloud machine. What it does not do is done here: files of ``aws configure``, plain HTTP where the
endpoint that was named is one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import cache
from typing import Any

from ckpt_tool.common.errors import UsageError
from ckpt_tool.common.packages import require_packages
from ckpt_tool.common.remote.address import Address
from ckpt_tool.common.remote.credentials import require_credentials
from ckpt_tool.common.remote.failures import say_who
from ckpt_tool.common.remote.profiles import read_profile
from ckpt_tool.common.version import __version__

#: How long a connection, a silent server, and one request may take.
_CLIENT: dict[str, Any] = {
    "connect_timeout": timedelta(seconds=10),
    "read_timeout": timedelta(seconds=30),
    "timeout": timedelta(minutes=10),
    "user_agent": f"ckpt-tool/{__version__}",
}

#: A server that is busy, or away, is asked again for half a minute, after 0.1 seconds and more.
_RETRY: Any = {
    "max_retries": 50,
    "retry_timeout": timedelta(seconds=30),
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=4),
        "base": 3,
    },
}

#: Where a server is that is not the cloud's own, as the cloud's tools are told.
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
#: How variables begin that clients are made of.
_SAID_BY = ("AWS_", "GOOGLE_", "AZURE_", "STORAGE_EMULATOR_")
#: One for tests, of Google's, which asks for no keys.
_EMULATOR = "STORAGE_EMULATOR_HOST"


def open_store(address: Address) -> Any:
    """A client of obstore for the bucket of ``address``; nobody is asked yet.

    UsageError where obstore is not installed, or the environment makes no sense; StoreError where
    nothing says who asks.
    """
    require_packages(f"{address.scheme}://", ["obstore"])
    known = read_profile(os.environ) if address.scheme == "s3" else {}
    if "access_key_id" not in known:
        require_credentials(address, os.environ)
    try:
        said = tuple(sorted(item for item in os.environ.items() if item[0].startswith(_SAID_BY)))
        return _open(address.scheme, address.bucket, said)
    except Exception as error:
        reason = str(error).partition("\n\nDebug source")[0]
        raise UsageError(f"{address}: {reason}", hint=say_who(address)) from error


def open_url(url: str, headers: Mapping[str, str] | None = None) -> Any:
    """A client of obstore for what lies below ``url``; ``headers`` are sent with each request.

    UsageError where obstore is not installed, or this is no URL.
    """
    require_packages("https://", ["obstore"])
    from obstore.store import HTTPStore

    options = _allow(url) | ({"default_headers": dict(headers)} if headers else {})
    try:
        return HTTPStore.from_url(url, client_options=options, retry_config=_RETRY)
    except Exception as error:
        raise UsageError(f"{url}: {error}", hint="Look at the address.") from error


@cache
def _open(scheme: str, bucket: str, _said: tuple[tuple[str, str], ...]) -> Any:
    """The same client for the same bucket, as long as the environment says the same."""
    return _OPENERS[scheme](bucket)


def _open_s3(bucket: str) -> Any:
    from obstore.store import S3Store

    found: Any = read_profile(os.environ)
    endpoint = _find_endpoint("s3") or found.pop("endpoint", "")
    if endpoint:
        found["endpoint"] = endpoint
    return S3Store(bucket, client_options=_allow(endpoint), retry_config=_RETRY, **found)


def _open_gs(bucket: str) -> Any:
    from obstore.store import GCSStore

    endpoint = _find_endpoint("gs")
    options: Any = {}
    if emulator := os.environ.get(_EMULATOR):
        endpoint = emulator if "://" in emulator else f"http://{emulator}"
        nobody = dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
        # With skip_signature what is read goes without credentials, and what is written does not.
        account = {**nobody, "gcs_base_url": endpoint, "disable_oauth": True}
        options = {"service_account_key": json.dumps(account)}
    return GCSStore(bucket, client_options=_allow(endpoint), retry_config=_RETRY, **options)


def _open_az(bucket: str) -> Any:
    from obstore.store import AzureStore

    options = _allow(_find_endpoint("az"))
    return AzureStore(bucket, client_options=options, retry_config=_RETRY)


def _find_endpoint(scheme: str) -> str:
    """Empty where none is named: the cloud's."""
    return next((os.environ[name] for name in _ENDPOINTS[scheme] if os.environ.get(name)), "")


def _allow(endpoint: str) -> Any:
    """The client's options: HTTP without encryption is for servers that were named so."""
    return _CLIENT | {"allow_http": True} if endpoint.startswith("http://") else _CLIENT


_OPENERS: dict[str, Callable[[str], Any]] = {"s3": _open_s3, "gs": _open_gs, "az": _open_az}
