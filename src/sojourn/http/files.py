"""Bytes that come in by the page and go out of jobs."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, BinaryIO

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
    """A picture that was kept: upright, in its own shape, no side longer than 2048, as PNG."""

    sha256: str
    width: int
    height: int


@router.post("/api/v1/uploads", status_code=201, responses=statuses(415))
async def upload(file: UploadFile, request: Request) -> Picture:
    """Keep a picture to edit or as a mask: a JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF … of at most 64 MiB."""
    here = site(request)
    here.need(request, "generate")
    picture = await here.uploads.decoded(file.file, "file")
    name = await run_in_threadpool(here.uploads.keep, picture)
    return Picture(sha256=name, width=picture.width, height=picture.height)


@router.post("/api/v1/uploads/archive", status_code=201, responses=statuses(415))
async def archive(file: UploadFile, request: Request) -> Upload:
    """Keep a zip to prepare a training set from, of at most 64 MiB. Wants a key of scope train."""
    here = site(request)
    here.need(request, "train")
    if not (await file.read(4)).startswith(ARCHIVES):
        raise Refusal(400, "the upload is no zip", param="file", code="invalid_file")

    def keep(source: BinaryIO) -> Upload:  # piece by piece: there may be many at once
        source.seek(0)
        sha256 = hashlib.file_digest(source, "sha256").hexdigest()  # type: ignore[arg-type]
        size = source.tell()
        source.seek(0)
        here.studio.blobs.keep(sha256, source)
        return Upload(sha256=sha256, size_bytes=size)

    return await run_in_threadpool(keep, file.file)


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
    kind = suffix if re.fullmatch(r"\.[a-z0-9]{1,8}", suffix) else ".bin"  # a worker elsewhere may have told it
    headers = {"content-disposition": f'attachment; filename="sojourn-{id}-{sha256[:12]}{kind}"'}
    return Response(data, media_type="application/octet-stream", headers=headers)
