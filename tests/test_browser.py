"""The explorable as a person meets it: JupyterLab in Chromium, all cells run, a slider moved by keyboard."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from playwright import sync_api
from project import CHROMIUM, HOW, ROOT

READY = """async () => {
  const panel = window.jupyterapp.shell.currentWidget;
  await panel.context.ready;
  await panel.sessionContext.ready;
  await panel.sessionContext.session.kernel.info;
}"""  # what is run before the kernel answers is lost

if CHROMIUM is None:
    pytest.skip(f"the explorable was not opened in a browser: {HOW}", allow_module_level=True)


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab that shows a copy of the explorable."""
    folder = ROOT / "notebooks/course/student"
    folder.mkdir(exist_ok=True)
    copy = folder / f"explore-{os.getpid()}.ipynb"
    shutil.copy(ROOT / "notebooks/course/explore.ipynb", copy)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyter", "lab", "--allow-root", "--no-browser", f"--port={port}"]
    command += [
        "--LabApp.expose_app_in_browser=True",
        "--ServerApp.ip=127.0.0.1",
        "--IdentityProvider.token=",
        f"--ServerApp.root_dir={folder}",
    ]
    own = {"JUPYTER_CONFIG_DIR": str(tmp_path), "JUPYTERLAB_SETTINGS_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(240):
                try:
                    urllib.request.urlopen(f"{address}/api/status")
                    break
                except OSError:
                    assert server.poll() is None, (tmp_path / "log").read_text()
                    time.sleep(0.25)
            yield f"{address}/lab/tree/{copy.name}?reset"
        finally:
            server.terminate()
            server.wait(30)
            copy.unlink()


def test_a_slider_moved_by_keyboard_changes_the_picture(lab):
    errors = []
    with sync_api.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(240_000)
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(lab)
        page.locator(".jp-Notebook .jp-Cell").first.wait_for()
        page.evaluate(READY)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        picture = page.locator("img.widget-image").first  # the saved still picture is no widget
        picture.wait_for()
        assert len(picture.get_attribute("title")) > 20
        before = picture.get_attribute("src")
        slider = page.get_by_role("slider").nth(1)  # λ; the first one, rounds, is not read by UCE
        slider.focus()
        slider.press("ArrowRight")
        changed = "([picture, before]) => picture.src !== before && picture.complete && picture.naturalWidth > 0"
        page.wait_for_function(changed, arg=[picture.element_handle(), before])
        browser.close()
    assert not errors
