"""The bench runs end to end in its quick form and says where a floor is missed.

The page on speed shows what it stored.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "benchmarks"))
import bench  # noqa: E402
import common  # noqa: E402
import plot  # noqa: E402
import training  # noqa: E402

FIELDS = {
    "section",
    "name",
    "peer",
    "ours",
    "theirs",
    "unit",
    "ratio",
    "low",
    "high",
    "floor",
    "note",
}
STORED = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


def run(script, tmp_path, *arguments):
    """Run a bench script in a process of its own.

    Its work files lie in a temporary folder.
    """
    env = {
        **os.environ,
        "TRANSFER_COURSE_BENCH": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, ROOT / "benchmarks" / script, "--quick", *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    return done.stdout


def check_rows(rows):
    """Every row has all fields, and a ratio lies between its extremes."""
    for r in rows:
        assert set(r) == FIELDS, set(r) ^ FIELDS
        assert all(
            v is None or np.isfinite(v) for v in (r["ours"], r["theirs"], r["ratio"])
        )
        if r["ratio"] is not None:
            assert (
                r["low"] <= r["ratio"] * (1 + 1e-9)
                and r["ratio"] <= r["high"] * (1 + 1e-9)
                or r["unit"] == "accuracy"
            )


def check_results(out, sections, said):
    """The stored results hold these sections' whole rows, and all were printed."""
    found = json.loads(out.read_text(encoding="utf-8"))
    check_rows(found["rows"])
    assert {r["section"] for r in found["rows"]} == set(sections) - {"g"} and set(
        found["seconds"]
    ) == set(sections)
    assert found["machine"]["threads"] == 1 and found["versions"]["torch"]
    assert all(r["name"] in said for r in found["rows"])
    return found


def test_the_short_sections_run_and_their_rows_are_whole(tmp_path):
    out = tmp_path / "results.json"
    found = check_results(
        out,
        "abdeg",
        run(
            "bench.py",
            tmp_path,
            "--rounds",
            "1",
            "--out",
            str(out),
            "--only",
            "a,b,d,e,g",
        ),
    )
    assert {r["peer"] for r in found["rows"]} >= {
        "torch eager",
        "timm, validate.py",
        "torch eager + DataLoader",
        "tutorial, frozen",
    }
    assert {r["name"].split(":")[0] for r in found["accuracy"]} == {
        "extraction",
        "decoding",
        "fine-tuning",
    }
    for a in found["accuracy"]:
        assert (
            a["low"] <= a["difference"] <= a["high"]
            and abs(a["fast"] - a["plain"] - a["difference"]) < 1e-6
            and a["seeds"] == 2
        )


@pytest.mark.stress
def test_the_latency_of_every_runtime_is_measured(tmp_path):
    out = tmp_path / "latency.json"
    run("latency.py", tmp_path, "--out", str(out))
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    check_rows(rows)
    assert {r["peer"] for r in rows} == {"PyTorch, predict", "Keras, predict"}
    assert len(rows) == 7 and all(r["unit"] == "ms" for r in rows)


@pytest.mark.stress
def test_the_long_sections_run_and_their_rows_are_whole(tmp_path):
    out = tmp_path / "results.json"
    found = check_results(
        out,
        "cf",
        run("bench.py", tmp_path, "--rounds", "1", "--out", str(out), "--only", "c,f"),
    )
    peers = {r["peer"] for r in found["rows"]}
    assert peers >= {
        "tutorial",
        "Keras guide",
        "plain loop that keeps everything",
        "the limit",
    }
    assert any("fastai" in p for p in peers) or any(
        "fastai is not installed" in m for m in found["missing"]
    )


@pytest.mark.stress
def test_the_gpu_bench_runs_on_a_cpu_in_its_quick_form(tmp_path):
    out = tmp_path / "gpu.json"
    run("gpu.py", tmp_path, "--out", str(out))
    found = json.loads(out.read_text(encoding="utf-8"))
    check_rows(found["rows"])
    assert "no GPU" in found["machine"]["device"]
    assert {r["peer"] for r in found["rows"]} == {
        "tutorial's loop",
        "timm train.py",
        "ours",
    }
    assert any("waiting" in r["name"] and r["peer"] == "ours" for r in found["rows"])
    assert (
        len(found["timeline"]["resnet50"]["ours"][0]) == 3
        and (tmp_path / "gpu-resnet50.png").stat().st_size > 1000
    )


def test_without_a_gpu_nothing_is_measured_and_it_says_so(tmp_path):
    env = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "TRANSFER_COURSE_BENCH": str(tmp_path),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "gpu.py"],
        env=env,
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 2
        and "no GPU" in done.stderr
        and not list(tmp_path.rglob("*.json"))
    )


def made(**changes):
    """A row as it is stored."""
    return {
        **common.row("a", "thing", "peer", 4.0, 2.0, "images/s", [1.9, 2.0, 2.2], 1.5),
        **changes,
    }


def test_a_missed_floor_is_marked_in_every_table_and_a_met_one_is_not():
    good, bad = made(), made(floor=2.5)
    assert "MISSED" in bench.as_line(bad) and "MISSED" not in bench.as_line(good)
    for r, mark in ((good, 0), (bad, 1), (made(floor=None), 0), (made(ratio=None), 0)):
        assert plot.table({"rows": [r]}).count("missed") == mark
    assert good["ratio"] == 2.0 and (good["low"], good["high"]) == (1.9, 2.2)


def test_the_picture_has_a_dot_for_each_ratio_and_a_mark_for_each_floor():
    ax = plot.picture(
        {"rows": [made(), made(floor=2.5), made(floor=None), made(ratio=None)]}
    ).axes[0]
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [d.get_markerfacecolor() for d in dots] == ["black", "white", "black"]
    assert sum(line.get_marker() == "|" for line in ax.lines) == 2


def test_a_section_takes_the_place_of_its_older_rows_only(tmp_path):
    file = tmp_path / "r.json"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    bench.store(file, "a", {"rows": [made()]}, 1)
    bench.store(file, "b", {"rows": [made(section="b")], "curves": {"x": [[1, 2]]}}, 1)
    found = bench.store(file, "a", {"rows": [made(name="new")]}, 2)
    assert [(r["section"], r["name"]) for r in found["rows"]] == [
        ("a", "new"),
        ("b", "thing"),
    ]
    assert (
        found["curves"] == {"x": [[1, 2]]}
        and json.loads(file.read_text(encoding="utf-8")) == found
    )


def test_a_broken_section_loses_nothing_of_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(bench.SECTIONS, "a", ("extraction", "no_such_function"))
    monkeypatch.setattr(
        "growth.starting", lambda quick, rounds: {"rows": [made(section="e")]}
    )
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    assert bench.run(["a", "e"], 1, True, tmp_path / "r.json", together=True) is False
    assert (
        len(json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["rows"]) == 1
    )
    assert "(a) broke" in capsys.readouterr().out


def test_a_section_that_a_signal_ended_is_begun_again(tmp_path, monkeypatch, capsys):
    codes = iter([-11, 0])
    monkeypatch.setattr(
        bench.subprocess,
        "run",
        lambda command: subprocess.CompletedProcess(command, next(codes)),
    )
    assert bench.apart("c", 3, False, tmp_path / "r.json") is True
    assert "signal 11, again" in capsys.readouterr().out and next(codes, None) is None


def curve(*points):
    """Two seeds with these (seconds, accuracy), the second a little slower."""
    a = np.array(points, float)
    return np.stack([a, a * [1.1, 1.0]])


def test_time_to_an_accuracy_is_taken_at_the_first_epoch_that_is_as_good():
    theirs = curve((10, 0.3), (20, 0.6), (30, 0.6))
    r = training.time_to(
        "c", curve((1, 0.5), (2, 0.6), (3, 0.9)), "peer", theirs, 3, "t"
    )
    assert (
        r["ratio"] == pytest.approx(10)
        and r["theirs"] == pytest.approx(21)
        and r["ours"] == pytest.approx(2.1)
    )
    never = training.time_to("c", curve((1, 0.5)), "peer", theirs, 3, "t")
    assert (
        never["ratio"] == 0
        and never["ours"] is None
        and "not reached" in never["note"]
        and bench.missed(never)
    )


def test_accuracy_at_equal_time_counts_what_comes_within_the_fastest_peers_time():
    rivals = {"fast": curve((5, 0.4)), "good": curve((50, 0.6), (90, 0.5))}
    r = training.equal_time(curve((1, 0.5), (5, 0.66), (6, 0.9)), rivals)
    assert (
        r["ours"] == pytest.approx(0.66)
        and r["theirs"] == pytest.approx(0.6)
        and r["ratio"] == pytest.approx(1.1)
        and "good" in r["peer"]
    )


def test_generated_jpegs_have_distinct_bytes_and_open(tmp_path):
    from PIL import Image

    files = sorted(common.jpegs(tmp_path, 12, 32, distinct=3).rglob("*.jpg"))
    assert len({f.read_bytes() for f in files}) == 12 and {
        Image.open(f).size for f in files
    } == {(32, 32)}
    assert np.array_equal(
        Image.open(tmp_path / "class0" / "000000.jpg"),
        Image.open(tmp_path / "class0" / "000006.jpg"),
    )


@pytest.mark.parametrize("file", STORED, ids=lambda f: f.stem)
def test_stored_rows_are_whole(file):
    found = json.loads(file.read_text(encoding="utf-8"))
    check_rows(found["rows"])
    assert found["machine"]["processor"] and len(
        {(r["section"], r["name"], r["peer"]) for r in found["rows"]}
    ) == len(found["rows"])


def test_the_page_on_speed_shows_the_stored_table_as_it_is():
    page = (ROOT / "nbs" / "about" / "speed.ipynb").read_text(encoding="utf-8")
    outputs = [o for c in json.loads(page)["cells"] for o in c.get("outputs", [])]
    text = "\n".join(
        "".join(o["data"].get("text/markdown", "")) for o in outputs if "data" in o
    )
    found = plot.results()
    assert plot.table(found) in text and plot.caption(found) in text
    assert plot.accuracies(found) in text or not found.get("accuracy")
    assert any("image/png" in o.get("data", {}) for o in outputs)
