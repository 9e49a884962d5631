"""The web page in a real browser, in both languages: pictures form, vary, are rated and found; nothing leaves it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image, ImageDraw

from sojourn import config
from sojourn.http import pages
from sojourn.picture import png
from sojourn.studio.bell import Bell
from sojourn.studio.blobs import Blobs
from sojourn.studio.gallery import Gallery
from sojourn.studio.jobs import Jobs
from sojourn.studio.keys import Keys
from sojourn.studio.store import Store
from sojourn.studio.tables import PictureRow

TEMPLATES = Path(pages.__file__).parent / "templates"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FAINT = """() => {
  const part = (value) => { value /= 255; return value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4; };
  const light = ([red, green, blue]) => 0.2126 * part(red) + 0.7152 * part(green) + 0.0722 * part(blue);
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const out = [];
  for (const node of document.querySelectorAll("body *")) {
    if (![...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim())) continue;
    if (!node.checkVisibility() || node.closest(".quiet, .skip")) continue;
    let ground = node;
    let colour = [0, 0, 0, 0];
    while (ground && (colour[3] ?? 1) === 0) {
      colour = numbers(getComputedStyle(ground).backgroundColor);
      ground = ground.parentElement;
    }
    const [a, b] = [light(numbers(getComputedStyle(node).color)), light(colour)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) out.push([node.tagName, node.textContent.trim().slice(0, 30), ratio]);
  }
  return out;
}"""
MISNAMED = """() => [...document.querySelectorAll("button, a")].filter((node) => {
  const shown = node.innerText.trim().toLowerCase();
  return /\\w/.test(shown) && node.ariaLabel && !node.ariaLabel.toLowerCase().startsWith(shown);
}).map((node) => node.outerHTML)"""
CELLS = "document.querySelectorAll('.cell').length"
NAMELESS = """() => [...document.querySelectorAll("input:not([type=hidden]), select, textarea")]
  .filter((field) => !field.labels?.length && !field.ariaLabel).map((field) => field.id)"""


def said() -> set[str]:
    """Every text of the page that is to be translated."""
    found: set[str] = set()
    for path in [*TEMPLATES.glob("*.html"), *pages.STATIC.glob("*.js")]:
        source = path.read_text(encoding="utf-8")
        found |= set(re.findall(r"""\bt\("([^"]+)""", source)) | set(re.findall(r"""\bt\('([^']+)'""", source))
    return found


def test_every_text_of_the_page_is_in_both_languages() -> None:
    zh = pages.texts("zh")
    assert len(said()) > 60
    assert said() - zh.keys() == set()
    assert all(re.search("[\u4e00-\u9fff]", text) for text in zh.values())
    assert all(set(re.findall(r"\{\w+\}", a)) == set(re.findall(r"\{\w+\}", b)) for a, b in zh.items())
    assert pages.texts("en")["Imagine"] == "Imagine"


def test_the_page_holds_no_code_and_no_address_of_others() -> None:
    for path in [*TEMPLATES.glob("*.html"), *pages.STATIC.iterdir()]:
        source = path.read_text(encoding="utf-8")
        assert not re.search(r"(src|href|action)=\"(https?:)?//", source), path.name
        assert "innerHTML" not in source, path.name
        assert "eval(" not in source, path.name
        if path.suffix == ".html":
            assert not re.search(r"\son\w+=|<style|style=", source), path.name
            assert not re.findall(r"<script(?![^>]*(src=|application/json))", source), path.name


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
    gallery.place({id: np.eye(8)[0] for id in ids})
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


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
class TestBrowser:
    def test_a_prompt_becomes_four_pictures_that_can_be_varied_and_rated(self, tab: Tab, served: Served) -> None:
        page = tab.page
        page.goto("/?model=flow")
        assert page.input_value("#model") == "flow"
        begun = time.monotonic()
        page.fill("#prompt", "3 --steps 1000")
        page.press("#prompt", "Enter")
        assert page.evaluate("document.activeElement.id") == "prompt"
        page.locator(".job .frame.forming img:not([hidden])").first.wait_for()
        print(f"first sample after {time.monotonic() - begun:.1f} s")
        id = page.locator(".job").first.get_attribute("data-job")
        job = page.locator(f".job[data-job='{id}']")
        job.locator(".acts button").first.wait_for()
        assert job.locator(".tile").count() == 4
        zh = page.evaluate("document.documentElement.lang") == "zh-CN"
        assert job.get_by_role("status").text_content() == ("完成" if zh else "done")
        assert page.evaluate(MISNAMED) == []
        assert job.get_by_role("link", name="U：放大" if zh else "U: larger").count() == 4
        star = job.locator(".acts button[aria-pressed]").first
        star.click()
        page.locator(".job .acts button[aria-pressed=true]").first.wait_for()
        job.locator(f".acts button[title='{'V：小改' if zh else 'V: vary a little'}']").first.click()
        page.locator(f".job:first-child:not([data-job='{id}'])").wait_for()
        page.locator(".job").first.locator(".acts button").first.wait_for()
        job.locator(f".acts button[title='{'配方' if zh else 'Recipe'}']").first.click()
        assert "--steps 1000" in page.locator("#recipe-list").inner_text()
        page.keyboard.press("Escape")
        page.reload()
        page.locator(".job .acts button").first.wait_for()
        assert page.locator(".job").count() >= 2, "history"

    def test_words_and_parameters_are_completed_by_keys(self, tab: Tab) -> None:
        page = tab.page
        page.goto("/")
        page.locator("#prompt").press_sequentially("a tram")
        page.locator("#completions li").first.wait_for()
        page.keyboard.press("Tab")
        assert page.input_value("#prompt").startswith("a tram")
        assert len(page.input_value("#prompt")) >= len("a tram ")
        page.locator("#prompt").press_sequentially("--sty")
        page.locator("#completions li", has_text="--style").first.wait_for()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        assert "--style " in page.input_value("#prompt")
        page.locator("#prompt").press_sequentially("flu")
        page.locator("#completions li", has_text="fluent-3d").wait_for()
        assert page.locator("#prompt").get_attribute("aria-expanded") == "true"
        page.keyboard.press("Escape")
        assert page.locator("#completions").is_hidden()

    def test_settings_are_as_they_were_left(self, tab: Tab, served: Served) -> None:
        page = tab.page
        page.goto("/")
        page.locator(".settings summary").click()
        page.fill("#n", "2")
        page.fill("#no", "帽子")
        with page.expect_response(lambda answer: answer.request.method == "PUT" and "帽子" in answer.text()):
            page.locator("#no").blur()
        with page.expect_response(lambda answer: answer.request.method == "PUT" and '"fluent-3d"' in answer.text()):
            page.select_option("#style", index=1)
            page.select_option("#style", "fluent-3d")
        page.fill("#seed", "7")
        page.goto("/?model=flow")
        tab.until("document.getElementById('set').textContent", "--model flow --n 2 --no 帽子")
        page.goto("/")
        tab.until("document.getElementById('set').textContent", "--style fluent-3d --n 2 --no 帽子")
        assert page.input_value("#seed") == ""
        page.goto("/?model=flow")
        tab.until("document.getElementById('n').value", "2")
        page.fill("#prompt", "3")
        page.locator(".settings summary").click()
        page.fill("#no", "")  # the toy package cannot
        with page.expect_request(lambda request: request.method == "POST") as asked:
            page.press("#prompt", "Enter")
        assert asked.value.post_data_json["request"]["prompt"] == "3 --model flow --n 2"
        requests.put(f"{served.url}/api/v1/settings", json={}, timeout=30).raise_for_status()

    def test_words_of_an_input_method_are_completed_when_they_stand(self, tab: Tab) -> None:
        page = tab.page
        page.goto("/")
        page.focus("#prompt")
        keys = tab.context.new_cdp_session(page)
        keys.send("Input.imeSetComposition", {"text": "红", "selectionStart": 1, "selectionEnd": 1})
        page.wait_for_timeout(300)
        assert page.locator("#completions").is_hidden(), "nothing while it is composed"
        keys.send("Input.insertText", {"text": "红"})
        page.locator("#completions li", has_text="红").first.wait_for()
        assert page.input_value("#prompt") == "红"

    def test_a_part_is_painted_over_and_changed(self, tab: Tab) -> None:
        page = tab.page
        page.goto("/?model=flow")
        page.wait_for_timeout(1000)
        count = page.locator(".job").count()
        page.fill("#prompt", "5 --n 1")
        page.press("#prompt", "Enter")
        page.locator(".job").nth(count).wait_for()
        page.locator(".job").first.locator(".acts button", has_text="✎").click()
        count += 1
        box = page.locator("#canvas").bounding_box()
        page.mouse.move(box["x"] + 60, box["y"] + 60)
        page.mouse.down()
        page.mouse.move(box["x"] + 200, box["y"] + 120, steps=5)
        page.mouse.up()
        page.click("#brush-go")
        page.locator(".job").nth(count).wait_for()
        page.locator(".job").first.locator(".acts button").first.wait_for()
        jobs = page.evaluate("fetch('/api/v1/jobs?limit=1').then(answer => answer.json())")
        assert jobs[0]["kind"] == "edit"
        assert jobs[0]["request"]["mask"]

    def test_the_gallery_searches_chooses_and_throws_away(self, tab: Tab) -> None:
        page = tab.page
        page.goto("/gallery")
        page.locator(".cell").first.wait_for()
        before = page.locator(".cell").count()
        page.locator(".cell input").first.check()
        assert page.locator("#chosen").is_visible()
        page.locator("[data-act=trash]").click()
        page.locator("#chosen").wait_for(state="hidden")
        assert page.locator(".cell").count() == before - 1
        page.locator("#trashed").check()
        page.locator(".cell").first.wait_for()
        page.locator(".cell input").first.check()
        page.locator("[data-act=back]").click()
        page.locator("#trashed").uncheck()
        page.fill("#words", "zebra")
        page.locator("#nothing").wait_for()
        page.fill("#words", "3")
        page.locator(".cell").first.wait_for()
        page.locator(".cell button").first.click()
        assert page.locator("#viewer").is_visible()
        page.keyboard.press("Escape")

    def test_the_gallery_shows_what_was_hidden_and_keeps_collections(self, tab: Tab, served: Served) -> None:
        page, words = tab.page, f"lantern{time.time_ns()}"
        ids = kept(served, words, 4)
        page.goto("/gallery")
        page.locator(".cell").first.wait_for()
        with page.expect_response(lambda answer: f"words={words}" in answer.url):
            page.fill("#words", words)
        cell = page.locator(".cell", has=page.locator(f"button[aria-label^='{words}']"))
        tab.until(CELLS, 4)
        cell.nth(0).locator("input").check()
        page.locator("[data-act=hide]").click()
        tab.until(CELLS, 3)
        page.locator("#hidden").check()
        tab.until(CELLS, 1)
        cell.locator("input").check()
        assert page.locator("[data-act=hide]").is_hidden()
        page.locator("[data-act=show]").click()
        page.locator("#nothing").wait_for()
        page.locator("#hidden").uncheck()
        tab.until(CELLS, 4)

        page.request.post("/api/v1/collections", data={"name": words, "ids": ids[:2]})
        page.reload()
        assert page.locator("#scatter").is_hidden()
        page.locator("#collection").select_option(label=f"{words} (2)")
        tab.until(CELLS, 2)
        cell.nth(0).locator("input").check()
        page.locator("[data-act=out]").click()
        page.locator(f"#collection option:text-is('{words} (1)')").wait_for(state="attached")
        assert page.locator(".cell").count() == 1
        page.locator("#scatter").click()
        page.locator("#sure-yes").click()
        page.locator(f"#collection option:has-text('{words}')").wait_for(state="detached")
        with page.expect_response(lambda answer: f"words={words}" in answer.url):
            page.fill("#words", words)
        tab.until(CELLS, 4)

        page.locator(".cell input").first.check()
        page.locator("[data-act=trash]").click()
        tab.until(CELLS, 3)
        page.locator("#trashed").check()
        tab.until(CELLS, 1)
        page.locator("#empty").click()
        page.keyboard.press("Escape")
        assert page.locator(".cell").count() == 1, "not without a yes"
        page.locator("#empty").click()
        page.locator("#sure-yes").click()
        page.locator("#nothing").wait_for()
        page.locator("#trashed").uncheck()
        tab.until(CELLS, 3)

        page.locator(".cell button").first.click()
        shown = page.locator("#viewer-words").inner_text()
        page.locator("#viewer-alike a").first.click()
        page.locator("#viewer-words", has_not_text=shown).wait_for()
        assert page.evaluate("document.querySelector('#viewer').contains(document.activeElement)")

    def test_a_long_gallery_loads_what_is_seen_and_asks_for_many_at_once(self, tab: Tab) -> None:
        page, count = tab.page, 2500
        asked: list[tuple[str, int]] = []

        def rows(route: Any) -> None:
            before = int((re.search(r"before=(\d+)", route.request.url) or [0, count + 1])[1])
            fields = {"words": "a crowd", "model": "flow", "style": None, "stars": 0, "hidden": False, "recipe": {}}
            ids = range(before - 1, max(0, before - 101), -1)
            route.fulfill(json=[{**fields, "id": id, "seed": id, "width": 8, "height": 8} for id in ids])

        def rated(route: Any) -> None:
            asked.append((route.request.post_data_json["kind"], len(route.request.post_data_json["ids"])))
            route.fulfill(json={"count": 1})

        dot = png(Image.new("RGB", (8, 8), "red"), None)
        page.route("**/api/v1/pictures?*", rows)
        page.route("**/api/v1/pictures/*/file", lambda route: route.fulfill(body=dot, content_type="image/png"))
        page.route("**/api/v1/ratings/many", rated)
        page.route("**/api/v1/pictures/trash", lambda route: route.fulfill(json={"count": 2}))
        page.goto("/gallery")
        page.locator(".cell").first.wait_for()
        while (found := page.locator(".cell").count()) < count:
            page.evaluate("scrollTo(0, document.body.scrollHeight)")
            tab.until(f"{CELLS} > {found}", True)
        tab.until("document.querySelector('.cell').checkVisibility({contentVisibilityAuto: true})", False)
        page.locator(".cell input").last.check()
        page.locator(".cell input").first.click(modifiers=["Shift"])
        page.locator("[data-act=star]").click()
        page.locator("#chosen").wait_for(state="hidden")
        assert asked == [("stars", 1000), ("stars", 1000), ("stars", 500)]
        assert page.locator(".cell .star").count() == count
        for i in range(2):
            page.locator(".cell input").nth(i).check()
        page.locator("[data-act=trash]").click()
        tab.until("[...document.querySelectorAll('.grid')].map((block) => block.children.length)", [840, 840, 818])

    def test_pairs_are_compared_by_keys(self, tab: Tab, served: Served) -> None:
        page, (mine, _) = tab.page, (*kept(served, "starred"), *kept(served, "starred"))
        star = {"kind": "stars", "picture": mine, "value": 4}
        page.goto("/compare")
        page.locator("#left img[src]").wait_for()
        page.request.post("/api/v1/ratings", data=star)
        page.keyboard.press("z")
        page.wait_for_timeout(300)
        assert not any("ratings/last" in url for url in tab.asked), "nothing was compared"
        for key in ("ArrowLeft", "ArrowRight", "ArrowUp"):
            told = page.locator("#tally").inner_text()
            page.keyboard.press(key)
            page.locator("#tally", has_not_text=told).wait_for()
        rated = page.evaluate("fetch('/api/v1/ratings?limit=500').then(answer => answer.json())")
        page.request.post("/api/v1/ratings", data=star)
        page.keyboard.press("z")
        page.wait_for_timeout(500)
        after = page.evaluate("fetch('/api/v1/ratings?limit=500').then(answer => answer.json())")
        pairs, left = ([row["id"] for row in rows if row["kind"] == "pair"] for rows in (rated, after))
        assert left == pairs[:-1]
        assert page.request.get(f"/api/v1/pictures/{mine}").json()["stars"] == 4, "a star is no pair"

    def test_the_language_is_chosen_and_kept(self, tab: Tab) -> None:
        page = tab.page
        page.goto("/queue")
        before = page.evaluate("document.documentElement.lang")
        page.locator("form.language button").click()
        page.locator(f"html:not([lang='{before}'])").wait_for(state="attached")
        assert page.url.endswith("/queue")
        page.goto("/gallery")
        assert page.evaluate("document.documentElement.lang") != before
        page.locator("#theme").click()
        page.reload()
        assert page.locator("html[data-theme]").count() == 1

    def test_models_and_queue_show_what_there_is(self, tab: Tab) -> None:
        page = tab.page
        page.goto("/models")
        assert page.locator(".card h2", has_text="emoji").count() == 1
        page.locator("#recipe-name").select_option("dcgan")
        page.locator("#recipe-fields input[data-key=seen]").wait_for(state="attached")
        request = {"recipe": "dcgan", "overrides": ["data=no-such-set"], "to": f"none{time.time_ns()}"}
        job = page.request.post("/api/v1/jobs", data={"kind": "train", "request": request}).json()["id"]
        page.select_option("#recipe-name", "emoji")
        page.locator("#recipe-fields legend", has_text="shortcut").wait_for(state="attached")
        legends = page.locator("#recipe-fields legend").all_text_contents()
        assert [legend.split(" · ")[0] for legend in legends] == [s.name for s in config.load_recipe("emoji").stage]
        assert page.locator("#recipe-fields input[data-key='tower.seen']").count() == 1
        page.goto("/queue")
        row, zh = page.locator(f"tr[data-job='{job}']"), page.evaluate("document.documentElement.lang") == "zh-CN"
        row.get_by_role("status").get_by_text("失败" if zh else "failed").wait_for()
        assert "no-such-set" in row.inner_text()

    def test_a_zip_becomes_a_set_a_package_and_scores(self, tab: Tab, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "shapes.zip", "w") as archive:
            for i in range(64):
                picture = Image.new("L", (32, 32), 255)
                box = (3 + i % 5, 3 + i % 7, 20 + i % 9, 20 + i % 11)
                getattr(ImageDraw.Draw(picture), ("rectangle", "ellipse")[i % 2])(box, fill=i)
                archive.writestr(f"{('square', 'round')[i % 2]}/{i}.png", png(picture, None))
        page, name = tab.page, f"shapes{len(tab.page.context.pages)}{int(time.time())}"
        page.goto("/models")
        page.fill("#set-name", name)
        page.set_input_files("#set-file", tmp_path / "shapes.zip")
        page.fill("#set-size", "32")
        page.locator("#prepare button.main").click()
        page.locator(f"#train-set option:text-is('{name}')").wait_for(state="attached")
        page.locator("#recipe-name").select_option("dcgan")
        page.locator("#recipe-fields input[data-key=seen]").wait_for(state="attached")
        page.locator("#train summary").click()
        for key, value in {"preset": "tiny", "seen": "256", "batch_size": "16", "snapshot": "64"}.items():
            page.fill(f"#recipe-fields input[data-key={key}]", value)
        page.locator("#train-set").select_option(name)
        page.fill("#train-to", name)
        page.locator("#train button.main").click()
        run = page.locator("#trainings article", has_text=f"dcgan → {name}")
        run.locator(".sheets img").wait_for()
        run.locator("svg path[d]").wait_for(state="attached")
        page.locator(f"#evaluate input[value={name}]").check()
        page.locator("#evaluate-set").select_option(name)
        page.fill("#evaluate-count", "32")
        page.locator("#evaluate button.main").click()
        measured = page.locator("#trainings article", has_text=f"{name} / {name}")
        measured.locator("th", has_text="pictures/s").wait_for()
        with page.expect_download() as kept:
            measured.locator("a[download]").click()
        assert "<table>" in Path(kept.value.path()).read_text(encoding="utf-8")
        page.reload()
        page.locator("#trainings article", has_text=f"{name} / {name}").locator("th", has_text="pictures/s").wait_for()

    def test_a_zip_or_a_folder_is_dropped(self, tab: Tab, served: Served, tmp_path: Path) -> None:
        folder = tmp_path / "图 set"
        for i in range(128):  # a browser lists a hundred files at a time
            path = folder / ("square", "round")[i % 2] / f"图{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(Image.new("L", (16, 16), 2 * i), None))
        (folder / ".hidden").write_bytes(b"x" * (65 << 20))
        with zipfile.ZipFile(tmp_path / "zipped.zip", "w") as archive:
            archive.write(folder / "round" / "图1.png", "1.png")
        (tmp_path / "large.bin").write_bytes(b"x" * (65 << 20))
        page = tab.page
        page.goto("/models")
        mouse = tab.context.new_cdp_session(page)

        def drop(path: Path) -> None:
            data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
            page.locator("#prepare").scroll_into_view_if_needed()
            box = page.locator("#prepare").bounding_box()
            for kind in ("dragEnter", "dragOver", "drop"):
                place = {"type": kind, "x": box["x"] + 20, "y": box["y"] + 20, "data": data}
                mouse.send("Input.dispatchDragEvent", place)

        held = "document.querySelector('#set-file').files[0]?.name"
        drop(tmp_path / "large.bin")
        page.locator(".notice.wrong", has_text="65 MB").wait_for()
        assert page.evaluate(held) is None
        drop(tmp_path / "zipped.zip")
        tab.until(held, "zipped.zip")
        assert page.input_value("#set-name") == "zipped"
        page.fill("#set-name", "")
        drop(folder)
        tab.until(held, "图 set.zip")
        name = f"{page.input_value('#set-name')}{time.time_ns()}"
        assert name.startswith("set")
        page.fill("#set-name", name)
        page.fill("#set-size", "16")
        page.locator("#prepare button.main").click()
        page.locator(f"#train-set option:text-is('{name}')").wait_for(state="attached")
        info = json.loads((served.home / "sets" / name / "set.json").read_text(encoding="utf-8"))
        assert "round" in json.dumps(info)

    def test_hostile_words_stay_words(self, tab: Tab, served: Served) -> None:
        """T29: in prompts, styles and recipes, wherever a page shows them."""
        hostile = [
            "<img src=x onerror=alert(1)>",
            '"><script>alert(1)</script>',
            "javascript:alert(1)",
            "{{7*7}} ${7*7}",
        ]
        store = Store(f"sqlite:///{served.home}/studio.sqlite")
        blobs = Blobs(served.home / "blobs")
        sha = blobs.put(png(Image.new("RGB", (8, 8), "red"), None))
        gallery, jobs = Gallery(store, blobs), Jobs(store, Bell(served.home / "bells"))
        for text in hostile:
            job = jobs.submit("local", "generate", {"prompt": f"{text} --n 1", "previews": 0})
            jobs.cancel(job.id)
            gallery.add(
                PictureRow(
                    owner="local", sha256=sha, width=8, height=8, words=text, style=text, model="flow", seed=1,
                    recipe={"prompt": text, "options": {text: text}}, stars=5, created=time.time(),
                )
            )  # fmt: skip
        gallery.collect("local", hostile[0], [1])
        jobs.bell.close()
        store.close()
        page = tab.page
        for path in ("/queue", "/compare", "/gallery", "/"):
            page.goto(path)
            page.wait_for_timeout(700)
            assert page.locator("img[src=x]").count() == 0
        page.goto("/gallery")
        shown = page.locator(f".cell button[aria-label='{hostile[0]}']").first
        shown.wait_for()
        shown.click()
        page.locator("#viewer-row button").click()
        page.locator("#recipe-list dd").first.wait_for()
        assert hostile[0] in page.locator("#recipe-list").inner_text()
        assert page.locator("img[src=x]").count() == 0

    def test_the_page_goes_on_after_the_server_was_away(
        self, chromium: Any, tmp_path: Path, packages_folder: Path
    ) -> None:
        """T38."""
        (tmp_path / "models").mkdir()
        shutil.copytree(packages_folder / "flow", tmp_path / "models" / "flow")
        server = Served(tmp_path)
        tab = Tab(chromium, server.url, "en-US")
        page = tab.page
        page.goto("/?model=flow")
        page.fill("#prompt", "3 --n 16 --steps 1000")
        page.press("#prompt", "Enter")
        page.locator(".frame.forming img:not([hidden])").first.wait_for()
        server.process.kill()
        server.process.wait()
        time.sleep(5)
        with page.expect_response(lambda answer: answer.url.endswith("/api/v1/events")):
            server.start(server.port)
            back = time.monotonic()
        print(f"T38: the page listens again {time.monotonic() - back:.1f} s after the server was back")
        assert time.monotonic() - back < 3
        page.locator(".job .acts button").first.wait_for()
        assert page.locator(".job").count() == 1, "no card twice"
        tab.wrong.clear()
        tab.close()
        server.end()

    def test_with_a_key_one_logs_in(self, chromium: Any, tmp_path: Path) -> None:
        store = Store(f"sqlite:///{tmp_path}/studio.sqlite")
        key, admin = Keys(store).add("ann", "generate"), Keys(store).add("bea", "admin")
        store.close()
        server = Served(tmp_path)
        tab = Tab(chromium, server.url, "en-US")
        page = tab.page
        page.goto("/")
        assert page.url.endswith("/login")
        for lang, title in (("zh-CN", "登录"), ("en", "Log in")):
            page.locator("form.language button").click()
            page.locator(f"html[lang='{lang}']").wait_for(state="attached")
            assert page.locator("h1").inner_text() == title
            assert page.url.endswith("/login")
        page.fill("input[name=key]", "sj-wrong")
        page.click("main button.main")
        page.locator("[role=alert]").wait_for()
        page.fill("input[name=key]", key)
        page.click("main button.main")
        page.locator("#prompt").wait_for()
        cookie = next(one for one in tab.context.cookies() if one["name"] == "sojourn_key")
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
        page.goto("/models")
        assert page.locator("#train").is_hidden(), "a key to generate may not train"
        page.request.post("/api/v1/jobs", data={"kind": "generate", "request": {"prompt": "a cat --n 1"}})
        page.goto("/queue")
        page.locator("tbody tr", has_text="a cat").wait_for()
        assert page.locator("tbody td", has_text="ann").count() == 0
        page.locator("form[action='/logout'] button").click()
        page.fill("input[name=key]", admin)
        page.click("main button.main")
        page.locator("#prompt").wait_for()
        page.goto("/queue")
        page.locator("tbody tr", has_text="a cat").locator("td:text-is('ann')").wait_for()
        page.locator("form[action='/logout'] button").click()
        page.locator("input[name=key]").wait_for()
        assert key not in server.log.read_text()
        tab.close()
        server.end()
        assert json.dumps(sorted(tab.asked)).count(key) == 0


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(chromium: Any, served: Served, scheme: str) -> None:
    """WCAG AA: 4.5 for text, computed from what the browser shows."""
    tab = Tab(chromium, served.url, "en-US", color_scheme=scheme)
    for path in ("/", "/gallery", "/compare", "/models", "/queue", "/login"):
        tab.page.goto(path)
        tab.page.wait_for_timeout(400)
        assert tab.page.evaluate(FAINT) == [], path
        assert tab.page.evaluate(NAMELESS) == [], f"{path}: a field without a name"
    tab.close()
