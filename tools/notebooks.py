"""What is done to notebooks outside JupyterLab: run them to store outputs, export, make the unsolved copies, the README.

    python tools/notebooks.py run [NOTEBOOK…]    execute, store outputs, clean (all of nbs/ without arguments)
    python tools/notebooks.py export             nbdev-export, then the unsolved copies and README.md
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NO_EVAL = re.compile(r"^#\|\s*eval\s*:?\s*false\s*$", re.MULTILINE)


def notebooks(folder: Path = ROOT / "nbs") -> list[Path]:
    """All notebooks of the course, in reading order."""
    return sorted(p for p in folder.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def run(paths: list[Path]) -> None:
    """Execute each notebook in its own folder and store its outputs; stops at the first error."""
    for path in paths:
        start = time.perf_counter()
        nb = nbformat.read(path, as_version=4)
        kept = {c["id"]: c.source for c in nb.cells if c.cell_type == "code" and NO_EVAL.search(c.source)}
        for c in nb.cells:
            if c["id"] in kept:
                c.source = "pass"
        NotebookClient(nb, timeout=600, kernel_name="python3", resources={"metadata": {"path": path.parent}}).execute()
        for c in nb.cells:
            if c["id"] in kept:
                c.source, c.outputs = kept[c["id"]], []
        nb.metadata.pop("widgets", None)
        nbformat.write(nb, path)
        subprocess.run([bin_dir() / "nbdev-clean", "--fname", path], check=True, cwd=ROOT)
        print(f"{path.relative_to(ROOT)}  {time.perf_counter() - start:.0f} s", flush=True)


def bin_dir() -> Path:
    """Where this interpreter's commands stand."""
    return Path(sys.executable).parent


def export() -> None:
    """Write the library from the notebooks."""
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}  # IN_TEST=1 makes nbdev-export do nothing
    subprocess.run([bin_dir() / "nbdev-export"], check=True, cwd=ROOT, env=env)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "export"])
    parser.add_argument("paths", nargs="*", type=Path)
    args = parser.parse_args()
    if args.what == "run":
        run([p.resolve() for p in args.paths] or notebooks())
    else:
        export()
