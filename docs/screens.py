"""Takes the pictures of the page that the docs show: docs/images/studio/*.png. Wants Debian's chromium and playwright.

python docs/screens.py
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parent / "images" / "studio"
PROMPTS = ["a red heart --seed 0", "a cat --seed 0", "蓝色的汽车 --seed 0", "pizza --seed 0", "太阳 --seed 0"]


def drawn(page: Any, prompt: str) -> None:
    count = page.locator(".job").count()
    page.fill("#prompt", prompt)
    page.press("#prompt", "Enter")
    page.locator(".job").nth(count).wait_for()
    page.locator(".job").first.locator(".acts button").first.wait_for(timeout=120_000)


def main() -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home, sync_playwright() as playwright:
        environment = {**os.environ, "SOJOURN_HOME": home, "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "sojourn", "serve", "--port", "0"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert server.stdout is not None
        found = re.search(r"http://\S+", server.stdout.readline())
        assert found is not None
        chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        size = {"width": 1100, "height": 760}
        page = chromium.new_context(base_url=found[0], viewport=size, locale="en-US").new_page()
        page.goto("/")
        for prompt in PROMPTS:
            drawn(page, prompt)
        drawn(page, "a green car --seed 0")
        page.wait_for_timeout(800)
        page.screenshot(path=IMAGES / "imagine.png")
        dark = chromium.new_context(base_url=found[0], viewport=size, locale="zh-CN", color_scheme="dark").new_page()
        for name in ("gallery", "compare", "models", "queue"):
            dark.goto(f"/{name}")
            dark.wait_for_timeout(1200)
            dark.screenshot(path=IMAGES / f"{name}.png")
        chromium.close()
        server.terminate()
        server.wait(20)
        time.sleep(0.2)


if __name__ == "__main__":
    main()
