"""Disks that are full, read-only or gone, and machines without a network.

Each gives one sentence and the designed exit code, and no trained model is lost. The
disks are real ones, small and in memory, where this user may mount them.
"""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from hostile import encoded, picture

from transfer_course import cli
from transfer_course.engine.errors import NoRoom, UserMistake
from transfer_course.engine.runs import claim_folder, read_run, save_run, state_of
from transfer_course.practice import describing, own_folder
from transfer_course.trainer.run import load_result

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mounts of Linux")


@pytest.fixture
def disk(tmp_path):
    """`disk(megabytes)` mounts a new one and gives its folder.

    `disk.close(folder)` makes it read-only.
    """
    mounted = []

    def mount(megabytes, name="disk"):
        folder = tmp_path / f"{name}{len(mounted)}"
        folder.mkdir()
        done = subprocess.run(
            [
                "mount",
                "-t",
                "tmpfs",
                "-o",
                f"size={int(megabytes * 1024)}k",
                "tmpfs",
                folder,
            ],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    mount.close = lambda folder: subprocess.run(
        ["mount", "-o", "remount,ro", folder], check=True
    )
    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "photos"
    for c in "abc":
        (root / c).mkdir(parents=True)
        for i in range(5):
            (root / c / f"{i}.png").write_bytes(
                encoded(picture(np.random.default_rng([ord(c), i])), "PNG")
            )
    return root


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSFER_COURSE_CACHE", str(tmp_path / "cache"))


def fill(folder):
    """Leave no room on the disk of `folder`."""
    with open(Path(folder) / ".ballast", "wb", buffering=0) as f:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    f.write(bytes(size))
            except OSError as e:
                assert e.errno == errno.ENOSPC


def call(capsys, *args, code):
    """The last JSON line of a command in this process, and what it said to people."""
    with pytest.raises(SystemExit) as stop:
        cli.main([*map(str, args), "--json"])
    said = capsys.readouterr()
    assert stop.value.code == code, (said.out, said.err)
    assert "Traceback" not in said.err and "fault of ours" not in said.out, said.err
    return json.loads(said.out.splitlines()[-1]), said.err


def tune(capsys, photos, out, code, *more):
    return call(
        capsys,
        "fine-tune",
        photos,
        "--backbone",
        "small_cnn",
        "--strategy",
        "probe",
        "--size",
        32,
        "--out",
        out,
        *more,
        code=code,
    )


def refused(capsys, photos, out, words, *more):
    message = tune(capsys, photos, out, 2, *more)[0]["error"]
    assert (
        words in message
        and "\n" not in message
        and len(message) < 500 + len(str(photos)) + len(str(out))
    ), message
    return message


# --- where the run is to be saved -----------------------------------------------------


def test_an_output_that_takes_nothing_is_refused_before_training(
    photos, disk, capsys, monkeypatch, tmp_path
):
    monkeypatch.setattr(
        own_folder, "fine_tune", lambda *a, **k: pytest.fail("it trained")
    )
    full, closed = disk(0.2), disk(1)
    fill(full)
    disk.close(closed)
    (tmp_path / "file").touch()
    # an empty file has room on a disk that is full, so a full disk need not be told by
    # a lock; the model tells it
    refused(
        capsys, photos, closed / "run", "the disk is read-only. Choose another folder"
    )
    refused(capsys, photos, closed, "the disk is read-only")
    refused(capsys, photos, tmp_path / "file" / "run", "is a file")
    refused(capsys, photos, "/dev/full", "is a file")
    refused(capsys, photos, "/proc/run", "can't be written")
    refused(capsys, photos, tmp_path / ("n" * 300), "name is too long")
    refused(capsys, photos, tmp_path / "n" / ("n" * 300) / "run", "name is too long")
    assert not (tmp_path / "n").exists() or not any((tmp_path / "n").iterdir())


@pytest.mark.parametrize(
    "framework", ["torch", pytest.param("keras", marks=pytest.mark.stress)]
)
def test_a_disk_that_fills_up_while_the_model_is_written(
    photos, disk, capsys, framework
):
    out = disk(1) / "run"  # the small network takes 1.6 MB
    refused(
        capsys,
        photos,
        out,
        "the disk is full. Free some space",
        "--framework",
        framework,
    )
    left = sorted(p.name for p in out.rglob("*")) if out.exists() else []
    assert not [
        n for n in left if n not in (".lock", ".lock.pid") and "checkpoint" not in n
    ], left
    shutil.rmtree(out, ignore_errors=True)
    assert shutil.disk_usage(out.parent).free > 900_000, "half a model is left"


def test_no_room_for_the_report_keeps_the_model(photos, disk, capsys, monkeypatch):
    out, write = disk(4) / "run", describing.write_report

    def then_no_room(*args, **kwargs):
        fill(out.parent)
        write(*args, **kwargs)

    monkeypatch.setattr(describing, "write_report", then_no_room)
    message = refused(capsys, photos, out, "The model is saved in")
    assert "the disk is full" in message
    assert load_result(out).classes == ["a", "b", "c"] and not list(out.glob("report*"))
    image = next(photos.rglob("*.png"))
    assert call(capsys, "predict", out, image, code=0)[0]["class"] in "abc", (
        "the model is there and works, on a disk that takes nothing more"
    )


def test_a_deleted_output_folder_is_made_again(photos, capsys, monkeypatch, tmp_path):
    train, out = own_folder.fine_tune, tmp_path / "deep" / "run"

    def then_deleted(*args, **kwargs):
        result = train(*args, **kwargs)
        shutil.rmtree(out.parent)
        return result

    monkeypatch.setattr(own_folder, "fine_tune", then_deleted)
    tune(capsys, photos, out, 0)
    assert load_result(out).classes == ["a", "b", "c"] and {
        "report.html",
        "card.md",
    } <= set(os.listdir(out))


def test_a_limit_on_file_size_is_one_sentence(tmp_path):
    """As a shared machine sets it; in a process of its own, which keeps the limit."""
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        info = {"backbone": {}, "classes": [], "versions": {"a": 1}}
        try:
            save_run(
                tmp_path / "run",
                framework="torch",
                write_model=lambda p: p.write_bytes(bytes(10**6)),
                info=info,
            )
        except NoRoom as e:
            os._exit(0 if "does not take a file of this size" in str(e) else 3)
        os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert state_of(tmp_path / "run") in ("empty", "absent")


@pytest.mark.parametrize("error", [OSError(116, "Stale file handle"), MemoryError()])
def test_a_checkpoint_that_cannot_be_written_is_told_once_and_tried_again(
    tmp_path, monkeypatch, error
):
    from transfer_course.engine import checkpoints

    kept, write = checkpoints.Checkpoint(tmp_path, {}), checkpoints.atomic_write

    def broken(path):
        raise error

    monkeypatch.setattr(checkpoints, "atomic_write", broken)
    with pytest.warns(
        UserWarning, match="No checkpoint could be written.*Training goes on"
    ) as said:
        kept.save({"w": np.ones(3)}, {"epoch": 1})
        kept.save({"w": np.ones(3)}, {"epoch": 2})
    assert len(said) == 1 and kept.load() is None
    monkeypatch.setattr(checkpoints, "atomic_write", write)
    kept.save({"w": np.ones(3)}, {"epoch": 3})
    assert kept.load()[1] == {"epoch": 3}


def test_what_can_hold_nothing_out_is_refused_before_training(
    tmp_path, capsys, monkeypatch
):
    from PIL import Image

    for c in "ab":
        (tmp_path / "photos" / c).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (40, 40), (0, 0, ord(c))).save(
                tmp_path / "photos" / c / f"{i}.png"
            )
    monkeypatch.setattr(
        own_folder, "fine_tune", lambda *a, **k: pytest.fail("it trained")
    )
    refused(capsys, tmp_path / "photos", tmp_path / "run", "Add a different picture")
    assert not (tmp_path / "run").exists()


def test_keras_under_torchrun_is_refused(monkeypatch, tmp_path, photos):
    from types import SimpleNamespace

    alone = SimpleNamespace(
        process_index=0,
        num_processes=2,
        is_main_process=True,
        wait_for_everyone=lambda: None,
    )
    monkeypatch.setattr(own_folder, "processes", lambda: alone)
    with pytest.raises(UserMistake, match="without torchrun"):
        own_folder.tune_folder(photos, tmp_path / "run", framework="keras")


def test_an_old_run_stays_when_the_new_one_finds_no_room(disk):
    folder = disk(2) / "run"
    info = {"backbone": {}, "classes": [], "versions": {"a": 1}}
    save_run(
        folder,
        framework="torch",
        write_model=lambda p: p.write_bytes(b"o" * 10**6),
        info=info,
    )
    with pytest.raises(NoRoom, match="the disk is full"):
        save_run(
            folder,
            framework="torch",
            write_model=lambda p: p.write_bytes(b"n" * 1_500_000),
            info=info,
        )
    assert read_run(folder)[1].read_bytes() == b"o" * 10**6
    assert sorted(os.listdir(folder)) == ["model.safetensors", "run.json"]


# --- permissions ----------------------------------------------------------------------


def test_no_permission_is_one_sentence(tmp_path):
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
        with (
            pytest.raises(UserMistake, match="may not write there"),
            claim_folder(tmp_path / "closed" / "run"),
        ):
            pass
        return
    pid = os.fork()  # root may write anywhere: another user tries
    if pid == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        try:
            with claim_folder(
                "/root-only/run" if not Path("/etc").is_dir() else "/etc/run"
            ):
                pass
        except UserMistake as e:
            os._exit(0 if "may not write there" in str(e) else 3)
        os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# --- the cache ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        "read-only",
        "full",
        *(pytest.param(h, marks=pytest.mark.stress) for h in ("a file", "nowhere")),
    ],
)
def test_a_cache_that_takes_nothing_costs_only_time(
    photos, disk, capsys, monkeypatch, tmp_path, how
):
    monkeypatch.setattr(
        describing, "random_probe", lambda *a: lambda valid: np.zeros(len(valid), int)
    )
    plain = tune(capsys, photos, tmp_path / "plain", 0)[0]["accuracy"]
    cache = (
        tmp_path / "file"
        if how == "a file"
        else Path("/proc/nowhere")
        if how == "nowhere"
        else disk(0.1)
    )
    if how == "a file":
        cache.touch()
    elif how == "full":
        fill(cache)
    elif how == "read-only":
        disk.close(cache)
    monkeypatch.setenv("TRANSFER_COURSE_CACHE", str(cache))
    with pytest.warns(
        UserWarning, match="feature cache .* can't be used .*going on without it"
    ):
        assert tune(capsys, photos, tmp_path / "run", 0)[0]["accuracy"] == plain


# --- what is read ---------------------------------------------------------------------


def test_images_that_vanish_while_training_are_one_sentence(
    photos, capsys, monkeypatch, tmp_path
):
    """A folder too large for memory is read as it is needed."""
    from transfer_course.vision import images

    mine, train = tmp_path / "mine", own_folder.fine_tune
    shutil.copytree(photos, mine)
    monkeypatch.setattr(images, "KEEP_BYTES", 0)

    def then_gone(*args, **kwargs):
        shutil.rmtree(mine)
        return train(*args, **kwargs)

    monkeypatch.setattr(own_folder, "fine_tune", then_gone)
    refused(capsys, mine, tmp_path / "run", "no such file")
    assert state_of(tmp_path / "run") in ("absent", "empty", "unfinished")


def test_a_folder_that_is_gone_once_read_is_not_missed(
    photos, capsys, monkeypatch, tmp_path
):
    mine, train = tmp_path / "mine", own_folder.fine_tune
    shutil.copytree(photos, mine)

    def then_gone(*args, **kwargs):
        shutil.rmtree(mine)
        return train(*args, **kwargs)

    monkeypatch.setattr(own_folder, "fine_tune", then_gone)
    assert tune(capsys, mine, tmp_path / "run", 0)[0]["n_train"] == 12


def test_names_that_no_system_takes(capsys, tmp_path, photos):
    for name in ("n" * 300, "x/" * 3000):
        assert "There is no folder" in refused(
            capsys, tmp_path / name, tmp_path / "run", "There is no folder"
        )
    tune(capsys, photos, tmp_path / "run", 0)
    row, _ = call(capsys, "predict", tmp_path / "run", tmp_path / ("n" * 300), code=2)
    assert "name too long" in row["error"]
    assert (
        "There is no folder"
        in call(capsys, "predict", tmp_path / ("n" * 300), "a.png", code=2)[0]["error"]
    )


# --- the machine ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "framework", ["torch", pytest.param("keras", marks=pytest.mark.stress)]
)
def test_without_a_network_the_bundled_one_is_named(
    photos, capsys, monkeypatch, tmp_path, framework
):
    for name in (
        "HTTPS_PROXY",
        "https_proxy",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
    ):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    for name in ("HF_HOME", "TORCH_HOME", "KERAS_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    # urlopen keeps the proxies of its first call for the whole process.
    monkeypatch.setattr(urllib.request, "_opener", None)
    began = time.monotonic()
    message = refused(
        capsys,
        photos,
        tmp_path / "run",
        "have to be downloaded",
        "--backbone",
        "resnet50",
        "--framework",
        framework,
    )
    assert (
        "efficientnet_lite0" in message
        and time.monotonic() - began < 60
        and not (tmp_path / "run").exists()
    )


@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_stdout_that_takes_nothing_is_one_sentence(tmp_path, buffered):
    for args in (
        ["--version"],
        ["--help"],
        ["lab", str(tmp_path / "lessons"), "--no-open", "--json"],
    ):
        command = [sys.executable, "-m", "transfer_course.cli", *args]
        env = {**os.environ, "PYTHONUNBUFFERED": buffered}
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                command, stdout=full, stderr=subprocess.PIPE, text=True, env=env
            )
        assert done.returncode == 2, done.stderr
        assert (
            "The output can't be written: the disk is full" in done.stderr
            and len(done.stderr.splitlines()) == 1
        ), done.stderr


def test_lessons_on_a_disk_that_is_full_or_read_only(disk, capsys):
    full, closed = disk(0.1), disk(1)
    disk.close(closed)
    for folder, words in (
        (full, "No space left on device"),
        (closed, "Read-only file system"),
    ):
        message = call(capsys, "lab", folder / "lessons", "--no-open", code=2)[0][
            "error"
        ]
        assert words in message


def test_no_place_for_temporary_files_is_no_hindrance(monkeypatch, capfd):
    import tempfile

    from transfer_course.engine import frameworks

    def refuse(*args, **kwargs):
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with frameworks._without_greeting():
        os.write(2, b"seen")
    assert "seen" in capfd.readouterr().err
