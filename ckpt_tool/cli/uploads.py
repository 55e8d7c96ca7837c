"""What a merge says of an upload, before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckpt_tool.cli import consoles
from ckpt_tool.common.wording import count_noun

if TYPE_CHECKING:
    from ckpt_tool.operations.upload import Target, UploadResult

#: What goes to the Hub besides the model, which not everybody expects.
_MANIFEST_TOO = (
    "\n           with ckpt_manifest.json: run, step, names and sizes of the source"
    " (--no-manifest leaves it out)"
)

_CARD_KEPT = "\n           without README.md: the model card that is there stays"


def show_upload(sent: UploadResult) -> None:
    """What was uploaded, for people."""
    private = " (private)" if sent.private else ""
    consoles.print_fact(
        consoles.make_console(),
        f"  upload   {sent.url}{private}  {count_noun(sent.num_files, 'file')}"
        f"{_MANIFEST_TOO if sent.manifest else ''}{_CARD_KEPT if sent.kept_card else ''}",
    )


def describe_target(target: Target, *, with_manifest: bool) -> str:
    """Where an upload would go, for people."""
    kind = "private" if target.private else "public"
    there = "is there" if target.exists else "new"
    too = _MANIFEST_TOO if with_manifest else ""
    return f"upload   would go to {target.url} ({kind}, {there}){too}"


def make_target_json(target: Target | None) -> dict[str, Any] | None:
    """Where an upload would go, as JSON: the keys of what is sent."""
    return None if target is None else _place_json(target) | {"commit": None}


def upload_json(sent: UploadResult | None) -> dict[str, Any] | None:
    """An upload as JSON."""
    return None if sent is None else _place_json(sent) | {"commit": sent.commit}


def _place_json(place: UploadResult | Target) -> dict[str, Any]:
    return {"repo": place.repo, "url": place.url, "private": place.private}
