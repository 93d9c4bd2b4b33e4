"""The most memory that a child process held."""

import os
import re
import sys
import threading
from pathlib import Path


def wait(process):
    """(exit code, MB, resource usage) of a child that ends.

    The system's own figure for a child includes what its parent held when it was
    forked, so Linux is asked for the child's memory alone.
    """
    high, done = [0], threading.Event()

    def look():
        while not done.wait(0.01):
            try:
                high[0] = (
                    int(
                        re.search(
                            r"VmHWM:\s+(\d+)",
                            Path(f"/proc/{process.pid}/status").read_text(),
                        )[1]
                    )
                    / 1024
                )
            except (OSError, TypeError):
                return

    watch = threading.Thread(target=look)
    watch.start()
    _, status, usage = os.wait4(process.pid, 0)
    done.set()
    watch.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    return (
        process.returncode,
        high[0] or usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10),
        usage,
    )
