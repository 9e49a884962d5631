"""The official `openai` client against a real server process: its models, pictures, texts, and what it raises."""

from __future__ import annotations

import base64
import io
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from sojourn.studio import work
from sojourn.studio.asks import settled
from sojourn.studio.bell import Bell
from sojourn.studio.blobs import Blobs
from sojourn.studio.jobs import Jobs
from sojourn.studio.keys import Keys
from sojourn.studio.process import born
from sojourn.studio.store import Store
from sojourn.studio.studio import Studio

SERVER = """
import sys
from sojourn.http import site
site.WAITING = 6
from sojourn.cli.main import run
sys.exit(run(["serve", "--port", "0", "--verbose"]))
"""
PATIENCE_S = 240.0
"""A busy machine is slow."""


@dataclass
class Server:
    """A running server, and what it wrote."""

    url: str
    home: Path
    key: str
    log: Path

    def client(self, key: str | None = None, **more: Any) -> openai.OpenAI:
        given = {"timeout": PATIENCE_S, "max_retries": 0, **more}
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key if key is None else key, **given)

    def requests(self, path: str, status: int) -> int:
        """How many it answered so."""
        return self.log.read_text("utf-8").count(f'"path": "{path}", "status": {status}, ')


@pytest.fixture(scope="module")
def server(packages_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("served") / "home 红"
    (home / "models").mkdir(parents=True)
    for name in ("flow", "dcgan", "lm"):
        shutil.copytree(packages_folder / name, home / "models" / name)
    shutil.copytree(packages_folder / "dcgan", home / "models" / "old")
    env = {**os.environ, "TZ": "Asia/Shanghai", "SOJOURN_HOME": str(home), "OMP_NUM_THREADS": "1", "SOJOURN_LANG": "en"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOJOURN_HOME", str(home))
        with Studio() as studio:
            key = Keys(studio.store).add("ann", "admin")
    told, log = home / "stdout", home / "stderr"
    with told.open("wb") as out, log.open("wb") as err:
        process = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                                   env=env)  # fmt: skip
    try:
        until(lambda: "http://" in told.read_text() or process.poll() is not None, PATIENCE_S)
        assert process.poll() is None, log.read_text()
        url = "http://" + told.read_text().split("http://")[1].split()[0]
        until(lambda: ready(url, key), PATIENCE_S)
        yield Server(url, home, key, log)
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with server.client() as made:
        yield made


@pytest.fixture
def studio(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Studio]:
    """The studio behind the server, from another process."""
    monkeypatch.setenv("SOJOURN_HOME", str(server.home))
    with Studio() as made:
        yield made


def until(what: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def ready(url: str, key: str) -> bool:
    return httpx.get(f"{url}/ready", headers={"authorization": f"Bearer {key}"}, timeout=60).status_code == 200


def opened(data: bytes | str) -> Image.Image:
    raw = base64.b64decode(data) if isinstance(data, str) else data
    with Image.open(io.BytesIO(raw)) as file:
        file.load()
        return file.copy()


def pixels(picture: Any) -> np.ndarray:
    return np.asarray(opened(picture.b64_json).convert("L"), np.int16)


def draw(client: openai.OpenAI, prompt: str = "3", **more: Any) -> Any:
    extra = {"seed": 7, **more.pop("extra", {})}
    return client.images.generate(prompt=prompt, **{"model": "flow", "extra_body": extra, **more})


def drawing(side: int = 64, mode: str = "RGB") -> bytes:
    """A picture of this test's own: dark, with a light bar."""
    picture = Image.new("RGB", (side, side), "black")
    picture.paste("white", (side // 3, 0, side // 2, side))
    out = io.BytesIO()
    picture.convert(mode).save(out, "PNG")
    return out.getvalue()


def mask(width: int = 64, height: int = 64) -> bytes:
    """Transparent, so free to change, on the right half."""
    picture = Image.new("RGBA", (width, height), (0, 0, 0, 255))
    picture.paste((0, 0, 0, 0), (width // 2, 0, width, height))
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


# Models


def test_models(client: openai.OpenAI, server: Server) -> None:
    listed = {model.id: model for model in client.models.list()}
    assert {"emoji", "flow", "dcgan", "lm", "old"} <= set(listed)
    one = client.models.retrieve("flow")
    assert one == listed["flow"]
    assert (one.object, one.owned_by) == ("model", "local")
    assert time.time() - 3600 < one.created <= time.time() + 1, "whatever the server's time zone"
    assert one._request_id
    gone = client.models.delete("old")
    assert (gone.id, gone.deleted) == ("old", True)
    assert not (server.home / "models" / "old").exists()
    for wrong in (client.models.retrieve, client.models.delete):
        with pytest.raises(openai.NotFoundError) as caught:
            wrong("no/such 包")
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.PermissionDeniedError):
        client.models.delete("emoji")


# Generations


def test_pictures_as_base64_and_as_addresses(client: openai.OpenAI, server: Server) -> None:
    answer = draw(client)
    assert answer._request_id
    assert abs(answer.created - time.time()) < PATIENCE_S
    (picture,) = answer.data
    assert opened(picture.b64_json).size == (8, 8)
    assert (picture.url, picture.revised_prompt) == (None, "3")
    assert (answer.size, answer.output_format) == ("8x8", "png")
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    linked = draw(client, response_format="url", size="40x24", output_format="webp")
    assert linked.data[0].b64_json is None
    fetched = httpx.get(linked.data[0].url, timeout=60)  # the address is its own key
    assert fetched.headers["content-type"] == "image/webp"
    assert opened(fetched.content).size == (40, 24)
    assert server.key not in linked.data[0].url
    broken = linked.data[0].url.replace("40x24", "41x24")
    assert httpx.get(broken, timeout=60).status_code == 401
    assert httpx.get(broken, headers={"authorization": f"Bearer {server.key}"}, timeout=60).status_code == 404


def test_picture_i_is_that_of_the_seed_plus_i(client: openai.OpenAI) -> None:
    four = [pixels(picture) for picture in draw(client, n=4).data]
    assert len(four) == 4
    assert np.abs(four[0] - four[1]).max() > 8
    for i in (0, 3):
        (alone,) = draw(client, extra={"seed": 7 + i}).data
        assert np.abs(pixels(alone) - four[i]).max() <= 2


@pytest.mark.parametrize("size", ["300x17", "16x16", "64x2048", "auto"])
def test_sizes(client: openai.OpenAI, size: str) -> None:
    answer = draw(client, size=size)
    wanted = (8, 8) if size == "auto" else tuple(map(int, size.split("x")))
    assert opened(answer.data[0].b64_json).size == wanted
    assert answer.size == f"{wanted[0]}x{wanted[1]}"


def test_formats(client: openai.OpenAI) -> None:
    kinds = {}
    for name in ("png", "jpeg", "webp"):
        answer = draw(client, output_format=name, size="64x64", output_compression=50)
        assert answer.output_format == name
        kinds[name] = base64.b64decode(answer.data[0].b64_json)
        with Image.open(io.BytesIO(kinds[name])) as file:
            assert file.format == name.upper()
    fine = draw(client, output_format="jpeg", size="64x64", output_compression=100)
    assert len(base64.b64decode(fine.data[0].b64_json)) > len(kinds["jpeg"])


def test_parameters_come_in_the_prompt_or_beside_it(client: openai.OpenAI) -> None:
    beside = draw(client, extra={"seed": 5, "steps": 2, "no": "8", "guidance": 2})
    (within,) = draw(client, "3 --seed 5 --steps 2 --no 8 --guidance 2", extra={"seed": None}).data
    assert np.abs(pixels(within) - pixels(beside.data[0])).max() <= 2
    assert beside.usage.output_tokens == 2, "steps"
    assert len(draw(client, "3 --n 2").data) == 2, "as many as the prompt says"
    assert len(draw(client, "3 --n 2", n=3).data) == 3, "the field goes first"
    assert len(client.images.generate(prompt="3 --model flow", quality="hd", user="me").data) == 1
    unknown = {"complexity": 1, "frame_count": 3, "moderation": "low", "style": "vivid", "background": "auto"}
    assert draw(client, extra={**unknown, "made_up": [1, {}]}).data


def test_the_words_are_chinese(client: openai.OpenAI) -> None:
    extra = {"seed": 1, "steps": 2, "chaos": 10, "style": "noto", "no": "蓝色"}
    answer = client.images.generate(prompt="红心", model="gpt-image-1", extra_body=extra)
    assert opened(answer.data[0].b64_json).size == (64, 64)
    assert "红心" in str(answer.data[0].revised_prompt)


# Streams

PARTIAL = ("type", "b64_json", "partial_image_index", "created_at", "size", "quality", "background", "output_format")
COMPLETED = (*PARTIAL[:2], *PARTIAL[3:], "usage")


def test_a_stream_without_partial_images(client: openai.OpenAI) -> None:
    with draw(client, stream=True, size="32x16") as stream:
        (last,) = list(stream)
    assert last.type == "image_generation.completed"
    assert all(getattr(last, name) is not None for name in COMPLETED)
    assert last.usage.input_tokens_details.text_tokens == 1
    assert opened(last.b64_json).size == (32, 16)


def test_a_stream_with_partial_images(client: openai.OpenAI) -> None:
    with draw(client, stream=True, partial_images=3, output_format="webp", extra={"steps": 600}) as stream:
        events = list(stream)
    assert [event.type for event in events] == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:3]] == [0, 1, 2]
    for event in events:
        names = COMPLETED if event is events[-1] else PARTIAL
        assert all(getattr(event, name) is not None for name in names)
        with Image.open(io.BytesIO(base64.b64decode(event.b64_json))) as file:
            assert file.format == "WEBP"
    plain = draw(client, output_format="webp", extra={"steps": 600}).data[0]
    assert np.abs(pixels(events[-1]) - pixels(plain)).max() <= 2


def test_a_stream_of_several_pictures(client: openai.OpenAI) -> None:
    with draw(client, stream=True, n=3) as stream:
        events = list(stream)
    assert [event.type for event in events] == ["image_generation.completed"] * 3
    assert [event.image_index for event in events] == [0, 1, 2]


def test_an_error_in_a_stream_is_raised(client: openai.OpenAI) -> None:
    with draw(client, "no such digit", stream=True) as stream, pytest.raises(openai.APIError) as caught:
        list(stream)
    assert not isinstance(caught.value, openai.APIStatusError)
    assert "no such digit" in caught.value.message
    assert caught.value.type == "invalid_request_error"


# Edits and variations


def test_an_edit_goes_on_from_a_picture(client: openai.OpenAI) -> None:
    given = {"model": "flow", "prompt": "3", "extra_body": {"seed": 3}}
    (near,) = client.images.edit(image=drawing(), **{**given, "extra_body": {"seed": 3, "strength": 0.1}}).data
    (far,) = client.images.edit(image=drawing(), **{**given, "extra_body": {"seed": 3, "strength": 1.0}}).data
    source = np.asarray(opened(drawing()).convert("L").resize((8, 8), Image.Resampling.BOX), np.int16)
    distance = [float(np.abs(pixels(picture) - source).mean()) for picture in (near, far)]
    assert distance[0] < distance[1]
    two = client.images.edit(image=("红.png", drawing(), "image/png"), n=2, size="40x20", **given)
    assert [opened(picture.b64_json).size for picture in two.data] == [(40, 20)] * 2


def test_an_edit_of_several_pictures_begins_at_their_mean(client: openai.OpenAI) -> None:
    given = {"model": "flow", "prompt": "3", "extra_body": {"seed": 3, "strength": 0.2}}
    light, dark = (("a.png", drawing(64, mode), "image/png") for mode in ("L", "RGBA"))
    (both,) = client.images.edit(image=[light, dark], **given).data
    (one,) = client.images.edit(image=drawing(), **given).data
    assert np.abs(pixels(both) - pixels(one)).max() <= 2, "the mean of the same is the same"
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.edit(image=[light] * 17, **given)
    assert caught.value.param == "image"


def test_an_edit_keeps_what_the_mask_hides(client: openai.OpenAI) -> None:
    given = {"model": "flow", "prompt": "0", "extra_body": {"seed": 3, "strength": 1.0}}
    (picture,) = client.images.edit(image=drawing(), mask=mask(), **given).data
    source = np.asarray(opened(drawing()).convert("L").resize((8, 8), Image.Resampling.BOX), np.int16)
    distance = np.abs(pixels(picture) - source).mean(axis=0)
    assert distance[:3].max() < 24, "hidden"
    assert distance[5:].max() > 24, "free"
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.edit(image=drawing(), mask=drawing(), **given)
    assert caught.value.param == "mask"


def test_an_edit_in_another_size_keeps_the_pixels_of_its_source(client: openai.OpenAI) -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (128, 192), np.uint8))  # far finer than the 8 x 8 that is drawn
    out = io.BytesIO()
    noise.save(out, "PNG")
    given = {"model": "flow", "prompt": "0", "size": "128x128", "extra_body": {"seed": 3, "strength": 1.0}}
    sent = {"image": out.getvalue(), "mask": mask(192, 128)}
    (picture,) = client.images.edit(**sent, **given).data
    shown = np.asarray(opened(base64.b64decode(picture.b64_json)).convert("L"), np.int16)
    assert shown.shape == (128, 128)
    assert np.array_equal(shown[:, :62], np.asarray(noise, np.int16)[:, 32 : 32 + 62])
    assert np.abs(np.diff(shown[:, 80:], axis=1)).mean() < 12, "drawn in few pixels, and made larger"
    (linked,) = client.images.edit(**sent, **given, response_format="url").data
    with httpx.Client() as http:
        again = np.asarray(opened(http.get(str(linked.url)).content).convert("L"), np.int16)
    assert np.array_equal(again, shown)
    with client.images.edit(**sent, **given, stream=True) as stream:
        last = list(stream)[-1]
    assert np.array_equal(np.asarray(opened(base64.b64decode(last.b64_json)).convert("L"), np.int16), shown)


def test_an_edit_as_a_stream(client: openai.OpenAI) -> None:
    given = {"model": "flow", "prompt": "3", "extra_body": {"seed": 3, "steps": 600}}
    with client.images.edit(image=drawing(), stream=True, partial_images=2, **given) as stream:
        events = list(stream)
    assert [event.type for event in events] == ["image_edit.partial_image"] * 2 + ["image_edit.completed"]
    assert all(getattr(events[-1], name) is not None for name in COMPLETED)


def test_an_edit_as_json(server: Server) -> None:
    def post(**body: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {server.key}"}
        asked = {"model": "flow", "prompt": "3", "seed": 3, **body}
        return httpx.post(f"{server.url}/v1/images/edits", json=asked, headers=headers, timeout=PATIENCE_S)

    def url(data: bytes) -> dict[str, str]:
        return {"image_url": f"data:image/png;base64,{base64.b64encode(data).decode()}"}

    answer = post(images=[url(drawing())], mask=url(mask()), n=2)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["data"]) == 2
    assert post(images=[url(drawing())], strength=None).status_code == 200
    for strength in ([1], {}, "nan", 1.5, True):
        assert post(images=[url(drawing())], strength=strength).json()["error"]["param"] == "strength"
    assert post(images=[url(drawing())], mask=url(mask(32, 32))).status_code == 200, "of the same shape"
    assert post(images=[url(drawing())], mask=url(mask(64, 32))).status_code == 400
    nothing = io.BytesIO()
    Image.new("RGBA", (64, 64)).save(nothing, "PNG")
    assert post(images=[url(drawing())], mask=url(nothing.getvalue())).status_code == 200, "all may change"
    for images in ([{"image_url": "http://127.0.0.1:1/a.png"}], [{"image_url": "file:///etc/passwd"}],
                   [{"file_id": "f"}], ["x"], [7], {}, "x", [url(b"none")]):  # fmt: skip
        refused = post(images=images)
        assert refused.status_code == 400, refused.text
        assert refused.json()["error"]["param"] in ("images", "image")
    assert post(images=[url(drawing())], n=99).json()["error"]["param"] == "n"
    assert post(images=[url(drawing())], prompt=None).json()["error"]["param"] == "prompt"


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # in the client, by its makers
def test_variations_of_ours_and_of_others(client: openai.OpenAI, studio: Studio) -> None:
    ours = base64.b64decode(draw(client, "4").data[0].b64_json)
    varied = client.images.create_variation(image=ours, n=2)
    assert [opened(picture.b64_json).size for picture in varied.data] == [(8, 8)] * 2, "by the package that drew it"
    assert varied.data[0].revised_prompt == "4", "of the same words"
    rows = studio.gallery.page("ann")
    assert {row.model for row in rows[:2]} == {"flow"}
    assert 7 not in [row.seed for row in rows[:2]], "with other seeds"
    foreign = client.images.create_variation(image=drawing(100), model="flow", response_format="url", size="256x256")
    assert foreign.data[0].url
    unnamed = client.images.create_variation(image=drawing(100))
    assert opened(unnamed.data[0].b64_json).size == (64, 64), "the default package, without a word"


# Refusals


def test_what_is_wrong_is_named(client: openai.OpenAI) -> None:
    def raised(error: type[openai.APIStatusError], prompt: str = "3", **more: Any) -> openai.APIStatusError:
        with pytest.raises(error) as caught:
            draw(client, prompt, **more)
        assert caught.value.request_id
        assert caught.value.message
        return caught.value

    unknown = raised(openai.NotFoundError, model="nothing")
    assert (unknown.code, unknown.param) == ("model_not_found", "model")
    assert raised(openai.BadRequestError, model="lm").param == "model"
    for size in ("banana", "15x64", "64x2049", "64x", "0x0", "-64x64", "64×64", "1e2x64"):
        assert raised(openai.BadRequestError, size=size).param == "size"
    assert raised(openai.BadRequestError, n=11).param == "n"
    assert raised(openai.BadRequestError, n=0).param == "n"
    assert raised(openai.BadRequestError, "3 " * 12_000).param == "prompt"
    assert raised(openai.BadRequestError, "猫" * 2_001).param == "prompt"
    assert raised(openai.BadRequestError, "3 --stepz 4").param == "prompt"
    assert raised(openai.BadRequestError, "no such digit").param == "prompt", "found out while drawing"
    assert raised(openai.BadRequestError, extra={"style": "oil"}).param == "prompt", "a package without styles"
    assert raised(openai.BadRequestError, output_format="gif").param == "output_format"
    assert raised(openai.BadRequestError, partial_images=4).param == "partial_images"
    assert raised(openai.BadRequestError, extra={"seed": -1}).param == "seed"
    assert raised(openai.BadRequestError, prompt=None).param == "prompt"
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.edit(image=b"no picture", prompt="3", model="flow")
    assert caught.value.param == "image"


def test_keys(server: Server) -> None:
    for key in ("wrong", "红心".encode().hex()):
        with server.client(key) as client, pytest.raises(openai.AuthenticationError) as caught:
            client.models.list()
        assert caught.value.code == "invalid_api_key"
        assert caught.value.request_id
    answer = httpx.post(f"{server.url}/v1/images/generations", json={"prompt": "3"}, timeout=60)
    assert answer.status_code == 401
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_full_queue_is_told_once(server: Server, studio: Studio) -> None:
    path = "/v1/images/generations"
    held = [studio.jobs.submit("ann", "generate", slow()) for _ in range(8)]
    try:
        with server.client(max_retries=2) as client, pytest.raises(openai.RateLimitError) as caught:
            draw(client)
        assert caught.value.code == "queue_full"
        assert caught.value.response.headers["x-should-retry"] == "false"
        until(lambda: server.requests(path, 429), 10)
        time.sleep(1.0)
        assert server.requests(path, 429) == 1
        with server.client(max_retries=2) as client, pytest.raises(openai.RateLimitError):
            client.completions.create(model="lm", prompt="床")
        until(lambda: server.requests("/v1/completions", 429), 10)
        time.sleep(1.0)
        assert server.requests("/v1/completions", 429) == 1
    finally:
        for job in held:
            studio.jobs.cancel(job.id)
        until(lambda: all(studio.jobs.get(job.id).over for job in held), 60)


def slow() -> dict[str, Any]:
    return {"prompt": "3 --model flow --n 1 --seed 1 --steps 1000", "options": {}, "previews": 0}


@pytest.mark.parametrize("how", ["plain", "stream", "stream at once", "text"])
def test_who_goes_away_takes_the_job_along(client: openai.OpenAI, studio: Studio, how: str) -> None:
    """T8."""
    before = {job.id for job in studio.jobs.page("ann")}
    blockers = []
    if how in ("plain", "text"):  # which may be done before the caller's patience ends
        count = 12 if how == "text" else 4
        blockers = [studio.jobs.submit("bob", "generate", slow(), priority=5) for _ in range(count)]
    hasty = client.with_options(timeout=2.0)
    if how == "plain":
        with pytest.raises(openai.APITimeoutError):
            draw(hasty, n=10, extra={"steps": 1000})
    elif how == "stream":
        stream = draw(client, stream=True, partial_images=3, n=10, extra={"steps": 1000})
        next(iter(stream))
        stream.close()
    elif how == "stream at once":
        draw(client, stream=True, n=10, extra={"steps": 1000}).close()
    else:
        with pytest.raises(openai.APITimeoutError):
            hasty.completions.create(model="lm", prompt=["床", "白"], n=2)
    begun = time.monotonic()
    new = [job.id for job in studio.jobs.page("ann") if job.id not in before]
    assert len(new) == (4 if how == "text" else 1)
    until(lambda: all(studio.jobs.get(id).over for id in new), 60)
    took = time.monotonic() - begun
    print(f"T8 {how}: cancelled after {took:.2f} s")
    assert {studio.jobs.get(id).state for id in new} == {"cancelled"}
    assert took < 2
    for job in blockers:
        studio.jobs.cancel(job.id)
    until(lambda: all(studio.jobs.get(job.id).over for job in blockers), 60)


# Texts

LINE = "床前明月光"


def test_a_text_goes_on(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="lm", prompt=LINE, max_tokens=8, seed=3, temperature=0)
    assert (answer.object, answer.model) == ("text_completion", "lm")
    assert answer.id.startswith("cmpl-")
    assert answer._request_id
    (choice,) = answer.choices
    assert 1 <= len(choice.text) <= 8
    assert not choice.text.startswith(LINE)
    assert choice.finish_reason == ("length" if len(choice.text) == 8 else "stop")
    assert answer.usage.prompt_tokens == len(LINE)
    assert answer.usage.completion_tokens == len(choice.text) + (choice.finish_reason == "stop")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    again = client.completions.create(model="lm", prompt=LINE, max_tokens=8, seed=4, temperature=0, echo=True)
    assert again.choices[0].text == LINE + choice.text
    nothing = client.completions.create(model="lm", prompt="", max_tokens=3, seed=1)
    assert nothing.usage.prompt_tokens == 0


def test_several_prompts_and_several_texts(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="lm", prompt=[LINE, "白日"], n=2, max_tokens=6, seed=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage.prompt_tokens == len(LINE) + 2
    for i, prompt in enumerate([LINE, LINE, "白日", "白日"]):
        alone = client.completions.create(model="lm", prompt=prompt, max_tokens=6, seed=3 + i % 2)
        assert alone.choices[0].text == answer.choices[i].text


def test_a_text_ends_before_its_stop(client: openai.OpenAI) -> None:
    given = {"model": "lm", "prompt": LINE, "max_tokens": 16, "seed": 3, "temperature": 1.5}
    whole = client.completions.create(**given).choices[0].text
    assert len(whole) > 4
    for stop in (whole[3], [whole[2:4], "没有"]):
        mark = stop if isinstance(stop, str) else stop[0]
        cut = client.completions.create(**given, stop=stop).choices[0]
        assert cut.text == whole[: whole.index(mark)]
        assert cut.finish_reason == "stop"
        with client.completions.create(**given, stop=stop, stream=True) as stream:
            assert "".join(chunk.choices[0].text for chunk in stream) == cut.text


def test_a_text_as_a_stream(client: openai.OpenAI, server: Server) -> None:
    given = {"model": "lm", "prompt": LINE, "max_tokens": 12, "seed": 3}
    whole = client.completions.create(**given)
    with client.completions.create(**given, stream=True, stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == whole.choices[0].text
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    headers = {"authorization": f"Bearer {server.key}"}
    raw = httpx.post(
        f"{server.url}/v1/completions", json={**given, "stream": True}, headers=headers, timeout=PATIENCE_S
    )
    assert raw.headers["content-type"].startswith("text/event-stream")
    assert raw.text.endswith("\n\ndata: [DONE]\n\n")
    assert "\nid:" not in raw.text
    assert "usage" not in raw.text
    document = httpx.get(f"{server.url}/api/openapi.json", headers=headers, timeout=PATIENCE_S).json()
    told = document["paths"]["/v1/completions"]["post"]["responses"]["200"]["content"]["text/event-stream"]["schema"]
    assert told["type"] == "object"
    for event in raw.text.removesuffix("\n\n").split("\n\n"):
        assert {line.partition(":")[0] for line in event.splitlines()} <= set(told["properties"])


def test_a_chat(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": LINE[:2]}, {"type": "text", "text": LINE[2:]}]
    talk: list[Any] = [{"role": "user", "content": parts}]
    answer = client.chat.completions.create(model="lm", messages=talk, n=2, max_completion_tokens=8, seed=3)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert [choice.message.role for choice in answer.choices] == ["assistant"] * 2
    same = client.completions.create(model="lm", prompt=LINE, n=2, max_tokens=8, seed=3)
    assert [choice.message.content for choice in answer.choices] == [choice.text for choice in same.choices]
    assert answer.usage == same.usage
    longer: list[Any] = [{"role": "system", "content": "春"}, {"role": "assistant", "content": None},
                         {"role": "user", "content": LINE}]  # fmt: skip
    told = client.chat.completions.create(model="lm", messages=longer, max_tokens=4, stop=["，"], presence_penalty=0.5)
    assert told.usage.prompt_tokens == len(LINE) + 2


def test_a_chat_as_a_stream(client: openai.OpenAI) -> None:
    given: dict[str, Any] = {"model": "lm", "messages": [{"role": "user", "content": LINE}], "seed": 3}
    whole = client.chat.completions.create(**given)
    with client.chat.completions.create(**given, stream=True, stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
    assert chunks[0].object == "chat.completion.chunk"
    assert (chunks[0].choices[0].delta.role, chunks[0].choices[0].delta.content) == ("assistant", "")
    told = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert told == whole.choices[0].message.content
    assert "\ufffd" not in told
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-2].choices[0].delta.content is None
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)


def test_how_likely_tokens_were(client: openai.OpenAI) -> None:
    given: dict[str, Any] = {"model": "lm", "prompt": LINE, "max_tokens": 8, "seed": 3, "temperature": 0}
    plain = client.completions.create(**given).choices[0]
    assert plain.logprobs is None
    told = client.completions.create(**given, logprobs=3).choices[0]
    assert told.text == plain.text
    likely = told.logprobs
    assert likely is not None
    assert likely.tokens is not None
    assert likely.token_logprobs is not None
    assert "".join(likely.tokens) == told.text
    assert likely.text_offset == [len(LINE) + i for i in range(len(told.text))]
    for token, logprob, tops in zip(likely.tokens, likely.token_logprobs, likely.top_logprobs or [], strict=True):
        assert len(tops) == 3
        assert tops[token] == pytest.approx(logprob)
        assert max(tops.values()) == pytest.approx(logprob)  # at temperature 0 it is the likeliest
        assert sum(math.exp(value) for value in tops.values()) <= 1
    echoed = client.completions.create(**given, logprobs=0, echo=True).choices[0].logprobs
    assert echoed is not None
    assert echoed.token_logprobs is not None
    assert "".join(echoed.tokens or []) == LINE + told.text
    assert echoed.top_logprobs is None
    assert echoed.token_logprobs[len(LINE) :] == pytest.approx(likely.token_logprobs)
    # A text read as a prompt is as likely as it was when it was drawn.
    again = client.completions.create(**{**given, "prompt": LINE + told.text, "max_tokens": 1}, logprobs=0, echo=True)
    read = again.choices[0].logprobs
    assert read is not None
    assert read.token_logprobs is not None
    assert read.token_logprobs[: len(LINE + told.text)] == pytest.approx(echoed.token_logprobs, abs=1e-4)
    cut = client.completions.create(**given, logprobs=1, stop=told.text[2]).choices[0]
    assert cut.logprobs is not None
    assert "".join(cut.logprobs.tokens or []) == cut.text
    with client.completions.create(**given, logprobs=3, stream=True) as stream:
        chunks = [chunk.choices[0].logprobs for chunk in stream if chunk.choices[0].logprobs]
    assert [chunk.tokens for chunk in chunks] == [likely.tokens]


def test_how_likely_tokens_of_a_chat_were(client: openai.OpenAI) -> None:
    given: dict[str, Any] = {"model": "lm", "messages": [{"role": "user", "content": LINE}], "seed": 3, "max_tokens": 6}
    choice = client.chat.completions.create(**given, logprobs=True, top_logprobs=2).choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert "".join(token.token for token in choice.logprobs.content) == choice.message.content
    assert bytes(b for token in choice.logprobs.content for b in token.bytes or []).decode() == choice.message.content
    assert {len(token.top_logprobs) for token in choice.logprobs.content} == {2}
    assert all(token.logprob <= token.top_logprobs[0].logprob + 1e-6 for token in choice.logprobs.content)
    with client.chat.completions.create(**given, logprobs=True, stream=True) as stream:
        parts = [c.logprobs.content for chunk in stream for c in chunk.choices if c.logprobs and c.logprobs.content]
    assert [[token.logprob for token in part] for part in parts] == [[t.logprob for t in choice.logprobs.content]]
    with pytest.raises(openai.BadRequestError, match="wants logprobs") as caught:
        client.chat.completions.create(**given, top_logprobs=2)
    assert caught.value.param == "top_logprobs"


def test_penalties_reach_the_walk(client: openai.OpenAI) -> None:
    given: dict[str, Any] = {"model": "lm", "prompt": LINE, "max_tokens": 16, "temperature": 0}
    texts = [client.completions.create(**given, frequency_penalty=f).choices[0].text for f in (-2.0, 0.0, 2.0)]
    kinds = [len(set(text)) / len(text) for text in texts]
    assert kinds[0] <= kinds[1] <= kinds[2]
    assert kinds[0] < kinds[2]


def test_the_best_of_several_texts_is_told(client: openai.OpenAI) -> None:
    given: dict[str, Any] = {"model": "lm", "prompt": LINE, "max_tokens": 8, "temperature": 1.5, "logprobs": 0}

    def each(choice: Any) -> float:
        return statistics.mean(choice.logprobs.token_logprobs)

    plain = [client.completions.create(**given, seed=seed).choices[0] for seed in range(6)]
    best = [client.completions.create(**given, seed=seed, best_of=8).choices[0] for seed in range(6)]
    assert statistics.mean(map(each, best)) > statistics.mean(map(each, plain))
    assert all(choice.text for choice in best)
    for wrong in ({"n": 3, "best_of": 2}, {"best_of": 2, "stream": True}, {"suffix": "."}):
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(**given, **wrong)  # type: ignore[call-overload]
        assert caught.value.param == ("suffix" if "suffix" in wrong else "best_of")


def test_wrong_texts_are_refused(client: openai.OpenAI) -> None:
    talk: list[Any] = [{"role": "user", "content": "床"}]
    for model in ("flow", "emoji", "nothing", "emoji/text"):
        for create, given in (
            (client.completions.create, {"prompt": "床"}), (client.chat.completions.create, {"messages": talk}),
            (client.audio.speech.create, {"input": "床", "voice": "none"}),
        ):  # fmt: skip
            with pytest.raises(openai.NotFoundError) as missing:
                create(model=model, **given)  # type: ignore[operator]
            assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError) as mute:
        client.audio.speech.create(model="lm", input="床", voice="alloy")
    assert mute.value.code == "model_not_found"
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"prompt": [1, 2]}, "prompt"), ({"prompt": [[1]]}, "prompt"), ({"temperature": 3}, "temperature"),
        ({"stop": ["a"] * 5}, "stop"), ({"stop": ""}, "stop"), ({"n": 11}, "n"), ({"max_tokens": 0}, "max_tokens"),
        ({"presence_penalty": 2.5}, "presence_penalty"), ({"logprobs": 6}, "logprobs"),
        ({"prompt": LINE * 9}, "prompt"),
    ]  # fmt: skip
    for given, param in wrong:
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(**{"model": "lm", "prompt": "床", **given})
        assert str(caught.value.param).split(".")[0] == param
    picture: list[Any] = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a/b"}}]}]
    for messages in ([], picture, [{"role": "robot", "content": "a"}], [{"role": "user", "content": LINE * 9}]):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="lm", messages=messages)  # type: ignore[arg-type]
        assert str(caught.value.param).split(".")[0] == "messages"
    with (
        client.completions.create(model="lm", prompt=LINE * 9, stream=True) as stream,
        pytest.raises(openai.APIError, match="shorten"),
    ):
        list(stream)


def test_a_text_is_told_in_whole_pieces(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that may yet become a stop is told, and the pieces are the beginning of the result."""
    monkeypatch.setenv("SOJOURN_HOME", str(server.home))
    monkeypatch.setattr(work, "TEXT_S", 0.0)
    store, bell = Store(f"sqlite:///{tmp_path}/own.sqlite"), Bell(tmp_path / "bells")
    jobs = Jobs(store, bell)
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(jobs, "report", lambda job, kind, data: told.append({"kind": kind, **data}))
    me = jobs.enlist("here", os.getpid(), str(born(os.getpid())), ("interactive",))
    worker = work.Work(jobs, Blobs(tmp_path / "blobs"))

    def written(stop: list[str]) -> str:
        told.clear()
        kept, batch, rows = settled("write", {"prompt": LINE, "model": "lm", "seed": 3, "max_tokens": 12, "stop": stop})
        job = jobs.submit("ann", "write", kept, batch=batch, rows=rows)
        worker.do(jobs.claim(me, ["interactive"]))
        result = jobs.get(job.id).result
        assert result is not None, jobs.get(job.id).error
        at = 0
        for event in told:
            assert (event["kind"], event["at"]) == ("text", at)
            at += len(event["text"])
        assert result["text"].startswith("".join(event["text"] for event in told))
        return str(result["text"])

    try:
        whole = written([])
        assert len(told) > 2
        near = [whole[1:3] + "没", whole[4:7]]  # one that only begins, one that comes
        assert written(near) == whole[: whole.index(near[1])]
    finally:
        bell.close()
        store.close()


def test_a_stop_that_has_begun_is_held_back() -> None:
    assert work.until_stop("春眠不觉", ["觉晓", "鸟"]) == ("春眠不觉", 3, False)
    assert work.until_stop("春眠不觉晓鸟", ["鸟", "觉晓"]) == ("春眠不", 3, True)
    assert work.until_stop("aab", ["abc", "aabd"]) == ("aab", 0, False)
    assert work.until_stop("红心", []) == ("红心", 2, False)


# Other versions of the client


def core(python: str, server: Server) -> str:
    """What the script of checks says when that python runs it."""
    script = Path(__file__).parent / "openai_versions.py"
    done = subprocess.run([python, str(script), server.url, server.key], capture_output=True, text=True, check=False,
                          stdin=subprocess.DEVNULL)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_script_for_other_versions_holds_for_this_one(server: Server) -> None:
    assert openai.__version__ in core(sys.executable, server)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["1.61.0", "2.0.0", "2.54.0"])
def test_other_versions_of_the_client(server: Server, version: str, tmp_path: Path) -> None:
    """Installs them from the package index."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, stdin=subprocess.DEVNULL)
    python = str(tmp_path / "venv" / "bin" / "python")
    wanted = [f"openai=={version}", *(["httpx<0.28"] if version.startswith("1.") else [])]
    subprocess.run([python, "-m", "pip", "install", "-q", *wanted], check=True, stdin=subprocess.DEVNULL,
                   capture_output=True)  # fmt: skip
    assert version in core(python, server)
