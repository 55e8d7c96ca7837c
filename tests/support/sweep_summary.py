"""What `pytest` says at the end of the sweep: how many classes hold, and what was not tried."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

#: The property of a test's report that says what became of a class.
PROPERTY = "every class"


def summarise(reports: Iterable[Any]) -> list[str]:
    """Lines of text; none where no class was looked at."""
    found = [value for each in reports for key, value in each.user_properties if key == PROPERTY]
    if not found:
        return []
    whole = [each for each in found if "failed" not in each]
    held = [each for each in whole if each["held"]]
    models, run = (sum(each[key] for each in held) for key in ("held", "run"))
    lines = [
        f"{len(held)} of {len(found)} classes hold: {models} models, tied and untied,"
        f" of which {run} give the same outputs"
    ]
    lines += _count(whole, "unbuilt", "not built")
    lines += _count(held, "why", "not run")
    return lines


def _count(found: Iterable[dict[str, Any]], key: str, said: str) -> list[str]:
    reasons = Counter(each[key] for each in found if each.get(key))
    return [f"{count} {said}: {reason}" for reason, count in reasons.most_common()]
