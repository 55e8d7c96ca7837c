"""A merged model goes to the Hugging Face Hub, through huggingface_hub.

What can be refused is refused by :func:`check_upload` and :meth:`Target.require_replaced`, before
anything is planned or written: a name the Hub does not allow, a token that is missing, refused or
may not write, a public repository where a private one was asked for, weights that would be left
beside the new ones. :func:`upload_folder` asks all of it once more, for a merge takes long.

The Hub keeps what it was sent: large files that it has are not sent again by a later try, neither
as LFS objects nor as chunks of Xet.
"""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ckpt_tool.common.errors import CkptError, UploadError, UsageError
from ckpt_tool.common.packages import require_packages
from ckpt_tool.common.version import __version__
from ckpt_tool.operations.hub_client import answer, find_token, make_api, make_refusal, show_bars
from ckpt_tool.plans.card import CARD_NAME
from ckpt_tool.plans.huggingface import HubPlan
from ckpt_tool.plans.manifest import MANIFEST_NAME
from ckpt_tool.writers.safetensors import INDEX_NAME
from ckpt_tool.writers.target import list_files

#: Weights that transformers or vLLM may load from a model's folder, in place of others there.
_WEIGHTS = re.compile(r"([^/]+\.safetensors|pytorch_model[^/]*\.bin)(\.index\.json)?")


@dataclass(frozen=True)
class Upload:
    """What is asked for: ``repo`` is ``NAME`` (of the token's user) or ``NAMESPACE/NAME``.

    ``private``: the repository is made private; one that is there must be private already.
    """

    repo: str
    private: bool = False


@dataclass(frozen=True)
class Target:
    """Where an upload goes: ``repo`` with its namespace, and what is there.

    ``private``: whether it is, or will be; ``files``: names in the repository, none if it is new.
    """

    repo: str
    url: str
    private: bool
    exists: bool
    files: tuple[str, ...] = ()

    def require_replaced(self, names: Iterable[str]) -> None:
        """UploadError if weights are there that files with ``names`` would not replace."""
        left = sorted(set(filter(_WEIGHTS.fullmatch, self.files)) - set(names))
        if left:
            raise UploadError(
                f"{self.url}: has weights that this model would not replace: {', '.join(left)}",
                hint="Programs might load them in place of the model. Delete them there, or upload"
                " to another repository.",
            )


@dataclass(frozen=True)
class UploadResult:
    """What was uploaded. ``commit``: the revision of the repository that holds all of it.

    ``manifest``: whether ``ckpt_manifest.json`` is among it, which names run, step and files of the
    source. ``kept_card``: the card that was there is there still, in place of the folder's.
    """

    repo: str
    url: str
    private: bool
    commit: str
    num_files: int
    manifest: bool = False
    kept_card: bool = False


def check_upload(upload: Upload) -> Target:
    """Where ``upload`` goes; nothing is created there.

    UsageError for a name that cannot be; UploadError where the Hub is not reached, refuses the
    token, or where what is there may not be written to, or is public and must not be.
    """
    _require_name(upload.repo)
    api, token = make_api(), find_token()
    who = answer(api, "whoami", lambda: api.whoami(token))
    repo = upload.repo if "/" in upload.repo else f"{who['name']}/{upload.repo}"
    _require_name(repo)
    info = answer(api, repo, lambda: _info(api, repo))
    _require_permission(api, repo, who, exists=info is not None)
    return _target(api, repo, info, private=upload.private)


def _target(api: Any, repo: str, info: Any | None, *, private: bool) -> Target:
    """The target with what the Hub says of it; UploadError if it is public and must not be."""
    url = f"{api.endpoint}/{repo}"
    if info is None:
        return Target(repo, url, private, exists=False)
    if private and not info.private:
        raise UploadError(
            f"{url}: is public, and `upload.private=True` was asked for",
            hint="Upload to another repository, or make this one private in its settings first.",
        )
    files = tuple(file.rfilename for file in info.siblings or ())
    return Target(repo, url, bool(info.private), exists=True, files=files)


def list_weight_names(plan: HubPlan) -> list[str]:
    """The files of a plan that hold tensors, and the index of the model's."""
    names = [file.name for file in plan.files]
    return [*names, INDEX_NAME] if len(plan.weight_files) > 1 else names


def upload_folder(folder: str | Path, upload: Upload, *, show: bool = False) -> UploadResult:
    """Upload every file of ``folder``, its manifest too; the repository is made if it is not there.

    A model card that is in the repository stays: people write those by hand.
    ``show``: huggingface_hub's progress on stderr. Raises what :func:`check_upload` raises, and
    UploadError; the hint, and the message of a KeyboardInterrupt, say how to go on.
    """
    folder = Path(folder)
    words = ["hf", "upload", upload.repo, str(folder), *["--private"] * upload.private]
    go_on = (
        f"The model is complete in {folder}. To upload it, do the same again with"
        f" `write.resume=True`, which writes nothing again, or run: {shlex.join(words)}"
    )
    try:
        with show_bars(show):
            return _upload(folder, upload)
    except CkptError as error:
        error.hint = f"{error.hint} {go_on}".strip()
        raise
    except KeyboardInterrupt:
        raise KeyboardInterrupt(go_on) from None


def _upload(folder: Path, upload: Upload) -> UploadResult:
    api, target = make_api(), check_upload(upload)
    repo = target.repo
    if not target.exists:
        private = upload.private or None  # None: as the organization has it by default
        answer(api, repo, lambda: api.create_repo(repo, private=private, exist_ok=True))
        # Somebody else may have made it just now, and public.
        info = answer(api, repo, lambda: api.model_info(repo))
        target = _target(api, repo, info, private=upload.private)
    message = f"Upload with ckpt-tool {__version__}"
    names = list_files(folder)
    kept = names & {CARD_NAME} & set(target.files)
    send = partial(
        api.upload_folder,
        repo_id=repo,
        folder_path=folder,
        commit_message=message,
        ignore_patterns=[*kept],
    )
    commit = answer(api, repo, send).oid
    paths = {name: folder / name for name in names.difference(kept)}
    num_files = _require_all(api, target, commit, paths)
    return UploadResult(
        repo, target.url, target.private, commit, num_files, MANIFEST_NAME in names, bool(kept)
    )


def _require_all(api: Any, target: Target, commit: str, paths: dict[str, Path]) -> int:
    """How many files were sent; UploadError unless ``commit`` has all, of the same sizes."""
    sizes = {name: path.stat().st_size for name, path in paths.items() if path.is_file()}
    ask = partial(api.model_info, target.repo, revision=commit, files_metadata=True)
    there = {file.rfilename: file.size for file in answer(api, target.repo, ask).siblings}
    lost = sorted(name for name, size in sizes.items() if there.get(name) != size)
    if lost:
        raise UploadError(
            f"{target.url}: not there after the upload: {', '.join(lost)}",
            hint="A .gitignore in the repository keeps files out of it.",
        )
    return len(sizes)


def _require_name(repo: str) -> None:
    require_packages("`upload`", ["huggingface_hub"])
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UsageError(
            f"`upload.repo={repo!r}`: not a name that the Hub allows: {error}",
            hint="A repository is called NAME or NAMESPACE/NAME.",
        ) from error


def _info(api: Any, repo: str) -> Any | None:
    """What the Hub says of a repository; None if it is not there, for this token at least."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return api.model_info(repo)
    except RepositoryNotFoundError:
        return None


def _require_permission(api: Any, repo: str, who: dict[str, Any], *, exists: bool) -> None:
    """UploadError if it is known that the token may not write to, or make, ``repo``."""
    token = (who.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise make_refusal(api.endpoint, repo, f"the token of {who['name']} is for reading only")
    if exists and _may_write(api, repo):
        return
    spaces = [who["name"], *(org.get("name") for org in who.get("orgs") or ())]
    if token.get("role") == "fineGrained":
        rows = (token.get("fineGrained") or {}).get("scoped") or ()
        rows = [row for row in rows if "repo.write" in row["permissions"]]
        spaces = [row["entity"].get("name") for row in rows]
    namespace = repo.split("/", maxsplit=1)[0]
    if not {str(name).lower() for name in spaces} & {namespace.lower(), repo.lower()}:
        held = ", ".join(map(str, spaces)) or "nothing"
        raise make_refusal(
            api.endpoint, repo, f"the token of {who['name']} may write to {held} only"
        )


def _may_write(api: Any, repo: str) -> bool:
    """Whether the Hub says so; False if this huggingface_hub cannot ask. UploadError for a no."""
    if "write" not in inspect.signature(api.auth_check).parameters:
        return False
    answer(api, repo, lambda: api.auth_check(repo, write=True))
    return True
