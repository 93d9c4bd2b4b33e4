"""Saved runs.

They are whole or not there, whoever is killed when; there is one writer at a time, and
mistakes are told in clear sentences.
"""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from transfer_course.engine.errors import (
    BadValue,
    Damaged,
    InUse,
    NoRoom,
    NotFound,
    UserMistake,
)
from transfer_course.engine.runs import (
    claim_folder,
    jsonable,
    read_run,
    save_run,
    state_of,
    versions,
)

INFO = dict(
    backbone={"name": "small_cnn"},
    classes=["猫", "قط", "🐈", "caf\udce9"],
    history=[{"loss": math.nan}],
)


def write(data):
    return lambda path: path.write_bytes(data)


def save(folder, data=b"weights", framework="torch", **info):
    # Given, because looking them up takes a while.
    info = INFO | {"versions": {"numpy": np.__version__}} | info
    return save_run(folder, framework=framework, write_model=write(data), info=info)


def hidden(folder):
    return sorted(n for n in os.listdir(folder) if n.startswith("."))


# ---- what run.json holds

plain = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.floats(width=32).map(np.float32)
)
values = st.recursive(
    plain,
    lambda s: (
        st.lists(s)
        | st.tuples(s, s)
        | st.dictionaries(st.text() | st.integers(), s)
        | st.sets(st.integers())
    ),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(values)
@example(math.nan)
@example({"a": [np.float32("inf")]})
def test_jsonable_is_strict_json(value):
    text = json.dumps(jsonable(value), allow_nan=False, ensure_ascii=False)
    text.encode("utf-8")  # no lone surrogates either
    assert jsonable(json.loads(text)) == json.loads(text)


def test_jsonable_keeps_and_names():
    class Skipped(NamedTuple):
        path: str
        reason: str

    assert jsonable([Skipped("a", "b")]) == [{"path": "a", "reason": "b"}]
    value = {"a": np.arange(3), "b": np.bool_(True), "c": Path("x"), "d": (1, 2)}
    assert jsonable(value) == {"a": [0, 1, 2], "b": True, "c": "x", "d": [1, 2]}
    with pytest.raises(BadValue, match=r"info\['a'\]\[1\].*object"):
        jsonable({"a": [1, object()]})


def test_versions_import_nothing():
    code = (
        "import sys; from transfer_course.engine.runs import versions; "
        "v = versions(); "
        "print(v['python'], v['numpy'], [m for m in ('torch', 'tensorflow', "
        "'keras') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert (
        out[0] == ".".join(map(str, sys.version_info[:3]))
        and out[1] == np.__version__
        and out[2] == "[]"
    )
    assert versions()["python"] == out[0]


# ---- there and back


@pytest.mark.parametrize(
    "framework, file", [("torch", "model.safetensors"), ("keras", "model.keras")]
)
def test_round_trip(tmp_path, framework, file):
    folder = save(
        tmp_path / "läufe" / "猫", framework=framework, size=96, versions=None
    )
    info, model = read_run(folder)
    assert model == folder / file and model.read_bytes() == b"weights"
    assert info["format"] == 1 and info["framework"] == framework and info["size"] == 96
    assert info["classes"] == ["猫", "قط", "🐈", "caf\\xe9"] and info["history"] == [
        {"loss": None}
    ]
    assert {"created", "model_sha256"} <= info.keys() and info["versions"][
        "numpy"
    ] == np.__version__
    assert sorted(os.listdir(folder)) == [file, "run.json"]
    # Readable, not escaped.
    assert "猫" in (folder / "run.json").read_text(encoding="utf-8")


def test_saving_again_replaces(tmp_path):
    folder = save(tmp_path / "run", b"old", "keras")
    (folder / "report.html").write_text("of the old run")
    (folder / "notes.txt").write_text("the learner's")
    save(folder, b"new", "torch")
    assert read_run(folder)[1].read_bytes() == b"new"
    assert sorted(os.listdir(folder)) == ["model.safetensors", "notes.txt", "run.json"]


def test_never_into_a_folder_of_something_else(tmp_path):
    (tmp_path / "cat.jpg").write_bytes(b"x")
    for folder in (tmp_path, tmp_path / "cat.jpg"):
        with pytest.raises(BadValue, match="another folder|a folder"):
            save(folder)
        with pytest.raises(BadValue), claim_folder(folder):
            pass
    assert os.listdir(tmp_path) == ["cat.jpg"]


@pytest.mark.parametrize(
    "error, kind",
    [
        (OSError(errno.ENOSPC, "No space left on device"), NoRoom),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_failing_writer_leaves_the_old_run(tmp_path, error, kind):
    folder = save(tmp_path / "run", b"old")

    def fail(path):
        path.write_bytes(b"half")
        raise error

    with pytest.raises(kind):
        save_run(folder, framework="torch", write_model=fail, info=INFO)
    assert read_run(folder)[1].read_bytes() == b"old" and not hidden(folder)


def test_bad_arguments(tmp_path):
    with pytest.raises(BadValue, match="torch"):
        save(tmp_path / "a", framework="jax")
    with pytest.raises(BadValue, match="wrote no file"):
        save_run(
            tmp_path / "b", framework="torch", write_model=lambda p: None, info=INFO
        )
    with pytest.raises(BadValue, match="type object"):
        save(tmp_path / "c", extra=object())
    assert not (tmp_path / "a").exists() and not (tmp_path / "c").exists()


# ---- damage

spoiled = {
    "other model": (lambda f: (f / "model.safetensors").write_bytes(b"x"), "checksum"),
    "no model": (lambda f: (f / "model.safetensors").unlink(), "is missing"),
    "no JSON": (lambda f: (f / "run.json").write_text("{"), "no JSON"),
    "no UTF-8": (lambda f: (f / "run.json").write_bytes(b"\xff\xfe"), "no text"),
    "a list": (lambda f: (f / "run.json").write_text("[1]"), "does not describe"),
    "deep": (lambda f: (f / "run.json").write_text("[" * 100_000), "no JSON"),
    "newer": (lambda f: (f / "run.json").write_text('{"format": 2}'), "newer"),
    "no keys": (
        lambda f: (f / "run.json").write_text('{"format": 1}'),
        "lacks 'framework'",
    ),
}


@pytest.mark.parametrize("how", spoiled)
def test_damage_is_named(tmp_path, how):
    change, words = spoiled[how]
    change(save(tmp_path / "run"))
    with pytest.raises(Damaged, match=words) as e:
        read_run(tmp_path / "run")
    assert "\n" not in str(e.value)


def test_classes_and_framework_are_checked(tmp_path):
    folder = save(tmp_path / "run")
    info = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    for key, value in (
        ("classes", "cat"),
        ("framework", "../../etc"),
        ("model_sha256", None),
        ("backbone", []),
    ):
        (folder / "run.json").write_text(json.dumps(info | {key: value}))
        with pytest.raises(Damaged):
            read_run(folder)


def test_not_there(tmp_path):
    (tmp_path / "file").touch()
    for folder, words in (
        (tmp_path / "x", "no folder"),
        (tmp_path / "file", "is a file"),
        (tmp_path, "no run.json"),
    ):
        with pytest.raises(NotFound, match=words):
            read_run(folder)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.binary(max_size=60) | values.map(lambda v: json.dumps(jsonable(v)).encode()))
def test_any_run_json_is_read_or_refused(tmp_path, data):
    (tmp_path / "run.json").write_bytes(data)
    with pytest.raises((Damaged, NotFound)):
        read_run(tmp_path)


# ---- killed

STEPS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"}


def die_at(step, action):
    """Do `action` in a forked process that ends before its `step`-th file operation.

    It ends as if killed.
    """
    pid = os.fork()
    if pid == 0:
        count = [0]

        def hook(event, args):
            if event in STEPS:
                count[0] += 1
                if count[0] > step:
                    os._exit(9)

        sys.addaudithook(hook)
        try:
            action()
        except BaseException:
            os._exit(7)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("first, then", [(None, "keras"), ("torch", "torch")])
def test_killed_at_any_step(tmp_path, first, then):
    """At every file operation of a save there is the old run or the new one, whole.

    The next save leaves nothing behind.
    """
    seen, ends = set(), set()
    for step in range(200):
        folder = tmp_path / f"run{step}"
        if first:
            save(folder, b"old", first)
        code = die_at(step, lambda: save(folder, b"new", then))  # noqa: B023
        assert code in (0, 9)
        ends.add(code)
        try:
            seen.add(read_run(folder)[1].read_bytes())
        except NotFound:
            seen.add(None)
        save(folder, b"next", then)
        model = "model.safetensors" if then == "torch" else "model.keras"
        assert (
            sorted(os.listdir(folder)) == [model, "run.json"]
            and read_run(folder)[1].read_bytes() == b"next"
        )
        if code == 0:
            break
    # It was killed often, and came through in the end.
    assert ends == {0, 9} and step > 10
    assert seen == ({b"old", b"new"} if first else {None, b"new"})


HOLD = """import sys, time; from transfer_course.engine.runs import claim_folder
with claim_folder(sys.argv[1]) as f:
    (f / "snapshot.npz").touch(); print("held", flush=True); time.sleep(60)"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "run"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_claimed_by_another_process(tmp_path, holder):
    folder = tmp_path / "run"
    for claim in (
        lambda: claim_folder(folder),
        lambda: claim_folder(folder, resume=True),
    ):
        with (
            pytest.raises(InUse, match=rf"another process \(pid {holder.pid}\)"),
            claim(),
        ):
            pass
    with pytest.raises(InUse, match="another process"):
        save(folder)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert state_of(folder) == "unfinished"
    with pytest.raises(BadValue, match="interrupted.*--resume"), claim_folder(folder):
        pass
    with claim_folder(folder, resume=True):  # a dead process blocks nobody
        save(folder)
    assert state_of(folder) == "run" and not hidden(folder)


# ---- claims within one process


def test_claim_and_save(tmp_path):
    folder = tmp_path / "deep" / "run"
    with claim_folder(folder) as claimed:
        assert claimed == folder and state_of(folder) == "empty"
        with pytest.raises(InUse, match="this process"), claim_folder(folder):
            pass
        save(folder)
        (folder / "report.html").touch()
    assert sorted(os.listdir(folder)) == [
        "model.safetensors",
        "report.html",
        "run.json",
    ]
    with pytest.raises(BadValue, match="finished run.*--out"), claim_folder(folder):
        pass
    with claim_folder(folder, resume=True):
        pass
    assert read_run(folder)


def test_a_claim_that_fails_leaves_no_litter(tmp_path):
    (tmp_path / "mine").mkdir()
    for folder in (tmp_path / "new", tmp_path / "mine"):
        with pytest.raises(UserMistake), claim_folder(folder):
            raise BadValue("fewer than two classes")
    assert os.listdir(tmp_path) == ["mine"] and os.listdir(tmp_path / "mine") == []


def test_leftovers_of_a_killed_claim_are_as_good_as_empty(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (".lock", ".lock.pid", ".DS_Store"):
        (folder / name).write_text("1")
    (folder / ".saving-abcd").mkdir()
    assert state_of(folder) == "empty"
    with claim_folder(folder):
        save(folder)
    assert sorted(os.listdir(folder)) == [".DS_Store", "model.safetensors", "run.json"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_new_run_on_a_disk_that_became_read_only(tmp_path, monkeypatch):
    """Complete but not yet in its place, and nothing can be moved any more.

    It is read where it is.
    """
    folder, step = save(tmp_path / "run", b"old"), 0
    while not (folder / ".ready").is_dir():
        die_at(step, lambda: save(folder, b"new"))
        step += 1

    def refuse(*args):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "replace", refuse)
    assert read_run(folder)[1].read_bytes() == b"new"


def hammer(folder, data, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            save(folder, data * 1000)
        except InUse:
            time.sleep(0.001)


def test_a_reader_waits_for_a_writer_that_had_to_wait(tmp_path):
    folder = save(tmp_path / "run", b"a" * 1000)
    new = save(tmp_path / "new", b"b" * 1000)
    os.replace(new / "run.json", folder / "run.json")
    model = folder / "model.safetensors"
    late = threading.Timer(0.03, os.replace, (new / model.name, model))
    late.start()
    assert Path(read_run(folder)[1]).read_bytes() == b"b" * 1000
    late.join()


def test_two_writers_and_a_reader(tmp_path):
    folder = save(tmp_path / "run", b"a" * 1000)
    context = get_context("fork" if hasattr(os, "fork") else "spawn")
    writers = [
        context.Process(target=hammer, args=(folder, d, 1.0)) for d in (b"b", b"c")
    ]
    for w in writers:
        w.start()
    seen = set()
    while any(w.is_alive() for w in writers):
        data = Path(read_run(folder)[1]).read_bytes()
        seen.add(data[:1])
    assert [w.exitcode for w in writers] == [0, 0] and len(seen) > 1
    save(folder)
    assert not hidden(folder)
