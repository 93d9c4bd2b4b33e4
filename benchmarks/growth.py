"""(e) Starting, and (f) memory and time as the folder grows.

Every run is a process of its own. python benchmarks/growth.py FOLDER SIZE runs the
plain loop, which is the peer of (f).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import memory
import numpy as np
from common import WORK, jpegs, row

LIMIT_MB = 2000
CLI = [sys.executable, "-m", "transfer_course.cli"]


def environment() -> dict:
    """Children import the same package as this process."""
    import transfer_course

    here = Path(transfer_course.__file__).parent.parent
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(here), os.environ.get("PYTHONPATH", "")]),
    }


def child(command) -> tuple[float, float]:
    """Seconds and peak resident megabytes of a process."""
    began = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            list(map(str, command)),
            stdout=said,
            stderr=subprocess.STDOUT,
            env=environment(),
        )
        _, peak, _ = memory.wait(process)
        took = time.perf_counter() - began
        if process.returncode:
            said.seek(0)
            raise RuntimeError(
                f"{command} ended with {process.returncode}: "
                f"{said.read().decode(errors='replace')[-2000:]}"
            )
    return took, peak


def starting(quick: bool, rounds: int) -> dict:
    """Rows of (e)."""
    measure = (
        "import time; t = time.perf_counter(); import transfer_course; "
        "print(time.perf_counter() - t)"
    )
    imports, helps = [], []
    for _ in range(rounds + 2):
        said = subprocess.run(
            [sys.executable, "-c", measure],
            check=True,
            capture_output=True,
            text=True,
            env=environment(),
        ).stdout
        imports.append(float(said))
        helps.append(child([*CLI, "--help"])[0])
    rows = []
    for name, took, limit in (
        ("import transfer_course", imports, 0.2),
        ("transfer-course --help", helps, 0.5),
    ):
        kept = took[2:]  # the first two warm the disk's cache
        rows.append(
            row(
                "e",
                name,
                "the limit",
                np.median(kept),
                limit,
                "s",
                [limit / t for t in kept],
                1.0,
            )
        )
    return {"rows": rows}


def extract_command(folder: Path, size: int) -> list:
    """Our command on a folder, into a new one, with an empty cache."""
    shutil.rmtree(WORK / "features", ignore_errors=True)
    return [*CLI, "extract", folder, "--out", WORK / "features", "--size", size]


def growing(quick: bool, rounds: int) -> dict:
    """Rows of (f).

    The plain loop stops at the second size: at the third it would need more memory than
    this machine may have.
    """
    sizes, picture, side = (
        ((8, 16, 32), 48, 32) if quick else ((1000, 10_000, 100_000), 128, 64)
    )
    ours, theirs, rows = {}, {}, []
    for n in sizes:
        folder = jpegs(WORK / f"jpeg-{n}-{picture}", n, picture)
        took = [
            child(extract_command(folder, side))
            for _ in range(rounds if n == sizes[0] else 1)
        ]
        ours[n] = np.median(took, axis=0)
        name = f"extract, {n:,} JPEG files of {picture} px at {side} px"
        note = f"{ours[n][1]:.0f} MB at most"
        if n < sizes[2]:
            plain = [
                child([sys.executable, Path(__file__).resolve(), folder, side])
                for _ in took
            ]
            theirs[n] = np.median(plain, axis=0)
            ratios = [b[0] / a[0] for a, b in zip(took, plain, strict=True)]
            note = f"{note}; the plain loop {theirs[n][1]:.0f} MB"
            rows.append(
                row(
                    "f",
                    name,
                    "plain loop that keeps everything",
                    n / ours[n][0],
                    n / theirs[n][0],
                    "images/s",
                    ratios,
                    None,
                    note,
                )
            )
        else:
            rows.append(
                row("f", name, "none", n / ours[n][0], None, "images/s", (), None, note)
            )
    small, middle, large = sizes
    rows.append(
        row(
            "f",
            f"peak memory, {large:,} files",
            "the limit",
            ours[large][1],
            LIMIT_MB,
            "MB",
            [LIMIT_MB / ours[large][1]],
            1.0,
        )
    )
    added = [ours[b][0] - ours[a][0] for a, b in ((small, middle), (middle, large))]
    if min(added) <= 0:  # so few files that starting takes all the time
        return {"rows": rows}
    marginal = [(middle - small) / added[0], (large - middle) / added[1]]
    note = "images/s of the files added, so that starting does not count; 1 is linear"
    name = f"time grows with the folder: {middle:,} → {large:,}"
    rows.append(
        row(
            "f",
            name,
            f"{small:,} → {middle:,}",
            marginal[1],
            marginal[0],
            "images/s",
            [marginal[1] / marginal[0]],
            0.8,
            note,
        )
    )
    return {"rows": rows}


if __name__ == "__main__":
    import peers

    peers.plain_loop(sys.argv[1], int(sys.argv[2]))
