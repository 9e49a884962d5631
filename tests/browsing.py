"""The studio in a real browser: a served home, and tabs that remember what went wrong. Fixtures of the page's tests."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sojourn.picture import png
from sojourn.studio import towers
from sojourn.studio.blobs import Blobs
from sojourn.studio.gallery import Gallery
from sojourn.studio.store import Store
from sojourn.studio.tables import PictureRow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
BROWSER = (pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"))


class Served:
    """`sojourn serve` as a process."""

    def __init__(self, home: Path, port: int = 0) -> None:
        self.home, self.log = home, home / "serve.log"
        self.environment = {**os.environ, "SOJOURN_HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.start(port)

    def start(self, port: int) -> None:
        with self.log.open("w") as out:
            command = [sys.executable, "-m", "sojourn", "serve", "--port", str(port)]
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env=self.environment)
        deadline = time.monotonic() + 60
        while not (found := re.search(r"http://\S+:(\d+)", self.log.read_text())):
            assert time.monotonic() < deadline, self.log.read_text()
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)
        self.url, self.port = found[0], int(found[1])

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, packages_folder: Path) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("served")
    (home / "models").mkdir()
    shutil.copytree(packages_folder / "flow", home / "models" / "flow")
    server = Served(home)
    yield server
    server.end()


def kept(served: Served, words: str, count: int = 1) -> list[int]:
    """Pictures in the gallery that nobody drew; their ids. Each is as like the next as can be."""
    store = Store(f"sqlite:///{served.home}/studio.sqlite")
    gallery = Gallery(store, Blobs(served.home / "blobs"))
    sha = gallery.blobs.put(png(Image.new("RGB", (8, 8), "red"), None))
    ids = [
        gallery.add(
            PictureRow(
                owner="local", sha256=sha, width=8, height=8, words=f"{words} {i}", style=words, model="flow", seed=i,
                recipe={"prompt": words, "options": {words: words}}, created=time.time(),
            )
        )
        for i in range(count)
    ]  # fmt: skip
    gallery.place(getattr(towers.tower(), "mark", ""), {id: np.eye(8)[0] for id in ids})
    store.close()
    return ids


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


class Tab:
    """A page that remembers what went wrong."""

    def __init__(self, chromium: Any, url: str, locale: str, **more: Any) -> None:
        self.context = chromium.new_context(locale=locale, base_url=url, **more)
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.wrong: list[str] = []
        self.asked: set[str] = set()
        self.page.on("console", lambda m: self.wrong.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("dialog", lambda dialog: self.wrong.append("a dialog") or dialog.dismiss())
        self.page.on("request", lambda request: self.asked.add(request.url))
        self.page.on("response", lambda answer: self.wrong.append(answer.url) if answer.status >= 400 else None)

    def until(self, script: str, wanted: Any) -> None:
        """Wait for what a script says; the page's own rules keep `wait_for_function` from asking."""
        for _ in range(600):
            if (found := self.page.evaluate(script)) == wanted:
                return
            self.page.wait_for_timeout(100)
        raise AssertionError(f"{script} is {found}, not {wanted}")

    def close(self) -> None:
        self.context.close()


@pytest.fixture(params=["en-US", "zh-CN"])
def tab(request: pytest.FixtureRequest, chromium: Any, served: Served) -> Iterator[Tab]:
    out = Tab(chromium, served.url, request.param)
    yield out
    out.close()
    assert out.wrong == []
    elsewhere = [url for url in out.asked if not url.startswith((served.url, "data:", "blob:"))]
    assert elsewhere == [], "no request leaves the machine"
