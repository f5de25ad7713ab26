"""The notebooks in JupyterLab in a real browser, as a user opens, runs and saves them.

    python tests/lab_browser.py [GRID] [--shots FOLDER]

The grid (demo) must be complete. Starts ``make lab GRID=…`` on the loopback interface and drives
Debian's Chromium (packages chromium and chromium-driver) with selenium. Opens every notebook of
notebooks/ and saves it without running it; opens every working copy, runs all its cells and saves
it. Then checks that no cell failed or wrote to stderr, that no output is wider than its notebook,
that git sees no new or changed file, and that the grid is still complete. Keeps a screenshot of the
end of each notebook. Exit status: 0 if all checks pass, 1 if not, 2 if it could not begin.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

FLAGS = (  # as root, and without asking other hosts for anything
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--window-size=1280,1000", "--disable-dev-shm-usage"),
)
CLOSED = re.compile("Canceled future for|Connection lost")  # expected: this script ends kernels
MINUTES = 20  # that a notebook may take, on two busy cores

OPEN = """
const [path, done] = arguments;
(async () => {
  const app = window.jupyterapp;
  await app.restored;
  const widget = await app.commands.execute('docmanager:open', {path, factory: 'Notebook'});
  await widget.context.ready;
  await widget.context.sessionContext.ready;
  app.shell.activateById(widget.id);
  window.shown = widget;
})().then(() => done(''), error => done(String(error)));
"""
RUN = "window.jupyterapp.commands.execute('notebook:run-all-cells');"
SAVE = """
const done = arguments[0];
window.shown.context.save().then(() => done(''), error => done(String(error)));
"""
CLOSE = """
const done = arguments[0];
(async () => {
  await window.shown.context.sessionContext.shutdown();
  window.shown.dispose();
})().then(() => done(''), error => done(String(error)));
"""
CELLS = "return window.shown.context.model.toJSON().cells;"
PENDING = """
const cells = [...window.shown.content.widgets].filter(
  cell => cell.model.type === 'code' && cell.model.sharedModel.source.trim());
return cells.filter(cell => cell.prompt === '*' || cell.model.executionCount === null).length
  && !cells.some(cell => cell.model.outputs.toJSON().some(out => out.output_type === 'error'));
"""
# By how many pixels an output goes beyond the right edge of its notebook, or scrolls.
WIDE = """
const room = window.shown.content.node.getBoundingClientRect().right;
return [...window.shown.content.node.querySelectorAll('.jp-OutputArea-output')].map(
  (output, number) => [number, Math.round(Math.max(
    output.scrollWidth - output.clientWidth,
    ...[...output.querySelectorAll('table, img, svg')].map(
      shown => shown.getBoundingClientRect().right - room)))]
).filter(([, pixels]) => pixels > 1);
"""
END = """
const cells = window.shown.content.widgets;
await window.shown.content.scrollToItem(cells.length - 1, 'end');
"""


def call(*command: str, wanted: int | None = 0) -> str:
    """The output of a command; stops this script if the exit status is not ``wanted``."""
    made = subprocess.run(command, capture_output=True, text=True)
    if wanted is not None and made.returncode != wanted:
        raise SystemExit(f"{' '.join(command)} failed:\n{made.stdout}{made.stderr}")
    return made.stdout


@contextlib.contextmanager
def jupyterlab(grid: str) -> Iterator[str]:
    """``make lab`` on a free port; yields the address with its token, and stops it afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    options = f"--no-browser --ip=127.0.0.1 --port={port} --ServerApp.port_retries=0"
    options += f" --IdentityProvider.token={token} --LabApp.expose_app_in_browser=True"
    with tempfile.NamedTemporaryFile("w+", suffix=".log") as log:
        server = subprocess.Popen(
            ["make", "lab", f"GRID={grid}", f"ARGS={options}"],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + 120
            while True:
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={token}", timeout=5)
                    break
                if server.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"JupyterLab did not start:\n{Path(log.name).read_text()}")
                time.sleep(1)
            yield f"http://127.0.0.1:{port}/lab?token={token}&reset"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            server.wait(60)


@contextlib.contextmanager
def chromium() -> Iterator[object]:
    """A headless Chromium with a profile of its own."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        service = webdriver.ChromeService(shutil.which("chromedriver"))
        browser = webdriver.Chrome(options, service)
        browser.set_script_timeout(300)
        try:
            yield browser
        finally:
            browser.quit()


def wait(browser: object, script: str, wanted: bool, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while bool(browser.execute_script(script)) is not wanted:
        if time.monotonic() > deadline:
            raise SystemExit(f"{what} took more than {seconds:.0f} s")
        time.sleep(1)


def asynchronous(browser: object, script: str, *values: str) -> None:
    if said := browser.execute_async_script(script, *values):
        raise SystemExit(f"In the browser: {said}")


def faults(browser: object, name: str) -> list[str]:
    """Errors, stderr and too wide outputs that a user would see in a notebook that has been run."""
    found = []
    for number, cell in enumerate(browser.execute_script(CELLS)):
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                found.append(f"{name}, cell {number}: {output['ename']}: {output['evalue']}")
            elif output.get("name") == "stderr":
                found.append(f"{name}, cell {number}, stderr: {''.join(output['text'])[:300]}")
    wide = browser.execute_script(WIDE)
    return found + [f"{name}, output {number}: {pixels} px too wide" for number, pixels in wide]


def run_all(browser: object, path: Path, shots: Path) -> list[str]:
    """Run a notebook to its end and save it; returns its faults."""
    start = time.monotonic()
    asynchronous(browser, OPEN, str(path))
    browser.execute_script(RUN)
    wait(browser, PENDING, False, 60 * MINUTES, path.name)
    time.sleep(2)  # the last outputs are drawn
    found = faults(browser, path.name)
    asynchronous(browser, SAVE)
    browser.execute_script(f"return (async () => {{{END}}})();")
    browser.save_screenshot(str(shots / f"{path.stem}.png"))
    asynchronous(browser, CLOSE)
    print(f"{path.name}: {time.monotonic() - start:.0f} s, {len(found)} faults", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("grid", nargs="?", default="demo")
    parser.add_argument("--shots", type=Path, default=Path("results/lab_shots"))
    asked = parser.parse_args()
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if missing:
        print(f"Missing: {', '.join(missing)} (Debian: apt install chromium chromium-driver)")
        return 2
    plan = "make", "plan", f"GRID={asked.grid}"
    if "complete" not in call(*plan):
        print(f"Grid {asked.grid!r} is not complete: make study GRID={asked.grid} first")
        return 2
    before = call("git", "status", "--porcelain")
    asked.shots.mkdir(parents=True, exist_ok=True)
    originals = sorted(Path("notebooks").glob("*.ipynb"))
    found = []
    with jupyterlab(asked.grid) as address, chromium() as browser:
        browser.get(address)
        wait(browser, "return window.jupyterapp !== undefined;", True, 120, "JupyterLab's page")
        for path in originals:
            asynchronous(browser, OPEN, str(path))
            asynchronous(browser, SAVE)
            asynchronous(browser, CLOSE)
        if "complete" not in (said := call(*plan)):
            found.append(f"notebooks that were saved and not run made the grid stale:\n{said}")
        for path in originals:
            found += run_all(browser, Path(f"lab-{asked.grid}") / path.name, asked.shots)
        found += [
            f"browser's console: {json.dumps(line['message'])}"
            for line in browser.get_log("browser")
            if line["level"] == "SEVERE" and not CLOSED.search(line["message"])
        ]
    if (after := call("git", "status", "--porcelain")) != before:
        found.append(f"git sees files that were not there:\n{after}")
    if "complete" not in (said := call(*plan)):
        found.append(f"the grid is no longer complete:\n{said}")
    print("\n".join(found) or f"All is well. Screenshots: {asked.shots}/")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
