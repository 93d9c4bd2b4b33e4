"""Every command on a folder of everything that a disk can hold.

What is usable is used, and what is not is listed with its reason.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hostile
import memory
import numpy as np
import pytest
from nobody import as_nobody

from transfer_course import cli
from transfer_course.engine.files import Unreadable, printable, read_image

pytestmark = pytest.mark.skipif(
    os.name != "posix", reason="POSIX files, links and names"
)

# One picture at the limit of 100 million pixels costs at most 12 bytes a pixel while it
# is brought to RGB on white (its own mode, RGBA and RGB, 4 bytes each, as Pillow holds
# them), and the pictures that threads decode at one time share that limit: 1.2 GB. A
# process that has loaded the framework and a network takes 0.7 GB with torch and 1.1 GB
# with TensorFlow.
PEAK = {"torch": 2300, "keras": 2700}


class Done:
    """A finished command: exit code, what it wrote, the most memory it held in MB."""

    def __init__(self, args, home, env=None, user=None):
        out, err = home / "stdout", home / "stderr"
        places = {
            name: str(home / name)
            for name in ("HOME", "TMPDIR", "TRANSFER_COURSE_CACHE")
        }
        for place in places.values():
            os.makedirs(place, exist_ok=True)
        (home / "here").mkdir(exist_ok=True)
        env = {
            **os.environ,
            **places,
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            **(env or {}),
        }
        with open(out, "wb") as o, open(err, "wb") as e:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "transfer_course.cli",
                    *map(os.fsencode, map(str, args)),
                ],
                cwd=home / "here",
                stdin=subprocess.DEVNULL,
                stdout=o,
                stderr=e,
                env=env,
            )
            self.code, self.peak, usage = memory.wait(process)
        self.cpu = usage.ru_utime + usage.ru_stime
        # Both are UTF-8, whatever the names are.
        self.out = out.read_bytes().decode()
        self.err = err.read_bytes().decode()
        assert "Traceback" not in self.err, self.err
        assert os.listdir(home / "here") == [], (
            "something was written where the command was called"
        )

    def rows(self):
        """The JSON lines on stdout."""
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("short") / "photos"
    return root, hostile.build(root)


@pytest.fixture(scope="module")
def made_in_full(tmp_path_factory):
    root = tmp_path_factory.mktemp("full") / "photos"
    return root, hostile.build(root, "full")


def name(root, thing):
    """As the JSON has it."""
    return printable(os.path.join(os.fsencode(root), thing.path))


def agree(listed, used, root, things):
    """Each thing is where it belongs.

    (path -> reason) of what was listed, the paths used.
    """
    want = {name(root, t): t for t in things}
    assert len(want) == len(things), "two things have one name"
    # How deep one gets depends on where it lies.
    abyss = name(root, hostile.Thing(b"cats/abyss", "", False))
    listed = {
        abyss if path.startswith(abyss) else path: why for path, why in listed.items()
    }
    assert not listed.keys() & used and listed.keys() | used >= want.keys(), sorted(
        want.keys() - listed.keys() - used
    )[:5]
    assert listed.keys() | used == want.keys(), sorted(
        (listed.keys() | used) - want.keys()
    )[:5]
    for path, thing in want.items():
        if thing.used is not None:
            assert (path in used) == thing.used, (thing, listed.get(path))
        if path in listed:
            assert re.search(thing.why, listed[path]), (thing, listed[path])


def tuned(home, root, things, framework, *extra):
    """Fine-tune, and look at everything that it says."""
    before = hostile.contents(root)
    done = Done(
        [
            "fine-tune",
            root,
            "--framework",
            framework,
            "--strategy",
            "probe",
            "--size",
            32,
            "--out",
            home / "run",
            "--json",
            *extra,
        ],
        home,
    )
    assert done.code == 0 and len(done.out.splitlines()) == 1, done.err
    summary = done.rows()[0]
    listed = {s["path"]: s["reason"] for s in summary["skipped"]}
    assert len(listed) == len(summary["skipped"]), "listed twice"
    abyss = {path for path in listed if "abyss" in path}
    used = {name(root, t) for t in things if b"abyss" not in t.path} - listed.keys()
    assert len(abyss) == 1
    agree(listed, used, root, things)
    assert (
        summary["n_train"] + summary["n_valid"]
        == len(used)
        == sum(t.used is True for t in things)
    )
    assert summary["classes"] == sorted(
        {printable(t.path.split(b"/")[0]) for t in things if t.used}
    )
    assert "the same picture under two classes" in done.err
    assert (
        json.loads((home / "run" / "run.json").read_text(encoding="utf-8"))["skipped"]
        == summary["skipped"]
    )
    assert not [line for line in done.err.splitlines() if "Warning" in line], done.err
    assert hostile.contents(root) == before, "the folder was touched"
    assert framework == "keras" or os.listdir(home / "HOME") == []
    return done


def without_classes(things):
    """What is expected where classes play no role."""
    asked = [t for t in things if t.kind not in ("empty class", "class of rubbish")]
    return [t._replace(used=True) if t.kind == "in no class" else t for t in asked]


def extracted(home, root, things, framework):
    """Extract, and look at the features' names and at what was left out."""
    before = hostile.contents(root)
    done = Done(
        [
            "extract",
            root,
            "--framework",
            framework,
            "--size",
            32,
            "--out",
            home / "features",
            "--json",
        ],
        home,
    )
    assert done.code == 0 and len(done.out.splitlines()) == 1, done.err
    info = done.rows()[0]
    listed = {s["path"]: s["reason"] for s in info["skipped"]}
    asked = without_classes(things)
    assert len(listed) == len(info["skipped"]), "listed twice"
    used = {name(root, t) for t in asked if b"abyss" not in t.path} - listed.keys()
    agree(listed, used, root, asked)
    rows = np.load(home / "features" / "features.npy", allow_pickle=False)
    assert info["n"] == len(rows) == len(used) and np.isfinite(rows).all()
    assert hostile.contents(root) == before, "the folder was touched"
    return done


def predicted(home, root, things, framework):
    """Predict with what `tuned` made, and look at every line."""
    done = Done(["predict", home / "run", root, "--json"], home)
    rows = done.rows()
    assert done.code == 2 and len({r["path"] for r in rows}) == len(rows)
    asked = without_classes(things)
    listed = {
        r["path"]: r.get("error") or r["skipped"] for r in rows if "class" not in r
    }
    agree(listed, {r["path"] for r in rows if "class" in r}, root, asked)
    assert all(
        0 < r["probability"] <= 1
        and np.isfinite([t["probability"] for t in r["top"]]).all()
        for r in rows
        if "class" in r
    )
    assert not [line for line in done.err.splitlines() if "Warning" in line], done.err
    return done


needs_extract = pytest.mark.skipif(
    not hasattr(cli, "extract"), reason="no command extract yet"
)


@needs_extract
def test_extract_uses_every_picture_and_lists_all_else(made, tmp_path):
    root, things = made
    done = extracted(tmp_path, root, things, "torch")
    assert done.peak < PEAK["torch"], f"{done.peak:.0f} MB"


@needs_extract
@pytest.mark.stress
@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_extract_on_a_thousand_files(made_in_full, tmp_path, framework):
    root, things = made_in_full
    done = extracted(tmp_path, root, things, framework)
    assert done.peak < PEAK[framework], f"{done.peak:.0f} MB"


def test_fine_tune_and_predict_use_every_picture_and_list_all_else(made, tmp_path):
    root, things = made
    assert len({t.kind for t in things}) > 130
    for done in (
        tuned(tmp_path, root, things, "torch"),
        predicted(tmp_path, root, things, "torch"),
    ):
        assert done.peak < PEAK["torch"], f"{done.peak:.0f} MB"


@pytest.mark.stress
@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_a_thousand_files(made_in_full, tmp_path, framework):
    root, things = made_in_full
    assert len(things) >= 1000
    for done in (
        tuned(tmp_path, root, things, framework),
        predicted(tmp_path, root, things, framework),
    ):
        assert done.peak < PEAK[framework], f"{done.peak:.0f} MB"


@pytest.mark.stress
def test_training_on_a_thousand_files(made_in_full, tmp_path):
    root, things = made_in_full
    done = Done(
        [
            "fine-tune",
            root,
            "--strategy",
            "fine_tune",
            "--epochs",
            1,
            "--size",
            32,
            "--out",
            tmp_path / "run",
            "--json",
        ],
        tmp_path,
    )
    assert done.code == 0 and done.peak < PEAK["torch"], done.err
    assert done.rows()[0]["n_train"] + done.rows()[0]["n_valid"] == sum(
        t.used is True for t in things
    )


# --- the generator --------------------------------------------------------------------


def test_the_generator_makes_the_same_twice(made, tmp_path):
    root, things = made
    began = time.process_time()
    assert hostile.build(tmp_path / "again") == things
    assert time.process_time() - began < 10
    assert hostile.contents(tmp_path / "again") == hostile.contents(root)
    other = Counter(t.kind for t in hostile.build(tmp_path / "other", seed=1))
    assert other == Counter(t.kind for t in things) and hostile.contents(
        tmp_path / "other"
    ) != hostile.contents(root)


@pytest.mark.stress
def test_the_full_folder_is_made_in_twenty_seconds(tmp_path):
    began = time.process_time()
    things = hostile.build(tmp_path / "full", "full")
    assert time.process_time() - began < 20 and len(things) >= 1000


# --- memory ---------------------------------------------------------------------------

READ = """
import sys
from concurrent.futures import ThreadPoolExecutor
from transfer_course.engine.files import read_image
with ThreadPoolExecutor(len(sys.argv) - 1) as pool:
    images = pool.map(lambda path: read_image(path, 8), sys.argv[1:])
    print(sum(int(image.sum()) for image in images))
"""


def peak_of(paths):
    """The most memory in MB of a process that reads each picture in its own thread."""
    process = subprocess.Popen(
        [sys.executable, "-c", READ, *map(str, paths)], stdout=subprocess.DEVNULL
    )
    code, peak, _ = memory.wait(process)
    assert code == 0
    return peak


def test_threads_share_one_allowance_of_pixels(tmp_path):
    """Each of four takes 590 MB on its way: two at a time, and not four."""
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(hostile.heavy_rgba(4900 + i))
    assert peak_of(sorted(tmp_path.iterdir())) < 1800


@pytest.mark.stress
@pytest.mark.parametrize("mode", ["RGBA", "I;16", "F", "P", "LA", "CMYK"])
def test_no_mode_takes_more_than_fourteen_bytes_a_pixel(tmp_path, mode):
    from PIL import Image

    form, suffix, options = {
        "F": ("TIFF", "tif", {"compression": "tiff_adobe_deflate"}),
        "CMYK": ("JPEG", "jpg", {}),
    }.get(mode, ("PNG", "png", {}))
    if mode == "P":
        options["transparency"] = 0
    for i in range(3):
        Image.new(mode, (7000 + i, 7000)).save(
            tmp_path / f"{i}.{suffix}", form, **options
        )
    assert peak_of(sorted(tmp_path.iterdir())) < 100 + 14 * 100


@pytest.mark.stress
@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_one_row_of_deep_grey_is_read_in_strips_too(tmp_path, mode):
    from PIL import Image

    form, suffix = ("PNG", "png") if mode == "I;16" else ("TIFF", "tif")
    for i in range(2):
        Image.new(mode, (49_000_000 + i, 1)).save(tmp_path / f"{i}.{suffix}", form)
    assert peak_of(sorted(tmp_path.iterdir())) < 100 + 14 * 100


# --- permissions ----------------------------------------------------------------------


def test_what_may_not_be_read_is_listed():
    from transfer_course.vision.data import image_folder

    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o755)
        for c in "ab":
            for i in range(2):
                path = Path(root) / c / f"{i}.png"
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(
                    hostile.encoded(
                        hostile.picture(np.random.default_rng(ord(c) + i)), "PNG"
                    )
                )
        (Path(root) / "a" / "0.png").chmod(0)
        (Path(root) / "b" / "closed").mkdir(mode=0)

        def look():
            data = image_folder(root, size=32, progress=False)
            return [len(data), [list(s) for s in data.skipped]]

        n, skipped = as_nobody(look)
        (Path(root) / "b" / "closed").chmod(0o700)
    assert n == 3 and dict(skipped) == dict.fromkeys(
        (f"{root}/a/0.png", f"{root}/b/closed"), "cannot be read: permission denied"
    )


# --- a folder that changes ------------------------------------------------------------


def test_files_that_vanish_or_change_while_the_folder_is_read(tmp_path, monkeypatch):
    from transfer_course.vision import data, datasets

    for c in "abc":
        for i in range(3):
            path = tmp_path / c / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(
                hostile.encoded(
                    hostile.picture(np.random.default_rng(10 * ord(c) + i)), "PNG"
                )
            )
    listed = datasets.list_images

    def then_gone(root):
        found = listed(root)
        (tmp_path / "a" / "0.png").unlink()
        (tmp_path / "b" / "0.png").write_bytes(b"")
        os.rename(tmp_path / "c", tmp_path / "d")
        return found

    monkeypatch.setattr(datasets, "list_images", then_gone)
    found = data.image_folder(tmp_path, size=32, progress=False)
    why = {
        Path(p).relative_to(tmp_path).as_posix(): reason for p, reason in found.skipped
    }
    assert len(found) == 4 and found.classes == ["a", "b"]
    assert (
        why["a/0.png"] == why["c/1.png"] == "no such file"
        and why["b/0.png"] == "empty file"
    )


def test_a_picture_that_vanishes_in_training_is_one_sentence(tmp_path):
    from transfer_course.engine.errors import UserMistake
    from transfer_course.vision.images import ImageDataset

    (tmp_path / "a.png").write_bytes(
        hostile.encoded(hostile.picture(np.random.default_rng(0)), "PNG")
    )
    lazy = ImageDataset(paths=[tmp_path / "a.png"], size=32)
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserMistake, match=r"a\.png: no such file"):
        lazy.batch([0])


def test_threads_agree_about_a_thousand_damaged_files(made):
    """What a file is does not depend on what is decoded beside it."""
    root, things = made
    paths = [
        os.path.join(os.fsencode(root), t.path) for t in things if "heavy" not in t.kind
    ]
    paths = [os.fsdecode(p) for p in paths if os.path.isfile(p)]

    def look(path):
        try:
            return read_image(path, 16).tobytes()
        except Unreadable as e:
            return e.reason

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(look, paths)) == [look(p) for p in paths]
