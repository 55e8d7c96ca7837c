"""The process: a request on stdin, an answer on stdout, each a JSON object.

``models`` of the request are questions of :mod:`ckpt_tool.plans.checks.opening`, ``answers`` has
the answer to each.
"""

from __future__ import annotations

from typing import Any

from ckpt_tool.plans.checks.child import serve
from ckpt_tool.plans.checks.opening import answer


def main() -> None:
    """Answer the one request."""
    serve(_answer)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    return {"answers": [answer(question) for question in request["models"]]}
