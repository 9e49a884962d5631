"""What the routes share: the studio behind them, who asks, and what is theirs."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from fastapi import Request
from PIL import Image
from sqlalchemy import select

from sojourn import card, safefile
from sojourn import prompt as grammar
from sojourn.card import home
from sojourn.data import clean
from sojourn.errors import SojournError
from sojourn.http.answers import Refusal
from sojourn.http.hub import Hub
from sojourn.http.images import encoded
from sojourn.http.uploads import Uploads
from sojourn.studio.keys import Caller, Keys, Scope
from sojourn.studio.ledger import Job
from sojourn.studio.studio import Studio
from sojourn.studio.tables import PictureRow

WAITING = 500
"""Jobs of one owner that may wait at once."""
LINK_S = 3600
"""How long the address of a picture holds."""
SECRET = 32
"""Bytes of a home's secret."""


class Site:
    """A studio with what a server needs beside it."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.keys = Keys(studio.store)
        self.hub = Hub(studio)
        self.uploads = Uploads(studio.blobs)
        self._secret = _secret(home() / "secret")

    def ask(self, kind: str, request: dict[str, Any], owner: str, priority: int = 0) -> Job:
        """Ask for a job of an owner who has not too many waiting."""
        if self.studio.jobs.waiting(owner) >= WAITING:
            headers = {"Retry-After": "10", "x-should-retry": "false"}
            raise Refusal(429, "{count} of your jobs wait already; let some be done, or cancel some", code="queue_full",
                          headers=headers, count=WAITING)  # fmt: skip
        return self.studio.ask(kind, request, owner=owner, priority=priority)

    def drawn(self, data: bytes | BinaryIO, owner: str) -> str | None:
        """The prompt of a picture of the owner's gallery, by its bytes: words, style and package, without the seed."""
        if isinstance(data, bytes):
            name = hashlib.sha256(data).hexdigest()
        else:
            name = hashlib.file_digest(data, "sha256").hexdigest()  # type: ignore[arg-type]
            data.seek(0)
        query = select(PictureRow.recipe).where(PictureRow.sha256 == name, PictureRow.owner == owner)
        recipe = self.studio.store.read(lambda session: session.scalars(query).first())
        if not recipe:
            return None
        prompt = grammar.parse(str(recipe["prompt"]), allow_empty=True)
        return grammar.format(prompt.model_copy(update={"seed": None, "n": None, "model": str(recipe["name"])}))

    def file(
        self, row: PictureRow, format: str, size: tuple[int, int] | None, quality: int | None = None
    ) -> bytes:  # fmt: skip
        """The bytes of a picture of the gallery. Raises NotFound."""
        kept = None
        if size is not None and size != (row.width, row.height) and row.job is not None:
            asked = self.studio.jobs.get(row.job).request
            source, mask = str(asked.get("source")), str(asked.get("mask"))
            if asked.get("mask") and self.studio.blobs.has(source) and self.studio.blobs.has(mask):
                kept = self._framed(row, size, source, None), self._framed(row, size, mask, "black")
        return encoded(self.studio.blobs.get(row.sha256), format, size, quality, kept)

    def _framed(
        self, row: PictureRow, size: tuple[int, int], sha256: str, ground: clean.Background | None
    ) -> Image.Image:
        """A picture that was edited, or a mask, as the package of the edit frames it, and large enough for a size.

        Decoded where uploads are: anything may have been kept by its sha256. ground: under what is transparent or
        bars; None = the package's own.
        """
        picture = self.uploads.picture(self.studio.blobs.get(sha256), "source")
        settings = _frame(row.model)
        fill: clean.Background = ground or settings.get("background") or "black"
        if picture.mode == "RGBA" and (ground or settings.get("channels") != 4):
            below = Image.new("RGBA", picture.size, fill)
            picture = Image.alpha_composite(below, picture).convert("RGB")
        times = max(-(-size[0] // row.width), -(-size[1] // row.height))
        return clean.fit(picture, row.width * times, row.height * times, settings.get("fit", "crop"), fill)

    # Addresses of pictures that hold without a key, for an hour

    def signed(self, base: str, picture: int, format: str, size: tuple[int, int]) -> str:
        until = int(time.time()) + LINK_S
        name = f"{picture}-{size[0]}x{size[1]}-{until}.{format}"
        return f"{base.rstrip('/')}/v1/files/{self._mark(name)}/{name}"

    def opened(self, mark: str, name: str) -> tuple[int, tuple[int, int], str]:
        """Picture, size and format of such an address. Raises Refusal (404) where it was made up, or is too old."""
        if not hmac.compare_digest(self._mark(name).encode(), mark.encode("utf-8", "replace")):
            raise Refusal(404, "there is no such file")
        stem, _, format = name.partition(".")
        picture, size, until = stem.split("-")
        if int(until) < time.time():
            raise Refusal(404, "there is no such file")
        width, _, height = size.partition("x")
        return int(picture), (int(width), int(height)), format

    def _mark(self, name: str) -> str:
        return hmac.new(self._secret, name.encode("utf-8", "replace"), hashlib.sha256).hexdigest()[:40]

    # Packages

    def remove_package(self, name: str, folder: Path) -> None:
        """Raises Refusal for one that ships with Sojourn or is a part of another."""
        if folder.parent != home() / "models":
            raise Refusal(403, '"{name}" ships with Sojourn and stays', code="permission_denied", name=name[:80])
        gone = folder.with_name(f".{folder.name}.gone")
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    @staticmethod
    def need(request: Request, scope: Scope, *others: Scope) -> Caller:
        """Who asks, if they may do one of these. Raises Refusal (403)."""
        caller: Caller | None = request.scope["state"]["caller"]
        if caller is None:
            raise Refusal(401, "no key, or a wrong one; send `Authorization: Bearer KEY`", code="invalid_api_key")
        if not any(caller.may(one) for one in (scope, *others)):
            raise Refusal(403, 'this wants a key of scope "{scope}"; yours is "{found}"', code="permission_denied",
                          scope=scope, found=caller.scope)  # fmt: skip
        return caller


def _frame(model: str) -> dict[str, Any]:
    """The settings by which a package brings pictures into its shape; none where it is gone."""
    try:
        folder = card.find(model, paths=False)
        settings = card.read(folder, verify=False).codec.config
        while part := settings.get("part"):
            folder = folder / "parts" / str(part)
            settings = card.read(folder, verify=False).codec.config
    except SojournError:
        return {}
    return dict(settings)


def site(request: Request) -> Site:
    found: Site = request.app.state.site
    return found


def owner(request: Request) -> str:
    """Whose is what this request makes."""
    return Site.need(request, "generate").owner


async def holds(request: Request) -> bool:
    """Whether who asked may still come in; while the database does not answer, they may."""
    with suppress(SojournError):
        return bool(await request.scope["state"]["holds"]())
    return True


def _secret(path: Path) -> bytes:
    """What signs addresses: made once, readable by its owner alone, the same for all servers of a home.

    Raises OutOfRoom, InvalidInput. One that is too short, cut off by a crash, is made anew.
    """
    if len(found := _bytes(path)) >= SECRET:
        return found
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".secret.{os.getpid()}-{secrets.token_hex(3)}.part")
    with safefile.writing(path):
        try:
            with os.fdopen(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
                file.write(secrets.token_bytes(SECRET))
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(part, path)  # of servers that begin at once, one makes it
            except OSError:
                if len(_bytes(path)) < SECRET:
                    os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    return _bytes(path)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
