"""Errors as answers: one body for all of them, and the only place where an error becomes a status."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from sojourn import errors
from sojourn.errors import SojournError, translate

STATUS: dict[type[SojournError], int] = {
    errors.InvalidInput: 400, errors.Unsupported: 400, errors.PackageError: 400, errors.NotFound: 404,
    errors.StoreError: 503, errors.OutOfRoom: 503,
}  # fmt: skip
TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
         408: "timeout_error", 409: "conflict_error", 413: "invalid_request_error",
         429: "rate_limit_error"}  # fmt: skip
RETRY_S = 5
"""When to try again what failed for now."""
EVENTS: dict[str, Any] = {
    "text/event-stream": {
        "schema": {
            "type": "object",
            "properties": {
                "data": {"type": "string", "description": "JSON; `[DONE]` ends a stream of chunks"},
                "event": {"type": "string"},
                "id": {"type": "string", "description": "For `Last-Event-ID`"},
                "retry": {"type": "integer", "description": "Milliseconds"},
            },
        }
    }
}
"""What the document says of a stream of server-sent events: the fields of each."""


class Fault(BaseModel):
    """What was wrong."""

    message: str
    type: str
    param: str | None = None
    """The field it is about."""
    code: str | None = None


class Failure(BaseModel):
    """The body of every answer that is not a success."""

    error: Fault


class Refusal(Exception):
    """An answer that is no success, with its status; template and fields of its message."""

    def __init__(
        self, status: int, template: str, *, param: str | None = None, code: str | None = None,
        headers: dict[str, str] | None = None, **fields: object,
    ) -> None:  # fmt: skip
        self.status, self.template, self.fields = status, template, fields
        self.param, self.code, self.headers = param, code, headers or {}
        super().__init__(template)


def refused(error: SojournError, param: str | None = None, code: str | None = None) -> Refusal:
    """A domain error as an answer."""
    status = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)
    headers = {"Retry-After": str(RETRY_S)} if status == 503 else {}
    refusal = Refusal(status, error.template, param=param, code=code, headers=headers)
    refusal.fields = error.fields  # whatever their names are
    return refusal


def kept(error: dict[str, Any] | None) -> Refusal:
    """The error of a failed job as an answer."""
    told = error or {"type": "SojournError", "template": "{what}", "fields": {"what": "the job failed"}}
    kind = getattr(errors, str(told.get("type")), SojournError)
    status = next((STATUS[base] for base in kind.__mro__ if base in STATUS), 500)
    refusal = Refusal(status, str(told["template"]))
    refusal.fields = dict(told.get("fields", {}))
    return refusal


def in_words(error: dict[str, Any], lang: str) -> dict[str, Any]:
    """The error of a failed job, with its `message` in a language."""
    return {**error, "message": said(kept(error), lang)}


def body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def language(request: Request) -> str:
    """The language of the caller: a cookie of the page, else what the browser asks for."""
    chosen = request.cookies.get("lang") or request.headers.get("accept-language", "")
    return "zh" if chosen.lower().startswith("zh") else "en"


def said(refusal: Refusal, lang: str) -> str:
    template = translate(refusal.template, lang)
    return template.format(**refusal.fields) if refusal.fields else template


async def on_refusal(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refusal)
    content = body(error.status, said(error, language(request)), error.param, error.code)
    return JSONResponse(content, error.status, headers=error.headers)


async def on_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SojournError)
    return await on_refusal(request, refused(error))


async def on_validation(request: Request, error: Exception) -> JSONResponse:
    """What does not fit the schema: 400, and which field."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header", "cookie")]
    message = str(first["msg"])
    if place:
        message = f"{'.'.join(place)}: {message}"
    return JSONResponse(body(400, message, ".".join(place) or None, "invalid_value"), 400)


async def on_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    message = str(error.detail)
    if template := getattr(error, "template", None):
        fields = getattr(error, "fields", {})
        message = translate(template, language(request))
        message = message.format(**fields) if fields else message
    content = body(error.status_code, message, None, getattr(error, "code", None))
    return JSONResponse(content, error.status_code, headers=headers)


def statuses(*codes: int) -> dict[int | str, dict[str, Any]]:
    """For the document: the answers a route may give besides success."""
    told = {
        400: "The request is wrong", 401: "No key, or a wrong one", 403: "The key may not do this",
        404: "There is none",
        408: "The body came too slowly", 409: "Not in this state", 413: "The body is too large",
        415: "Another kind of body", 421: "Another host", 429: "Too much at once", 500: "A fault of the server",
        503: "Not now",
    }  # fmt: skip
    every = {400, 401, 403, 408, 413, 421, 429, 500, 503, *codes}
    return {code: {"model": Failure, "description": told[code]} for code in sorted(every)}
