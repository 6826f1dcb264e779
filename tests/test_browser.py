"""JupyterLab, the gallery and the site as a person sees them, in Debian's Chromium: make test-browser."""

import functools
import http.server
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest

from conftest import ROOT, make_project

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [pytest.mark.browser,
              pytest.mark.skipif(not CHROMIUM, reason="no Chromium: apt-get install chromium"),
              pytest.mark.skipif(not find_spec("playwright"), reason="no playwright: make test-browser installs it")]
NOTEBOOKS = {"picture": "varmixup/vm-fig1", "theorem": "manifold_mixup/mm-theorem1", "numbers": "genlabel/gl-lemma1"}  # one of each kind
KERNEL = dict(name="python3", display_name="python3", language="python")
OVER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
PICTURES = ".jp-OutputArea-output img, .jp-OutputArea-output svg"


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "JupyterLab in a copy of the notebooks, with its token; its address, and the copy."
    clone, token = make_project(tmp_path_factory.mktemp("lab") / "clone"), "t" * 24
    if (ROOT / "runs").exists(): (clone / "runs").symlink_to((ROOT / "runs").resolve())
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = os.environ | dict(MIXREPRO_HOME=str(clone), JUPYTER_CONFIG_DIR=str(clone / "config"), OMP_NUM_THREADS="1")
    args = ["--no-browser", "--allow-root", f"--port={port}", "--ip=127.0.0.1", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={clone}"]
    with open(clone / "lab.log", "w") as log:
        server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *args], cwd=clone, env=env, stdout=log, stderr=log)
    def up():
        try: return urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=2).status == 200
        except OSError: return False
    for _ in range(120):
        if up(): break
        assert server.poll() is None, (clone / "lab.log").read_text()
        time.sleep(.5)
    yield f"http://127.0.0.1:{port}/lab/tree/nbs/{{}}.ipynb?token={token}&reset", clone
    server.terminate()
    server.wait(30)


WIDER = """[...document.querySelectorAll('.jp-Notebook, .jp-WindowedPanel-outer, .jp-Cell, .jp-OutputArea-output')]
           .filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.className + ' ' + e.scrollWidth + ' > ' + e.clientWidth)"""


def opened(lab: str, browser, name: str):
    "A notebook in JupyterLab in a window of 1440 pixels, as it lies on the disk."
    page = browser.new_page(viewport=dict(width=1440, height=900))
    page.goto(lab.format(name), wait_until="domcontentloaded")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=90_000)
    page.wait_for_function("[...document.querySelectorAll('.jp-Notebook-ExecutionIndicator')].some(e => e.dataset.status == 'idle')", timeout=90_000)
    page.wait_for_timeout(2000)  # the first notebook of a new JupyterLab has no height until its kernel is there
    return page


def walk(page, of: str = PICTURES, picture: Path = None) -> tuple[int, list[str]]:
    """Scroll from top to bottom, for JupyterLab draws only what is in sight: how many results were seen at most, and what was wider
    than its place. `picture` shows the last result."""
    most, wider = 0, set()
    page.locator(".jp-WindowedPanel-outer").first.evaluate("e => e.scrollTop = 0")
    for _ in range(40):
        page.wait_for_timeout(250)
        most = max(most, seen := page.locator(of).count())
        if seen and picture: page.locator(of).last.scroll_into_view_if_needed(); page.screenshot(path=picture)
        wider |= set(page.evaluate(WIDER)) | ({"the page"} if page.evaluate(OVER) > 0 else set())
        if page.locator(".jp-WindowedPanel-outer").first.evaluate("e => {const was = e.scrollTop; e.scrollTop += 600; return e.scrollTop == was}"): break
    return most, sorted(wider)


def run_all(page):
    "Run all cells, wait for the last, save."
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_function("[...document.querySelectorAll('.jp-Notebook-ExecutionIndicator')].some(e => e.dataset.status == 'busy')", timeout=60_000)
    page.wait_for_function("[...document.querySelectorAll('.jp-Notebook-ExecutionIndicator')].every(e => e.dataset.status == 'idle')", timeout=400_000)
    page.keyboard.press("Control+s")
    page.wait_for_timeout(2000)


def outputs(path: Path) -> list[dict]: return [o for c in nbformat.read(path, as_version=4).cells for o in c.get("outputs", [])]


def wrong(path: Path) -> list[str]:
    "Errors, and what was written to stderr, of a notebook on the disk: also where they are out of sight."
    return [o.get("ename") or o["text"] for o in outputs(path) if o.output_type == "error" or o.get("name") == "stderr"]


@pytest.mark.parametrize("kind", NOTEBOOKS)
def test_a_notebook_in_jupyterlab(lab, browser, kind, tmp_path):
    "The result is there before anything runs; all cells run; it is there again, without an error, and nothing is wider than its place."
    address, clone = lab
    path = clone / f"nbs/{NOTEBOOKS[kind]}.ipynb"
    of = PICTURES if re.search(r"image/(png|svg)", path.read_text()) else ".jp-OutputArea-output"
    page, before = opened(address, browser, NOTEBOOKS[kind]), path.stat().st_mtime_ns
    most, wider = walk(page, of, tmp_path / "before.png")
    assert most > 0 and wider == [], "no committed result, or one that is too wide"
    run_all(page)
    assert path.stat().st_mtime_ns > before and wrong(path) == [] and outputs(path)
    most, wider = walk(page, of, tmp_path / "after.png")
    assert most > 0 and wider == [], "no result after a run, or one that is too wide"
    page.close()


def test_a_fault_in_jupyterlab_is_seen(lab, browser):
    "An error far below what is in sight, and a table wider than the window."
    address, clone = lab
    wide = "from IPython.display import HTML\nHTML('<div style=\"width: 3000px\">wide</div>')"
    cells = [wide, *["print(1)"] * 60, "raise ValueError('below')"]
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells], metadata=dict(kernelspec=KERNEL)), clone / "nbs/fault.ipynb")
    page = opened(address, browser, "fault")
    run_all(page)
    assert wrong(clone / "nbs/fault.ipynb") == ["ValueError"] and walk(page)[1] != []
    page.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The site, served on this machine."
    from mixrepro.workflow.site import NEEDED, build
    if lacks := [n for n in NEEDED if not find_spec(n)]: pytest.skip(f"make docs installs {', '.join(lacks)}")
    folder = build(ROOT, tmp_path_factory.mktemp("site") / "site").parent
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


BROKEN = """[...document.querySelectorAll('td code, td a')].filter(e => /^\\w+$/.test(e.textContent) && e.getClientRects().length > 1)
            .map(e => e.textContent)"""  # a word on two lines


@pytest.mark.parametrize("width", [1440, 390])
def test_the_site(site, browser, width):
    "Nothing comes from elsewhere, nothing fails, nothing is wider than the window; equations are drawn."
    page, wrong = browser.new_page(viewport=dict(width=width, height=900)), []
    page.on("request", lambda r: r.url.startswith((site, "data:", "blob:", "about:")) or wrong.append(r.url))
    page.on("requestfailed", lambda r: r.failure == "net::ERR_ABORTED" or r.url.startswith("about:") or wrong.append(f"failed: {r.url}"))
    page.on("response", lambda r: r.status >= 400 and wrong.append(f"{r.status}: {r.url}"))
    page.on("pageerror", lambda e: wrong.append(str(e)))
    for name in ("index", "figures/embedded/index", "nbs/methods/25_varmixup", "nbs/varmixup/vm-table1", "api/mixrepro/methods/varmixup"):
        page.goto(f"{site}{name}.html")
        page.wait_for_timeout(1000)
        assert page.evaluate(OVER) <= 0, name
        if "25_varmixup" in name: page.wait_for_selector(".arithmatex .MathJax", timeout=20_000)
        assert page.evaluate(BROKEN) == [], name
    assert wrong == []
    if width == 1440:
        page.fill(".md-search__input", "FeatureNoise")
        page.wait_for_selector(".md-search-result__item", timeout=30_000)
    page.close()
