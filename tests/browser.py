"""A real browser for the tests.

Chromium through playwright, a page that notes what goes wrong, a web server for the
site, and JupyterLab.
"""

import contextlib
import functools
import http.server
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote, urlsplit

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CELL = ".jp-NotebookPanel .jp-Notebook .jp-Cell"
PICTURES = Path(__file__).resolve().parent.parent / "out" / "browser"
LOCAL = {"127.0.0.1", "localhost", ""}
DIRECT = urllib.request.build_opener(
    urllib.request.ProxyHandler({})
)  # to this machine, whatever proxy there is


def chromium():
    """Where Chromium is, or None."""
    return next(
        filter(
            None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
        ),
        None,
    )


def missing():
    """Why there can be no browser tests here, or an empty string."""
    if find_spec("playwright") is None:
        return "playwright is not installed (it is in the extra `dev`)"
    return (
        ""
        if chromium()
        else "Chromium is not installed (Debian: apt-get install chromium)"
    )


class Watched:
    """A page, and what it asked other machines for, and its errors."""

    def __init__(self, browser, height=1000):
        self.page = browser.new_page(viewport={"width": 1280, "height": height})
        self.outside, self.errors = [], []
        self.page.on("request", self._note)
        self.page.on("websocket", self._note)
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))

    def _note(self, request):
        parts = urlsplit(request.url)
        if (
            parts.scheme in {"http", "https", "ws", "wss"}
            and parts.hostname not in LOCAL
        ):
            self.outside.append(request.url)

    def clean(self):
        """Nothing left the machine and no script failed."""
        assert not self.outside, f"requests to other machines: {self.outside[:5]}"
        assert not self.errors, f"errors in the page: {self.errors[:5]}"


@contextlib.contextmanager
def watching(window, height=1000):
    """A watched page; where the test fails, a picture of it is left in out/browser/.

    With the time as its name.
    """
    watched = Watched(window, height)
    try:
        yield watched
    except BaseException:
        with contextlib.suppress(Exception):
            watched.page.screenshot(path=PICTURES / f"{time.strftime('%H%M%S')}.png")
        raise
    finally:
        watched.page.close()


@contextlib.contextmanager
def browser():
    """Chromium without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=chromium(), headless=True, args=FLAGS)
        try:
            yield b
        finally:
            b.close()


@contextlib.contextmanager
def serve(folder):
    """A web server of `folder` on this machine; yields its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait(what, seconds, until, pause=0.5):
    """Ask `until()` again and again.

    Its first true value, or an error that names `what`.
    """
    end = time.monotonic() + seconds
    while True:
        value = until()
        if value:
            return value
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(pause)


class Lab:
    """A JupyterLab server on `folder`, with settings of its own in `home`."""

    def __init__(self, folder, home):
        self.folder, self.token, self.base = (
            folder,
            secrets.token_hex(16),
            f"http://127.0.0.1:{_free_port()}",
        )
        env = dict(os.environ)
        for key in (
            "JUPYTER_CONFIG_DIR",
            "JUPYTER_RUNTIME_DIR",
            "JUPYTERLAB_SETTINGS_DIR",
            "JUPYTERLAB_WORKSPACES_DIR",
            "IPYTHONDIR",
        ):
            env[key] = str(home / key.lower())
        env.pop("TRANSFER_COURSE_STRICT", None)  # a learner has it not
        news = {
            "disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}
        }
        self._write(
            home / "jupyter_config_dir" / "labconfig" / "page_config.json", news
        )
        tracker = (
            home
            / "jupyterlab_settings_dir"
            / "@jupyterlab"
            / "notebook-extension"
            / "tracker.jupyterlab-settings"
        )
        # Every cell is in the page, seen or not.
        self._write(tracker, {"windowingMode": "none"})
        command = [
            *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
            *("--ip=127.0.0.1", f"--port={urlsplit(self.base).port}"),
            "--ServerApp.port_retries=0",
            f"--IdentityProvider.token={self.token}",
            f"--ServerApp.root_dir={folder}",
            "--LabApp.extension_manager=readonly",
        ]
        self.log = open(home / "server.log", "w+b")  # noqa: SIM115
        self.process = subprocess.Popen(
            command, env=env, stdout=self.log, stderr=subprocess.STDOUT
        )
        try:
            wait("JupyterLab to start", 90, self._up)
        except BaseException as e:
            e.add_note(f"the server's log: {self._said()}")
            self.stop()
            raise

    @staticmethod
    def _write(path, value):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value), encoding="utf-8")

    def _said(self):
        self.log.seek(0)
        return self.log.read()[-3000:].decode(errors="replace")

    def _up(self):
        assert self.process.poll() is None, "JupyterLab ended"
        with contextlib.suppress(OSError):
            return self.ask("status")

    def ask(self, path, method="GET"):
        """One request to the server's REST API."""
        request = urllib.request.Request(
            f"{self.base}/api/{path}",
            method=method,
            headers={"Authorization": f"token {self.token}"},
        )
        with DIRECT.open(request, timeout=30) as answer:
            return json.loads(answer.read() or "null")

    def stop(self):
        """End the server and its kernels."""
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.stop()


class Notebook:
    """A notebook open in JupyterLab: what a learner does with it."""

    def __init__(self, lab, watched, name):
        self.lab, self.watched, self.page, self.name = lab, watched, watched.page, name
        self.path = lab.folder / name
        self.page.goto(f"{lab.base}/lab/tree/{quote(name)}?reset&token={lab.token}")
        self.page.wait_for_selector(CELL, timeout=90_000)
        wait("the kernel", 90, self._idle)
        self.page.locator("#jp-main-statusbar").get_by_text("| Idle").wait_for(
            timeout=60_000
        )
        want = len(self.stored()["cells"])
        wait(
            "all cells in the page", 60, lambda: self.page.locator(CELL).count() == want
        )

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        """End its kernel: the next lesson needs the memory."""
        self.lab.ask(f"sessions/{self._session()['id']}", "DELETE")

    def _session(self):
        return next(
            (s for s in self.lab.ask("sessions") if s["path"] == self.name), None
        )

    def _idle(self):
        s = self._session()
        return (
            s
            and s["kernel"]["connections"] >= 1
            and s["kernel"]["execution_state"] == "idle"
        )

    def stored(self):
        """The file as it is on disk."""
        return json.loads(self.path.read_text(encoding="utf-8"))

    def cell(self, i):
        """The i-th cell in the page."""
        return self.page.locator(CELL).nth(i)

    def prompt(self, i):
        """The prompt of cell i: "[ ]:" not yet, "[*]:" running, "[3]:" done."""
        return self.cell(i).locator(".jp-InputPrompt").first.inner_text()

    def menu(self, *names):
        """Click through the menu bar."""
        for name in names:
            self.page.get_by_role(
                "menuitem", name=re.compile(f"^{name}( |$)")
            ).first.click()

    def run_all(self, seconds):
        """Run All Cells, wait for the last one, save.

        Returns the cells as they were stored.
        """
        self.menu("Run", "Run All Cells")
        last = max(
            i
            for i, c in enumerate(self.stored()["cells"])
            if c["cell_type"] == "code" and "".join(c["source"]).strip()
        )

        def done():
            return re.search(r"\[\d+\]", self.prompt(last)) or (
                "[*]" not in self.prompt(last) and self._stopped()
            )

        wait(f"the last cell of {self.name}", seconds, done)
        return self.save()

    def _stopped(self):
        """A cell raised: the cells after it keep an empty prompt while the kernel is
        idle.
        """
        return (
            self.page.locator(".jp-OutputArea-output")
            .filter(has_text=re.compile("Error"))
            .count()
            and self._idle()
        )

    def save(self):
        """Save and read the file back."""
        before = self.path.stat().st_mtime_ns
        self.page.keyboard.press("Control+s")
        wait(
            "the file to be saved",
            30,
            lambda: self.path.stat().st_mtime_ns != before,
            pause=0.2,
        )
        wait("the file to be whole", 10, lambda: self._whole(), pause=0.2)
        return self.stored()["cells"]

    def _whole(self):
        with contextlib.suppress(ValueError):
            return bool(self.stored()["cells"])

    def write(self, i, source):
        """Put `source` into cell i in place of what is there."""
        editor = self.cell(i).locator(".cm-content")
        editor.scroll_into_view_if_needed()
        editor.click()
        self.page.keyboard.press("Control+a")
        self.page.keyboard.insert_text(source)
        shown = "\n".join(self.cell(i).locator(".cm-line").all_text_contents())
        assert shown.strip() == source.strip(), f"the editor holds {shown!r}"

    def run(self, i, says="", seconds=60):
        """Run cell i in place.

        Its output as text, once that holds the pattern `says`.
        """
        before = self.prompt(i)
        self.cell(i).locator(".cm-content").click()
        self.page.keyboard.press("Control+Enter")

        def done():
            now = self.prompt(i)
            return (
                now != before
                and re.search(r"\[\d+\]", now)
                and re.search(says, self.output(i))
            )

        wait(f"cell {i} to say {says!r}", seconds, done, pause=0.2)
        return self.output(i)

    def output(self, i):
        """The text under cell i."""
        return "\n".join(
            self.cell(i).locator(".jp-OutputArea-output").all_inner_texts()
        )

    def widgets(self):
        """Numbers of the cells that show a picture or a text and something that changes
        it.
        """
        script = """cells => cells.map((c, i) => {
            const out = c.querySelector('.jp-OutputArea');
            const moves = out && out.querySelector(
                '.noUi-handle, .jupyter-widgets select, .widget-toggle-button, '
                + '.widget-radio input');
            return moves && out.querySelector('img, .widget-html pre') ? i : -1;
        }).filter(i => i >= 0)"""
        return self.page.locator(CELL).evaluate_all(script)

    def move(self, i, seconds=60):
        """Move the first thing under cell i that moves and wait until the picture (or
        text) there is another one.
        """
        area = self.cell(i).locator(".jp-OutputArea").first
        pictures = """el => [...el.querySelectorAll('img, .widget-html pre')]
            .map(x => x.src || x.innerText).join()"""
        before = area.evaluate(pictures)
        handle, select = (
            area.locator(".noUi-handle[role=slider]"),
            area.locator("select"),
        )
        area.scroll_into_view_if_needed()
        if handle.count():
            handle.first.focus()
            at = handle.first.get_attribute("aria-valuenow")
            self.page.keyboard.press("ArrowRight")
            self.page.wait_for_timeout(200)
            if (
                handle.first.get_attribute("aria-valuenow") == at
            ):  # it stood at its right end
                self.page.keyboard.press("ArrowLeft")
        elif select.count():
            chosen = select.first.evaluate("el => el.selectedIndex")
            select.first.select_option(index=1 if chosen == 0 else 0)
        else:
            area.locator(
                ".widget-toggle-button:not(.mod-active), "
                ".widget-radio input:not(:checked)"
            ).first.click()
        wait(
            f"another picture under cell {i} of {self.name}",
            seconds,
            lambda: area.evaluate(pictures) not in ("", before),
            pause=0.2,
        )
