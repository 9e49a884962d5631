"""How likely the tokens of a text were, as the OpenAI-compatible API tells it. Reads the results of jobs that write."""

from __future__ import annotations

import codecs
from contextlib import suppress
from typing import Any

from pydantic import BaseModel

from sojourn.studio.ledger import Job


class TextLogprobs(BaseModel):
    """How likely each token was, in nats; where it begins, in characters from the start of the prompt."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class Likely(BaseModel):
    """A token, how likely it was in nats, and its bytes: it may be a part of a character."""

    token: str
    logprob: float
    bytes: list[int]


class Drawn(Likely):
    """A token that was drawn, and the likeliest there."""

    top_logprobs: list[Likely]


class ChatLogprobs(BaseModel):
    content: list[Drawn]
    refusal: None = None


def of_completion(job: Job, echo: bool) -> TextLogprobs | None:
    """As completions tell them; None where nobody asked. echo: those of the prompt are among them."""
    told = (job.result or {}).get("tokens")
    if told is None:
        return None
    reader, starts = codecs.getincrementaldecoder("utf-8")("replace"), []
    at = 0 if echo else len(job.request["prompt"])
    for one in told:
        starts.append(at)
        at += len(reader.decode(bytes(one["bytes"])))
    tops = [{_letters(other): other["logprob"] for other in reversed(one["others"])} for one in told]
    return TextLogprobs(
        tokens=[_letters(one) for one in told], token_logprobs=[one["logprob"] for one in told],
        top_logprobs=tops if any(tops) else None, text_offset=starts,
    )  # fmt: skip


def of_chat(job: Job) -> ChatLogprobs | None:
    """As chats tell them; None where nobody asked."""
    told = (job.result or {}).get("tokens")
    if told is None:
        return None
    return ChatLogprobs(
        content=[Drawn(**_likely(one), top_logprobs=[_likely(o) for o in one["others"]]) for one in told]
    )


def _likely(one: dict[str, Any]) -> dict[str, Any]:
    return {"token": _letters(one), "logprob": one["logprob"], "bytes": one["bytes"]}


def _letters(one: dict[str, Any]) -> str:
    """A token as text: its bytes as they are written in Python where they are a part of a character."""
    data = bytes(one["bytes"])
    with suppress(UnicodeDecodeError):
        return data.decode()
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
