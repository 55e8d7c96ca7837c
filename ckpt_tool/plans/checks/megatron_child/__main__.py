"""The process: a request on stdin, an answer on stdout, each a JSON object.

The answer has ``library`` and ``num_tensors``; or a ``message`` and ``faults``; or ``unusable``,
which says why megatron-core cannot build the model.
"""

from __future__ import annotations

from typing import Any

from ckpt_tool.mapping.megatron.numbers import require_rows
from ckpt_tool.plans.checks.child import serve
from ckpt_tool.plans.checks.megatron_child.cpu import hide_gpus, set_up, tear_down
from ckpt_tool.plans.checks.megatron_child.request import Request


def main() -> None:
    """Answer the one request."""
    serve(_answer)


def _answer(asked: dict[str, Any]) -> dict[str, Any]:
    request = Request.of(asked)
    hide_gpus()
    set_up()
    try:
        return answer(request)
    finally:
        tear_down()


def answer(request: Request) -> dict[str, Any]:
    """Build the model and load the checkpoint, where everything is set up."""
    import megatron.core

    from ckpt_tool.plans.checks.megatron_child.cpu import UnknownModelError
    from ckpt_tool.plans.checks.megatron_child.gpt import make_sharded_state
    from ckpt_tool.plans.checks.megatron_child.load import LoadFaultError, check

    # It may add the commit of whatever repository its files lie in, the user's own among them.
    library = f"megatron-core {megatron.core.__version__.partition('+')[0]}"
    try:
        state = make_sharded_state(request)
    except UnknownModelError as error:
        return {"library": library, "unusable": str(error)}
    except Exception as error:  # whatever building a model raises
        return {"library": library, "unusable": f"{type(error).__name__}: {error}"}
    try:
        towers = require_rows(request.config).around.unbuilt
        return {"library": library, "num_tensors": check(state, request.folder, towers)}
    except LoadFaultError as error:
        return {"library": library, "message": str(error), "faults": error.faults}


if __name__ == "__main__":
    main()
