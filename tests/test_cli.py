"""The command line as a user runs it, on folders that are made here.

Where a test looks at a message and not at the process, `main` runs in this process.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transfer_course import cli
from transfer_course.vision.data import styles

COMMAND = [str(Path(sys.executable).parent / "transfer-course")]
SUMMARY = {
    "run",
    "framework",
    "backbone",
    "strategy",
    "accuracy",
    "n_train",
    "n_valid",
    "recall",
    "classes",
    "skipped",
    "seconds",
}


def run(*args, cwd=None, code=0, env=None):
    done = subprocess.run(
        [*COMMAND, *map(str, args)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == code, (
        f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def here(*args, code=0):
    """The same without a process of its own."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as stop,
    ):
        patch.setenv("TRANSFER_COURSE_STARTED", str(time.time()))
        cli.main([*map(str, args)])
    assert stop.value.code == code, f"{out.getvalue()}\n{err.getvalue()}"
    assert "Traceback" not in err.getvalue(), err.getvalue()
    return subprocess.CompletedProcess(args, code, out.getvalue(), err.getvalue())


def last(done):
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four classes of tilted drawings, and files that are not images."""
    root = tmp_path_factory.mktemp("data") / "mis dibujos 图"
    data = styles("openmoji")
    for name in ("drink", "music", "bird", "clothing"):
        (root / name).mkdir(parents=True)
        for i in np.flatnonzero(data.labels == data.classes.index(name))[:13]:
            Image.fromarray(data.images[i]).rotate(15, fillcolor=(255, 255, 255)).save(
                root / name / f"{i}.png"
            )
    (root / "bird" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not really")
    (root / "bird" / ".hidden.png").write_bytes(b"")
    (root / "empty class").mkdir()
    return root


@pytest.fixture(scope="module")
def runs(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    made = {}
    for framework, strategy in (("torch", "lp_ft"), ("keras", "probe")):
        target = out / framework
        done = run(
            "fine-tune",
            folder,
            "--framework",
            framework,
            "--strategy",
            strategy,
            "--epochs",
            2,
            "--size",
            64,
            "--out",
            target,
            "--json",
        )
        made[framework] = (target, last(done), done)
    return made


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_fine_tune_prints_one_line_and_saves_everything(framework, runs, folder):
    target, summary, done = runs[framework]
    assert set(summary) >= SUMMARY and summary["framework"] == framework
    assert len(done.stdout.strip().splitlines()) == 1, (
        "with --json stdout belongs to the machine"
    )
    assert summary["classes"] == ["bird", "clothing", "drink", "music"]
    assert (
        summary["n_train"] + summary["n_valid"] == 52 and 8 <= summary["n_valid"] <= 13
    )
    assert 0.4 < summary["accuracy"] <= 1
    reasons = {Path(s["path"]).name: s["reason"] for s in summary["skipped"]}
    assert (
        "broken.jpg" in reasons and "empty class" in reasons and all(reasons.values())
    )
    assert "held-out" in done.stderr
    model = "model.safetensors" if framework == "torch" else "model.keras"
    assert {model, "run.json", "report.html", "card.md"} <= {
        p.name for p in target.iterdir()
    }
    info = json.loads((target / "run.json").read_text(encoding="utf-8"))
    assert (
        info["metrics"]["part"] == "held-out"
        and info["metrics"]["accuracy"] == summary["accuracy"]
    )
    assert set(info["baselines"]) == {"majority", "probe", "random_probe"}
    report = (target / "report.html").read_text(encoding="utf-8")
    assert "broken.jpg" in report and "<script" not in report
    assert "http://" not in report.split("<body", 1)[1] and 'src="http' not in report


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_predict_answers_each_file_on_a_line(framework, runs, folder, tmp_path):
    target = runs[framework][0]
    (tmp_path / "torn.png").write_bytes(
        (next((folder / "bird").glob("[0-9]*.png"))).read_bytes()[:60]
    )
    done = run(
        "predict",
        target,
        folder / "music",
        tmp_path / "torn.png",
        tmp_path / "missing.png",
        "--json",
        code=2,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert (
        len(rows) == 15 and [("error" in r) for r in rows] == [False] * 13 + [True] * 2
    )
    for row in rows[:13]:
        assert (
            row["class"] == row["top"][0]["class"]
            and row["probability"] == row["top"][0]["probability"]
            and len(row["top"]) == 3
        )
    assert np.mean([r["class"] == "music" for r in rows[:13]]) > 0.5
    again = run("predict", target, folder / "music", "--top", 1, "--json")
    first = [json.loads(line) for line in again.stdout.splitlines()]
    assert [r["probability"] for r in first] == [r["probability"] for r in rows[:13]], (
        "the same bits in another process"
    )


def test_predict_is_readable_for_people_and_pipes(runs, folder):
    picture = next((folder / "bird").glob("[0-9]*.png"))
    done = here("predict", runs["torch"][0], picture)
    assert json.loads(done.stdout)["class"] in ("bird", "clothing", "drink", "music")


# --- mistakes: exit code 2 and a sentence that says what to do ------------------------


def mistake(*args, says, command=here, **how):
    done = command(*args, "--json", code=2, **how)
    message = last(done)["error"]
    assert says in message and "\n" not in message, message
    return message


def test_mistakes_before_any_training(folder, tmp_path, runs):
    mistake("fine-tune", tmp_path / "nowhere", says="There is no folder")
    mistake("fine-tune", folder, "--size", 0, says="size is 0")
    mistake("fine-tune", folder, "--strategy", "lpft", says="Did you mean 'lp_ft'")
    mistake("fine-tune", folder, "--epochs", 0, says="epochs is 0")
    mistake("fine-tune", folder, "--framework", "jax", says="torch")
    mistake("fine-tune", folder, "--seed", -1, says="seed")
    mistake(
        "fine-tune",
        folder,
        "--backbone",
        "resnet5",
        "--out",
        tmp_path / "a",
        says="Did you mean 'resnet50'",
    )
    mistake("fine-tune", folder, "--out", runs["torch"][0], says="holds a finished run")
    assert not (tmp_path / "a").exists(), "nothing is left of a run that never began"


def test_too_few_classes(folder, tmp_path):
    (tmp_path / "only one" / "birds").mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(tmp_path / "only one" / "birds" / "a.png")
    mistake("fine-tune", tmp_path / "only one", "--out", tmp_path / "r", says="class")
    mistake(
        "fine-tune",
        tmp_path / "only one" / "birds",
        "--out",
        tmp_path / "r",
        says="class",
    )


def test_a_folder_one_level_too_high_names_the_one_to_give(folder, tmp_path):
    mistake("fine-tune", folder.parent, "--out", tmp_path / "r", says=f"Give {folder}.")


def test_a_run_folder_in_use_is_refused(folder, tmp_path):
    from transfer_course.engine.runs import claim_folder

    with claim_folder(tmp_path / "busy"):
        mistake(
            "fine-tune",
            folder,
            "--out",
            tmp_path / "busy",
            says="being written by another process",
            command=run,
        )


def test_predict_without_a_run_or_an_image(runs, tmp_path):
    mistake("predict", tmp_path / "nowhere", "x.png", says="There is no folder")
    mistake("predict", tmp_path, "x.png", says="no run.json")
    mistake("predict", runs["torch"][0], tmp_path, says="no image")


def test_a_missing_extra_is_one_sentence(folder, tmp_path):
    """torch is made invisible the way it is on a machine without it."""
    hide = tmp_path / "hide"
    hide.mkdir()
    (hide / "sitecustomize.py").write_text("import sys\nsys.modules['torch'] = None\n")
    message = mistake(
        "fine-tune",
        folder,
        "--out",
        tmp_path / "r",
        says="PyTorch is not installed",
        command=run,
        env={"PYTHONPATH": str(hide)},
    )
    assert "transfer_course[torch]" in message


def test_unknown_commands_and_options(tmp_path):
    for args in (
        ["fine-tune"],
        ["finetune", "x"],
        ["demo", "--fast"],
        ["predict", "r"],
        ["predict", "r", "x", "--top", "0"],
    ):
        done = run(*args, code=2)
        assert (
            "error:" in done.stderr.lower()
            and len(done.stderr.strip().splitlines()) <= 4
        )


def test_a_fault_of_ours_is_exit_code_1(monkeypatch, capsys):
    from transfer_course.classroom import doctor

    monkeypatch.setattr(doctor, "examine", lambda: 1 / 0)
    with pytest.raises(SystemExit) as stop:
        cli.main(["doctor"])
    assert stop.value.code == 1 and "fault of ours" in capsys.readouterr().err


# --- the small commands ---------------------------------------------------------------


def test_help_has_examples_and_starts_fast():
    for command in ("fine-tune", "predict", "demo", "doctor", "lab"):
        text = run(command, "--help").stdout
        assert "Example" in text and "transfer-course" in text and "--json" in text
    times = []
    for _ in range(3):
        began = time.perf_counter()
        run("--help")
        times.append(time.perf_counter() - began)
    assert min(times) < 1.0, (
        "DESIGN asks for half a second on a quiet machine; twice that is a fault on a "
        "busy one too"
    )


def test_import_is_light():
    code = (
        "import sys, transfer_course; "
        "print([m for m in ('torch', 'tensorflow', 'keras', 'matplotlib', 'sklearn', "
        "'numpy') if m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def test_import_transfer_course_first_makes_any_order_safe():
    code = (
        "import transfer_course, tensorflow, torch, torchvision; "
        "transfer_course.load_torch(); print('alive')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "alive", done.stderr[-500:]


def test_doctor_tells_the_truth():
    done = run("doctor", "--json")
    findings = last(done)
    assert json.dumps(findings).count("torch")
    text = run("doctor").stdout
    assert "Python" in text and len(text.splitlines()) > 5


def test_lab_never_writes_over_work(tmp_path):
    first = last(run("lab", tmp_path / "mine", "--no-open", "--json"))
    assert len(first["copied"]) >= 7 and first["kept"] == []
    work = tmp_path / "mine" / first["copied"][0]
    work.write_text("my answer")
    second = last(run("lab", tmp_path / "mine", "--no-open", "--json"))
    assert (
        second["copied"] == []
        and len(second["kept"]) == len(first["copied"])
        and work.read_text() == "my answer"
    )
    (tmp_path / "file").write_text("")
    mistake("lab", tmp_path / "file", "--no-open", says="is a file")


def test_version():
    import transfer_course

    assert run("--version").stdout.strip().endswith(transfer_course.__version__)
