"""Pictures as they come in, in forms and data URLs, and as they go out, in formats and sizes."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
from fastapi import Request
from PIL import Image

from sojourn.data import clean
from sojourn.http.answers import Refusal

FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
SIDES = (16, 2048)
"""Pixels of a side that may be asked for."""
MOST = 16
"""Pictures of a form at most."""


def size_of(asked: str | None) -> tuple[int, int] | None:
    """Width and height asked for; None = the package's own."""
    if asked in (None, "", "auto"):
        return None
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", str(asked))
    low, high = SIDES
    if match is None or not all(low <= int(side) <= high for side in match.groups()):
        raise Refusal(
            400, 'size is "{found}"; write WIDTHxHEIGHT, each {low}..{high}, or auto',
            param="size", code="invalid_size", found=str(asked)[:20], low=low, high=high,
        )  # fmt: skip
    return int(match[1]), int(match[2])


def encoded(
    raw: bytes, format: str, size: tuple[int, int] | None, quality: int | None = None,
    kept: tuple[Image.Image, Image.Image] | None = None,
) -> bytes:  # fmt: skip
    """A picture's bytes in another format and size; as they are where neither differs.

    kept: the picture that it is an edit of, framed as it is, and the mask, white where that might change. In another
    size than its own, what was to stay is taken from there: the edit has it in the few pixels that its package draws.
    """
    with Image.open(io.BytesIO(raw)) as file:
        picture: Image.Image = file.copy()
    if format == "png" and size in (None, picture.size):
        return raw
    if size is not None and size != picture.size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
        if kept is not None:
            before, mask = (other.resize(size, Image.Resampling.LANCZOS) for other in kept)
            picture = Image.composite(picture, before.convert(picture.mode), mask.convert("L"))
    if format == "jpeg" and picture.mode not in ("RGB", "L"):
        ground = Image.new("RGB", picture.size, "white")
        ground.paste(picture, mask=picture.getchannel("A") if "A" in picture.getbands() else None)
        picture = ground
    out = io.BytesIO()
    picture.save(out, FORMATS[format], **({"quality": quality} if quality is not None and format != "png" else {}))
    return out.getvalue()


def wanted(fields: dict[str, Any], edits: bool) -> dict[str, Any]:
    """For the document: the body of a route that takes pictures and these fields, as `parts` reads it."""
    file = {"type": "string", "format": "binary"}
    several = {"type": "array", "items": file, "minItems": 1, "maxItems": MOST if edits else 1}
    form = {**fields, "image": several}
    url = {"type": "object", "properties": {"image_url": {"type": "string"}}, "required": ["image_url"]}
    sent = {**fields, "images": {**several, "items": url}}
    if edits:
        form |= {"image[]": several, "mask": file}
        sent |= {"mask": url}
    must = ["prompt"] if edits else []
    content = {
        "multipart/form-data": {
            "schema": {"type": "object", "properties": form, "required": must if edits else ["image"]}
        },
        "application/json": {"schema": {"type": "object", "properties": sent, "required": ["images", *must]}},
    }
    return {"requestBody": {"required": True, "content": content}}


async def parts(
    request: Request,
) -> tuple[dict[str, Any], list[bytes | BinaryIO], bytes | BinaryIO | None]:
    """Fields, pictures and mask of a form or of a JSON body. Those of a form are files: they may have to wait."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        sent = json.loads(await request.body() or b"{}")
        images = sent.pop("images", []) if isinstance(sent.get("images", []), list) else []
        given = [sent.pop("image")] if isinstance(sent.get("image"), str) else []
        veil = sent.pop("mask", None)
        return (
            sent,
            [_data_url(item, "images") for item in [*given, *images][: MOST + 1]],
            None if veil is None else _data_url(veil, "mask"),
        )
    if kind != "multipart/form-data":
        raise Refusal(415, "send multipart/form-data or application/json", code="unsupported_media_type")
    form = await request.form(max_files=18, max_fields=64, max_part_size=64 << 10)
    fields: dict[str, Any] = {}
    pictures: list[bytes | BinaryIO] = []
    mask: bytes | BinaryIO | None = None
    for name, value in form.multi_items():
        if isinstance(value, str):
            fields[name] = value
        elif name in ("image", "image[]"):
            pictures.append(value.file)
        elif name == "mask":
            mask = value.file
    if len(pictures) > MOST:
        raise Refusal(400, "at most {most} pictures, found {found}", param="image", most=MOST, found=len(pictures))
    return fields, pictures, mask


def _data_url(item: Any, param: str) -> bytes:
    """The bytes of a data URL; other addresses are never fetched."""
    url = item.get("image_url") if isinstance(item, dict) else item
    match = re.match(r"data:image/[a-z+.-]+;base64,", str(url)[:64])
    if match is None:
        raise Refusal(
            400,
            "give pictures as data URLs (data:image/png;base64,...); addresses are not fetched",
            param=param,
            code="invalid_image",
        )
    try:
        return base64.b64decode(str(url)[match.end() :], validate=True)
    except ValueError:
        raise Refusal(400, "the data URL is not base64", param=param, code="invalid_image") from None


def mean(pictures: Sequence[Image.Image]) -> Image.Image:
    """One picture of several, of the first one's shape."""
    if len(pictures) == 1:
        return pictures[0]
    arrays = [np.asarray(clean.fit(picture.convert("RGBA"), *pictures[0].size), np.float32) for picture in pictures]
    return Image.fromarray(np.mean(arrays, axis=0).round().astype(np.uint8))


def editable(mask: Image.Image) -> Image.Image:
    """A mask whose transparent places may change as one whose white places may."""
    if "A" not in mask.getbands():
        raise Refusal(400, "the mask has no alpha; make what may change transparent", param="mask", code="invalid_mask")
    return clean.white_where_clear(mask)
