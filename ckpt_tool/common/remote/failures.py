"""What a store says that cannot or will not answer, as an error of ours.

obstore's own text begins with a sentence, then the body of the answer, XML for S3 and its like
(``<Error><Code>...</Code><Message>...</Message></Error>``), then a dump of its objects.
"""

from __future__ import annotations

import errno
import re

from ckpt_tool.common.errors import FormatError, StoreError
from ckpt_tool.common.remote.address import Address
from ckpt_tool.common.remote.naming import SCHEMES

_STATUS = re.compile(r"status code:? (\d{3})(?: ([A-Z][A-Za-z ]+))?")
_CODE = re.compile(r"<Code>([^<]+)</Code>")
_MESSAGE = re.compile(r"<Message>([^<]+)</Message>")
_METADATA_SERVICES = ("169.254.169.254", "metadata.google.internal")
_LONGEST = 300

#: How a store is told who asks.
_WHO = {
    "s3": "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; AWS_ENDPOINT_URL for a"
    " store that is not Amazon's; AWS_SKIP_SIGNATURE=true for a public bucket. For profiles of SSO:"
    ' eval "$(aws configure export-credentials --format env)".',
    "gs": "Set GOOGLE_APPLICATION_CREDENTIALS to a file of keys, or run: gcloud auth"
    " application-default login; GOOGLE_SKIP_SIGNATURE=true for a public bucket.",
    "az": "Set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY (or"
    " AZURE_STORAGE_SAS_TOKEN); AZURE_SKIP_SIGNATURE=true for a public container.",
    "hf": "Log in with: hf auth login, or set HF_TOKEN; ask for access on the page of the"
    " repository, where it is gated.",
}
_WHERE = {
    "s3": "the network, AWS_ENDPOINT_URL and AWS_REGION",
    "hf": "the network and HF_ENDPOINT",
}
#: What obstore says of a server that answers 200 to a request for a range.
_WITHOUT_RANGES = re.compile(r"Range request not supported|non-partial response")
#: A server that does not answer at all, and what the system says.
_UNREACHED = re.compile(r"Error performing [A-Z]+ (https?://[^/ ]+).*HTTP error: (.*)", re.DOTALL)
#: An object whose key has empty parts, or those that lead up.
_ODD_KEY = re.compile(r"object with invalid path: (.*)")
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
_REFUSALS = ("PermissionDeniedError", "UnauthenticatedError")
_BUSY = ("429", "503")
#: The region of the request is not the bucket's.
_OF_REGION = ("AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraint")


def explain(error: Exception, address: Address) -> Exception:
    """What to raise for what obstore raised when it was asked for ``address``.

    FileNotFoundError where there is no such object, FormatError where there is another one now,
    else StoreError. Errors of ours are given back as they are.
    """
    if isinstance(error, (StoreError, FormatError)):
        return error
    text = str(error).partition("\n\nDebug source")[0]
    matched, code = _STATUS.search(text), _CODE.search(text)
    status, said = matched[1] if matched else "", code[1] if code else ""
    kind, what = type(error).__name__, SCHEMES[address.scheme]
    if isinstance(error, FileNotFoundError) and said not in _NO_BUCKET:
        return FileNotFoundError(errno.ENOENT, "no such object", str(address))
    if status == "412" or kind == "PreconditionError":
        return make_change_error(str(address))
    reason = _spell(text, status, said)
    hint = f"Look at {_WHERE.get(address.scheme, 'the network')}."
    if said in _NO_BUCKET:
        reason, hint = f"there is no {what} {address.bucket}", say_who(address)
    elif any(service in text for service in _METADATA_SERVICES):
        reason, hint = f"no credentials for this {what}", say_who(address)
    elif _WITHOUT_RANGES.search(text):
        reason = "the server sends whole files only, and no ranges of their bytes"
        hint = "Fetch the folder, and name that; or serve it by nginx, or by: rclone serve http"
    elif odd := _ODD_KEY.search(text):
        reason = f"holds what no file of a folder can be called: {odd[1]:.{_LONGEST}}"
        hint = "Name a folder in which there is no such object."
    elif said in _OF_REGION:
        hint = f"Set AWS_REGION to that of the {what}."
    elif kind in _REFUSALS or status in ("401", "403"):
        reason, hint = f"refused: {reason}", say_who(address)
    elif status in _BUSY:
        reason, hint = f"too busy for half a minute: {reason}", "Try again later."
    else:
        reason = f"not to be had: {reason}"
    return StoreError(f"{address}: {reason}", hint=hint)


def make_change_error(address: str) -> FormatError:
    """The error for an object that is not the one that was listed."""
    return FormatError(
        "was written again after it was opened",
        path=address,
        hint="Run again when nobody writes there.",
    )


def say_who(address: Address) -> str:
    """How the store of ``address`` is told who asks."""
    return _WHO.get(address.scheme, "")


def _spell(text: str, status: str, code: str) -> str:
    message = _MESSAGE.search(text)
    if status and (code or message):
        said = ": ".join(filter(None, (code, message[1].partition("\n")[0] if message else "")))
        return f"{status} {said}"
    if not status and (unreached := _UNREACHED.search(text)):
        return f"{unreached[1]} does not answer ({unreached[2]})"
    return " ".join(text.split())[:_LONGEST]
