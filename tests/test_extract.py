"""A folder of images to one file of features.

It is resumable, by one process or several, whatever lies in the folder.
"""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transfer_course.engine.errors import BadValue, Damaged, InUse, NotFound
from transfer_course.engine.extraction import RowFile
from transfer_course.engine.files import read_image
from transfer_course.practice import extract_folder as module
from transfer_course.practice.extract_folder import extract_folder

pytest.importorskip("torch")
SIZE = 32
COMMAND = [sys.executable, "-m", "transfer_course.cli", "extract"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of 200 images, three of them unreadable, with names of all kinds."""
    root = tmp_path_factory.mktemp("extract")
    os.environ["TRANSFER_COURSE_CACHE"] = str(root / "cache")
    rng = np.random.default_rng(0)
    for i in range(200):
        file = root / "photos" / ("cats", "dogs/big", "猫")[i % 3] / f"{i:03}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(file)
    names = [b"line\nend.jpg", b"no utf \xff.jpg", "😀 שלום.png".encode()]
    for name in names:
        with open(os.path.join(os.fsencode(root / "photos"), name), "wb") as f:
            f.write((root / "photos/cats/000.jpg").read_bytes())
    for name, data in (
        ("a.jpg", b""),
        ("cats/050.png", b"\x89PNG\r\n\x1a\n"),
        ("dogs/zz.jpg", b"<html>"),
    ):
        (root / "photos" / name).write_bytes(data)
    (root / "photos" / "read.me").touch()
    yield root
    del os.environ["TRANSFER_COURSE_CACHE"]


@pytest.fixture(scope="module")
def whole(place):
    """The uninterrupted extraction, and its features' bytes."""
    info = extract_folder(place / "photos", place / "whole", size=SIZE, progress=False)
    return info, (place / "whole/features.npy").read_bytes()


def test_every_readable_image_has_its_row_and_every_other_its_reason(place, whole):
    from transfer_course.vision.backbones import backbone

    info, _ = whole
    rows = list(
        csv.reader((place / "whole/index.csv").open(encoding="utf-8", newline=""))
    )[1:]
    features = np.load(place / "whole/features.npy")
    assert info["n"] == len(rows) == len(features) == 203 and [
        int(r[0]) for r in rows
    ] == list(range(203))
    assert {Path(s["path"]).name: s["reason"] for s in info["skipped"]} == {
        "a.jpg": "empty file",
        "050.png": "damaged or truncated",
        "zz.jpg": "a web page, not an image",
        "read.me": "not an image (.me)",
    }
    names = {r[1]: r[2] for r in rows}
    assert (
        {"line\nend.jpg", "no utf \\xff.jpg", "😀 שלום.png"} < set(names)
        and names["猫/002.jpg"] == "猫"
        and names["no utf \\xff.jpg"] == ""
    )
    assert names["dogs/big/001.jpg"] == "dogs"
    known = [r for r in rows if r[2]][::40]
    images = np.stack([read_image(place / "photos" / r[1], SIZE) for r in known])
    assert (
        np.abs(backbone().features(images) - features[[int(r[0]) for r in known]]).max()
        < 1e-4
    )
    assert sorted(os.listdir(place / "whole")) == [
        "extract.json",
        "features.npy",
        "index.csv",
    ]
    assert (
        json.loads((place / "whole/extract.json").read_text(encoding="utf-8"))["n"]
        == 203
    )


def test_without_a_skipped_file_the_bytes_are_of_the_same_kind(place):
    info = extract_folder(
        place / "photos/cats", place / "cats", size=SIZE, progress=False
    )
    some = extract_folder(
        place / "photos/猫", place / "other", size=SIZE, progress=False
    )
    assert (info["n"], some["n"]) == (67, 66)
    for name in ("cats", "other"):
        data = (place / name / "features.npy").read_bytes()
        assert (
            len(data) == RowFile.HEADER + 4 * 1280 * (67 if name == "cats" else 66)
            and data[:6] == b"\x93NUMPY"
        )


def test_the_class_in_the_index_is_no_split(place):
    for tree, root in (
        (("train/cats", "train/dogs", "test/cats"), "split"),
        (("a/cats", "a/dogs"), "wrapped"),
    ):
        for i, part in enumerate(tree):
            (place / root / part).mkdir(parents=True, exist_ok=True)
            (place / root / part / f"{i}.jpg").write_bytes(
                (place / f"photos/cats/{3 * i:03}.jpg").read_bytes()
            )
        info = extract_folder(
            place / root, place / f"of {root}", size=SIZE, progress=False
        )
        rows = list(
            csv.reader(
                (place / f"of {root}/index.csv").open(encoding="utf-8", newline="")
            )
        )[1:]
        assert info["n"] == len(tree) == len(rows)
        assert {r[1]: r[2] for r in rows} == {
            f"{part}/{i}.jpg": part.split("/")[1] for i, part in enumerate(tree)
        }


def stopped(monkeypatch, after, out, place):
    """An extraction whose decoding is interrupted."""
    count, decode = [], module._decode

    def tired(*args):
        count.append(1)
        if len(count) > after:
            raise KeyboardInterrupt
        return decode(*args)

    monkeypatch.setattr(module, "_decode", tired)
    with pytest.raises(KeyboardInterrupt):
        extract_folder(place / "photos", out, size=SIZE, progress=False)
    monkeypatch.setattr(module, "_decode", decode)


def test_resumed_it_ends_with_the_same_bits_whatever_the_journal_lost(
    place, whole, monkeypatch
):
    out = place / "stopped"
    stopped(monkeypatch, 3, out, place)
    journal = out / ".journal-0"
    lines = journal.read_bytes().splitlines()
    first = json.loads(next(line for line in lines if line))
    rows = RowFile(out / module._ROWS, 206, 1280, new=False)
    # Rows that a crash of the machine lost.
    rows[[64 * first["block"] + 3]] = np.ones((1, 1280))
    journal.write_bytes(b"\n".join(lines)[:-7] + b'\n{"block": 2, "su')
    info = extract_folder(place / "photos", out, size=SIZE, progress=False, resume=True)
    assert (out / "features.npy").read_bytes() == whole[1] and info["skipped"] == whole[
        0
    ]["skipped"]
    assert (out / "index.csv").read_bytes() == (place / "whole/index.csv").read_bytes()


def test_what_was_begun_otherwise_is_refused(place, whole, monkeypatch):
    out = place / "begun"
    stopped(monkeypatch, 1, out, place)
    for options, words in (
        ({}, "was interrupted. Go on with it"),
        ({"resume": True, "size": 48}, "begun with size 32, and now it is 48"),
        ({"resume": True, "fast_jpeg": True}, "begun with fast_jpeg False"),
    ):
        with pytest.raises(BadValue, match=words):
            extract_folder(
                place / "photos", out, progress=False, **{"size": SIZE, **options}
            )
    (place / "photos/cats/new.jpg").write_bytes(
        (place / "photos/cats/000.jpg").read_bytes()
    )
    with pytest.raises(BadValue, match="The images have changed since"):
        extract_folder(place / "photos", out, size=SIZE, resume=True, progress=False)
    (place / "photos/cats/new.jpg").unlink()
    with pytest.raises(BadValue, match="finished run"):
        extract_folder(place / "photos", place / "whole", size=SIZE, progress=False)
    assert (
        extract_folder(
            place / "photos", place / "whole", size=SIZE, resume=True, progress=False
        )["n"]
        == 203
    )
    with pytest.raises(BadValue, match="begun with size 32"):
        extract_folder(
            place / "photos", place / "whole", size=64, resume=True, progress=False
        )
    with pytest.raises(BadValue, match="holds no run"):
        extract_folder(
            place / "photos", place / "photos/cats", size=SIZE, progress=False
        )
    with pytest.raises(BadValue, match="holds no run"):
        extract_folder(
            place / "photos",
            place / "photos/cats",
            size=SIZE,
            resume=True,
            progress=False,
        )


def test_nothing_readable_and_no_folder(place):
    (place / "bad").mkdir()
    with pytest.raises(BadValue, match="There is no image in"):
        extract_folder(place / "bad", place / "none", progress=False)
    (place / "bad/x.jpg").write_bytes(b"x")
    with pytest.raises(
        BadValue,
        match="None of the 1 image files .* can be read; the first one: not an image",
    ):
        extract_folder(place / "bad", place / "none", size=SIZE, progress=False)
    with pytest.raises(NotFound, match="There is no folder"):
        extract_folder(place / "nowhere", place / "none2")
    with pytest.raises(BadValue, match="expected a whole number of pixels"):
        extract_folder(place / "bad", place / "none2", size=5)
    assert not (place / "none2").exists()


def test_what_a_kill_leaves_beside_is_nothing(place, whole):
    out = place / "left"
    out.mkdir()
    # Killed while the plan was written.
    for name in (".0123456789abcdef.tmp", ".lock", ".lock.pid"):
        (out / name).write_text("half")
    assert module._state(out) == "empty"
    extract_folder(place / "photos", out, size=SIZE, progress=False)
    assert sorted(os.listdir(out)) == ["extract.json", "features.npy", "index.csv"]
    # Killed while it tidied up.
    for name in (".0123456789abcdef.tmp", ".plan.json", ".journal-0"):
        (out / name).write_text("half")
    extract_folder(place / "photos", out, size=SIZE, resume=True, progress=False)
    assert sorted(os.listdir(out)) == ["extract.json", "features.npy", "index.csv"]
    (out / "extract.json").rename(out / "0123456789abcdef.tmp")
    assert module._state(out) == "other"


def test_a_finished_one_is_not_another_folders(place, whole):
    with pytest.raises(
        BadValue, match="The images have changed since .*whole was begun"
    ):
        extract_folder(
            place / "photos/cats",
            place / "whole",
            size=SIZE,
            resume=True,
            progress=False,
        )


def test_folders_that_cannot_be_looked_into(place, monkeypatch):
    with pytest.raises(NotFound, match="There is no folder"):
        extract_folder(place / ("x" * 300), place / "none3", progress=False)
    forbidden, scan = place / "forbidden", os.scandir
    forbidden.mkdir()

    def scandir(path):
        if Path(path) == forbidden:  # permissions do not bind root
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(
        BadValue, match="forbidden cannot be read: permission denied. Mend that"
    ):
        extract_folder(forbidden, place / "none3", progress=False)
    assert not (place / "none3").exists()


def test_blocks_are_whole_batches_and_few_wait(monkeypatch):
    for size in (16, 64, 160, 224, 225, 256, 384, 512, 1000, 2048):
        for batch in (8, 16, 32, 64):
            block = module._block(size, batch)
            assert block % batch == 0 and (
                block == 64
                if size <= 224
                else block == batch or block * size**2 <= 64 * 224**2
            )
            for cores, streams, world in (
                (1, 1, 1),
                (2, 2, 1),
                (64, 1, 1),
                (64, 2, 1),
                (64, 2, 8),
            ):
                monkeypatch.setattr(os, "cpu_count", lambda n=cores: n)
                threads, depth = module._in_flight(
                    {"block": block, "size": size}, streams, world
                )
                blocks = depth + 1 + (streams + 1 if streams > 1 else 0)
                assert 1 <= threads <= 8 and 0 <= depth <= 16
                assert depth == 0 or blocks * block * size**2 * 3 <= module.ROOM
                assert size > 224 or (threads, depth) == (
                    t := max(1, min(8, cores // world)),
                    2 * t,
                )


def test_large_images_do_not_fill_the_memory(place, whole, monkeypatch):
    import weakref

    alive, most, decode = set(), [], module._decode

    def counted(*args):
        block, images, skipped = decode(*args)
        alive.add(block)
        weakref.finalize(
            images.base if images.base is not None else images, alive.discard, block
        )
        most.append(len(alive))
        return block, images, skipped

    monkeypatch.setattr(module, "_decode", counted)
    monkeypatch.setattr(module, "BLOCK", 16)
    monkeypatch.setattr(module, "ROOM", 5 * 16 * SIZE**2 * 3)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    info = extract_folder(
        place / "photos", place / "bounded", size=SIZE, progress=False
    )
    # One more: a block is counted before another is let go.
    assert info["block"] == 16 and len(most) == 13 and max(most) <= 6
    assert (place / "bounded/features.npy").read_bytes() == whole[1]


@pytest.mark.parametrize("times", [1, 2])
def test_blocks_that_got_lost_are_done_again(place, whole, monkeypatch, times):
    out, work, calls = place / f"lost{times}", module._work, []

    # As another machine that reported its end, and whose last line never reached the
    # disk.
    def forgetful(*args):
        work(*args)
        calls.append(args[4])
        journal = out / ".journal-0"
        if len(calls) <= times:
            journal.write_bytes(
                b"\n".join(journal.read_bytes().splitlines()[:-1]) + b"\n"
            )

    monkeypatch.setattr(module, "_work", forgetful)
    if times == 2:
        with pytest.raises(
            Damaged,
            match=(
                r"^14 rows could not be kept in .*lost2: "
                r".* run again with --resume\.$"
            ),
        ):
            extract_folder(place / "photos", out, size=SIZE, progress=False)
        assert (
            module._state(out) == "unfinished" and not (out / "extract.json").exists()
        )
    info = extract_folder(
        place / "photos", out, size=SIZE, progress=False, resume=times == 2
    )
    assert [list(c) for c in calls] == [[0, 1, 2, 3], [3], [3]][: times + 1]
    assert (out / "features.npy").read_bytes() == whole[1] and info["skipped"] == whole[
        0
    ]["skipped"]


def test_lines_of_the_journal_are_whole_though_the_disk_takes_them_in_parts(
    place, whole, monkeypatch
):
    import builtins
    import io

    class Slow(io.FileIO):
        def write(self, data):
            return super().write(bytes(data[:5]))

    real = builtins.open
    monkeypatch.setattr(
        module,
        "open",
        lambda f, m="r", *a, **k: (
            Slow(f, m) if ".journal" in str(f) else real(f, m, *a, **k)
        ),
        raising=False,
    )
    calls, work = [], module._work
    monkeypatch.setattr(module, "_work", lambda *args: (calls.append(1), work(*args)))
    extract_folder(place / "photos", place / "slowly", size=SIZE, progress=False)
    assert len(calls) == 1 and (place / "slowly/features.npy").read_bytes() == whole[1]


@pytest.mark.parametrize(
    "error",
    [
        OSError(5, "Input/output error"),
        PermissionError(13, "Permission denied"),
        MemoryError(),
    ],
)
def test_what_the_system_refused_is_read_again_when_resumed(
    place, whole, monkeypatch, error
):
    from transfer_course.engine import files

    out, content = place / f"away-{type(error).__name__}", files._content

    def away(path, max_bytes):
        if str(path).endswith("000.jpg"):
            raise (
                error
                if isinstance(error, MemoryError)
                else files._Refused(files._why_no_file(path, error))
            )
        return content(path, max_bytes)

    with monkeypatch.context() as m:
        m.setattr(files, "_content", away)
        stopped(m, 3, out, place)
    reasons = [r for e in module._lines(out) for r in e["skipped"].values()]
    assert any(
        r.startswith(("cannot be read: ", "too many pixels for this memory"))
        for r in reasons
    )
    info = extract_folder(place / "photos", out, size=SIZE, progress=False, resume=True)
    assert (out / "features.npy").read_bytes() == whole[1] and info["skipped"] == whole[
        0
    ]["skipped"]


def test_of_two_lines_for_a_block_the_better_one_counts(place):
    rows = RowFile(place / "two.npy", 2, 1)
    plan = {"files": [["a", 1, 1], ["b", 1, 1]], "settings": {"block": 2}}
    (place / "two").mkdir()
    bad, good = (
        {"block": 0, "sum": module.zlib.crc32(bytes(4 * n)), "skipped": s}
        for n, s in ((1, {"1": "no such file"}), (2, {}))
    )
    for first, second in ((bad, good), (good, bad)):
        (place / "two/.journal-0").write_text(json.dumps(first) + "\n")
        (place / "two/.journal-1").write_text(json.dumps(second) + "\n")
        assert module._finished(place / "two", rows, plan) == {0: {}}


@pytest.mark.parametrize(
    "kind, words",
    [
        ("openvino", "OpenVINO is not installed.*. Install it, or"),
        ("cuda", ".*. Go on where it can, or"),
    ],
)
def test_an_engine_that_is_not_here_is_said(place, monkeypatch, kind, words):
    from transfer_course.engine import engines
    from transfer_course.engine.errors import MissingExtra

    def missing(*args):
        raise MissingExtra(
            "OpenVINO is not installed. Install it with: pip install "
            "'transfer_course[fast]'"
        )

    out = place / f"begun-with-{kind}"
    stopped(monkeypatch, 1, out, place)
    plan = json.loads((out / ".plan.json").read_text())
    plan["settings"]["engine"] = kind
    (out / ".plan.json").write_text(json.dumps(plan))
    monkeypatch.setitem(engines.ENGINES, kind, missing)
    with pytest.raises(
        BadValue,
        match=(
            rf"was begun with the engine '{kind}', which can't run here \({words} "
            r"choose another folder"
        ),
    ):
        extract_folder(place / "photos", out, size=SIZE, resume=True, progress=False)


class Several:
    """What accelerate says in one process of two that torchrun started."""

    num_processes = 2

    def __init__(self, rank):
        self.process_index, self.is_main_process = rank, rank == 0

    def wait_for_everyone(self):
        raise AssertionError("nobody works")

    def destroy_process_group(self):
        self.left = True


def test_others_load_nothing_before_the_first_process_has(place, monkeypatch):
    state = Several(1)
    monkeypatch.setattr(module, "processes", lambda: state)
    monkeypatch.setattr(module._Team, "tell", lambda self, value: None)
    assert (
        extract_folder(
            place / "photos", place / "none4", backbone="wrong", progress=False
        )
        is None
        and state.left
    )


def test_the_farewell_does_not_hide_what_went_wrong(place, monkeypatch):
    said = []

    def tell(self, value):
        said.append(value)
        raise RuntimeError("Connection closed by peer")  # the others are gone already

    monkeypatch.setattr(module, "processes", lambda: Several(0))
    monkeypatch.setattr(module._Team, "tell", tell)
    with pytest.raises((BadValue, NotFound), match="wrong"):
        extract_folder(
            place / "photos", place / "none4", backbone="wrong", progress=False
        )
    assert said == [None]


def test_processes_wait_long_for_one_another(monkeypatch):
    import types

    from transfer_course.engine import frameworks

    asked = {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(
        sys.modules,
        "accelerate",
        types.SimpleNamespace(PartialState=lambda **options: asked.update(options)),
    )
    frameworks.processes()
    assert asked["timeout"].total_seconds() > 24 * 3600


def test_two_processes_on_one_folder(place):
    with module._claimed(place / "held", False), pytest.raises(InUse, match="already"):
        extract_folder(place / "photos", place / "held", size=SIZE, progress=False)
    code = (
        "import sys; from pathlib import Path; "
        "from transfer_course.practice.extract_folder import _claimed\n"
        "with _claimed(Path(sys.argv[1]), False): print('held', flush=True); input()"
    )
    p = subprocess.Popen(
        [sys.executable, "-c", code, str(place / "held")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert p.stdout.readline() == "held\n"
    for resume in (False, True):
        with pytest.raises(InUse, match=f"by another process .pid {p.pid}"):
            extract_folder(
                place / "photos",
                place / "held",
                size=SIZE,
                progress=False,
                resume=resume,
            )
    p.communicate("\n")


def test_fast_jpeg_gives_other_features_near_the_exact_ones(place):
    rng, y = np.random.default_rng(0), np.linspace(0, 255, 300)[:, None, None]
    (place / "large").mkdir()
    for i in range(4):
        Image.fromarray(
            np.uint8(np.clip(y + rng.normal(0, 9, (300, 300, 3)), 0, 255))
        ).save(place / "large" / f"{i}.jpg")
    extract_folder(place / "large", place / "exact", size=SIZE, progress=False)
    extract_folder(
        place / "large", place / "fast", size=SIZE, progress=False, fast_jpeg=True
    )
    a, b = (np.load(place / n / "features.npy") for n in ("exact", "fast"))
    assert 0 < np.abs(a - b).mean() < 0.5 * np.abs(a).mean()


def killed_and_resumed(place, out, moments):
    """The command, killed at each of these moments (seconds), then resumed.

    Returns the bytes of features.npy.
    """
    command = [
        *COMMAND,
        str(place / "photos"),
        "--out",
        str(out),
        "--size",
        str(SIZE),
        "--resume",
        "--json",
    ]
    for t in moments:
        p = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        begin = time.perf_counter()
        while (
            p.poll() is None
            and not (out / module._PLAN).exists()
            and time.perf_counter() - begin < 60
        ):
            time.sleep(0.01)
        time.sleep(t)
        p.send_signal(signal.SIGKILL)
        p.wait()
    done = subprocess.run(command, capture_output=True, text=True)
    assert (
        done.returncode == 0 and json.loads(done.stdout.splitlines()[-1])["n"] == 203
    ), done.stderr
    return (out / "features.npy").read_bytes()


posix = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX")


@posix
def test_killed_and_resumed_it_ends_with_the_same_bits(place, whole):
    assert killed_and_resumed(place, place / "killed", [0.05]) == whole[1]


@posix
@pytest.mark.stress
def test_killed_many_times_and_resumed_it_ends_with_the_same_bits(place, whole):
    rng = random.Random(0)
    for i in range(10):
        assert (
            killed_and_resumed(
                place, place / f"killed{i}", [rng.random() / 2 for _ in range(3)]
            )
            == whole[1]
        )


def test_two_processes_of_torchrun_share_the_work(place, whole):
    out = place / "shared"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "-m",
        *COMMAND[2:],
        str(place / "photos"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--out", str(out), "--size", str(SIZE), "--json"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    answers = [
        json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")
    ]
    assert len(answers) == 1 and answers[0]["processes"] == 2 and answers[0]["n"] == 203
    assert (
        np.abs(
            np.load(out / "features.npy") - np.load(place / "whole/features.npy")
        ).max()
        < 1e-5
    )
    if __import__("torch").get_num_threads() == 1:
        assert (out / "features.npy").read_bytes() == whole[1]
    assert done.stderr.count("still to do") == 1
    again = subprocess.run(
        [*command, "--out", str(out)], capture_output=True, text=True, env=environment
    )
    assert (
        again.returncode != 0
        and again.stderr.count("error: ") == 1
        and "holds a finished run" in again.stderr
    )
    wrong = subprocess.run(
        [*command, "--out", str(place / "never"), "--backbone", "wrong"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert (
        wrong.returncode != 0
        and wrong.stderr.count("error: ") == 1
        and "There is no backbone 'wrong'" in wrong.stderr
    ), wrong.stderr
