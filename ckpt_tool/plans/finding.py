"""Whether an output is there already, so that nothing has to be written."""

from __future__ import annotations

from pathlib import Path

from ckpt_tool.common.errors import UsageError
from ckpt_tool.common.parallel import Team
from ckpt_tool.common.remote.address import Address
from ckpt_tool.common.remote.shadow import reach
from ckpt_tool.plans.holding import Comparison
from ckpt_tool.plans.manifest import MANIFEST_NAME
from ckpt_tool.plans.options import WriteOptions
from ckpt_tool.plans.plan import Plan
from ckpt_tool.plans.provenance import are_as_noted
from ckpt_tool.plans.reading_back import read_back
from ckpt_tool.writers.places import Place


def find_output(plan: Plan, out: Place, options: WriteOptions, team: Team) -> Comparison:
    """Whether ``out`` is what would be written already.

    The sizes of sources do not say that they hold what they held when it was written. Where their
    times are not known to be the same, what is there is compared with what they hold now. Objects
    of a store are whole, so that their sizes are enough where times are known.
    """
    first = team.world.first
    folder = team.world.each(lambda: find_folder(out))
    if not options.manifest:
        return Comparison([], first(lambda: _say_unknown(folder)))
    progress = team.progress if isinstance(out, Path) else None
    found = first(lambda: plan.compare(folder, progress))
    if not found.written or found.faults:
        return found
    if first(lambda: are_as_noted(out, plan.timed_fingerprint)):
        return found
    names = read_back(plan, folder, team)
    faults = [f"{name} is not what the source holds now" for name in names]
    return Comparison(found.written, faults)


def find_folder(out: Place) -> Path:
    """The folder, or one that stands for what lies elsewhere; it need not be there."""
    if not isinstance(out, Address):
        return out
    try:
        return reach(str(out))
    except UsageError:
        return Path(str(out))  # nothing, or nothing that an output can be, is there


def _say_unknown(out: Path) -> list[str]:
    """Why a folder cannot be known for what would be written there, when that has no manifest."""
    if (out / MANIFEST_NAME).exists():
        return [f"{MANIFEST_NAME} is no part of it"]
    return [f"without {MANIFEST_NAME} nobody knows whether it is complete"]
