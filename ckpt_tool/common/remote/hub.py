"""``hf://ORG/NAME[@REVISION][/FOLDER]``: a model of the Hugging Face Hub, read where it lies.

huggingface_hub knows the endpoint, the token and what is in a repository; obstore reads ranges from
``ENDPOINT/ORG/NAME/resolve/COMMIT/FILE``, which leads to where the bytes are. The commit is the one
of the moment at which the repository was listed: what is pushed later is another version.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from ckpt_tool.common.errors import CkptError, StoreError, UsageError
from ckpt_tool.common.packages import require_packages
from ckpt_tool.common.remote.address import Address
from ckpt_tool.common.remote.objects import RemoteObject
from ckpt_tool.common.remote.patience import ask_again
from ckpt_tool.common.remote.stores import open_url
from ckpt_tool.common.remote.web import BUSY
from ckpt_tool.common.version import __version__

_LOG_IN = "Log in with: hf auth login, or set HF_TOKEN."


@dataclass(frozen=True, slots=True)
class _Place:
    """``revision``: a branch, a tag or a commit; None: the main branch. ``folder``: in it."""

    repository: str
    revision: str | None
    folder: str


def list_repository(address: Address) -> Iterator[Sequence[RemoteObject]]:
    """All files at and below ``address``; nothing where there are none.

    UsageError for what is no model, without huggingface_hub, and offline; StoreError where the Hub
    is not reached or refuses.
    """
    place = _find_place(address)
    require_packages("hf://", ["huggingface_hub"])
    from huggingface_hub import HfApi, constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise UsageError(
            f"{address}: HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set: the Hub is not asked",
            hint="Unset it, or name a folder on this machine.",
        )
    api = HfApi(library_name="ckpt-tool", library_version=__version__)
    info = _ask(api, place, address)
    token = get_token()
    url = f"{api.endpoint}/{place.repository}/resolve/{info.sha}"
    store = open_url(url, {"authorization": f"Bearer {token}"} if token else {})
    when = int(info.last_modified.timestamp()) * 10**9 if info.last_modified else 0
    above = f"{place.folder}/" if place.folder else ""
    found = [
        RemoteObject(
            file.rfilename[len(above) :], store, file.rfilename, file.size, when, "", is_fixed=True
        )
        for file in info.siblings or ()
        if file.rfilename == place.folder or file.rfilename.startswith(above)
    ]
    for each in found:
        if each.size is None:
            raise StoreError(f"{address}: {api.endpoint} does not say how long {each.key} is")
    if found:
        yield found


def _find_place(address: Address) -> _Place:
    """``hf://models/ORG/NAME`` is the same; a revision has its ``/`` as ``%2F``, or is a ref."""
    names = [*address.bucket.split("/"), *filter(None, address.key.split("/"))]
    if names[0] in ("datasets", "spaces", "buckets"):
        raise UsageError(
            f"{address}: models are read, and no {names[0]}", hint="Write hf://ORG/NAME."
        )
    if names[0] == "models":
        names.pop(0)
    if len(names) < 2:
        raise UsageError(f"{address}: names no repository", hint="Write hf://ORG/NAME.")
    name, _, revision = names[1].partition("@")
    rest = names[2:]
    if revision == "refs":  # refs/pr/1
        revision, rest = "/".join([revision, *rest[:2]]), rest[2:]
    return _Place(f"{names[0]}/{name}", unquote(revision) or None, "/".join(rest))


def _ask(api: Any, place: _Place, address: Address) -> Any:
    """What there is in a repository, and at which commit."""
    try:
        return ask_again(
            lambda: api.model_info(place.repository, revision=place.revision, files_metadata=True),
            _is_passing,
        )
    except Exception as error:  # of requests or httpx: whatever this version is built on
        raise _explain(error, _find_status(error), api.endpoint, place, address) from error


def _find_status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _is_passing(error: Exception) -> bool:
    status = _find_status(error)
    return status in BUSY if status else _is_of_network(error)


def _is_of_network(error: BaseException) -> bool:
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or library in ("httpx", "httpx2", "requests")


def _explain(
    error: Exception, status: int | None, endpoint: str, place: _Place, address: Address
) -> CkptError:
    from huggingface_hub import errors

    page = f"{endpoint}/{quote(place.repository)}"
    if isinstance(error, errors.GatedRepoError):
        return StoreError(
            f"{address}: the repository is gated: who reads it has to be given access",
            hint=f"Ask for it at {page} . {_LOG_IN}",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return StoreError(
            f"{address}: {endpoint} has no such model, or it is private",
            hint=f"Look at the name. {_LOG_IN}",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return StoreError(
            f"{address}: the repository has no revision {place.revision}",
            hint=f"Look at {page}/tree/main .",
        )
    if isinstance(error, errors.HFValidationError):
        return UsageError(f"{address}: {error}", hint="Write hf://ORG/NAME.")
    said = " ".join(str(error).split())[:300] or type(error).__name__
    if status in (401, 403):
        return StoreError(f"{address}: refused: {said}", hint=_LOG_IN)
    return StoreError(
        f"{address}: not to be had from {endpoint}: {said}",
        hint="Is there a network, and is HF_ENDPOINT right where it is set?",
    )
