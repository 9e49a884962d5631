"""The OpenAI-compatible API: models, images. What a client library sends becomes a job, and its end the answer."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, BinaryIO, Literal

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from starlette.concurrency import run_in_threadpool

from sojourn import card
from sojourn import prompt as grammar
from sojourn.errors import InvalidInput, NotFound, SojournError
from sojourn.http.answers import Refusal, language, refused, statuses
from sojourn.http.images import editable, encoded, mean, parts, size_of, wanted
from sojourn.http.site import Site, owner, site
from sojourn.http.waiting import STREAMED, Stream, begun, failure, fault, pinging, sse, waited
from sojourn.schema import Card
from sojourn.studio.asks import DEFAULT
from sojourn.studio.gallery import Wanted
from sojourn.studio.ledger import Job

router = APIRouter(prefix="/v1", tags=["OpenAI-compatible"])
STRENGTH = 0.6
"""How far from a picture where nobody says."""
NAMES = {"gpt-image-1", "gpt-image-1.5", "gpt-image-2", "dall-e-2", "dall-e-3"}
"""Models of others that clients name by default: the default package draws for them."""


class ImagesAsk(BaseModel):
    """What is asked of /images/generations; unknown fields are passed over."""

    model_config = ConfigDict(extra="ignore", use_attribute_docstrings=True)

    prompt: str = Field(max_length=20_000)
    """Words in English or Chinese, and --parameters."""
    model: str | None = Field(None, max_length=100)
    """A package. None = the default one."""
    n: int | None = Field(None, ge=1, le=10)
    """Pictures. None = by the prompt, else 1."""
    size: str | None = Field("auto", max_length=20)
    """WIDTHxHEIGHT, each 16..2048, or auto: the package's own."""
    quality: str | None = Field(None, max_length=20)
    """Passed over."""
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = "png"
    output_compression: int | None = Field(None, ge=0, le=100)
    """Quality of jpeg and webp."""
    stream: bool | None = False
    partial_images: int | None = Field(0, ge=0, le=3)
    """Intermediate samples in a stream."""
    seed: int | None = Field(None, ge=0, le=2**53 - 1)
    """Seed of the first picture; picture i has seed + i."""
    steps: int | None = Field(None, ge=1, le=1000)
    guidance: float | None = Field(None, ge=0, le=100)
    chaos: float | None = Field(None, ge=0, le=100)
    style: str | None = Field(None, max_length=100)
    """A style of the package."""
    no: str | None = Field(None, max_length=2000)
    """What to keep out, with commas between."""

    @field_validator(
        "n", "output_compression", "partial_images", "seed", "steps", "guidance", "chaos", "strength", mode="before",
        check_fields=False,
    )  # fmt: skip
    @classmethod
    def _no_truth(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("a number is wanted")
        return value


class PictureAsk(ImagesAsk):
    """What is asked of /images/edits and /images/variations beside the pictures."""

    strength: float | None = Field(None, ge=0, le=1)
    """How far from the picture: 0 = the picture itself, 1 = only the prompt. None = 0.6."""


class ImageOut(BaseModel):
    """One picture."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None


class Tokens(BaseModel):
    text_tokens: int
    image_tokens: int


class Usage(BaseModel):
    """Counted in steps of walks: there are no tokens."""

    total_tokens: int
    input_tokens: int
    output_tokens: int
    input_tokens_details: Tokens


class ImagesOut(BaseModel):
    """Pictures."""

    created: int
    data: list[ImageOut]
    background: str = "opaque"
    output_format: str
    quality: str = "auto"
    size: str
    usage: Usage


class ModelOut(BaseModel):
    """A package."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelsOut(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelOut]


class ModelGone(BaseModel):
    id: str
    object: Literal["model"] = "model"
    deleted: bool


# Models


@router.get("/models", responses=statuses())
def list_models() -> ModelsOut:
    """The packages there are."""
    return ModelsOut(data=[_model(name, found) for name, _, found in card.list_packages()])


@router.get("/models/{id:path}", responses=statuses(404))
def get_model(id: str) -> ModelOut:
    """One package."""
    return _model(id, card.read(_folder(id), verify=False))


@router.delete("/models/{id:path}", responses=statuses(404))
def delete_model(id: str, request: Request) -> ModelGone:
    """Do away with one of your own packages. Wants a key of scope admin."""
    site(request).need(request, "admin")
    site(request).remove_package(id, _folder(id))
    return ModelGone(id=id, deleted=True)


def _folder(id: str) -> Any:
    try:
        return card.find(id, paths=False)
    except NotFound as error:
        raise refused(error, "model", "model_not_found") from None


def _model(name: str, found: Card) -> ModelOut:
    return ModelOut(id=name, created=_seconds(found.created), owned_by="local")


def _seconds(written: str) -> int:
    with suppress(ValueError):
        return int(datetime.fromisoformat(written).timestamp())
    return 0


# Images


@router.post("/images/generations", responses=STREAMED | statuses(404, 415), response_model=ImagesOut)
async def generate(ask: ImagesAsk, request: Request) -> Any:
    """Pictures from words; with `stream` as events, partial images from the walk among them."""
    return await _answered(request, "generate", ask, _request(ask), "image_generation")


FIELDS = PictureAsk.model_json_schema()["properties"]


@router.post("/images/edits", responses=STREAMED | statuses(404, 415), response_model=ImagesOut,
             openapi_extra=wanted(FIELDS, edits=True))  # fmt: skip
async def edit(request: Request) -> Any:
    """Pictures from pictures: multipart with `image` (or several `image[]`) and `mask`, or JSON with data URLs.

    Where the mask is transparent the picture may change. Several pictures: the walk starts from their mean.
    """
    fields, pictures, mask = await parts(request)
    ask = _asked(fields)
    sources = [await _decoded(request, data, "image") for data in pictures]
    if not sources:
        raise Refusal(400, "send the picture to edit as `image`", param="image", code="missing")
    more: dict[str, Any] = {"source": await _kept(request, mean(sources))}
    if mask is not None:
        more["mask"] = await _kept(request, editable(await _decoded(request, mask, "mask")))
    more["strength"] = STRENGTH if ask.strength is None else ask.strength
    return await _answered(request, "edit", ask, {**_request(ask), **more}, "image_edit")


@router.post("/images/variations", responses=statuses(404, 415), response_model=ImagesOut,
             openapi_extra=wanted(FIELDS, edits=False))  # fmt: skip
async def vary(request: Request) -> Any:
    """Variations of a picture: of its own words where this server drew it, else of what it shows."""
    fields, pictures, _ = await parts(request)
    if len(pictures) != 1:
        raise Refusal(400, "send one picture to vary as `image`", param="image", code="missing")
    known = await run_in_threadpool(site(request).drawn, pictures[0], owner(request))
    ask = _asked({"prompt": known or "", **fields})
    source = await _kept(request, await _decoded(request, pictures[0], "image"))
    return await _answered(
        request,
        "edit",
        ask,
        {**_request(ask), "source": source, "strength": STRENGTH if ask.strength is None else ask.strength},
        "image_edit",
    )


async def _decoded(request: Request, data: bytes | BinaryIO, param: str) -> Image.Image:
    return await site(request).uploads.decoded(data, param)


async def _kept(request: Request, picture: Image.Image) -> str:
    return await run_in_threadpool(site(request).uploads.keep, picture)


def _asked(fields: dict[str, Any]) -> PictureAsk:
    """The fields of a form, which are all texts, as a request; an empty one is as good as none."""
    given = {key: value for key, value in fields.items() if value != "" or key == "prompt"}
    try:
        return PictureAsk.model_validate(given)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


def _request(ask: ImagesAsk) -> dict[str, Any]:
    """As the studio's own request. Raises Refusal with the field that is wrong."""
    size_of(ask.size)
    try:
        prompt = grammar.parse(ask.prompt, allow_empty=True)
        name = None if ask.model in NAMES else ask.model
        style = None if ask.style in ("vivid", "natural") else ask.style
        prompt = grammar.merge(
            prompt, model=name or prompt.model or DEFAULT, n=ask.n or prompt.n or 1, seed=ask.seed, steps=ask.steps,
            guidance=ask.guidance, chaos=ask.chaos, style=style, no=ask.no or None,
        )  # fmt: skip
    except InvalidInput as error:
        raise refused(error, "prompt", "invalid_prompt") from None
    previews = (ask.partial_images or 0) if ask.stream else 0
    return {"prompt": grammar.format(prompt), "previews": previews}


async def _answered(request: Request, kind: str, ask: ImagesAsk, asked: dict[str, Any], event: str) -> Any:
    """Ask for the job, wait, answer. Who goes away takes the job along."""
    job = await begun(request, kind, asked)
    here = site(request)
    if ask.stream:
        return Stream(here, [job], _streamed(here, job, ask, event, language(request)))
    (ended,) = await waited(request, here, [job])
    if ended.state != "done":
        raise failure(ended, "prompt")
    return await run_in_threadpool(_out, here, ended, ask, str(request.base_url))


def _rows(here: Site, job: Job) -> list[Any]:
    return sorted(here.studio.gallery.page(job.owner, Wanted(job=job.id)), key=lambda row: row.row)


def _out(here: Site, job: Job, ask: ImagesAsk, base: str) -> ImagesOut:
    rows = _rows(here, job)
    size = size_of(ask.size) or ((rows[0].width, rows[0].height) if rows else (0, 0))
    data = []
    for row in rows:
        if ask.response_format == "url":
            data.append(
                ImageOut(url=here.signed(base, row.id, ask.output_format or "png", size), revised_prompt=row.words)
            )
        else:
            raw = here.file(row, ask.output_format or "png", size, ask.output_compression)
            data.append(ImageOut(b64_json=base64.b64encode(raw).decode(), revised_prompt=row.words))
    shown = f"{size[0]}x{size[1]}"
    return ImagesOut(
        created=int(job.created), data=data, output_format=ask.output_format or "png", size=shown, usage=_usage(rows)
    )


def _usage(rows: Sequence[Any]) -> Usage:
    words = sum(len(str(row.words).split()) or 1 for row in rows[:1])
    drawn = sum(int(row.recipe.get("options", {}).get("steps", 1)) for row in rows)
    details = Tokens(text_tokens=words, image_tokens=0)
    return Usage(total_tokens=words + drawn, input_tokens=words, output_tokens=drawn, input_tokens_details=details)


async def _streamed(here: Site, job: Job, ask: ImagesAsk, event: str, lang: str) -> AsyncIterator[bytes]:
    """Partial images as the walk goes, then each picture; an error as the client's library understands it."""
    told: dict[str, Any] = {"size": ask.size or "auto", "quality": "auto", "background": "opaque"}
    told["output_format"] = ask.output_format or "png"
    count = 0

    def shown(raw: bytes) -> str:
        out = encoded(raw, told["output_format"], size_of(ask.size), ask.output_compression)
        return base64.b64encode(out).decode()

    def whole(row: Any) -> bytes:
        return here.file(row, told["output_format"], size_of(ask.size), ask.output_compression)

    try:
        async for happened in pinging(here, job):
            if isinstance(happened, bytes):
                yield happened
            elif happened.kind == "preview":
                for row, picture in enumerate(happened.data["pictures"]):
                    data = {
                        "type": f"{event}.partial_image", "partial_image_index": count, "image_index": row,
                        "b64_json": await run_in_threadpool(shown, base64.b64decode(picture)),
                        "created_at": int(happened.created), **told,
                    }  # fmt: skip
                    yield sse(data, f"{event}.partial_image")
                count += 1
        ended = await run_in_threadpool(here.studio.jobs.get, job.id)
        if ended.state != "done":
            yield fault(failure(ended, "prompt"), lang)
            return
        rows = await run_in_threadpool(_rows, here, ended)
        usage = _usage(rows).model_dump()
        for row in rows:
            data = {
                "type": f"{event}.completed", "image_index": row.row, "usage": usage,
                "b64_json": base64.b64encode(await run_in_threadpool(whole, row)).decode(),
                "created_at": int(ended.created), **told,
            }  # fmt: skip
            yield sse(data, f"{event}.completed")
    except SojournError as error:
        yield fault(refused(error), lang)
