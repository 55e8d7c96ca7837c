"""Work in a process of its own that may take only so much: what would not end dies."""

import os
import resource
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

#: Seconds of processor time and bytes of memory beyond those of the parent: many times what any of
#: the inputs takes that is read in linear time, and nothing against what the others would.
SECONDS = 20
MEMORY = 1 << 30


def run_limited(work: Callable[[], str]) -> str:
    """What ``work`` returns; where it raises, dies or goes on for too long, that."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(read)
            signal.alarm(6 * SECONDS)  # a pipe that nobody writes to takes no processor time
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            size = pages * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
            with os.fdopen(write, "w", errors="backslashreplace") as pipe:
                pipe.write(work())
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, errors="backslashreplace") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return said if status == 0 else f"ended with {os.waitstatus_to_exitcode(status)}"
