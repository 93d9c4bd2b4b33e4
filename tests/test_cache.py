"""engine.cache and engine.extraction.

What is kept is right, and nothing that happens to the disk stops a run.
"""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_course.engine import cache as cache_module
from transfer_course.engine import extraction
from transfer_course.engine.cache import FeatureCache, cache_dir
from transfer_course.engine.errors import BadValue
from transfer_course.engine.extraction import RowFile, cached_features, extract_features

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX files")
DIM = 40


def truth(names, dim=DIM):
    """The one right row of every name."""
    return np.stack(
        [np.random.default_rng(int(n)).normal(size=dim) for n in names]
    ).astype(np.float32)


@contextmanager
def silence():
    """No warning at all."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A cache of its own for each test."""
    monkeypatch.setenv("TRANSFER_COURSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def right_or_missing(cache, names):
    """How many of `names` are found; what is found is right."""
    rows, found = cache.get(names)
    assert (rows[found] == truth(names, cache.dim)[found]).all() and not rows[
        ~found
    ].any()
    return int(found.sum())


# --- rows -----------------------------------------------------------------------------


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.booleans(), st.lists(st.integers(0, 9), max_size=8)), max_size=8
    ),
    st.integers(1, 5),
)
def test_it_behaves_as_a_dictionary(tmp_path_factory, steps, dim):
    cache, model = FeatureCache("k", dim, tmp_path_factory.mktemp("c")), {}
    with silence():
        for i, (write, names) in enumerate(steps):
            names = [str(n) for n in names]
            if write:
                rows = np.arange(len(names) * dim).reshape(len(names), dim) + 1000 * i
                cache.put(names, rows)
                model.update(zip(names, rows, strict=True))
            else:
                rows, found = cache.get(names)
                assert (
                    rows.dtype == np.float32
                    and rows.shape == (len(names), dim)
                    and found.dtype == bool
                )
                for n, r, f in zip(names, rows, found, strict=True):
                    assert (
                        f == (n in model) and (r == model.get(n, np.zeros(dim))).all()
                    )


def test_more_names_than_sqlite_takes_at_once(folder, monkeypatch):
    def old(path, connect=cache_module._connect):  # before 3.32 it took 999
        (db := connect(path)).setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 999)
        return db

    monkeypatch.setattr(cache_module, "_connect", old)
    names = [str(i) for i in range(2500)]
    cache = FeatureCache("k", 3)
    cache.put(names[::2], truth(names[::2], 3))
    rows, found = cache.get(names[::-1] + names)
    assert (
        found[2500:].tolist()
        == found[2499::-1].tolist()
        == [i % 2 == 0 for i in range(2500)]
    )
    assert (rows[2500:][::2] == truth(names[::2], 3)).all() and (
        rows[:2500] == rows[2500:][::-1]
    ).all()


def test_every_key_and_width_has_its_own_file(folder):
    caches = [
        FeatureCache(k, d)
        for k, d in [
            ("a", 3),
            ("b", 3),
            ("a", 4),
            ("1 a", 3),
            ("../../etc", 3),
            ("", 3),
            ("é\udcff", 3),
        ]
    ]
    assert len({c.path for c in caches}) == 7 and {c.path.parent for c in caches} == {
        folder
    }
    caches[0].put(["1"], truth(["1"], 3))
    assert [bool(c.get(["1"])[1][0]) for c in caches] == [True, *[False] * 6]
    assert (
        FeatureCache("a", 3).path
        == caches[0].path
        != FeatureCache("a", 3, folder / "other").path
    )
    assert "'a', 3" in repr(caches[0])


def test_wrong_values_are_refused():
    cache = FeatureCache("k", 3)
    for dim in (0, -1, 2.0, "3", True):
        with pytest.raises(BadValue, match="dim"):
            FeatureCache("k", dim)
    for rows in (np.zeros((2, 4)), np.zeros((1, 3)), np.zeros(6)):
        with pytest.raises(BadValue, match="expected"):
            cache.put(["1", "2"], rows)
    assert not cache.path.exists()
    cache.put([], np.zeros((0, 3)))
    assert cache.get([])[0].shape == (0, 3)


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("TRANSFER_COURSE_CACHE", "~/x")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "x"
    monkeypatch.setenv("TRANSFER_COURSE_CACHE", "")
    assert "transfer_course" in str(cache_dir()) and not cache_dir().exists()


def test_a_large_cache_is_fast(folder):
    names = [str(i) for i in range(5000)]
    rows = np.random.default_rng(0).normal(size=(5000, 1280)).astype(np.float32)
    cache, start = FeatureCache("k", 1280), time.perf_counter()
    cache.put(names, rows)
    got, found = cache.get(names)
    assert found.all() and (got == rows).all()
    # A fifth of a second, where nobody else is computing.
    assert time.perf_counter() - start < 5


# --- damage ---------------------------------------------------------------------------

NAMES = [str(i) for i in range(60)]


def filled(folder):
    """A cache of 60 rows, and its file's bytes."""
    cache = FeatureCache("k", DIM, folder)
    cache.put(NAMES, truth(NAMES))
    return cache, cache.path.read_bytes()


def test_a_flipped_byte_in_a_row_is_a_missing_row(folder):
    cache, data = filled(folder)
    for name in ("0", "31", "59"):
        at = data.index(truth([name]).tobytes()) + 17
        cache.path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        with silence():
            assert (
                right_or_missing(cache, NAMES) == 59 and not cache.get([name])[1].any()
            )
    with silence():
        cache.put(["59"], truth(["59"]))
        assert right_or_missing(cache, NAMES) == 60


def test_rows_that_changed_places_are_missing(folder):
    cache, _ = filled(folder)
    with closing(sqlite3.connect(cache.path)) as db, db:
        db.execute(
            "UPDATE features SET name = CASE name WHEN ? THEN ? ELSE name END",
            (b"3", b"300"),
        )
        db.execute(
            "UPDATE features SET row = (SELECT row FROM features WHERE name = ?) "
            "WHERE name = ?",
            (b"5", b"4"),
        )
        short = (cache_module._crc(b"6", b"four"), b"four", b"6")
        db.execute("UPDATE features SET crc = ?, row = ? WHERE name = ?", short)
        db.execute("UPDATE features SET row = NULL WHERE name = ?", (b"7",))
        db.execute("UPDATE features SET crc = 'text' WHERE name = ?", (b"8",))
        db.execute(
            "UPDATE features SET row = CAST(x'ff' AS TEXT) WHERE name = ?", (b"9",)
        )
    with silence():
        assert right_or_missing(cache, [*NAMES, "300"]) == 54


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["flip", "flips", "header", "cut", "zeros", "page"]),
)
def test_any_damage_gives_right_rows_or_none(tmp_path_factory, seed, kind):
    cache, data = filled(tmp_path_factory.mktemp("c"))
    rng, data = random.Random(seed), bytearray(data)
    if kind == "cut":
        data = data[: rng.randrange(len(data))]
    elif kind == "zeros":
        at = rng.randrange(len(data))
        data[at : at + 4096] = bytes(min(4096, len(data) - at))
    elif kind == "page":
        a, b = (16384 * rng.randrange(len(data) // 16384) for _ in range(2))
        data[a : a + 16384] = data[b : b + 16384]
    else:
        for _ in range({"flip": 1, "flips": 50, "header": 3}[kind]):
            data[rng.randrange(100 if kind == "header" else len(data))] = rng.randrange(
                256
            )
    cache.path.write_bytes(data)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        right_or_missing(cache, NAMES)
        cache.put(NAMES, truth(NAMES))
        found = right_or_missing(cache, NAMES)
    assert all("The feature cache" in str(w.message) for w in said)
    # a damaged index may hide a row from its name for good: it is computed each time,
    # and never another's
    assert found > 30 or said


@pytest.mark.parametrize(
    "content",
    [b"no database " * 99, b"SQLite format 3\0" + b"\xff" * 5000, b"\0" * 99999],
)
def test_a_broken_file_is_set_aside_and_its_journal_harms_no_other(folder, content):
    cache, data = filled(folder)
    cache.path.write_bytes(content)
    (folder / f"{cache.path.name}-journal").write_bytes(
        b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + b"\0\0\0\1" * 200
    )
    with pytest.warns(
        UserWarning, match=r"set aside as \w+\.damaged and begun anew\.$"
    ):
        assert right_or_missing(cache, NAMES) == 0
    assert (folder / f"{cache.path.stem}.damaged").read_bytes()[:90] == content[:90]
    with silence():
        cache.put(NAMES, truth(NAMES))
        assert right_or_missing(FeatureCache("k", DIM), NAMES) == 60


def test_a_file_of_another_make_is_set_aside(folder):
    folder.mkdir()
    cache = FeatureCache("k", DIM)
    with closing(sqlite3.connect(cache.path)) as db, db:
        db.execute("CREATE TABLE features (x)")
    with pytest.warns(UserWarning, match="begun anew"):
        cache.put(NAMES, truth(NAMES))
    with silence():
        assert right_or_missing(cache, NAMES) == 60


def test_two_who_find_the_damage_lose_nothing_new(folder, monkeypatch):
    cache, data = filled(folder)
    cache.path.write_bytes(b"no database " * 99)
    broken = cache_module._file_id(cache.path)
    # The other was quicker, and has begun a new file.
    os.replace(cache.path, folder / "elsewhere")
    other = FeatureCache("k", DIM)
    other.put(NAMES, truth(NAMES))
    with silence():
        assert cache_module._set_aside(cache.path, broken)
        assert right_or_missing(cache, NAMES) == 60


# --- a disk that says no --------------------------------------------------------------


def said_once(cache, words, reads=False):
    """Ten calls, one warning of one sentence, nothing found that was not there."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for i in range(5):
            cache.put([str(100 + i)], truth([str(100 + i)]))
            assert not cache.get([str(100 + i)])[1].any()
            assert right_or_missing(cache, NAMES) == (60 if reads else 0)
    text = [str(w.message) for w in said]
    assert (
        len(text) == 1
        and words in text[0]
        and text[0].endswith("going on without it.")
        and "\n" not in text[0]
    )


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "file").touch()
    said_once(FeatureCache("k", DIM, tmp_path / "file"), "file exists")
    said_once(FeatureCache("k", DIM, tmp_path / "file" / "below"), "not a directory")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="Linux")
def test_a_folder_that_takes_no_files():
    said_once(FeatureCache("k", DIM, "/proc/self"), "unable to open")


def test_a_file_that_may_only_be_read(folder, monkeypatch):
    cache, _ = filled(folder)
    # permissions do not bind root, so SQLite is told
    monkeypatch.setattr(
        cache_module.sqlite3,
        "connect",
        lambda p, c=sqlite3.connect, **k: c(f"file:{p}?mode=ro", uri=True, **k),
    )
    said_once(cache, "readonly", reads=True)


def test_a_full_disk(folder, monkeypatch):
    cache, data = filled(folder)

    def full(path, connect=cache_module._connect):
        (db := connect(path)).execute(f"PRAGMA max_page_count={len(data) // 16384}")
        return db

    monkeypatch.setattr(cache_module, "_connect", full)
    many = [str(i) for i in range(1000, 2000)]
    with pytest.warns(UserWarning, match="full") as said:
        for _ in range(3):
            cache.put(many, truth(many))
    assert len(said) == 1
    with silence():
        assert (
            right_or_missing(cache, NAMES) == 60 and right_or_missing(cache, many) == 0
        )
    monkeypatch.setattr(
        os,
        "mkdir",
        lambda *a, **k: (_ for _ in ()).throw(OSError(28, "No space left on device")),
    )
    said_once(FeatureCache("k", DIM, folder / "new"), "no space left on device")


def test_a_lock_that_is_not_given_back(folder, monkeypatch):
    cache, _ = filled(folder)
    monkeypatch.setattr(cache_module, "_PATIENCE", 0.2)
    with closing(sqlite3.connect(cache.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # others may still read
        start = time.perf_counter()
        said_once(cache, "locked", reads=True)
        assert time.perf_counter() - start < 2
        other.execute("COMMIT")
        other.execute("BEGIN EXCLUSIVE")
        said_once(FeatureCache("k", DIM), "locked")
    with silence():
        assert right_or_missing(FeatureCache("k", DIM), NAMES) == 60


# --- several at once ------------------------------------------------------------------

WRITER = """
import sys, warnings; warnings.simplefilter("error")
import numpy as np
from transfer_course.engine.cache import FeatureCache
def truth(names):
    rows = [np.random.default_rng(int(n)).normal(size=40) for n in names]
    return np.stack(rows).astype(np.float32)
start, end = int(sys.argv[1]), int(sys.argv[2])
cache = FeatureCache("k", 40)
print("ready", flush=True); sys.stdin.readline()
for i in range(start, end, 8):
    names = [str(n) for n in range(i, i + 8)]
    rows, found = cache.get(names)
    assert (rows[found] == truth(names)[found]).all()
    cache.put(names, truth(names))
print("done", flush=True)
"""


def writer(start, end):
    """Another process that writes rows start … end.

    It writes eight of them each time it is sent a line.
    """
    p = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(start), str(end)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert p.stdout.readline() == "ready\n"
    return p


def test_two_processes_at_once(folder):
    both = [writer(0, 400), writer(200, 600)]
    for p in both:
        p.stdin.write("go\n")
        p.stdin.flush()
    for p in both:
        out, _ = p.communicate(timeout=60)
        assert p.returncode == 0 and out == "done\n"
    with silence():
        assert (
            right_or_missing(FeatureCache("k", DIM), [str(i) for i in range(600)])
            == 600
        )


@posix
def test_killed_at_any_moment(folder):
    rng, counts, names = random.Random(0), [], [str(i) for i in range(40_000)]
    cache = FeatureCache("k", DIM)
    for _ in range(3):
        p = writer(0, 10**7)
        with p.stdin, p.stdout:
            p.stdin.write("go\n")
            p.stdin.flush()
            time.sleep(0.1 + rng.random() / 10)
            p.send_signal(signal.SIGKILL)
            p.wait()
        with silence():
            rows, found = cache.get(names)
            counts.append(int(found.sum()))
        assert (
            counts[-1] < 40_000 and (rows[found] == truth(np.flatnonzero(found))).all()
        )
        with closing(sqlite3.connect(cache.path)) as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert counts[0] > 0 and all(c % 8 == 0 for c in counts)  # whole batches only


def test_threads(folder):
    def work(i):
        cache = shared if i % 2 else FeatureCache("k", DIM)
        for j in range(6):
            names = [str(n) for n in range(10 * j, 10 * j + 30)]
            cache.put(names, truth(names))
            assert right_or_missing(cache, names) == 30

    shared = FeatureCache("k", DIM)
    with silence(), ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))


# --- extraction -----------------------------------------------------------------------


def pictures(n, size=4):
    """n different images."""
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def means(images):
    """A network of no layers."""
    return images.mean((1, 2))


class Counter:
    """Counts what a network is asked."""

    def __init__(self, stop=None):
        self.sizes, self.stop = [], stop

    def __call__(self, images):
        if len(self.sizes) == self.stop:
            raise KeyboardInterrupt
        self.sizes.append(len(images))
        return means(images)


def test_rows_come_in_order():
    x = pictures(50)
    rows = extract_features(
        means, (x[i : i + 7] for i in range(0, 50, 7)), 50, 3, progress=False
    )
    assert rows.dtype == np.float32 and (rows == means(x).astype(np.float32)).all()
    assert extract_features(means, [], 0, 3, progress=False).shape == (0, 3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_numbers_that_are_none_are_refused_and_not_kept(value, folder):
    def broken(images):
        rows = means(images)
        rows[
            (images[:, 0, 0, 0] == x[13, 0, 0, 0])
            & (images[:, 0, 0, 1] == x[13, 0, 0, 1]),
            1,
        ] = value
        return rows

    x, names = pictures(20), [str(i) for i in range(20)]
    with pytest.raises(BadValue, match="image 13 .*Check the weights"):
        extract_features(broken, [x[:8], x[8:16], x[16:]], 20, 3, progress=False)
    # The number is the image's own, whatever is cached.
    FeatureCache("k", 3).put(names[:5], means(x[:5]))
    with pytest.raises(BadValue, match="image 13 .*Check the weights"):
        cached_features(
            "k", names, lambda i: x[i], broken, 3, batch_size=4, progress=False
        )
    assert FeatureCache("k", 3).get(names)[1].tolist() == [True] * 13 + [False] * 7


def test_wrong_shapes_and_counts_are_refused():
    x = pictures(10)
    for batches, n in [([x], 9), ([x], 11), ([x, x], 15), ([], 1)]:
        with pytest.raises(BadValue, match="batches hold"):
            extract_features(means, batches, n, 3, progress=False)
    for wrong in (
        lambda b: means(b)[:, :2],
        lambda b: means(b)[1:],
        lambda b: means(b).mean(0),
        lambda b: 1.0,
    ):
        with pytest.raises(BadValue, match="shape"):
            extract_features(wrong, [x], 10, 3, progress=False)
    with pytest.raises(BadValue, match="load gave 9 images"):
        cached_features(
            "k", list("abcdefghij"), lambda i: x[i][1:], means, 3, progress=False
        )
    with pytest.raises(BadValue, match="batch_size"):
        cached_features("k", ["a"], lambda i: x[i], means, 3, batch_size=0)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(0, 12), max_size=30),
    st.lists(st.integers(0, 12), max_size=30),
    st.integers(1, 9),
)
def test_each_distinct_image_is_computed_once(
    tmp_path_factory, first, second, batch_size
):
    x = pictures(13)
    with pytest.MonkeyPatch.context() as m:
        m.setenv("TRANSFER_COURSE_CACHE", str(tmp_path_factory.mktemp("c")))
        for asked, known in ((first, set()), (second, set(first))):
            network = Counter()
            names = [f"name {i}" for i in asked]
            rows = cached_features(
                "k",
                names,
                lambda i, a=asked: x[np.array(a)[i]],
                network,
                3,
                batch_size=batch_size,
                progress=False,
            )
            assert (
                rows.shape == (len(asked), 3)
                and (rows == means(x[asked]).astype(np.float32)).all()
            )
            new = len(set(asked) - known)
            assert sum(network.sizes) == new and len(network.sizes) == -(
                -new // batch_size
            )


def test_a_stopped_run_goes_on_where_it_was(folder):
    x, names = pictures(30), [str(i) for i in range(30)]
    with pytest.raises(KeyboardInterrupt):
        cached_features(
            "k", names, lambda i: x[i], Counter(stop=2), 3, batch_size=8, progress=False
        )
    network = Counter()
    rows = cached_features(
        "k", names, lambda i: x[i], network, 3, batch_size=8, progress=False
    )
    assert network.sizes == [8, 6] and (rows == means(x).astype(np.float32)).all()


def test_the_result_does_not_depend_on_the_cache(folder, monkeypatch):
    x, names = pictures(30), [str(i) for i in range(30)]
    want = cached_features(
        "k", names, lambda i: x[i], means, 3, cache=False, progress=False
    )
    assert not folder.exists()
    folder.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="going on without it") as said:
        got = cached_features(
            "k", names, lambda i: x[i], means, 3, batch_size=4, progress=False
        )
    assert len(said) == 1 and (got == want).all()


def test_the_bar_is_on_stderr_and_says_the_time_left(folder, capfd):
    x, names = pictures(30), [str(i) for i in range(30)]
    cached_features("k", names[:10], lambda i: x[i], means, 3, progress=False)
    out, err = capfd.readouterr()
    assert out == err == ""
    cached_features("k", names, lambda i: x[i], means, 3, label="Looking")
    out, err = capfd.readouterr()
    assert (
        out == ""
        and "Looking:  33%" in err
        and "30/30" in err
        and "left]" in err
        and "images/s" in err
    )
    # All known: nothing to wait for.
    cached_features("k", names, lambda i: x[i], means, 3)
    extract_features(means, [x], 30, 3, progress=False)
    assert capfd.readouterr() == ("", "")
    extract_features(means, [x], 30, 3)
    assert "features: 100%" in capfd.readouterr().err


def test_rows_are_written_plainly_and_whole(tmp_path, monkeypatch):
    rng, want = np.random.default_rng(0), np.zeros((500, 7), np.float32)
    rows = RowFile(tmp_path / "rows.npy", 500, 7)
    map_ = np.memmap

    # A map that is written to shares pages, and dies with SIGBUS on a full disk.
    def mapped(path, dtype, mode, *args):
        assert mode == "r"
        return map_(path, dtype, mode, *args)

    monkeypatch.setattr(np, "memmap", mapped)
    for positions in (
        np.arange(64, 128),
        rng.permutation(500)[:300],
        [3, 2, 1],
        [7, 8, 7],
        [499],
        [],
    ):
        new = rng.normal(size=(len(positions), 7))
        rows[positions] = new
        want[np.asarray(positions, int)] = new
        assert (rows[positions] == want[np.asarray(positions, int)]).all()
    rows[[0, 5]] = 1.5
    want[[0, 5]] = 1.5
    assert (np.load(tmp_path / "rows.npy") == want).all()

    class Slow(list):  # a disk that takes a few bytes at a time
        def write(self, data):
            self.append(bytes(data[:10]))
            return min(10, len(data))

    extraction._write_all(slow := Slow(), want)
    assert b"".join(slow) == want.tobytes()


FULL = """
import sys
import numpy as np
from transfer_course.engine import extraction
from transfer_course.engine.errors import NoRoom
# Some network disks cannot reserve.
extraction._reserve = lambda f, size: f.truncate(size)
rows = extraction.RowFile(sys.argv[1] + "/rows.npy", 1000, 1280)
try: rows[np.arange(1000)] = np.ones((1000, 1280))
except NoRoom as e: print(e)
"""


@posix
def test_a_disk_that_fills_is_said_and_kills_nobody(tmp_path):
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path],
        capture_output=True,
    ).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        done = subprocess.run(
            [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True
        )
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)
    assert (
        done.returncode == 0 and "can't be written: the disk is full." in done.stdout
    ), done


@pytest.mark.parametrize("older", [False, True])
def test_a_file_of_features_appears_whole_or_not_at_all(tmp_path, older):
    x, names, out = pictures(30), [str(i) for i in range(30)], tmp_path / "f.npy"

    def call(network, **k):
        return cached_features(
            "k",
            names,
            lambda i: x[i],
            network,
            3,
            batch_size=8,
            progress=False,
            out=out,
            **k,
        )

    before = (
        cached_features(
            "k",
            names,
            lambda i: x[i] // 2,
            means,
            3,
            cache=False,
            progress=False,
            out=out,
        )
        if older
        else None
    )
    kept = out.read_bytes() if older else b""

    def looking(images):
        assert (out.read_bytes() == kept) if older else not out.exists()
        return means(images)

    with pytest.raises(KeyboardInterrupt):
        call(Counter(stop=2))
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == [
        "f.npy"
    ] * older and (not older or out.read_bytes() == kept)
    rows = call(looking, cache=False)
    assert (
        isinstance(rows, np.memmap)
        and os.path.samefile(rows.filename, out)
        and (rows == means(x).astype(np.float32)).all()
    )
    assert (np.load(out) == rows).all() and sorted(
        p.name for p in tmp_path.iterdir() if p.is_file()
    ) == ["f.npy"]
    # Who had mapped the older one still has it.
    assert before is None or (before == means(x // 2).astype(np.float32)).all()


def test_a_folder_in_the_place_of_the_file_is_said_before_the_work(tmp_path):
    network = Counter()
    with pytest.raises(BadValue, match="there is a folder of this name"):
        cached_features(
            "k", ["a"], lambda i: pictures(1), network, 3, progress=False, out=tmp_path
        )
    assert not network.sizes


@posix
def test_killed_it_leaves_no_file_that_looks_whole(tmp_path):
    code = """
import os, signal, sys
import numpy as np
from transfer_course.engine.extraction import cached_features
def network(images): os.kill(os.getpid(), signal.SIGKILL)
def images(i): return np.zeros((1, 4, 4, 3), np.uint8)
cached_features("k", ["a"], images, network, 3, progress=False, out=sys.argv[1])
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "f.npy")])
    assert done.returncode == -signal.SIGKILL and not (tmp_path / "f.npy").exists()
