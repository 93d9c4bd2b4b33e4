"""The README's Python lines run as they stand, and its commands exist."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_library_example_runs(tmp_path):
    (code,) = re.findall(r"```python\n(from transfer_course.*?)```", TEXT, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-800:]
    assert re.search(r"probe 0\.\d+\ntuned 0\.\d+", done.stdout)
    assert (tmp_path / "runs" / "photos" / "run.json").is_file()


def test_every_command_line_it_shows_exists():
    shown = set(re.findall(r"^transfer-course ([\w-]+)", TEXT, re.MULTILINE))
    assert shown == {
        "check",
        "choose",
        "compare",
        "shift",
        "fine-tune",
        "evaluate",
        "predict",
        "export",
    }
    for command in shown:
        done = subprocess.run(
            [Path(sys.executable).parent / "transfer-course", command, "--help"],
            capture_output=True,
        )
        assert done.returncode == 0


def test_every_make_target_it_names_exists():
    targets = set(
        re.findall(
            r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
        )
    )
    assert set(re.findall(r"`?make (\w+)`?", TEXT)) <= targets


def test_every_link_into_the_repo_leads_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)", TEXT):
        assert (ROOT / target).exists(), target
