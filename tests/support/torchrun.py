"""How tests start several processes that torch joins."""

import sys


def torchrun_command(ranks: int) -> list[str]:
    """What runs the program named after it in ``ranks`` processes, on a port of its own."""
    options = ["--standalone", "--nproc-per-node", str(ranks)]
    return [sys.executable, "-m", "torch.distributed.run", *options]
