"""Bytes that come in by the page and go out of jobs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, UploadFile
from fastapi.responses import Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from sojourn.http.answers import Refusal, statuses
from sojourn.http.native import Id, Upload
from sojourn.http.site import owner, site

router = APIRouter(tags=["Studio"])
ARCHIVES = (b"PK\x03\x04", b"PK\x05\x06")
"""How a zip begins."""
SERVED = {".png": "image/png", ".json": "application/json", ".txt": "text/plain; charset=utf-8", ".webp": "image/webp"}
"""What of a job's artifacts is shown as what it is; the rest is downloaded."""


class Picture(BaseModel):
    """A picture that was kept: upright, cut to a square, as PNG."""

    sha256: str
    width: int
    height: int


@router.post("/api/v1/uploads", status_code=201, responses=statuses(415))
async def upload(file: UploadFile, request: Request) -> Picture:
    """Keep a picture to edit or as a mask: a JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF … of at most 64 MiB."""
    here = site(request)
    here.need(request, "generate")
    picture = await here.uploads.decoded(await file.read(), "file")
    name = await run_in_threadpool(here.uploads.keep, picture)
    return Picture(sha256=name, width=picture.width, height=picture.height)


@router.post("/api/v1/uploads/archive", status_code=201, responses=statuses(415))
async def archive(file: UploadFile, request: Request) -> Upload:
    """Keep a zip to prepare a training set from, of at most 64 MiB. Wants a key of scope train."""
    here = site(request)
    here.need(request, "train")
    data = await file.read()
    if not data.startswith(ARCHIVES):
        raise Refusal(400, "the upload is no zip", param="file", code="invalid_file")
    return Upload(sha256=await run_in_threadpool(here.studio.blobs.put, data), size_bytes=len(data))


@router.get("/api/v1/jobs/{id}/artifacts/{sha256}", responses=statuses(404), response_class=Response)
def artifact(id: Id, sha256: Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")], request: Request) -> Response:
    """What a job made: a sheet of samples, a report."""
    jobs = site(request).studio.jobs
    jobs.get(id, owner(request))
    suffix = jobs.artifacts(id).get(sha256)
    if suffix is None:
        raise Refusal(404, "there is no such file")
    data = site(request).studio.blobs.get(sha256)
    if suffix in SERVED:
        return Response(data, media_type=SERVED[suffix])
    headers = {"content-disposition": f'attachment; filename="{sha256[:12]}.bin"'}
    return Response(data, media_type="application/octet-stream", headers=headers)
