"""The server against strangers: who comes in, what they may say, and that nothing they say does harm."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import logging
import re
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import anyio.to_thread
import pytest
from served import app, filled, generate, noise, picture, routes, sent
from starlette.testclient import TestClient

from sojourn.errors import InvalidInput, NotFound
from sojourn.http import hub as hubs
from sojourn.http.server import Lines
from sojourn.http.site import _secret
from sojourn.http.uploads import Uploads
from sojourn.schema import WORDS_MAX
from sojourn.studio import ledger, process
from sojourn.studio.keys import Keys
from sojourn.studio.studio import Studio

JOBS = "/api/v1/jobs"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SOJOURN_HOME", str(tmp_path / "home 红"))
    return tmp_path / "home 红"


@pytest.fixture
def served(home: Path) -> Iterator[tuple[TestClient, Studio]]:
    with app() as both:
        yield both


def test_what_is_said_of_models_recipes_and_parameters_is_in_the_callers_language(
    served: tuple[TestClient, Studio],
) -> None:
    client, _ = served
    chinese, english = ({"accept-language": lang} for lang in ("zh-CN", "en"))
    page = client.get("/models", headers=chinese).text
    for text in (
        "按文字画表情符号",
        "它不懂文字里的否定",
        "任何准备好的 64 x 64 图片集",
    ):  # a title, a failure, a recipe
        assert text in page
    assert "Emoji from words" in client.get("/models", headers=english).text
    for headers, text in ((chinese, "画里不要什么。"), (english, "What to keep out.")):
        assert ["--no", text] in client.get("/api/v1/words/emoji", headers=headers).json()["parameters"]


def as_json(client: TestClient, data: bytes, path: str = JOBS) -> tuple[int, dict[str, Any], float]:
    begun = time.monotonic()
    answer = client.post(path, content=data, headers={"content-type": "application/json"})
    return answer.status_code, answer.json(), time.monotonic() - begun


def test_server_routes_answer(served: tuple[TestClient, Studio]) -> None:
    client, studio = served
    assert client.get("/health").json()["status"] == "ok"
    ready = client.get("/ready")
    assert (ready.status_code, ready.headers["retry-after"], ready.json()["error"]["code"]) == (503, "1", "not_ready")
    worker = studio.jobs.enlist("here", 1, "now", ("interactive",))
    assert client.get("/ready").status_code == 200
    client.post(JOBS, json=generate("a cat"))
    lines = client.get("/metrics").text.splitlines()
    assert 'sojourn_jobs{state="queued"} 1' in lines
    assert 'sojourn_workers{lane="interactive"} 1' in lines
    assert all(re.fullmatch(r'#.*|[a-z_]+({[a-z]+="[a-z]+"})? [0-9.]+', line) for line in lines)
    studio.jobs.bury(worker, "the test is over")
    assert client.get("/ready").status_code == 503


# What they say


def bombs() -> dict[str, bytes]:
    head, tail = b'{"kind": "generate", "request": {"prompt": "a cat", "options": {"x": ', b"}}}"
    wrapped = {
        "NaN": b"NaN", "Infinity": b"-Infinity", "1e400": b"1e400", "2^64": str(2**64).encode(),
        "-2^64": str(-(2**64)).encode(), "5000 digits": b"9" * 5000, "lone surrogate": b'"\\ud800"',
        "escaped NUL": b'"\\u0000"', "raw NUL": b'"\x00"', "half UTF-8": b'"\xc3"', "control": b'"\x1b"',
    }  # fmt: skip
    out = {name: head + value + tail for name, value in wrapped.items()}
    for depth in (65, 200, 330, 500, 900, 3000, 100_000):
        out[f"depth {depth}"] = head + b"[" * depth + b"]" * depth + tail
        out[f"objects {depth}"] = head + b'{"a":' * depth + b"1" + b"}" * depth + tail
    out["depth alone"] = b"[" * 500_000
    out["1e6 keys"] = head + b"{" + b",".join(b'"%d":1' % i for i in range(1_000_000)) + b"}" + tail
    out["90,000 keys"] = head + b"{" + b",".join(b'"%d":1' % i for i in range(90_000)) + b"}" + tail
    out["double key"] = b'{"kind": "train", "kind": "generate", "request": {"prompt": "a cat"}}'
    out["BOM"] = b"\xef\xbb\xbf" + json.dumps(generate("a cat")).encode()
    out["UTF-16"] = json.dumps(generate("a cat")).encode("utf-16")
    return out | {"no object": b"[1]", "a text": b'"a"', "nothing": b"", "half": head, "two": b"{}{}"}


def test_json_bombs(served: tuple[TestClient, Studio]) -> None:
    """T15."""
    client, studio = served
    slowest = 0.0
    for path in (JOBS, "/v1/images/generations", "/api/v1/pictures/trash"):
        for name, data in bombs().items():
            status, answer, took = as_json(client, data, path)
            assert 400 <= status < 500, (path, name, status, answer)
            if took >= 1:  # others may have had the processor: it is the server's doing if it always is
                took = min(as_json(client, data, path)[2] for _ in range(3))
            assert took < 1, (path, name, took)
            assert len(answer["error"]["message"]) < 1000, name
            slowest = max(slowest, took)
    print(f"T15: {3 * len(bombs())} bombs, the slowest {slowest * 1000:.0f} ms")
    assert studio.jobs.page() == []


def test_extremes(served: tuple[TestClient, Studio]) -> None:
    """T16."""
    client, studio = served
    mine = picture(studio)
    wrong: list[Any] = [10**9, -1, 0, 1.5, True, "many", [1], {}, 2**63, -(2**63), 1e300]
    asked: list[tuple[str, Any]] = [("/v1/images/generations", {"prompt": "a cat", "n": n}) for n in wrong]
    asked += [
        ("/v1/images/generations", {"prompt": "a cat", **more})
        for more in (
            {"size": "65536x65536"}, {"size": "0x0"}, {"size": "-1x64"}, {"size": "9" * 18}, {"steps": 10**9},
            {"steps": -1}, {"steps": True}, {"seed": -1}, {"seed": 2**63 - 1}, {"guidance": 1e300},
            {"stream": "perhaps"}, {"partial_images": 10**9}, {"output_compression": 101},
            {"prompt": 1}, {"prompt": None},
        )
    ]  # fmt: skip
    for line in ("--n 1000000000", "--steps 1000000000", "--n -1", "--n 0", "--n 1.5", "--n true", "--seed 1e400",
                 "--guidance 1e300", "--guidance nan", "--steps 9223372036854775808", "--chaos -1"):  # fmt: skip
        asked.append((JOBS, generate(f"a cat {line}")))
    for more in ({"previews": 10**9}, {"previews": -1}, {"previews": True}, {"options": {"steps": 10**9}},
                 {"options": {"x" * 65: 1}}, {"options": {str(i): 1 for i in range(33)}}, {"unknown": 1}):  # fmt: skip
        asked.append((JOBS, generate("a cat", **more)))
    asked += [(JOBS, {**generate("a cat"), "priority": value}) for value in (11, -11, 2**62, 1.5, True, "1", None)]
    asked += [(JOBS, {"kind": kind, "request": {}}) for kind in ("generate", "none", None, 1, "x" * 100_000)]
    asked += [
        ("/api/v1/pictures/trash", {"ids": ids}) for ids in ([], [0], [-1], [2**63], [1.5], [True], ["1"], 1, None)
    ]
    asked.append(("/api/v1/pictures/trash", {"ids": list(range(1, 1002))}))
    for more in ({"value": 6}, {"value": -1}, {"value": 2.5}, {"value": True}, {"kind": "hide", "value": 2},
                 {"kind": "pair"}, {"other": mine}, {"picture": str(mine)}):  # fmt: skip
        asked.append(("/api/v1/ratings", {"kind": "stars", "picture": mine, "value": 3, **more}))
    asked += [
        ("/api/v1/ratings/many", {"kind": "stars", "ids": [mine], "value": 3, **more})
        for more in ({"value": 6}, {"kind": "hide", "value": 2}, {"kind": "pair"}, {"ids": []}, {"ids": [str(mine)]})
    ]
    asked += [("/api/v1/collections/out", {"ids": [mine], "collection": id}) for id in (0, 2**63, "1", None, 10**6)]
    gets = [f"{JOBS}?{name}={value}" for name in ("limit", "before")
            for value in (0, -1, 10**9 if name == "limit" else 2**63, 2**64, 1.5, "true", "", "x", "1e3")]  # fmt: skip
    gets += [f"{path}/{id}" for path in (JOBS, "/api/v1/pictures") for id in (2**63, -1, 0, 1.5, "true", "9" * 5000)]
    gets += [f"/api/v1/pictures/{mine}/file?side={side}" for side in (0, 15, 2049, 10**9, -1, 1.5)]
    times = []
    for path, ask in [*asked, *((path, None) for path in gets)]:
        begun = time.monotonic()
        answer = client.get(path) if ask is None else client.post(path, json=ask)
        took = time.monotonic() - begun
        assert 400 <= answer.status_code < 500, (path[:200], str(ask)[:200], answer.status_code, answer.text[:500])
        times.append(took)
    print(f"T16: {len(times)} extremes, p50 {statistics.median(times) * 1000:.1f} ms, max {max(times) * 1000:.1f} ms")
    assert statistics.median(times) < 0.05
    assert max(times) < 0.5, "a machine that others use stalls now and then"
    assert studio.jobs.page() == []


def test_prompts(served: tuple[TestClient, Studio]) -> None:
    """T17."""
    client, studio = served
    for words in ("a" * 1_000_000, "😀" * 100_000, "a" * (WORDS_MAX + 1), "😀" * (WORDS_MAX + 1)):
        answer = client.post(JOBS, json=generate(words))
        assert answer.status_code in (400, 413), len(words)
        message = answer.json()["error"]["message"]
        assert re.search(r"\b(2000|20000|1048576)\b", message), message
        assert len(message) < 500
    for words in ("a\x00b", "a\x1b[31mred\x1b[0m", "a\x7fb", "a\x9bb"):
        assert client.post(JOBS, json=generate(words)).status_code == 400, words
    kept = ("👩‍👩‍👧‍👦 family", "عربي ‮rtl‬", "a" + "\u0301" * 50, "é e\u0301 Å Å", "<b>猫</b> & dog's", "ﬁ ｆｕｌｌ",
            "😀" * (WORDS_MAX - 1), "🏴󠁧󠁢󠁥󠁮󠁧󠁿 🇩🇪")  # fmt: skip
    for words in kept:
        answer = client.post(JOBS, json=generate(words + " --seed 7"))
        assert answer.status_code == 202, answer.text
        job = studio.jobs.get(answer.json()["id"])
        assert job.request["prompt"].encode().startswith(words.encode()), (words, job.request)
        assert client.get(f"{JOBS}/{job.id}").json()["request"] == job.request
        assert "--seed 7" in job.request["prompt"]
    print(f"T17: {len(kept)} stored as they came, 8 refused")


def test_nothing_is_fetched(served: tuple[TestClient, Studio], tmp_path: Path) -> None:
    """T27."""
    client, studio = served
    calls: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as trap:
        port = trap.getsockname()[1]

        def listen() -> None:
            while True:
                try:
                    trap.accept()[0].close()
                except OSError:
                    return
                calls.append(1)

        thread = threading.Thread(target=listen)
        thread.start()
        hosts = ("127.0.0.1", "localhost", "0x7f000001", "2130706433", "017700000001", "127.1",
                 "[::ffff:127.0.0.1]", "[::1]", "0", "127.0.0.1.nip.io", "user@127.0.0.1", "%6c%6f%63alhost",
                 "[64:ff9b::7f00:1]")  # fmt: skip
        urls = [f"{scheme}://{host}:{port}/x.png" for host in hosts for scheme in ("http", "https", "gopher", "ftp")]
        urls += [
            "file:///etc/passwd",
            "/etc/passwd",
            "data:text/html;base64,PGI+",
            "javascript:1",
            f"//127.0.0.1:{port}/",
        ]
        for url in urls:
            for body in ({"image": url}, {"images": [{"image_url": url}]}, {"images": [url], "mask": url}):
                answer = client.post("/v1/images/edits", json={"prompt": "a cat", **body})
                assert answer.status_code == 400, (url, answer.text)
            for kind, ask in (("train", {"recipe": url, "to": "x"}), ("edit", {"prompt": "a", "source": url}),
                              ("evaluate", {"packages": ["emoji"], "data": url}),
                              ("generate", {"prompt": f"a --model {url}"}),
                              ("prepare", {"to": "x", "upload": url})):  # fmt: skip
                answer = client.post(JOBS, json={"kind": kind, "request": ask})
                assert 400 <= answer.status_code < 500, (kind, url, answer.text)
            # a path is a folder of this machine and never an address: no worker finds one
            answer = client.post(JOBS, json={"kind": "prepare", "request": {"to": "x", "path": url}})
            if answer.status_code == 202:
                _done(studio, answer.json()["id"])
                assert studio.jobs.get(answer.json()["id"]).state == "failed"
        trap.shutdown(socket.SHUT_RDWR)
        thread.join()
    print(f"T27: {len(urls)} addresses, {len(calls)} connections")
    assert not calls


def _done(studio: Studio, id: int) -> None:
    """Do a job here."""
    from sojourn.studio.work import Work

    me = studio.jobs.enlist(process.here(), 1, "now", ("background",))
    jobs = studio.jobs.claim(me, ["background"])
    assert [job.id for job in jobs] == [id]
    Work(studio.jobs, studio.blobs).do(jobs)


def payloads(canary: Path) -> list[str]:
    """Ways to say the path of a file."""
    up, plain = "../" * 8, str(canary).lstrip("/")
    names = ["etc/passwd", "windows/win.ini", plain]
    out = []
    for name in names:
        for way in (f"{up}{name}", f"/{name}", f"//{name}", f"....//....//{name}", f"..;/..;/{name}",
                    f"./{up}{name}", f"emoji/{up}{name}", f"emoji/../../{name}", f"~/{name}", f"file:///{name}",
                    f"C:/{name}"):  # fmt: skip
            out += [quote(way), quote(way, safe=""), quote(quote(way, safe=""), safe=""), way.replace("/", "%5c"),
                    way.replace("../", "%2e%2e/"), quote(way) + "%00.png", quote(way) + "%0a"]  # fmt: skip
    out += [
        "secret",
        "..%2fsecret",
        "%2e%2e%2fcanary",
        "%c0%ae%c0%ae%2fcanary",
        "a" * 5000,
        "%2e",
        "..",
        "%00",
        "con",
        "*",
    ]
    return sorted(set(out))


def test_traversal(served: tuple[TestClient, Studio], home: Path) -> None:
    """T28."""
    client, studio = served
    canary = home / "canary"
    canary.write_text("CANARY-5391")
    secret = (home / "secret").read_bytes()
    key = Keys(studio.store).add("train", "train")
    picture(studio)
    tried = 0
    for given in payloads(canary):
        targets = [(method, filled(path, given)) for method, path in routes(client) if "{" in path]
        targets += [(method, filled(path, "1") + f"/{given}") for method, path in routes(client) if "{" in path]
        targets += [
            ("GET", f"/api/v1/pictures?{name}={given}") for name in ("words", "model", "style", "job", "before")
        ]
        for method, target in targets:
            status, body, _ = sent(client, method, target, authorization=f"Bearer {key}")
            assert status < 500, (method, target, status, body)
            assert not [word for word in (b"CANARY-5391", b"root:", secret) if word in body], target
            tried += 1
        name = unquote(given)
        for kind, ask in (("train", {"recipe": name, "to": "x"}), ("train", {"recipe": "digits", "to": name}),
                          ("train", {"recipe": "digits", "to": "x", "overrides": [f"data={name}"]}),
                          ("evaluate", {"packages": [name], "data": "x"}),
                          ("evaluate", {"packages": ["x"], "data": name}),
                          ("prepare", {"to": "x", "path": name}), ("edit", {"prompt": "a", "source": name}),
                          ("generate", {"prompt": "a", "options": {"model": name}})):  # fmt: skip
            data = json.dumps({"kind": kind, "request": ask}).encode()
            head = {"authorization": f"Bearer {key}", "content_type": "application/json"}
            status, body, _ = sent(client, "POST", JOBS, data, **head)
            assert status < 500, (kind, ask, status, body)
            assert not [word for word in (b"CANARY-5391", b"root:", secret) if word in body], ask
            tried += 1
    print(f"T28: {len(payloads(canary))} ways, {tried} requests")
    assert not [
        job for job in studio.jobs.page() if job.kind in ("train", "prepare") and "/" in json.dumps(job.request)
    ]


def test_why_a_job_failed_is_told_in_the_callers_language(home: Path) -> None:
    with app() as (client, studio):
        id = client.post(JOBS, json=generate("a heart")).json()["id"]
        worker = studio.jobs.enlist(process.here(), 1, "now", ("interactive",))
        (taken,) = studio.jobs.claim(worker, ("interactive",))
        studio.jobs.fail(taken, NotFound('no recipe "{name}"; there are {known}', name="x", known="y"))
        for lang, said in (("zh-CN", "没有配方"), ("en", "no recipe")):
            headers = {"accept-language": lang}
            assert said in client.get(f"{JOBS}/{id}", headers=headers).json()["error"]["message"]
            assert said in client.get(f"{JOBS}/{id}/events", headers=headers).text


MARKUP = ("<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "<svg onload=alert(1)>",
          "javascript:alert(1)", "</script><script>alert(1)</script>", "{{7*7}}",
          "<iframe srcdoc='<script>1</script>'>")  # fmt: skip


def test_markup_stays_data(served: tuple[TestClient, Studio]) -> None:
    """T29, the API's part."""
    client, studio = served
    ids = [picture(studio, words=words) for words in MARKUP]
    for path in (
        "/api/v1/pictures",
        *(f"/api/v1/pictures/{id}" for id in ids),
        f"/api/v1/pictures?words={quote('svg')}",
    ):
        answer = client.get(path)
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"].startswith("default-src 'self'; ")
        assert "unsafe" not in answer.headers["content-security-policy"]
    assert client.get(f"/api/v1/pictures/{ids[0]}").json()["words"] == MARKUP[0]
    for words in MARKUP:
        for answer in (client.get(f"/api/v1/models/{quote(words, safe='')}"), client.post(JOBS, json={"kind": words})):
            assert 400 <= answer.status_code < 500
            assert answer.headers["content-type"] == "application/json"
    active = (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", b"<html><script>1</script>",
              b"\x89PNG\r\n\x1a\n<script>alert(1)</script>", b"GIF89a/*<script>*/=1")  # fmt: skip
    served_as = set()
    for data in active:
        sha = hashlib.sha256(data).hexdigest()
        assert client.put(f"/api/v1/blobs/{sha}", content=data).status_code == 201
        assert client.put(f"/api/v1/blobs/{sha[::-1]}", content=data).status_code == 409
        for method, path in routes(client):
            if "{" in path:
                status, body, kind = sent(client, method, filled(path, sha))
                assert b"<script" not in body, path
                if kind != "application/octet-stream":
                    served_as.add((status, kind))
        raw = client.get(f"/api/v1/blobs/{sha}").headers
        assert raw["content-disposition"].startswith("attachment"), "a worker's bytes are no page"
        assert raw["x-content-type-options"] == "nosniff"
    print(f"T29: {len(MARKUP)} texts, {len(active)} uploads, served as {sorted(served_as)}")
    assert {kind for _, kind in served_as} <= {"application/json", ""}


def test_ranges(served: tuple[TestClient, Studio]) -> None:
    """T32."""
    client, studio = served
    mine = picture(studio, data=noise(512))
    whole = noise(512)
    assert client.get(f"/api/v1/pictures/{mine}/file").content == whole
    times = []
    for ranges in (
        "0-0," * 10_000 + "1-1",
        ",".join(f"{i}-" for i in range(10_000)),
        "-1," * 10_000 + "-2",
        "0-," * 10_000,
    ):
        own = []
        for _ in range(5):
            begun = time.monotonic()
            answer = client.get(f"/api/v1/pictures/{mine}/file", headers={"range": f"bytes={ranges}"})
            own.append(time.monotonic() - begun)
        assert answer.status_code in (200, 206, 400, 416)
        assert len(answer.content) < 2 * len(whole)
        assert statistics.median(own) < 0.05
        times += own
    print(f"T32: 10,000 ranges in p50 {statistics.median(times) * 1000:.0f} ms, max {max(times) * 1000:.0f} ms")
    assert max(times) < 0.5
    part = client.get(f"/api/v1/pictures/{mine}/file", headers={"range": "bytes=10-19"})
    assert part.content in (whole[10:20], whole)


# What they hear and hand in


@pytest.mark.parametrize("way", ["watch", "follow"])
def test_no_event_is_skipped(served: tuple[TestClient, Studio], monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """What lies in the database before, and what comes while a reader is too slow for it."""
    client, studio = served
    hub = client.app.state.site.hub  # type: ignore[attr-defined]
    monkeypatch.setattr(hubs, "MOST", 100)
    monkeypatch.setattr(hubs, "KEPT", 50)
    job = studio.ask("generate", {"prompt": "a cat"}).id

    def happen(count: int) -> None:
        studio.store.write(lambda session: [ledger.log(session, job, "log", {}) for _ in range(count)])
        studio.bell.ring("event")

    happen(249)
    time.sleep(1.0)  # heard by nobody

    async def hear() -> list[int]:
        heard: list[int] = []
        async with aclosing(hub.watch("local", 0) if way == "watch" else hub.follow(job)) as stream:
            async for event in stream:
                if event is None:
                    continue
                heard.append(event.id)
                if len(heard) == 260:
                    threading.Timer(0.5, happen, [5]).start()  # heard as they happen
                elif count := {50: 10, 265: 125}.get(len(heard)):
                    await anyio.to_thread.run_sync(happen, count)
                    await asyncio.sleep(0.5)
                elif len(heard) == 390:
                    return heard
        raise AssertionError

    async def soon() -> list[int]:
        return await asyncio.wait_for(hear(), 20)

    assert client.portal is not None
    heard = client.portal.call(soon)
    assert heard == [event.id for event in studio.jobs.events()]
    assert len(heard) == 390


def test_health_waits_for_no_thread(served: tuple[TestClient, Studio]) -> None:
    """T25: where the database is away, all threads may wait for it."""
    client, _ = served
    assert client.portal is not None
    free = threading.Event()

    async def hold() -> None:
        limiter = anyio.to_thread.current_default_thread_limiter()
        count = int(limiter.total_tokens)
        held.extend(asyncio.ensure_future(anyio.to_thread.run_sync(free.wait)) for _ in range(count))
        await asyncio.sleep(0.1)

    held: list[Any] = []
    client.portal.call(hold)
    late = threading.Timer(10, free.set)
    late.start()
    begun = time.monotonic()
    assert client.get("/health").status_code == 200
    assert time.monotonic() - begun < 5
    late.cancel()
    free.set()


def test_a_secret_that_was_cut_off_is_made_anew(home: Path) -> None:
    home.mkdir()
    path = home / "secret"
    made = _secret(path)
    assert len(made) == 32
    assert path.stat().st_mode & 0o077 == 0
    assert _secret(path) == made
    for short in (b"", made[:31]):
        path.write_bytes(short)
        assert len(again := _secret(path)) == 32
        assert again not in (made, _secret(home / "other"))
        assert _secret(path) == again
    assert sorted(file.name for file in home.iterdir()) == ["other", "secret"]


def test_a_secret_without_room_is_none(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.mkdir()

    def full(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("sojourn.http.site.os.fsync", full)
    with pytest.raises(InvalidInput, match="cannot write"):
        _secret(home / "secret")
    assert list(home.iterdir()) == []


def test_uploads_that_wait_are_not_in_memory(
    served: tuple[TestClient, Studio], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, studio = served
    uploads = Uploads(studio.blobs)
    read: list[int] = []
    go = threading.Event()

    class File(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            read.append(1)
            go.wait(20)
            return super().read(size)

    async def several() -> None:
        waiting = [asyncio.ensure_future(uploads.decoded(File(noise()), "file")) for _ in range(5)]
        await asyncio.sleep(0.5)
        assert len(read) == 1
        go.set()
        assert {(await one).size for one in waiting} == {(32, 32)}, "as they are"

    assert client.portal is not None
    client.portal.call(several)
    uploads.close()


def test_archives_and_what_jobs_made(served: tuple[TestClient, Studio]) -> None:
    client, studio = served
    data = b"PK\x03\x04" + bytes(2 << 20)
    kept = client.post("/api/v1/uploads/archive", files={"file": ("a.zip", data)})
    assert kept.json() == {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    assert studio.blobs.get(kept.json()["sha256"]) == data
    assert client.post("/api/v1/uploads/archive", files={"file": ("a.zip", b"<html>")}).status_code == 400
    page = studio.blobs.put(b"<html><script>1</script>")
    job = studio.ask("generate", {"prompt": "a cat"}).id
    for suffix, wanted in ((".html", ".html"), (".zip", ".zip"), ('.x"\r\ny: z', ".bin"), ("", ".bin")):
        told = {"sha256": page, "suffix": suffix}
        studio.store.write(lambda session, told=told: ledger.log(session, job, "artifact", told))  # type: ignore[misc]
        head = client.get(f"{JOBS}/{job}/artifacts/{page}").headers
        assert head["content-disposition"] == f'attachment; filename="sojourn-{job}-{page[:12]}{wanted}"'
        assert head["content-type"] == "application/octet-stream"


def test_log_lines_are_clean(served: tuple[TestClient, Studio], caplog: pytest.LogCaptureFixture) -> None:
    client, _ = served
    caplog.set_level(logging.DEBUG)
    for path in ("/a%0d%0aINFO%20forged", "/%1b[31mred", "/%07", "/%c2%9b", "/%e2%80%ae", "/" + "x" * 5000, "/%00"):
        sent(client, "GET", path)
        sent(client, "GET", f"{JOBS}{path}", cookie="lang=\x1b[1m")
    for i in range(1000 // 10):
        client.post(JOBS, json=generate(f"very private words {i}"))
        client.post(JOBS, json=generate(f"very private\x1bwords {i}"))
        client.get(f"/api/v1/pictures?words=very+private+{i}")
    lines = [record.getMessage() for record in caplog.records if record.name.startswith(("sojourn", "uvicorn"))]
    assert len(lines) >= 300
    assert not [line for line in lines if re.search("[\x00-\x1f\x7f-\x9f\u202e]", line)]
    assert not [line for line in lines if "private" in line]
    assert max(map(len, lines)) < 400
    told = [Lines().format(record) for record in caplog.records if record.name.startswith("sojourn")]
    assert not [line for line in told if "\n" in line or "private" in line]
    found = [json.loads(line) for line in told]
    assert {"at", "level", "method", "path", "status", "ms", "id"} == set(found[-1])
    assert (found[-1]["path"], found[-1]["status"]) == ("/api/v1/pictures", 200)
