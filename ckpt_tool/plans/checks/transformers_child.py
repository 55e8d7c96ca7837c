"""The process: a request on stdin, an answer on stdout, each a JSON object.

``models`` of the request are questions of :mod:`ckpt_tool.plans.checks.opening`, ``answers`` has
the answer to each.
"""

from __future__ import annotations

import json
import os
import sys

from ckpt_tool.plans.checks.opening import answer


def main() -> None:
    """Answer the one request. Whatever else is printed goes to stderr."""
    answers = os.dup(1)
    os.dup2(2, 1)
    request = json.load(sys.stdin)
    found = {"answers": [answer(question) for question in request["models"]]}
    with os.fdopen(answers, "w") as stream:
        json.dump(found, stream)
