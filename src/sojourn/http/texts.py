"""The OpenAI-compatible API: texts. Chats and completions by packages that write; there is no speech yet."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from sojourn import card
from sojourn.errors import NotFound, SojournError, Unsupported
from sojourn.http.answers import Refusal, language, refused, statuses
from sojourn.http.logprobs import ChatLogprobs, TextLogprobs, of_chat, of_completion
from sojourn.http.site import Site, site
from sojourn.http.waiting import STREAMED, Stream, begun, failure, fault, let_go, pinging, sse, waited
from sojourn.studio.asks import writes
from sojourn.studio.ledger import Job

router = APIRouter(prefix="/v1", tags=["OpenAI-compatible"])
LEAST_P = 1e-6
"""What a top_p of 0 stands for: the likeliest token."""
TEXT_MAX = 20_000
PASSED = {"max_tokens", "temperature", "top_k", "repetition", "presence_penalty", "frequency_penalty", "stop"}


def _several(value: Any) -> Any:
    """One text, or none, as a list of texts."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else value


def _prompts(value: Any) -> Any:
    if isinstance(value, list) and any(isinstance(item, int | list) for item in value):
        raise ValueError("send text: token numbers are those of another vocabulary")
    return _several(value) or [""]


def _content(value: Any) -> Any:
    """The text of a message: as it is, or in parts."""
    if isinstance(value, list):
        for part in value:
            if not isinstance(part, dict) or part.get("type") not in ("text", "refusal"):
                raise ValueError("send text: packages that write cannot look at pictures")
        return "".join(str(part.get("text", "")) for part in value)
    return value or ""


Text = Annotated[str, Field(max_length=TEXT_MAX)]
Texts = Annotated[list[Text], BeforeValidator(_prompts, json_schema_input_type=str | list[str] | None)]
Stops = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=200)]],
    BeforeValidator(_several, json_schema_input_type=str | list[str] | None),
]


class Options(BaseModel):
    """What a stream may be asked to tell."""

    model_config = ConfigDict(extra="ignore", use_attribute_docstrings=True)

    include_usage: bool | None = False
    """A last chunk with the counts of tokens."""


class TextAsk(BaseModel):
    """What chats and completions have in common; unknown fields are passed over."""

    model_config = ConfigDict(extra="ignore", use_attribute_docstrings=True)

    model: str = Field(max_length=100)
    """A package that writes text."""
    max_tokens: int | None = Field(None, ge=1, le=100_000)
    """New tokens at most."""
    temperature: float | None = Field(None, ge=0, le=2)
    """0 = always the likeliest token. None = the package's own."""
    top_p: float | None = Field(None, ge=0, le=1)
    """Choose among the likeliest tokens that hold this share."""
    top_k: int | None = Field(None, ge=0, le=1_000_000)
    """Choose among so many likeliest tokens."""
    repetition: float | None = Field(None, ge=1, le=10)
    """How much less likely a token becomes once it occurred."""
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    """Taken off the logit of a token once it was drawn."""
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    """Taken off the logit of a token for each time it was drawn."""
    n: int | None = Field(1, ge=1, le=10)
    """Texts of a prompt; text i has seed + i."""
    stop: Stops = Field(default_factory=list, max_length=4)
    """Texts before which it ends."""
    seed: int | None = Field(None, ge=0, le=2**53 - 11)
    stream: bool | None = False
    stream_options: Options | None = None


class CompletionAsk(TextAsk):
    """A text to go on from."""

    prompt: Texts = Field(default_factory=lambda: [""], max_length=16)
    """One text or several."""
    echo: bool | None = False
    """The prompt before what follows it."""
    best_of: int | None = Field(None, ge=1, le=20)
    """Texts that are drawn for the n that are told: of as many for each, the likeliest per token. At least n."""
    suffix: str | None = Field(None, max_length=0)
    """What should follow the text: no package can."""
    logprobs: int | None = Field(None, ge=0, le=5)
    """Tell how likely each token was, and so many of the likeliest beside it."""


class Message(BaseModel):
    """What one side said."""

    model_config = ConfigDict(extra="ignore", use_attribute_docstrings=True)

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[Text, BeforeValidator(_content, json_schema_input_type=str | list[dict[str, Any]] | None)] = ""


class ChatAsk(TextAsk):
    """A talk to go on with. Packages learn to go on with a text: they read the messages one under the other."""

    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_completion_tokens: int | None = Field(None, ge=1, le=100_000)
    """New tokens at most; goes before max_tokens."""
    logprobs: bool | None = False
    """Tell how likely each token was."""
    top_logprobs: int | None = Field(None, ge=0, le=20)
    """So many of the likeliest tokens beside each; wants logprobs."""


class SpeechAsk(BaseModel):
    """Words to be spoken."""

    model_config = ConfigDict(extra="ignore")

    model: str = Field(max_length=100)
    input: str = Field(max_length=4096)


class Counts(BaseModel):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


End = Literal["stop", "length"]


class TextChoice(BaseModel):
    text: str
    index: int
    logprobs: TextLogprobs | None = None
    finish_reason: End


class CompletionOut(BaseModel):
    """Texts that follow."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Counts


class Answer(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    index: int
    message: Answer
    logprobs: ChatLogprobs | None = None
    finish_reason: End


class ChatOut(BaseModel):
    """Answers."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Counts


@router.post("/completions", responses=STREAMED | statuses(404, 415), response_model=CompletionOut)
async def complete(ask: CompletionAsk, request: Request) -> Any:
    """Text that goes on from a prompt; with `stream` in chunks of whole characters."""
    if ask.best_of is not None and ask.best_of < (ask.n or 1):
        raise Refusal(400, "best_of is {found}, less than n, which is {n}", param="best_of", found=ask.best_of, n=ask.n)
    if ask.stream and (ask.best_of or 1) > (ask.n or 1):
        raise Refusal(400, "what is best is known at the end: no stream with best_of", param="best_of")
    jobs = await _asked(request, ask, ask.prompt, "prompt")
    openings = [text if ask.echo else "" for text in ask.prompt for _ in range(ask.n or 1)]
    if ask.stream:
        return Stream(site(request), jobs, _completion_chunks(site(request), jobs, ask, openings, language(request)))
    ended = await _ended(request, jobs, "prompt")
    choices = [
        TextChoice(
            text=openings[i] + job.result["text"], index=i, logprobs=of_completion(job, bool(ask.echo)),
            finish_reason=job.result["end"],
        )
        for i, job in enumerate(ended)
        if job.result is not None
    ]  # fmt: skip
    return CompletionOut(**_head("cmpl", jobs, ask), choices=choices, usage=_counts(ended, ask.n or 1))


@router.post("/chat/completions", responses=STREAMED | statuses(404, 415), response_model=ChatOut)
async def chat(ask: ChatAsk, request: Request) -> Any:
    """What follows a talk; with `stream` in chunks of whole characters."""
    ask.max_tokens = ask.max_completion_tokens or ask.max_tokens
    if ask.top_logprobs and not ask.logprobs:
        raise Refusal(400, "top_logprobs wants logprobs", param="top_logprobs")
    prompt = "\n".join(message.content for message in ask.messages if message.content)
    jobs = await _asked(request, ask, [prompt], "messages")
    if ask.stream:
        return Stream(site(request), jobs, _chat_chunks(site(request), jobs, ask, language(request)))
    ended = await _ended(request, jobs, "messages")
    choices = [
        ChatChoice(
            index=i, message=Answer(content=job.result["text"]), logprobs=of_chat(job),
            finish_reason=job.result["end"],
        )
        for i, job in enumerate(ended)
        if job.result is not None
    ]  # fmt: skip
    return ChatOut(**_head("chatcmpl", jobs, ask), choices=choices, usage=_counts(ended, ask.n or 1))


@router.post("/audio/speech", responses=statuses(404, 415), response_model=None)
def speak(ask: SpeechAsk) -> None:
    """No package speaks yet."""
    raise _lacking(ask.model, Unsupported('"{name}" does not speak; no package does yet', name=ask.model))


def _lacking(name: str, otherwise: SojournError) -> Refusal:
    """There is no such package, or it cannot do that: to a client both are a model that is not there."""
    error = otherwise
    try:
        card.find(name, paths=False)
    except NotFound as missing:
        error = missing
    told = refused(error, "model", "model_not_found")
    told.status = 404
    return told


async def _asked(request: Request, ask: CompletionAsk | ChatAsk, prompts: Sequence[str], param: str) -> list[Job]:
    """A job for each text that is wanted: all of them, or none."""
    found = await run_in_threadpool(_package, ask.model)
    more = ask.model_dump(include=PASSED, exclude_none=True)
    if ask.top_p is not None:
        more["top_p"] = max(ask.top_p, LEAST_P)
    if isinstance(ask, CompletionAsk) and ask.best_of is not None:
        more["best_of"] = ask.best_of // (ask.n or 1)
    if ask.logprobs is not None and ask.logprobs is not False:
        more["logprobs"] = (ask.top_logprobs or 0) if isinstance(ask, ChatAsk) else ask.logprobs
        more["telling"] = "all" if isinstance(ask, CompletionAsk) and ask.echo else "drawn"
    jobs: list[Job] = []
    try:
        for i, prompt in enumerate(text for text in prompts for _ in range(ask.n or 1)):
            seed = None if ask.seed is None else ask.seed + i % (ask.n or 1)
            jobs.append(await begun(request, "write", {**more, "model": found, "prompt": prompt, "seed": seed}))
    except Refusal as refusal:
        await run_in_threadpool(let_go, site(request), jobs)
        if refusal.param == "prompt":
            refusal.param = param
        raise
    return jobs


def _package(name: str) -> str:
    """The name of a package that writes. Raises Refusal (404)."""
    try:
        found = card.read(card.find(name, paths=False), verify=False)
    except NotFound as error:
        raise refused(error, "model", "model_not_found") from None
    if not writes(found):
        can = ", ".join(found.can)
        raise _lacking(name, Unsupported('"{name}" does not write text; it can {can}', name=name, can=can))
    return name


async def _ended(request: Request, jobs: Sequence[Job], param: str) -> list[Job]:
    """The jobs when all are done. Raises Refusal where one was not."""
    ended = await waited(request, site(request), jobs)
    for job in ended:
        if job.state != "done":
            raise failure(job, param)
    return ended


def _head(prefix: str, jobs: Sequence[Job], ask: TextAsk) -> dict[str, Any]:
    return {"id": f"{prefix}-{jobs[0].id}", "created": int(jobs[0].created), "model": ask.model}


def _counts(ended: Sequence[Job], each: int) -> Counts:
    """each: texts of a prompt, which is counted once."""
    results = [job.result or {} for job in ended]
    read, drawn = sum(result["read"] for result in results[::each]), sum(result["drawn"] for result in results)
    return Counts(prompt_tokens=read, completion_tokens=drawn, total_tokens=read + drawn)


# Streams


async def _completion_chunks(
    here: Site, jobs: Sequence[Job], ask: CompletionAsk, openings: Sequence[str], lang: str
) -> AsyncIterator[bytes]:
    head = {**_head("cmpl", jobs, ask), "object": "text_completion"}

    def chunk(index: int, text: str, end: str | None, ended: Job | None = None) -> dict[str, Any]:
        told = of_completion(ended, bool(ask.echo)) if ended else None
        likely = told and told.model_dump()
        return {**head, "choices": [{"text": text, "index": index, "logprobs": likely, "finish_reason": end}]}

    async for data in _chunks(here, jobs, ask, head, chunk, openings, "prompt", lang):
        yield data


async def _chat_chunks(here: Site, jobs: Sequence[Job], ask: ChatAsk, lang: str) -> AsyncIterator[bytes]:
    head = {**_head("chatcmpl", jobs, ask), "object": "chat.completion.chunk"}
    begun: set[int] = set()

    def chunk(index: int, text: str, end: str | None, ended: Job | None = None) -> dict[str, Any]:
        told = of_chat(ended) if ended else None
        likely = told and told.model_dump()
        delta: dict[str, str] = {"content": text} if end is None else {}
        if index not in begun:
            begun.add(index)
            delta = {"role": "assistant", "content": text}
        return {**head, "choices": [{"index": index, "delta": delta, "logprobs": likely, "finish_reason": end}]}

    async for data in _chunks(here, jobs, ask, head, chunk, [""] * len(jobs), "messages", lang):
        yield data


async def _chunks(
    here: Site, jobs: Sequence[Job], ask: TextAsk, head: dict[str, Any], chunk: Any, openings: Sequence[str],
    param: str, lang: str,
) -> AsyncIterator[bytes]:  # fmt: skip
    """One text after the other as it grows: its opening, pieces, how it ended; at last the counts."""
    counted = ask.stream_options is not None and ask.stream_options.include_usage
    more = {"usage": None} if counted else {}
    done: list[Job] = []
    try:
        for index, job in enumerate(jobs):
            yield sse({**chunk(index, openings[index], None), **more})
            sent = 0
            async for happened in pinging(here, job):
                if isinstance(happened, bytes):
                    yield happened
                elif happened.kind == "text":  # a job that was begun again tells the same again
                    piece = happened.data["text"][max(sent - happened.data["at"], 0) :]
                    if piece:
                        sent += len(piece)
                        yield sse({**chunk(index, piece, None), **more})
            ended = await run_in_threadpool(here.studio.jobs.get, job.id)
            if ended.state != "done" or ended.result is None:
                yield fault(failure(ended, param), lang)
                return
            rest = ended.result["text"][sent:]
            if rest or "tokens" in ended.result:  # how likely they were is told of all tokens at once
                yield sse({**chunk(index, rest, None, ended), **more})
            yield sse({**chunk(index, "", ended.result["end"]), **more})
            done.append(ended)
        if counted:
            yield sse({**head, "choices": [], "usage": _counts(done, ask.n or 1).model_dump()})
        yield b"data: [DONE]\n\n"
    except SojournError as error:
        yield fault(refused(error), lang)
