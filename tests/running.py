"""The command line as a process of its own, for the tests of several files."""

import os
import subprocess
import sys
from pathlib import Path

from transfer_course import cli

COMMAND = [sys.executable, "-m", "transfer_course.cli"]


def environment():
    """The variables of this process, with this package first on the path."""
    return {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}


def run(*args, cwd, code=0):
    """Run `transfer-course ARGS…` in `cwd`; it ends with `code` and no traceback."""
    done = subprocess.run(
        [*COMMAND, *map(str, args)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
        env=environment(),
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done
