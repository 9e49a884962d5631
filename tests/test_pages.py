"""The web page in a real browser, in both languages: pictures form, vary, are rated and found; nothing leaves it."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import requests
from browsing import BROWSER, Served, Tab
from PIL import Image

from sojourn.picture import png
from sojourn.studio.bell import Bell
from sojourn.studio.blobs import Blobs
from sojourn.studio.gallery import Gallery
from sojourn.studio.jobs import Jobs
from sojourn.studio.keys import Keys
from sojourn.studio.store import Store
from sojourn.studio.tables import PictureRow

pytestmark = list(BROWSER)
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
NAMELESS = """() => [...document.querySelectorAll("input:not([type=hidden]), select, textarea")]
  .filter((field) => !field.labels?.length && !field.ariaLabel).map((field) => field.id)"""


def test_a_prompt_becomes_four_pictures_that_can_be_varied_and_rated(tab: Tab, served: Served) -> None:
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


def test_words_and_parameters_are_completed_by_keys(tab: Tab) -> None:
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


def test_settings_are_as_they_were_left(tab: Tab, served: Served) -> None:
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
    page.fill("#steps", "-1")
    page.locator(".settings summary").click()
    page.fill("#prompt", "3")
    page.press("#prompt", "Enter")
    tab.until("document.querySelector('.settings').open && document.activeElement.id", "steps")
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
    with (
        page.expect_request(lambda request: request.method == "POST") as asked,
        page.expect_response(lambda answer: answer.request.method == "PUT"),  # else it may come after ours below
    ):
        page.press("#prompt", "Enter")
    assert asked.value.post_data_json["request"]["prompt"] == "3 --model flow --n 2"
    requests.put(f"{served.url}/api/v1/settings", json={}, timeout=30).raise_for_status()


def test_words_of_an_input_method_are_completed_when_they_stand(tab: Tab) -> None:
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


def test_a_part_is_painted_over_and_changed(tab: Tab) -> None:
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
    page.fill("#brush-prompt", "5 --n 1 --n 2")
    page.click("#brush-go")
    page.locator("#brush .notice.wrong").wait_for()  # in front of what it is about
    page.wait_for_timeout(100)
    tab.wrong.clear()
    page.fill("#brush-prompt", "5 —n=2")  # as phones write it
    page.click("#brush-go")
    page.locator(".job").nth(count).wait_for()
    page.locator(".job").first.locator(".acts button").first.wait_for()
    jobs = page.evaluate("fetch('/api/v1/jobs?limit=1').then(answer => answer.json())")
    assert jobs[0]["kind"] == "edit"
    assert jobs[0]["request"]["mask"], "strokes stay when a change is refused"
    assert jobs[0]["request"]["prompt"].startswith("5 --n 2 ")


def test_the_language_is_chosen_and_kept(tab: Tab) -> None:
    page = tab.page
    page.goto("/queue")
    before = page.evaluate("document.documentElement.lang")
    page.locator("form.language button").click()
    page.locator(f"html:not([lang='{before}'])").wait_for(state="attached")
    assert page.url.endswith("/queue")
    page.goto("/")
    assert page.evaluate("document.documentElement.lang") != before
    page.fill("#prompt", "not sent yet")
    page.locator("form.language button").click()
    page.locator(f"html[lang='{before}']").wait_for(state="attached")
    tab.until("document.getElementById('prompt').value", "not sent yet")
    page.goto("/")
    assert page.input_value("#prompt") == "", "kept for the change of language alone"
    page.locator("#theme").click()
    page.reload()
    assert page.locator("html[data-theme]").count() == 1


def test_hostile_words_stay_words(tab: Tab, served: Served) -> None:
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


def test_the_page_goes_on_after_the_server_was_away(chromium: Any, tmp_path: Path, packages_folder: Path) -> None:
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


def test_with_a_key_one_logs_in(chromium: Any, tmp_path: Path) -> None:
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
    page.goto("/")
    page.fill("#prompt", "a dog")
    tab.context.clear_cookies(name="sojourn_key")
    page.press("#prompt", "Enter")
    page.fill("input[name=key]", admin)
    page.click("main button.main")
    page.locator("#prompt").wait_for()
    tab.until("document.getElementById('prompt').value", "a dog")
    page.locator("form[action='/logout'] button").click()
    page.locator("input[name=key]").wait_for()
    assert key not in server.log.read_text()
    tab.close()
    server.end()
    assert json.dumps(sorted(tab.asked)).count(key) == 0


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
