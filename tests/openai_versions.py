"""The core of test_openai.py for any version of the `openai` client: needs nothing but that and a server.

    python tests/openai_versions.py URL KEY

The server has the tests' tiny packages "flow" and "lm".
"""

from __future__ import annotations

import base64
import io
import struct
import sys
import zlib
from collections.abc import Callable
from typing import Any

import httpx
import openai


def side(png: bytes) -> tuple[int, int]:
    """Width and height of a PNG."""
    assert png.startswith(b"\x89PNG"), png[:8]
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def drawing(size: int = 32, alpha: bool = False) -> bytes:
    """A PNG with a slope, of grey or of opacity."""
    slope = [x * 255 // size for x in range(size)]
    row = bytes(byte for x in slope for byte in ((0, x) if alpha else (x,)))
    rows = (b"\0" + row) * size
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", size, size, 8, 4 if alpha else 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    out = b"\x89PNG\r\n\x1a\n"
    for name, data in parts:
        out += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return out


def raises(error: type[Exception], ask: Callable[[], Any]) -> Any:
    try:
        ask()
    except error as caught:
        return caught
    raise AssertionError(f"{error.__name__} was not raised")


def models(client: Any) -> None:
    assert {"flow", "lm"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("flow").object == "model"
    assert raises(openai.NotFoundError, lambda: client.models.retrieve("a/b")).code == "model_not_found"


def pictures(client: Any) -> None:
    asked = {"model": "flow", "prompt": "3", "n": 4, "size": "300x17", "response_format": "b64_json"}
    answer = client.images.generate(**asked, extra_body={"seed": 5, "steps": 2})
    assert [side(base64.b64decode(picture.b64_json)) for picture in answer.data] == [(300, 17)] * 4
    third = client.images.generate(**{**asked, "n": 1}, extra_body={"seed": 7, "steps": 2})
    assert len({picture.b64_json for picture in answer.data}) == 4
    assert side(base64.b64decode(third.data[0].b64_json)) == (300, 17)
    assert client.images.generate(**{**asked, "response_format": "url"}).data[0].url.startswith("http")
    assert raises(openai.BadRequestError, lambda: client.images.generate(**{**asked, "size": "x"})).param == "size"
    wrong = raises(openai.NotFoundError, lambda: client.images.generate(**{**asked, "model": "无"}))
    assert wrong.code == "model_not_found"
    assert wrong.request_id


def streams(client: Any) -> None:
    asked: dict[str, Any] = {"model": "flow", "prompt": "3"}
    for partial in (0, 3):
        try:
            stream = client.images.generate(**asked, stream=True, partial_images=partial, extra_body={"steps": 400})
        except TypeError:
            print("  this version has no streams of pictures")
            return
        with stream:
            kinds = [event.type for event in stream]
        assert kinds == ["image_generation.partial_image"] * partial + ["image_generation.completed"], kinds
    with client.images.edit(image=named(drawing()), **asked, stream=True) as stream:
        assert [event.type for event in stream][-1] == "image_edit.completed"
    stream = client.images.generate(model="flow", prompt="no such digit", stream=True)
    raises(openai.APIError, lambda: list(stream))
    stream.close()


def named(data: bytes) -> Any:
    """Bytes as a file with a name, from which the client takes their kind."""
    out = io.BytesIO(data)
    out.name = "a.png"
    return out


def edits(client: Any) -> None:
    asked: dict[str, Any] = {"prompt": "3", "model": "flow"}
    edited = client.images.edit(image=named(drawing()), **asked, n=2, response_format="b64_json")
    assert edited.data[1].b64_json
    if not openai.__version__.startswith("1."):
        assert client.images.edit(image=[named(drawing()), named(drawing())], **asked).data[0].b64_json
    masked = client.images.edit(image=named(drawing()), mask=named(drawing(alpha=True)), **asked, size="64x64")
    assert side(base64.b64decode(masked.data[0].b64_json)) == (64, 64)
    wrong = raises(openai.BadRequestError, lambda: client.images.edit(
        image=named(drawing()), mask=named(drawing()), **asked))  # fmt: skip
    assert wrong.param == "mask"
    assert client.images.create_variation(image=named(drawing()), model="flow").data[0].b64_json


def texts(client: Any) -> None:
    answer = client.completions.create(model="lm", prompt="床前明月光", max_tokens=6, seed=1)
    talk = [{"role": "user", "content": "床前明月光"}]
    asked = {"model": "lm", "messages": talk, "max_tokens": 6, "seed": 1}
    assert client.chat.completions.create(**asked).choices[0].message.content == answer.choices[0].text
    stream = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    told = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert told == answer.choices[0].text
    assert chunks[-1].usage.total_tokens == answer.usage.total_tokens
    likely = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2).choices[0]
    assert "".join(token.token for token in likely.logprobs.content) == likely.message.content
    assert len(likely.logprobs.content[0].top_logprobs) == 2
    speech = raises(openai.NotFoundError, lambda: client.audio.speech.create(model="lm", input="a", voice="alloy"))
    assert speech.code == "model_not_found"


def queue(client: Any) -> None:
    """A full queue is told once: the client does not try again."""
    url, head = str(client.base_url).removesuffix("v1/"), {"authorization": f"Bearer {client.api_key}"}
    tries: list[str] = []
    with (
        httpx.Client(base_url=url, headers=head, timeout=60) as web,
        httpx.Client(timeout=60, event_hooks={"request": [lambda request: tries.append(request.url.path)]}) as counted,
    ):
        slow = {"kind": "generate", "request": {"prompt": "3 --model flow --n 64 --steps 1000"}}
        jobs = []
        while (asked := web.post("api/v1/jobs", json=slow)).status_code == 202:
            jobs.append(asked.json()["id"])
            assert len(jobs) < 600
        assert asked.status_code == 429
        patient = client.with_options(http_client=counted, max_retries=2)
        raises(openai.RateLimitError, lambda: patient.images.generate(prompt="3", model="flow"))
        for job in jobs:
            web.delete(f"api/v1/jobs/{job}").raise_for_status()
    assert tries == ["/v1/images/generations"], tries


def keys(client: Any) -> None:
    other = client.with_options(api_key="wrong")
    assert raises(openai.AuthenticationError, lambda: other.models.list()).code == "invalid_api_key"


def main(url: str, key: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key, timeout=240, max_retries=0) as client:
        for check in (models, pictures, streams, edits, texts, queue, keys):
            check(client)
            print(f"openai {openai.__version__} {check.__name__}: holds")


if __name__ == "__main__":
    main(*sys.argv[1:])
