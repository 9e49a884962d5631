"""The server's doors: which pages may speak to it, who comes in, what they may do, whose things they see."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import app, filled, generate, noise, picture, routes, sent
from starlette.testclient import TestClient

from sojourn import config
from sojourn.errors import StoreError
from sojourn.http.bodies import Limits
from sojourn.http.guard import COOKIE, DOORS, FILES, OPEN
from sojourn.studio.keys import Keys
from sojourn.studio.studio import Studio

JOBS = "/api/v1/jobs"
RECIPE = sorted(config.recipes())[0]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SOJOURN_HOME", str(tmp_path / "home 红"))
    return tmp_path / "home 红"


@pytest.fixture
def served(home: Path) -> Iterator[tuple[TestClient, Studio]]:
    with app() as both:
        yield both


def test_other_pages_are_refused(served: tuple[TestClient, Studio]) -> None:
    """T30."""
    client, studio = served
    ask = json.dumps(generate("a cat"))
    plain: dict[str, str] = {"content-type": "application/json"}
    wrong: list[tuple[int, list[tuple[str, str]]]] = [
        (421, [("host", host), *plain.items()])
        for host in ("evil.test", "evil.test:7865", "127.0.0.1.nip.io", "", "127.0.0.1@evil.test", "2130706433",
                     "0x7f.1", "evil.test#127.0.0.1", "localhost.evil.test", "127.0.0.1, evil.test", "a" * 3000)
    ]  # fmt: skip
    wrong.append((421, [("host", "127.0.0.1"), ("host", "evil.test"), *plain.items()]))
    wrong += [(403, [("origin", origin), *plain.items()]) for origin in (
        "null", "https://evil.test", "http://127.0.0.1:1", "http://127.0.0.1.evil.test", "", "file://")]  # fmt: skip
    wrong.append((403, [("origin", "http://127.0.0.1"), ("origin", "https://evil.test"), *plain.items()]))
    wrong += [(403, [("sec-fetch-site", site), *plain.items()]) for site in ("cross-site", "same-site")]
    wrong += [(400, [("content-type", kind)]) for kind in (
        "text/plain", "text/plain;application/json", "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x", "application/jsonp", "")]  # fmt: skip
    for status, headers in wrong:
        answer = client.request("POST", JOBS, content=ask, headers=headers)
        assert answer.status_code == status, (headers, answer.status_code, answer.text)
    for path in (JOBS, "/", "/api/v1/events", "/v1/models"):
        answer = client.get(path, headers={"host": "evil.test", "accept": "text/html"})
        assert answer.status_code == 421, path
    print(f"T30: {len(wrong) + 4} refused")
    assert studio.jobs.page() == []
    own = {"origin": "http://127.0.0.1", "sec-fetch-site": "same-origin", **plain}
    assert client.post(JOBS, content=ask, headers=own).status_code == 202


METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND")


def test_without_a_key_nobody_comes_in(home: Path) -> None:
    """T31: every route, also those of tomorrow, and what is no route."""
    with app(Limits(per_minute=10**9)) as (client, studio):
        Keys(studio.store).add("ann")
        known = {path for _, path in routes(client)} | {"/api/v1/none", "/none", "/api/", "//", "/health/", "/HEALTH"}
        tried = 0
        for path in sorted(known):
            door = path.startswith(tuple(DOORS - {"/v1/files"}))
            for method in METHODS:
                status, body, _ = sent(client, method, filled(path, "1"), content_type="application/json")
                tried += 1
                if path not in OPEN and not door:
                    assert status == 401, (method, path, status, body)
        status, _, _ = sent(client, "GET", "/", accept="text/html")
        assert status == 303
        print(f"T31: {tried} requests without a key")
        assert studio.jobs.page() == []


def test_wrong_keys(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    """T31."""
    caplog.set_level(logging.DEBUG)
    with app() as (client, studio):
        key = Keys(studio.store).add("ann")
        told = [client.get(JOBS, headers={"authorization": f"Bearer sj-{i}"}) for i in range(20)]
        statuses = [answer.status_code for answer in told]
        assert statuses[:10] == [401] * 10
        assert set(statuses[10:]) == {429}
        assert told[-1].headers["retry-after"] == "60"
        right = {"authorization": f"Bearer {key}"}
        assert client.get(JOBS, headers=right).status_code == 200, "one stranger keeps nobody else out"
        assert client.get(JOBS, headers={"cookie": f"sojourn_key={key}"}).status_code == 200
        for odd in (
            f"Basic {key}",
            key,
            "Bearer",
            "Bearer ",
            f"bearer  {key}x",
            f"Bearer {key} {key}",
            "Bearer " + "x" * 9999,
        ):
            assert client.get(JOBS, headers={"authorization": odd}).status_code in (401, 429), odd
        made = client.post(JOBS, json=generate("a cat"), headers=right)
        assert key not in made.text + str(made.headers) + client.get("/health", headers=right).text
    assert key not in caplog.text


def test_a_wrong_key_counts_once(home: Path) -> None:
    """A program with an old key, or an open page with one, keeps nobody else out."""
    with app() as (client, studio):
        key = Keys(studio.store).add("ann")
        old = {"authorization": "Bearer sj-old"}
        assert {client.get(JOBS, headers=old).status_code for _ in range(30)} == {401}
        stale = {"cookie": f"{COOKIE}=sj-stale"}
        assert {client.get("/api/v1/events", headers=stale).status_code for _ in range(30)} == {401}
        for i in range(30):
            for path in ("/static/style.css", "/login"):
                assert client.get(path, headers={"cookie": f"{COOKIE}=sj-{i}"}).status_code == 200
        page = client.get("/", headers={"accept": "text/html", **stale})
        assert (page.status_code, page.headers["location"]) == (303, "/login")
        assert page.headers["set-cookie"].startswith(f"{COOKIE}=; Max-Age=0; Path=/;")
        assert client.post("/login", data={"key": key}, headers=stale).status_code == 303
        assert client.post("/logout", headers=stale).headers["location"] == "/login"


def test_the_login_page_changes_its_language(home: Path) -> None:
    with app() as (client, studio):
        Keys(studio.store).add("ann")
        answer = client.post("/language", data={"lang": "zh", "back": "https://evil.test"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        assert answer.headers["set-cookie"].startswith("lang=zh;")
        assert 'lang="zh-CN"' in client.get("/login").text
        foreign = client.post("/language", data={"lang": "en"}, headers={"origin": "https://evil.test"})
        assert foreign.status_code == 403


def test_pictures_of_a_page_are_counted_apart(home: Path) -> None:
    with app(Limits(per_minute=5)) as (client, studio):
        files = [f"/api/v1/pictures/{picture(studio)}/file?side=16", "/static/style.css"]
        for i in range(5 * FILES):
            assert client.get(files[i % 2]).status_code == 200
        assert client.get(files[0]).status_code == 429
        asked = [client.post(JOBS, json=generate("a cat")).status_code for _ in range(7)]
        assert asked == [202] * 5 + [429] * 2


def test_a_key_that_was_taken_back_hears_nothing_more(home: Path) -> None:
    with app() as (client, studio):
        keys = Keys(studio.store)
        ann = {"authorization": f"Bearer {keys.add('ann')}"}
        keys.add("bob")
        job = client.post(JOBS, json=generate("a cat"), headers=ann).json()["id"]
        told: dict[str, str] = {}

        def hear(path: str) -> None:
            told[path] = client.get(path, headers=ann).text

        paths = ("/api/v1/events", f"{JOBS}/{job}/events", "/api/v1/events?after=0")
        threads = [threading.Thread(target=hear, args=(path,), daemon=True) for path in paths]
        for thread in threads:
            thread.start()
        time.sleep(3)
        assert all(thread.is_alive() for thread in threads)
        keys.remove("ann")
        begun = time.monotonic()
        while any(thread.is_alive() for thread in threads):
            assert time.monotonic() - begun < 10, "it goes on listening"
            time.sleep(0.05)
        print(f"a stream ended {time.monotonic() - begun:.1f} s after its key")
        assert ["event: queued" in told[path] for path in paths] == [False, True, True]


def test_an_admin_sees_and_stops_all_jobs(home: Path) -> None:
    with app() as (client, studio):
        keys = Keys(studio.store)
        ann, bob, boss = (
            {"authorization": f"Bearer {keys.add(name, scope)}"}
            for name, scope in (("ann", "generate"), ("bob", "train"), ("boss", "admin"))
        )
        mine = client.post(JOBS, json=generate("a cat"), headers=ann).json()
        assert mine["owner"] == "ann"
        assert client.get(f"{JOBS}?everyone=true", headers=bob).status_code == 403
        assert client.get(JOBS, headers=boss).json() == []
        assert client.get(f"{JOBS}?everyone=true", headers=boss).json() == [mine]
        for method in ("GET", "DELETE"):
            assert client.request(method, f"{JOBS}/{mine['id']}", headers=bob).status_code == 404
        assert client.get(f"{JOBS}/{mine['id']}", headers=boss).json() == mine
        assert client.delete(f"{JOBS}/{mine['id']}", headers=boss).json()["state"] == "cancelled"


def test_a_database_that_is_away_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with app() as (client, studio):
        Keys(studio.store).add("ann")

        def away(*_: object) -> None:
            raise StoreError('the database "{name}" is busy; try again', name="x")

        monkeypatch.setattr(Keys, "caller", away)
        answer = client.get(JOBS, headers={"authorization": "Bearer sj-x"})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert answer.json()["error"]["message"] == 'the database "x" is busy; try again'


def test_scopes(home: Path) -> None:
    """T31."""
    with app() as (client, studio):
        keys = Keys(studio.store)
        told = {
            scope: {"authorization": f"Bearer {keys.add(scope, scope)}"} for scope in ("generate", "train", "admin")
        }
        train = {"kind": "prepare", "request": {"to": "x", "upload": studio.blobs.put(b"a zip")}}
        asked: list[tuple[str, str, Any, dict[str, int]]] = [
            ("POST", JOBS, generate("a cat"), {"generate": 202, "train": 202, "admin": 202}),
            ("POST", JOBS, {**generate("a cat"), "priority": 1}, {"generate": 403, "train": 403, "admin": 202}),
            ("POST", JOBS, train, {"generate": 403, "train": 202, "admin": 400}),  # the name is taken by then
            ("GET", "/metrics", None, {"generate": 403, "train": 403, "admin": 200}),
            ("DELETE", "/v1/models/none", None, {"generate": 403, "train": 403, "admin": 404}),
        ]  # fmt: skip
        refused = {"generate": 403, "train": 400, "admin": 400}
        asked += [("POST", JOBS, {"kind": kind, "request": {}}, refused) for kind in ("train", "evaluate")]
        local = {"kind": "prepare", "request": {"to": "x", "path": "/etc"}}
        asked.append(("POST", JOBS, local, {"generate": 403, "train": 403, "admin": 403}))
        for method, path, ask, wanted in asked:
            for scope, status in wanted.items():
                answer = client.request(method, path, json=ask, headers=told[scope])
                found = answer.status_code
                assert found == status or {found, status} == {400, 404}, (method, path, ask, scope, answer.text)
        keys.remove("train")
        time.sleep(2.5)
        assert client.get(JOBS, headers=told["train"]).status_code == 401, "a key that was taken back is worth nothing"
        for name in ("generate", "admin"):
            keys.remove(name)
        time.sleep(2.5)
        assert client.get(JOBS).status_code == 401, "with the last key the door stays shut"


def test_owners_do_not_see_each_other(home: Path) -> None:
    """T31: every id of one is nothing to the other, on every route."""
    with app() as (client, studio):
        keys = Keys(studio.store)
        ann, bob = ({"authorization": f"Bearer {keys.add(name, 'train')}"} for name in ("ann", "bob"))
        job = client.post(JOBS, json=generate("a cat"), headers=ann).json()["id"]
        pictures = [picture(studio, "ann", data=noise(seed=i)) for i in range(job + 2)]
        mine = pictures[-1]
        shelf = client.post("/api/v1/collections", json={"name": "x", "ids": pictures}, headers=ann).json()["id"]
        assert client.get(f"{JOBS}/{job}", headers=ann).status_code == 200
        tried = 0
        for method, path in routes(client):
            if "{id}" in path:
                for id in (job, mine, shelf):
                    target = path.replace("{id}", str(id)).replace("{sha256}", "0" * 64)
                    refused = (403,) if "/workers/" in path else (404, 405)
                    data = {"json": {}} if method == "POST" else {}
                    assert client.request(method, target, headers=bob, **data).status_code in refused, (method, target)
                    tried += 1
        for method, path in routes(client):
            if method == "GET" and "{" not in path and path.startswith("/api/v1/") and path != "/api/v1/events":
                answer = client.get(path, headers=bob)
                assert answer.status_code == (403 if "/workers/" in path else 200), path
                if "recipes" not in path:
                    assert "a cat" not in answer.text, path
        for path in (
            f"/api/v1/pictures?collection={shelf}",
            f"/api/v1/pictures?job={job}",
            "/api/v1/pictures?words=cat",
        ):
            assert client.get(path, headers=bob).json() == []
        on = {"kind": "train", "request": {"recipe": RECIPE, "to": "x", "goes_on": job}}
        for path, ask in (("/api/v1/pictures/zip", {"ids": [mine]}), ("/api/v1/ratings", _stars(mine)), (JOBS, on)):
            answer = client.post(path, json=ask, headers=bob)
            assert answer.status_code == 404, (path, answer.text)
        assert client.post("/api/v1/pictures/trash", json={"ids": pictures}, headers=bob).json() == {"count": 0}
        client.post("/api/v1/collections", json={"name": "x", "ids": pictures}, headers=bob)
        assert [row["count"] for row in client.get("/api/v1/collections", headers=bob).json()] == [0]
        assert client.delete("/api/v1/trash", headers=bob).json() == {"count": 0}
        assert client.get("/api/v1/pictures", headers=ann).json()[0]["trashed"] is None
        url = client.app.state.site.signed("http://127.0.0.1", mine, "png", (32, 32))  # type: ignore[attr-defined]
        assert client.get(url).content == noise(seed=len(pictures) - 1), "an address that was handed out is a key"
        assert client.get(url.replace("32x32", "64x64")).status_code == 401
        print(f"T31: {tried} ids of another")


def test_settings_are_an_owners_own(home: Path) -> None:
    with app() as (client, studio):
        keys = {name: {"authorization": f"Bearer {Keys(studio.store).add(name)}"} for name in ("ann", "bob")}
        assert set(client.get("/api/v1/settings", headers=keys["ann"]).json().values()) == {None}
        wanted = {"style": "noto", "n": 2, "guidance": 2, "no": "hat, dog"}
        assert client.put("/api/v1/settings", json=wanted, headers=keys["ann"]).status_code == 200
        client.post("/api/v1/jobs", json=generate("a cat"), headers=keys["ann"])  # turns are kept in the same rows
        for more in ({"n": 0}, {"n": True}, {"style": ""}, {"seed": 1}, {"guidance": "a lot"}):
            refused = client.put("/api/v1/settings", json={**wanted, **more}, headers=keys["ann"])
            assert refused.status_code == 400, more
        found = client.get("/api/v1/settings", headers=keys["ann"]).json()
        assert {name: value for name, value in found.items() if value is not None} == wanted
        assert set(client.get("/api/v1/settings", headers=keys["bob"]).json().values()) == {None}
        assert client.put("/api/v1/settings", json={"no": "x" * (2 << 20)}, headers=keys["ann"]).status_code == 413
        client.put("/api/v1/settings", json={"n": 3}, headers=keys["ann"])
        assert client.get("/api/v1/settings", headers=keys["ann"]).json()["style"] is None


def _stars(id: int) -> dict[str, Any]:
    return {"kind": "stars", "picture": id, "value": 3}
