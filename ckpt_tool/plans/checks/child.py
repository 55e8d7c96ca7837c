"""A process of its own for a library that judges an output: asked in JSON, it answers in JSON.

The libraries take seconds and hundreds of megabytes to import, and some keep state in the process.
What moves bytes imports none of them, and goes on meanwhile.

Somebody waits for it, and it lives for one answer. So it does without the two things that only a
longer life would need, and that take a third of its time: it collects no garbage (imports make two
million objects, none of them garbage), and it ends without taking down what it has imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Thread
from typing import Any

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.threads import start

#: The child imports what this process would, wherever that was started from, and nothing that lies
#: in the folder where it is: this package by its place, the rest by the same paths. They are set
#: before anything is imported, which would be looked for in that folder first.
_START = """
import gc, sys
gc.disable()
module, package, *sys.path[:] = sys.argv[1:]
from importlib import import_module, util
spec = util.spec_from_file_location(
    "ckpt_tool", package + "/__init__.py", submodule_search_locations=[package]
)
sys.modules["ckpt_tool"] = util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["ckpt_tool"])
import_module(module).main()
"""
_PACKAGE = Path(__file__).resolve().parents[2]

#: Who is who in a run of several processes: the child is alone.
_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

_LAST_LINES = 12


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Be that process: read its request, write the answer to it, end.

    What the libraries print goes to stderr: stdout has the answer and nothing else.
    """
    answers = os.dup(1)
    os.dup2(2, 1)
    found = answer(json.load(sys.stdin))
    with os.fdopen(answers, "w") as stream:
        json.dump(found, stream)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


class Child:
    """A process that runs ``main`` of ``module``: ``request`` on its stdin, an answer on stdout.

    ``runs`` says in errors what it is that it runs.
    """

    def __init__(self, module: str, runs: str, request: Mapping[str, Any]) -> None:
        self._runs = runs
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _START, module, str(_PACKAGE), *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if name not in _RANKS},
        )
        self._said = (b"", b"")
        self._talk = Thread(target=self._ask, args=[json.dumps(request).encode()], daemon=True)
        try:
            start(self._talk)
        except BaseException:
            self._process.kill()
            raise

    def _ask(self, request: bytes) -> None:
        """Talk to it until it ends: pipes hold little, so that somebody has to."""
        self._said = self._process.communicate(request)

    @property
    def is_done(self) -> bool:
        """Whether it has answered, or ended without."""
        return not self._talk.is_alive()

    def answer(self) -> dict[str, Any]:
        """What it answers, once it does; MappingError with its last words where it does not."""
        self._talk.join()
        output, errors = self._said
        try:
            answer = json.loads(output) if self._process.returncode == 0 else None
        except ValueError:
            answer = None
        if isinstance(answer, dict):
            return answer
        raise MappingError(
            f"`write.check_load`: the process that runs {self._runs} ended with"
            f" {self._process.returncode}",
            errors.decode(errors="replace").strip().splitlines()[-_LAST_LINES:],
            hint="Write the output unchecked with `write.check_load=False`.",
        )

    def stop(self) -> None:
        """End it, where nobody wants to know any more."""
        self._process.kill()
        self._talk.join()
