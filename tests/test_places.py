"""Where it runs: nobody reads its output, no home folder, root in a container."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from transfer_course.engine.errors import BadValue
from transfer_course.practice import lab
from transfer_course.practice.describing import sentences

COMMAND = str(Path(sys.executable).parent / "transfer-course")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for name, colour in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
        (root / name).mkdir()
        for i in range(6):
            image = Image.effect_noise((40, 40), 60 + i).convert("RGB")
            Image.blend(image, Image.new("RGB", (40, 40), colour), 0.5).save(
                root / name / f"{i}.png"
            )
    return root


def training(photos, out, *more):
    return [
        *(COMMAND, "fine-tune", str(photos), "--backbone", "small_cnn"),
        *("--strategy", "head", "--epochs", "1", "--size", "32"),
        *("--out", str(out), *more),
    ]


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_closed_streams_cost_nothing(photos, tmp_path, closed):
    def close():
        for number in closed:
            os.close(number)

    out = tmp_path / "run"
    done = subprocess.run(
        training(photos, out, "--json"),
        preexec_fn=close,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "run.json").read_text())["n_train"] == 10
    assert (out / "report.html").exists()
    if closed == (2,):
        assert json.loads(done.stdout)["n_valid"] == 2


def test_nothing_printed_lands_in_a_file_that_took_a_closed_stream(tmp_path):
    code = (
        "import os; os.close(1); os.close(2); import sys; sys.stdout = sys.stderr = "
        "None; from transfer_course.cli import _open_streams; _open_streams(); "
        f"f = open({str(tmp_path / 'x')!r}, 'w'); os.write(1, b'a'); os.write(2, b'b')"
        "; print('c'); print('d', file=sys.stderr); f.write('mine'); f.close()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert (tmp_path / "x").read_text() == "mine"


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"),
    reason="only root can be somebody else",
)
@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_a_user_without_a_name_and_a_home(photos, tmp_path, framework):
    # The interpreter may lie in root's home, so reading stays allowed.
    somebody = "setpriv --reuid 54321 --regid 54321 --clear-groups"
    reading = "--inh-caps +dac_read_search --ambient-caps +dac_read_search"
    place = tmp_path / "place"
    shutil.copytree(photos, place / "photos")
    for path in (place, *place.rglob("*")):
        os.chown(path, 54321, 54321)
    gone = ("HOME", "USER", "LOGNAME", "TRANSFER_COURSE_CACHE")
    env = {k: v for k, v in os.environ.items() if k not in gone}
    command = training("photos", "run", "--framework", framework, "--json")
    done = subprocess.run(
        [*somebody.split(), *reading.split(), *command],
        cwd=place,
        env=env | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_a_home_is_given_only_where_there_is_none(monkeypatch, tmp_path):
    import tempfile

    import transfer_course

    before = os.environ.get("HOME")
    transfer_course._give_home()
    assert os.environ.get("HOME") == before
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", "")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    transfer_course._give_home()
    home = Path(os.environ["HOME"])
    assert home.parent == tmp_path and home.stat().st_mode & 0o777 == 0o700


def test_jupyterlab_as_root_is_one_sentence(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(BadValue, match="add --allow-root"):
        lab.jupyterlab_command("lessons")
    command = lab.jupyterlab_command(
        "lessons", browser=False, ip="0.0.0.0", port=9999, allow_root=True
    )
    assert "--allow-root" in command and "--ServerApp.port=9999" in command
    assert "--ServerApp.ip=0.0.0.0" in command and "--no-browser" in command
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "--allow-root" not in lab.jupyterlab_command("lessons")


def test_the_next_line_can_be_pasted():
    difference = dict(mean=0.1, low=0.0, high=0.2)
    info = dict(
        metrics=dict(accuracy=0.5, low=0.4, high=0.6),
        baselines=dict(random_probe=dict(accuracy=0.4, difference=difference)),
    )
    *_, line = sentences(info, "runs/Anna's $HOME photos")
    name = line.removeprefix("next: transfer-course predict ").removesuffix(" IMAGE…")
    shell = subprocess.run(["sh", "-c", f"printf %s {name}"], capture_output=True)
    assert shell.stdout.decode() == "runs/Anna's $HOME photos"
