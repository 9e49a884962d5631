"""The web page: server-rendered frames in two languages; what moves in them is `static/`. Knows no job's inside."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool

from sojourn import card, config
from sojourn.errors import catalogue, named
from sojourn.grammar import PARAMETERS
from sojourn.http.answers import Refusal, language
from sojourn.http.guard import COOKIE
from sojourn.http.site import site
from sojourn.studio.asks import DEFAULT

router = APIRouter(include_in_schema=False)
PAGES = {"": "imagine", "gallery": "gallery", "compare": "compare", "models": "models", "queue": "queue"}
EXAMPLES = {
    "en": ("a red heart", "a blue car --style 3d", "a cat and a dog --n 8"),
    "zh": ("红色的心", "蓝色的汽车 --style 3d", "猫和狗 --n 8"),
}
STATIC = Path(str(resources.files("sojourn.http").joinpath("static")))
TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".woff2": "font/woff2"}
MONTH_S = 30 * 24 * 3600


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("sojourn.http", "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip


@cache
def texts(lang: str) -> dict[str, str]:
    """The page's texts in a language: English -> itself or its translation."""
    found = catalogue("page.zh")
    return found if lang == "zh" else {text: text for text in found}


def _page(request: Request, name: str, **more: Any) -> HTMLResponse:
    lang = language(request)
    said = texts(lang)
    caller = request.scope["state"]["caller"]
    data = {
        "lang": lang, "owner": caller.owner if caller else "", "scope": caller.scope if caller else "", "texts": said,
        "default": DEFAULT,
    }  # fmt: skip
    html = _environment().get_template(f"{name}.html").render(
        t=lambda text: said[text], named=lambda text: named(text, lang), lang=lang,
        page=name, caller=caller, data=data, pages=PAGES,
        locked=caller is None or caller.owner != "local", **more,
    )  # fmt: skip
    return HTMLResponse(html)


@router.get("/")
def imagine(request: Request) -> Response:
    return _page(request, "imagine", examples=EXAMPLES[language(request)], models=_drawing())


@router.get("/gallery")
def gallery(request: Request) -> Response:
    return _page(request, "gallery", models=_drawing())


@router.get("/compare")
def compare(request: Request) -> Response:
    return _page(request, "compare")


@router.get("/models")
def models(request: Request) -> Response:
    found = [(name, card_, (path / "sheet.png").is_file()) for name, path, card_ in card.list_packages()]
    recipes = {name: config.load_recipe(name) for name in config.recipes()}
    return _page(request, "models", packages=found, recipes=recipes)


@router.get("/queue")
def queue(request: Request) -> Response:
    return _page(request, "queue")


def _drawing() -> list[str]:
    """Names of packages that draw pictures, the default one first."""
    found = [name for name, _, c in card.list_packages() if "sample" in c.can and c.codec.id != "text"]
    return sorted(found, key=lambda name: (name != DEFAULT, name))


@router.get("/login")
def login(request: Request) -> Response:
    return _page(request, "login", wrong=False)


@router.post("/login")
async def come_in(request: Request, key: Annotated[str, Form(max_length=200)]) -> Response:
    """A key for a cookie that scripts cannot read and other pages cannot send."""
    found = await run_in_threadpool(site(request).keys.caller, key.strip())
    if found is None:
        answer = _page(request, "login", wrong=True)
        answer.status_code = 401
        return answer
    out = RedirectResponse("/", status_code=303)
    secure = request.url.scheme == "https"
    out.set_cookie(COOKIE, key.strip(), max_age=MONTH_S, httponly=True, samesite="strict", secure=secure)
    return out


@router.post("/logout")
def leave() -> Response:
    out = RedirectResponse("/login", status_code=303)
    out.delete_cookie(COOKIE)
    return out


@router.post("/language")
def choose(lang: Annotated[str, Form(pattern="^(en|zh)$")], back: Annotated[str, Form(max_length=20)] = "") -> Response:
    """Keep the language of the page."""
    out = RedirectResponse(f"/{back if back in {*PAGES, 'login'} else ''}", status_code=303)
    out.set_cookie("lang", lang, max_age=12 * MONTH_S, samesite="strict")
    return out


@router.get("/static/{name}")
def static(name: str) -> Response:
    path = STATIC / name
    if "/" in name or "\\" in name or path.suffix not in TYPES or not path.is_file():
        raise Refusal(404, "there is no such file")
    return FileResponse(path, media_type=TYPES[path.suffix], headers={"cache-control": "no-cache"})


@router.get("/api/v1/words/{name}")
def words(name: str, request: Request) -> dict[str, Any]:
    """What a prompt for a package may say, to complete it: names, styles, parameters."""
    folder = card.find(name, paths=False)
    found = card.read(folder, verify=False)
    columns = dict(found.conditioner.config.get("columns") or {})
    names: list[str] = []
    vocabulary = folder / "conditioner" / "vocabulary.json"
    if vocabulary.is_file():
        names = json.loads(vocabulary.read_text(encoding="utf-8"))["names"]
    elif found.conditioner.id == "labels":
        names = [value for column in columns.values() for value in column][:20_000]
    told = [[f"--{name}", named(parameter.about, language(request))] for name, parameter in PARAMETERS.items()]
    return {"names": names, "styles": list(columns.get("style", [])), "parameters": told}
