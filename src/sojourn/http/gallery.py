"""The gallery over HTTP: pictures, collections, ratings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from sojourn.http.answers import Refusal, statuses
from sojourn.http.images import FORMATS
from sojourn.http.native import Before, Id, Limit
from sojourn.http.site import owner, site
from sojourn.studio.gallery import Wanted
from sojourn.studio.tables import PictureRow

router = APIRouter(tags=["Gallery"])
Ids = Annotated[list[Annotated[int, Field(ge=1, le=2**63 - 1)]], Field(min_length=1, max_length=1000)]


class PictureOut(BaseModel):
    """A picture of the gallery."""

    id: int
    job: int | None
    words: str
    model: str
    style: str | None
    seed: int
    sha256: str
    width: int
    height: int
    stars: int
    hidden: bool
    trashed: float | None
    recipe: dict[str, Any]
    created: float


class Near(BaseModel):
    """A picture, and how like it is: the cosine, -1..1."""

    picture: PictureOut
    score: float


class Chosen(BaseModel):
    """Some pictures."""

    model_config = ConfigDict(extra="forbid", strict=True)
    ids: Ids


class Named(Chosen):
    """Some pictures for a collection."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=200)]


class Taken(Chosen):
    """Some pictures of a collection."""

    collection: Annotated[int, Field(ge=1, le=2**63 - 1)]


class CollectionOut(BaseModel):
    id: int
    name: str
    count: int


class Rating(BaseModel):
    """What somebody thought of a picture."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    kind: Literal["stars", "hide", "pair"]
    picture: int = Field(ge=1, le=2**63 - 1)
    value: int = Field(ge=0, le=5)
    """stars: 0..5. hide: 1 hides, 0 shows again. pair: 1 = better than the other, 0 = a draw."""
    other: int | None = Field(None, ge=1, le=2**63 - 1)
    """The other picture of a pair."""


class Ratings(Chosen):
    """What somebody thought of many pictures alike."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    kind: Literal["stars", "hide"]
    value: int = Field(ge=0, le=5)
    """stars: 0..5. hide: 1 hides, 0 shows again."""


class RatingOut(BaseModel):
    id: int
    kind: str
    picture: int
    other: int | None
    value: float
    created: float


class Count(BaseModel):
    count: int


class Kept(BaseModel):
    """What was made, or taken back."""

    id: int


def _picture(row: PictureRow) -> PictureOut:
    return PictureOut(**{name: getattr(row, name) for name in PictureOut.model_fields})


@router.get("/api/v1/pictures", responses=statuses())
def pictures(
    request: Request,
    words: Annotated[str, Query(max_length=500, description="All of these in the prompt.")] = "",
    stars: Annotated[int, Query(ge=0, le=5, description="So many at least.")] = 0,
    model: Annotated[str | None, Query(max_length=100)] = None,
    style: Annotated[str | None, Query(max_length=100)] = None,
    job: Annotated[int | None, Query(ge=1, le=2**63 - 1)] = None,
    collection: Annotated[int | None, Query(ge=1, le=2**63 - 1)] = None,
    trashed: bool = False,
    hidden: bool = False,
    before: Before = None,
    limit: Limit = 100,
) -> list[PictureOut]:
    """Your pictures, the newest first."""
    wanted = Wanted(words, stars, model, style, job, collection, trashed, hidden)
    return [_picture(row) for row in site(request).studio.gallery.page(owner(request), wanted, before, limit)]


@router.get("/api/v1/pictures/{id}", responses=statuses(404))
def picture(id: Id, request: Request) -> PictureOut:
    """One of your pictures with its recipe."""
    return _picture(site(request).studio.gallery.get(id, owner(request)))


Side = Annotated[int | None, Query(ge=16, le=2048, description="Pixels of the longer side. None = as it was drawn.")]
FILE: dict[int | str, dict[str, Any]] = {200: {"content": {f"image/{name}": {} for name in FORMATS}}}


@router.get("/api/v1/pictures/{id}/file", responses={**statuses(404), **FILE}, response_class=Response)
def file(id: Id, request: Request, side: Side = None, format: Literal["png", "jpeg", "webp"] = "png") -> Response:
    """The picture itself; as a PNG of its own size it holds the recipe."""
    here = site(request)
    row = here.studio.gallery.get(id, owner(request))
    longer = max(row.width, row.height)
    size = None if side is None else (max(1, row.width * side // longer), max(1, row.height * side // longer))
    headers = {"cache-control": "private, max-age=31536000, immutable"}
    if format == "png" and size is None and here.studio.blobs.has(row.sha256):  # from disk, piece by piece
        return FileResponse(here.studio.blobs.path(row.sha256), media_type="image/png", headers=headers)
    data = here.file(row, format, size)
    return Response(data, media_type=f"image/{format}", headers=headers)


@router.get("/v1/files/{mark}/{name}", responses={**statuses(404), **FILE}, response_class=Response)
def signed(
    mark: Annotated[str, Path(max_length=64)], name: Annotated[str, Path(max_length=100)], request: Request
) -> Response:
    """A picture by an address that holds for an hour, and needs no key as long."""
    here = site(request)
    try:
        id, size, format = here.opened(mark, name)
    except Refusal:
        if request.scope["state"]["caller"] is None:
            raise Refusal(401, "no key, or a wrong one; send `Authorization: Bearer KEY`", code="invalid_api_key",
                          headers={"www-authenticate": "Bearer"}) from None  # fmt: skip
        raise
    row = here.studio.store.read(lambda session: session.get(PictureRow, id))
    if row is None:
        raise Refusal(404, "there is no such file")
    return Response(here.file(row, format, size), media_type=f"image/{format}")


@router.get("/api/v1/pictures/{id}/alike", responses=statuses(404))
def alike(id: Id, request: Request, limit: Limit = 24) -> list[Near]:
    """Your pictures that are most like one of them.

    None where no worker has looked at it yet: they do when there is nothing else to be done.
    """
    gallery = site(request).studio.gallery
    row = gallery.get(id, owner(request))
    if row.vector is None:
        return []
    found = gallery.alike(row.owner, row.tower, np.frombuffer(row.vector, np.float16).astype(np.float32), limit)
    return [Near(picture=_picture(other), score=score) for other, score in found]


@router.post("/api/v1/pictures/trash", responses=statuses(415))
def trash(chosen: Chosen, request: Request, back: bool = False) -> Count:
    """Put pictures into the trash, or back."""
    return Count(count=site(request).studio.gallery.trash(chosen.ids, owner(request), back))


@router.delete("/api/v1/trash", responses=statuses())
def empty(request: Request) -> Count:
    """Delete what is in the trash, for good."""
    return Count(count=site(request).studio.gallery.empty(owner(request)))


@router.post("/api/v1/pictures/zip", responses={**statuses(404, 415), 200: {"content": {"application/zip": {}}}},
             response_class=Response)  # fmt: skip
def zipped(chosen: Chosen, request: Request) -> Response:
    """Pictures with their words as a zip that `sojourn prepare` reads."""
    data = site(request).studio.zipped(list(dict.fromkeys(chosen.ids)), owner(request))
    headers = {"content-disposition": 'attachment; filename="sojourn.zip"'}
    return Response(data, media_type="application/zip", headers=headers)


@router.get("/api/v1/collections", responses=statuses())
def collections(request: Request) -> list[CollectionOut]:
    """Your collections."""
    found = site(request).studio.gallery.collections(owner(request))
    return [CollectionOut(id=id, name=name, count=count) for id, name, count in found]


@router.post("/api/v1/collections", responses=statuses(415))
def collect(named: Named, request: Request) -> Kept:
    """Put pictures into a collection; it is made when there is none of this name."""
    return Kept(id=site(request).studio.gallery.collect(owner(request), named.name, named.ids))


@router.post("/api/v1/collections/out", responses=statuses(404, 415))
def take_out(taken: Taken, request: Request) -> Count:
    """Take pictures out of a collection; they stay in the gallery."""
    return Count(count=site(request).studio.gallery.take_out(owner(request), taken.collection, taken.ids))


@router.delete("/api/v1/collections/{id}", responses=statuses(404))
def scatter(id: Id, request: Request) -> Count:
    """Do away with a collection; its pictures stay."""
    site(request).studio.gallery.take_out(owner(request), id)
    return Count(count=1)


# Ratings


@router.post("/api/v1/ratings", status_code=201, responses=statuses(404, 415))
def rate(rating: Rating, request: Request) -> Kept:
    """Rate a picture."""
    ratings = site(request).studio.ratings
    return Kept(id=ratings.rate(owner(request), rating.kind, rating.picture, rating.value, rating.other))


@router.post("/api/v1/ratings/many", status_code=201, responses=statuses(415))
def rate_many(given: Ratings, request: Request) -> Count:
    """Rate pictures alike; how many were yours."""
    ratings = site(request).studio.ratings
    return Count(count=ratings.rate_many(owner(request), given.kind, given.ids, given.value))


@router.delete("/api/v1/ratings/last", responses=statuses(404))
def undo(request: Request, kind: Literal["stars", "hide", "pair"] | None = None) -> Kept:
    """Take your last rating back, or your last one of a kind."""
    undone = site(request).studio.ratings.undo(owner(request), kind)
    if undone is None:
        raise Refusal(404, "there is no rating to take back")
    return Kept(id=undone.id)


@router.get("/api/v1/ratings", responses=statuses())
def ratings(
    request: Request, after: Annotated[int, Query(ge=0, le=2**63 - 1)] = 0, limit: Limit = 100
) -> list[RatingOut]:
    """Your ratings that hold, in order."""
    rows = site(request).studio.ratings.page(owner(request), after, limit)
    return [RatingOut(**{name: getattr(row, name) for name in RatingOut.model_fields}) for row in rows]
