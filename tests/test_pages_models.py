"""Sets, trainings and scores by the page, in a real browser and both languages."""

from __future__ import annotations

import json
import time
import zipfile
from pathlib import Path

from browsing import BROWSER, Served, Tab
from PIL import Image, ImageDraw

from sojourn import config
from sojourn.picture import png

pytestmark = list(BROWSER)


def test_models_and_queue_show_what_there_is(tab: Tab) -> None:
    page = tab.page
    page.goto("/models")
    assert page.locator(".card h2", has_text="emoji").count() == 1
    page.locator("#recipe-name").select_option("dcgan")
    page.locator("#recipe-fields input[data-key=seen]").wait_for(state="attached")
    request = {"recipe": "dcgan", "overrides": ["data=no-such-set"], "to": f"none{time.time_ns()}"}
    job = page.request.post("/api/v1/jobs", data={"kind": "train", "request": request}).json()["id"]
    page.select_option("#recipe-name", "emoji")
    page.locator("#recipe-fields legend", has_text="few · shortcut").wait_for(state="attached")
    legends = page.locator("#recipe-fields legend").all_text_contents()
    assert [legend.split(" · ")[0] for legend in legends] == [s.name for s in config.load_recipe("emoji").stage]
    assert page.locator("#recipe-fields input[data-key='tower.seen']").count() == 1
    page.goto("/queue")
    row, zh = page.locator(f"tr[data-job='{job}']"), page.evaluate("document.documentElement.lang") == "zh-CN"
    row.get_by_role("status").get_by_text("失败" if zh else "failed").wait_for()
    assert "no-such-set" in row.inner_text()


def test_a_page_that_is_not_looked_at_does_not_listen(tab: Tab) -> None:
    """A browser has six connections for all its pages of one server. What happened meanwhile is there at the first
    look."""
    page = tab.page
    page.add_init_script("""Object.defineProperty(document, 'hidden', { value: true, configurable: true });
      window.lines = []; const Old = EventSource;
      window.EventSource = class extends Old { constructor(url) { super(url); window.lines.push(this); } };""")
    listening = "window.lines.filter((line) => line.readyState !== EventSource.CLOSED).length"

    def look(hidden: bool) -> None:
        page.evaluate(
            f"Object.defineProperty(document, 'hidden', {{ value: {str(hidden).lower()}, configurable: true }})"
        )
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")

    page.goto("/queue", wait_until="networkidle")  # as a tab that is opened behind another
    for _ in range(2):
        assert page.evaluate(listening) == 0
        request = {"recipe": "dcgan", "overrides": ["data=no-such-set"], "to": f"none{time.time_ns()}"}
        job = page.request.post("/api/v1/jobs", data={"kind": "train", "request": request}).json()["id"]
        row = page.locator(f"tr[data-job='{job}']")
        assert row.count() == 0
        look(hidden=False)
        row.get_by_text("no-such-set").first.wait_for()
        assert page.evaluate(listening) == 1
        look(hidden=True)


def test_a_zip_becomes_a_set_a_package_and_scores(tab: Tab, tmp_path: Path) -> None:
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


def test_a_zip_or_a_folder_is_dropped(tab: Tab, served: Served, tmp_path: Path) -> None:
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
