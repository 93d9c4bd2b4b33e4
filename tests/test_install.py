"""`make install` where nothing is really installed: uv only notes its calls."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
UV = """#!/bin/sh
echo "$@" >> calls
case "$*" in *--torch-backend*) exit {status};; esac
"""


@pytest.fixture
def place(tmp_path):
    """A folder with the Makefile, and commands in .venv that do nothing."""
    for name in ("Makefile", "settings.ini", "setup.py", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    bin_dir = tmp_path / ".venv" / "bin"
    bin_dir.mkdir(parents=True)

    def run(*arguments, status=0):
        """(what is printed, the calls of uv) of `make install`."""
        for name, text in (("python", "#!/bin/sh\n"), ("uv", UV)):
            (bin_dir / name).write_text(text.replace("{status}", str(status)))
            (bin_dir / name).chmod(0o755)
        env = {k: v for k, v in os.environ.items() if k not in ("CPU", "MAKEFLAGS")}
        command = ["make", "install", *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        calls = (tmp_path / "calls").read_text().splitlines()
        return done.stdout, [c for c in calls if c != "--version"]

    return run


def test_the_size_is_said_before_anything_is_downloaded(place):
    text, calls = place()
    assert "about 4 GB to download and 8.5 GB on disk" in text
    assert text.index("download") < text.index("installing")
    assert len(calls) == 1 and "--torch-backend" not in calls[0]


def test_cpu_asks_for_the_cpu_build_first(place):
    text, (first, second) = place("CPU=1")
    assert "CPU build" in text and "can't be reached" not in text
    assert "--torch-backend cpu" in first and "torch torchvision" in first
    assert "-e .[" in second and "--torch-backend" not in second


def test_where_the_cpu_build_cannot_be_had_the_ordinary_one_is_installed(place):
    text, calls = place("CPU=1", status=2)
    assert "can't be reached from here; the ordinary build is installed" in text
    assert len(calls) == 2


def test_any_other_value_of_cpu_changes_nothing(place):
    _, calls = place("CPU=x86_64")
    assert len(calls) == 1


def test_a_wheel_can_be_built_from_the_source_archive(tmp_path):
    """What setup.py reads is in the archive; one with a small package will do."""
    source = tmp_path / "source"
    package = source / "transfer_course"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('__version__ = "0"\n')
    files = ["MANIFEST.in", "README.md", "pyproject.toml", "settings.ini", "setup.py"]
    for name in [*files, "constraints.txt", "CHANGELOG.md", "LICENSE"]:
        shutil.copy(ROOT / name, source)

    def setup(folder, *arguments):
        command = [sys.executable, "setup.py", "-q", *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    setup(source, "sdist", "--dist-dir", tmp_path)
    (archive,) = tmp_path.glob("*.tar.gz")
    shutil.unpack_archive(archive, tmp_path, filter="data")
    unpacked = tmp_path / archive.name.removesuffix(".tar.gz")
    assert (unpacked / "settings.ini").exists()
    setup(unpacked, "bdist_wheel", "--dist-dir", tmp_path)
    assert list(tmp_path.glob("*.whl"))
