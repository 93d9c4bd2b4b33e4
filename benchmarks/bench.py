"""Ours beside theirs, on the same images, weights, device and threads: `make bench`.

python benchmarks/bench.py [--only a,c] [--rounds 3] [--quick] [--again]

Each section is one process, in which both take turns. The sections: (a) features,
(b) time to the tutorial's accuracy with a frozen backbone, (c) fine-tuning, (d) a
training step, (e) starting, (f) memory and time as the folder grows, (g) the accuracy
of each fast path beside the plain one. A ratio above 1 means that ours is better.
What is finished is stored in benchmarks/results/cpu.json at once; the peers' runs in
out/bench go on where a broken bench stopped.
A GPU has a bench of its own: python benchmarks/gpu.py.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import importlib
import json
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path

import common
from plot import missed

SECTIONS = {  # the short ones first
    "e": ("growth", "starting"),
    "d": ("training", "step_section"),
    "a": ("extraction", "section"),
    "b": ("training", "frozen_section"),
    "c": ("training", "tuned_section"),
    "g": ("accuracy", "section"),
    "f": ("growth", "growing"),
}
RESULTS = common.HERE / "results"


def about() -> dict:
    """The machine and the versions."""
    import importlib.metadata

    from transfer_course.engine.runs import versions
    from transfer_course.practice.records import machine

    found = versions()
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found["fastai"] = importlib.metadata.version("fastai")
    return {
        "machine": {**machine(), "threads": int(common.os.environ["OMP_NUM_THREADS"])},
        "versions": found,
    }


def store(file: Path, key: str, made: dict, took: float) -> dict:
    """Put a section into the results: its rows take the place of its older ones."""
    old = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    rows = [
        r for r in old.get("rows", []) if r.get("section") not in (key, None)
    ] + made.pop("rows", [])
    extra = {k: v for k, v in old.items() if k not in ("machine", "versions", "rows")}
    order = sorted(rows, key=lambda r: r["section"])
    new = {
        **about(),
        "rows": order,
        **extra,
        **made,
        "seconds": {**old.get("seconds", {}), key: round(took, 1)},
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    whole = file.with_suffix(".part")
    whole.write_text(
        json.dumps(new, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    whole.replace(file)
    return new


def as_line(r: dict) -> str:
    """A row for the terminal: both figures, the ratio with its spread, its floor."""
    figure = "{:9.3g}".format
    theirs = figure(r["theirs"]) if r["theirs"] is not None else "        –"
    ours = figure(r["ours"]) if r["ours"] is not None else "        –"
    ratio = (
        ""
        if r["ratio"] is None
        else f"{r['ratio']:6.2f} ({r['low']:.2f} to {r['high']:.2f})"
    )
    floor = (
        ""
        if r["floor"] is None
        else f"floor {r['floor']:g}{'   MISSED' if missed(r) else ''}"
    )
    return (
        f"({r['section']}) {r['name']:<52} {r['peer']:<34} {ours} {theirs} "
        f"{r['unit']:<9} {ratio:<24} {floor}"
    ).rstrip()


def as_table(results: dict) -> str:
    """All rows, then the accuracies of (g)."""
    head = (
        f"    {'what':<52} {'peer':<34} {'ours':>9} {'theirs':>9} {'':<9} "
        f"{'ratio (spread)':<24}"
    )
    lines = [head, *map(as_line, results["rows"])]
    for a in results.get("accuracy", []):
        lines.append(
            f"(g) {a['name']:<52} {a['plain']:.3f} → {a['fast']:.3f}: "
            f"{a['difference']:+.3f} ({a['low']:+.3f} to {a['high']:+.3f})"
        )
    return "\n".join(lines + [f"    {m}" for m in results.get("missing", [])])


def measured(key: str, rounds: int, quick: bool, out: Path) -> bool:
    """Measure a section in this process, print and store it; False if it broke."""
    module, name = SECTIONS[key]
    began = time.perf_counter()
    try:
        made = getattr(importlib.import_module(module), name)(quick, rounds)
    except Exception:
        traceback.print_exc()
        print(f"({key}) broke; the other sections go on", flush=True)
        return False
    lines = [as_line(r) for r in made.get("rows", [])]
    store(out, key, made, time.perf_counter() - began)
    print(
        "\n".join([*lines, f"({key}) took {time.perf_counter() - began:.0f} s"]),
        flush=True,
    )
    return True


def apart(key: str, rounds: int, quick: bool, out: Path, tries: int = 3) -> bool:
    """The same in a process of its own.

    One that a signal ended is begun again, because the peers' finished runs are kept.
    """
    arguments = ["--only", key, "--rounds", rounds, "--out", out, *["--quick"] * quick]
    for i in range(tries):
        code = subprocess.run(
            [sys.executable, __file__, *map(str, arguments)]
        ).returncode
        if code >= 0:
            return code == 0
        print(
            f"({key}) was ended by signal {-code}{', again' if i + 1 < tries else ''}",
            flush=True,
        )
    return False


def run(only, rounds: int, quick: bool, out: Path, together: bool = False) -> bool:
    """Each section in a process of its own, one after the other; False if one broke."""
    keys = [k for k in SECTIONS if k in only]
    how = measured if together or len(keys) == 1 else apart
    whole = all([how(key, rounds, quick, out) for key in keys])
    if len(keys) > 1 and out.exists():
        print(
            f"\n{as_table(json.loads(out.read_text(encoding='utf-8')))}\n\n"
            f"stored in {out}"
        )
    return whole


def main(argv=None) -> int:
    """Read the arguments; 0, or 1 if a section broke."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", default=",".join(SECTIONS), help="sections, such as a,c"
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=3,
        help="turns of each pair that is timed; seeds in (b) and (c)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="tiny sizes, to see that it runs; the figures mean nothing",
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="forget the peers' finished runs in out/bench",
    )
    parser.add_argument(
        "--together",
        action="store_true",
        help="all sections in one process: a crash of one ends them all",
    )
    parser.add_argument("--out", type=Path, help="results file")
    args = parser.parse_args(argv)
    # Three frameworks in one process: where it dies has to be said.
    faulthandler.enable()
    common.same_threads()
    common.own_cache()
    if args.again:
        shutil.rmtree(common.WORK / "runs", ignore_errors=True)
    from transfer_course.engine.frameworks import load_torch

    load_torch()  # before TensorFlow
    out = args.out or (
        common.WORK / "quick.json" if args.quick else RESULTS / "cpu.json"
    )
    return (
        0
        if run(args.only.split(","), args.rounds, args.quick, out, args.together)
        else 1
    )


if __name__ == "__main__":
    sys.exit(main())
