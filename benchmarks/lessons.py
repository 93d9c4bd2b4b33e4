"""Run lessons cell by cell on this machine and store what they took and printed.

python benchmarks/lessons.py 10 11 12 13 [--out FILE]

For machines without Jupyter, such as a borrowed GPU: the cells run in IPython inside
this process. Keras lessons run on the backend that KERAS_BACKEND names. Results go to
benchmarks/results/lessons/DEVICE.json.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import time
from pathlib import Path

import common

NBS = common.ROOT / "nbs"


def cells(path: Path) -> list[str]:
    """The code of a notebook, without cells that nbdev leaves out."""
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ["".join(c["source"]) for c in found if c["cell_type"] == "code"]
    return [source for source in code if "#| eval: false" not in source]


def run(path: Path) -> dict:
    """One lesson in a fresh name space: seconds, printed lines, first error."""
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    shell.colors = "nocolor"
    shell.reset(new_session=False)
    os.chdir(path.parent)
    printed, error, began = io.StringIO(), "", time.perf_counter()
    for source in cells(path):
        with contextlib.redirect_stdout(printed):
            result = shell.run_cell(source)
        if not result.success:
            error = repr(result.error_in_exec or result.error_before_exec)
            break
    seconds = time.perf_counter() - began
    lines = printed.getvalue().splitlines()
    return dict(lesson=path.stem, seconds=round(seconds, 1), error=error, said=lines)


def main(argv=None) -> int:
    """0 if every lesson ran to its end."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("numbers", nargs="+", help="such as 10 11 12 13")
    parser.add_argument("--out", type=Path)
    o = parser.parse_args(argv)
    common.same_threads()
    from bench import about

    from transfer_course.engine.frameworks import load_torch

    cuda = load_torch().cuda
    name = cuda.get_device_name() if cuda.is_available() else "no GPU"
    slug = name.lower().replace(" ", "-")
    out = o.out or common.HERE / "results" / "lessons" / f"{slug}.json"
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    results = {**about(), "device": name, "lessons": []}
    results["keras backend"] = os.environ.get("KERAS_BACKEND", "tensorflow")
    for number in o.numbers:
        (path,) = NBS.glob(f"*/{number}_*.ipynb")
        results["lessons"].append(run(path))
        done = results["lessons"][-1]
        print(done["lesson"], done["seconds"], "s", done["error"], flush=True)
        text = json.dumps(results, indent=1, ensure_ascii=False)
        out.write_text(text + "\n", encoding="utf-8")
    return int(any(done["error"] for done in results["lessons"]))


if __name__ == "__main__":
    sys.exit(main())
