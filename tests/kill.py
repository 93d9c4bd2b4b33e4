"""Start the command line, kill -9 it at random moments, then let it finish.

Used by the tests of both frameworks.
"""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from transfer_course.vision.data import styles

COMMAND = [str(Path(sys.executable).parent / "transfer-course")]

# what a finished run holds beside its model
RUN_FILES = {
    "README.md",
    "abstain.safetensors",
    "card.md",
    "images.csv",
    "recipe.yaml",
    "report.html",
    "run.json",
}


def small_folder(root, classes=("drink", "bird", "face"), each=14):
    """A folder of bundled drawings, one folder a class."""
    data = styles("twemoji")
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in np.flatnonzero(data.labels == data.classes.index(name))[:each]:
            Image.fromarray(data.images[i]).save(root / name / f"{i}.png")
    return root


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def environment(**more):
    """One thread, and a checkpoint after every step."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "TRANSFER_COURSE_CHECKPOINT_SECONDS": "0",
        **more,
    }


def start(*args, env=None):
    return subprocess.Popen(
        [*COMMAND, *map(str, args)],
        env=env or environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )


def finish(process, code=0):
    """(stdout, stderr) of a process that ends with `code`."""
    out, err = (text.decode() for text in process.communicate(timeout=600))
    assert process.returncode == code, f"exit code {process.returncode}\n{out}\n{err}"
    assert "Traceback" not in err, err
    return out, err


def kill_after(process, seconds, writing=None):
    """kill -9 after `seconds`; True if the process was still running.

    With the folder `writing`, it waits until a file is being written there.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        time.sleep(0.005)
    while (
        writing is not None
        and process.poll() is None
        and not list(Path(writing).glob(".*.tmp"))
    ):
        time.sleep(0.0005)
    alive = process.poll() is None
    process.kill()
    process.communicate()
    return alive


def killed_often(args, out, kills, seconds, seed, env=None):
    """Run with --resume, killed `kills` times at random moments, then to its end.

    Every third kill is in the midst of writing. Returns how many of the kills hit a
    running process. A run that ended before its kill is begun anew.
    """
    import shutil

    rng, hits, writes = np.random.default_rng(seed), 0, 0
    while hits < kills:
        in_write = hits % 3 == 2
        process = start(*args, "--out", out, "--resume", env=env)
        if kill_after(
            process,
            rng.uniform(0.0, seconds) * (0.5 if in_write else 1.0),
            out if in_write else None,
        ):
            hits += 1
            writes += bool(list(Path(out).glob(".*.tmp")))
        elif process.returncode == 0:
            yield hits, writes
            shutil.rmtree(out)
        else:
            raise AssertionError(f"exit code {process.returncode}")
    finish(start(*args, "--out", out, "--resume", env=env))
    yield hits, writes
