"""The gallery and the comparing of pairs, in a real browser and both languages."""

from __future__ import annotations

import re
import time
from typing import Any

from browsing import BROWSER, Served, Tab, kept
from PIL import Image

from sojourn.picture import png

pytestmark = list(BROWSER)
CELLS = "document.querySelectorAll('.cell').length"


def test_the_gallery_searches_chooses_and_throws_away(tab: Tab, served: Served) -> None:
    page = tab.page
    kept(served, "3", 3)
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


def test_the_gallery_shows_what_was_hidden_and_keeps_collections(tab: Tab, served: Served) -> None:
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


def test_a_long_gallery_loads_what_is_seen_and_asks_for_many_at_once(tab: Tab) -> None:
    page, count = tab.page, 1200
    asked: list[tuple[str, int]] = []

    def rows(route: Any) -> None:
        before = int((re.search(r"before=(\d+)", route.request.url) or [0, count + 1])[1])
        if before == 601 and not tab.wrong:
            route.fulfill(status=503, json={"error": {"message": "too busy"}})
            return
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
    tab.until(f"scrollTo(0, document.body.scrollHeight), {CELLS}", count)
    assert {"before=601" in one or "503" in one for one in tab.wrong} == {True}, (
        "one request failed, and was asked again"
    )
    tab.wrong.clear()
    tab.until("document.querySelector('.cell').checkVisibility({contentVisibilityAuto: true})", False)
    page.locator(".cell input").last.check()
    page.locator(".cell input").first.click(modifiers=["Shift"])
    page.locator("[data-act=star]").click()
    page.locator("#chosen").wait_for(state="hidden")
    assert asked == [("stars", 1000), ("stars", 200)]
    assert page.locator(".cell .star").count() == count
    for i in range(2):
        page.locator(".cell input").nth(i).check()
    page.locator("[data-act=trash]").click()
    tab.until("[...document.querySelectorAll('.grid')].map((block) => block.children.length)", [840, 358])


def test_pairs_are_compared_by_keys(tab: Tab, served: Served) -> None:
    page, (mine, _) = tab.page, (*kept(served, "starred"), *kept(served, "starred"))
    star = {"kind": "stars", "picture": mine, "value": 4}
    page.goto("/compare")
    page.locator("#left img[src]").wait_for()
    page.request.post("/api/v1/ratings", data=star)
    page.keyboard.press("z")
    page.wait_for_timeout(300)
    page.keyboard.press("Alt+ArrowLeft")  # back, in many a browser
    page.wait_for_timeout(300)
    assert not any("/api/v1/ratings" in url for url in tab.asked), "nothing was compared"
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
