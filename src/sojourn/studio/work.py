"""How each kind of job is done, and what is told of it meanwhile. All that it changes goes through `jobs`."""

from __future__ import annotations

import base64
import codecs
import math
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np

from sojourn import card, config, engine
from sojourn import package as packages
from sojourn import prompt as grammar
from sojourn.card import home
from sojourn.data.clean import load_picture
from sojourn.data.prepare import prepare
from sojourn.engine import Frame, Likelihood, Model
from sojourn.errors import NotFound, SojournError
from sojourn.picture import Picture, png
from sojourn.schema import Artifact, Done, Event, Log, Measured, Preview, Progress
from sojourn.studio import towers
from sojourn.studio.asks import EditAsk, EvaluateAsk, GenerateAsk, PrepareAsk, TrainAsk, WriteAsk
from sojourn.studio.blobs import Blobs
from sojourn.studio.gallery import Gallery
from sojourn.studio.jobs import Done as Ended
from sojourn.studio.jobs import Jobs
from sojourn.studio.ledger import Fenced, Job
from sojourn.studio.tables import PictureRow
from sojourn.wishes import Request, conditions

HOT = 3
"""Packages kept in memory."""
LOOKS = 32
"""Pictures it looks at in one go."""
PROGRESS_S = 0.5
"""Seconds between two progress events of a job at least."""
TEXT_S = 0.05
"""Seconds between two pieces of a text at least."""


class Work:
    """Does jobs in this process. `stops`: the jobs that are to stop now; `ending`: whether the process is to end."""

    def __init__(
        self, jobs: Jobs, blobs: Blobs, stops: Callable[[], set[int]] = set, ending: Callable[[], bool] = lambda: False
    ) -> None:
        self.jobs, self.blobs = jobs, blobs
        self.stops, self.ending = stops, ending
        self._models: OrderedDict[str, Model] = OrderedDict()

    def do(self, taken: Sequence[Job]) -> None:
        """Do what was claimed, to its end: afterwards each job is over, waits again, or is another worker's."""
        try:
            if taken[0].kind in ("generate", "edit"):
                self._draw(taken)
            elif taken[0].kind == "write":
                self._write(taken[0])
            else:
                self._run(taken[0])
        except Exception as error:  # whatever it was, the job says so
            if len(taken) > 1:  # the fault of some, or of doing them together
                well = [job for job in taken if not self._refused(job)]
                for part in [well] if 0 < len(well) < len(taken) else [[job] for job in well]:
                    self.do(part)
                return
            with suppress(Fenced):
                if self.ending():  # it was cut off: that says nothing about the job
                    self.jobs.give_back(taken[0])
                else:
                    self.jobs.fail(taken[0], error)

    def model(self, name: str) -> Model:
        """A package by name, as it is on disk now."""
        folder = card.find(name, paths=False)
        identity = card.read(folder, verify=False).identity
        held = self._models.pop(name, None)
        if held is None or held.card.identity != identity:
            held = engine.load(folder)
        self._models[name] = held
        while len(self._models) > HOT:
            self._models.popitem(last=False)
        return held

    def look(self) -> bool:
        """Have the tower look at some pictures of the gallery that it has not seen; whether there were any."""
        gallery, found = Gallery(self.jobs.store, self.blobs), towers.tower()
        rows = gallery.unseen(found.mark, LOOKS) if found else []
        if found is None or not rows:
            return False
        model, places = self.model(found.name), {}
        for row in rows:
            places[row.id] = np.zeros(1, np.float32)  # bytes that are gone are not looked for again
            with suppress(SojournError):
                places[row.id] = towers.place(model, self.blobs.get(row.sha256), row.words)
        gallery.place(found.mark, places)
        return True

    # Drawing

    def _draw(self, taken: Sequence[Job]) -> None:
        """One walk for all of them: rows differ in words and seeds."""
        parts: list[tuple[Job, Request]] = []
        model: Model | None = None
        for job in taken:
            try:
                ask = _ask(job)
                prompt = grammar.parse(ask.prompt, allow_empty=True)
                model = self.model(str(prompt.model))
                parts.append((job, self._request(model, ask)))
            except SojournError as error:
                self._held(job, lambda job=job, error=error: self.jobs.fail(job, error))  # type: ignore[misc]
        if model is None or not parts:
            return
        whole = parts[0][1]
        for _, other in parts[1:]:
            whole.prompts += other.prompts
            whole.seeds += other.seeds
        live = {job.id for job, _ in parts}
        frames = model.walk(whole)
        for frame in frames:
            for job, _ in parts:
                if job.id in live and job.id in self.stops():
                    live.discard(job.id)
                    self._held(job, lambda job=job: self.jobs.cancelled(job))  # type: ignore[misc]
            if self.ending():
                for job, _ in parts:
                    if job.id in live:
                        self._held(job, lambda job=job: self.jobs.give_back(job))  # type: ignore[misc]
                return
            if not live:
                return
            live -= self._show(frame, [job for job, _ in parts], live)
        results = model.results(whole, frame)
        first = 0
        done: list[Ended] = []
        for job, _ in parts:
            own = results.items[first : first + job.rows]
            first += job.rows
            if job.id in live:
                done.append((job, {}, [self._row(job, i, picture) for i, picture in enumerate(own)]))
        self.jobs.finish_all(done)

    def _request(self, model: Model, ask: GenerateAsk) -> Request:
        given: dict[str, Any] = {}
        if isinstance(ask, EditAsk):
            given = {"source": load_picture(self.blobs.get(ask.source)), "strength": ask.strength}
            if ask.mask is not None:
                given["mask"] = load_picture(self.blobs.get(ask.mask))
        request = model.request(ask.prompt, **given)
        request.options |= ask.options
        return request

    def _refused(self, job: Job) -> bool:
        """Whether a job is refused for what it asks, and told so: a word that the package does not know, say."""
        try:
            ask = _ask(job)
            model = self.model(str(grammar.parse(ask.prompt, allow_empty=True).model))
            conditions(model.package, self._request(model, ask))
        except SojournError as error:
            with suppress(Fenced):
                self.jobs.fail(job, error)
            return True
        return False

    def _show(self, frame: Frame, jobs: Sequence[Job], live: set[int]) -> set[int]:
        """Tell those who want to see the walk; the jobs that turned out to be another's."""
        lost: set[int] = set()
        first = 0
        for job in jobs:
            rows = slice(first, first + job.rows)
            first += job.rows
            count = int(job.request.get("previews", 0))
            steps = frame.steps
            if job.kind == "edit":  # a walk that starts from a picture is shorter
                steps = max(1, round(steps * float(job.request["strength"])))
            if job.id not in live or not _due(frame.step, steps, count):
                continue
            shown = [base64.b64encode(png(picture, None)).decode() for picture in frame.pictures[rows]]
            data = {"step": frame.step, "steps": steps, "pictures": shown}
            if not self._held(job, lambda job=job, data=data: self.jobs.report(job, "preview", data)):  # type: ignore[misc]
                lost.add(job.id)
        return lost

    def _row(self, job: Job, row: int, picture: Picture) -> PictureRow:
        prompt = grammar.parse(str(picture.recipe["prompt"]), allow_empty=True)
        return PictureRow(
            owner=job.owner, job=job.id, row=row, sha256=self.blobs.put(picture.png()), width=picture.pil.width,
            height=picture.pil.height, words=prompt.text, model=str(picture.recipe["name"]), style=prompt.style,
            seed=picture.seed, recipe=dict(picture.recipe), created=time.time(),
        )  # fmt: skip

    @staticmethod
    def _held(job: Job, write: Callable[[], object]) -> bool:
        """Write about a job; False when it has changed hands meanwhile."""
        try:
            write()
        except Fenced:
            return False
        return True

    # Writing

    def _write(self, job: Job) -> None:
        """Tell a text as it grows, but nothing that may yet turn out to be a stop; its end is in the result."""
        ask = WriteAsk.model_validate(job.request)
        given = ask.model_dump(exclude={"prompt", "model", "seed", "stop", "logprobs", "telling"}, exclude_none=True)
        model = self.model(ask.model)
        writing = model.writes(ask.prompt, seed=ask.seed, **given)
        text, told, at, end = "", 0, 0.0, "length"
        with suppress(Fenced):
            for now in writing:
                if job.id in self.stops():
                    self.jobs.cancelled(job)
                    return
                if self.ending():
                    self.jobs.give_back(job)
                    return
                text, sure, stopped = until_stop(now.text[now.opening :], ask.stop)
                end = "stop" if stopped or now.ended else "length"
                if stopped:
                    break
                if sure > told and time.monotonic() - at >= TEXT_S:
                    self.jobs.report(job, "text", {"at": told, "text": text[told:sure]})
                    told, at = sure, time.monotonic()
            result = {"text": text, "end": end, "read": now.read, "drawn": now.drawn}
            if ask.logprobs is not None:
                likely = model.likelihoods(ask.prompt, now, ask.logprobs)
                result["tokens"] = _told(likely, now.read, len(text), ask.telling == "all")
            self.jobs.finish(job, result)

    # All others

    def _run(self, job: Job) -> None:
        """Prepare, train or evaluate, event by event."""
        kinds = {"prepare": self.prepare, "train": self.train, "evaluate": self.evaluate}
        events = kinds[job.kind](job)
        told = 0.0
        result: dict[str, Any] = {}
        try:
            for event in events:
                if job.id in self.stops():
                    events.close()  # type: ignore[attr-defined]
                    self.jobs.cancelled(job)
                    return
                if self.ending():
                    events.close()  # type: ignore[attr-defined]
                    self.jobs.give_back(job)
                    return
                if isinstance(event, Done):
                    result |= {"path": event.path, "text": event.text}
                elif not isinstance(event, Progress) or time.monotonic() - told > PROGRESS_S:
                    if isinstance(event, Progress):
                        told = time.monotonic()
                    self.jobs.report(job, *self._told(event))
            self.jobs.finish(job, result)
        except Fenced:
            events.close()  # type: ignore[attr-defined]

    def _told(self, event: Event) -> tuple[str, dict[str, Any]]:
        """An event of a generator as one of a job; what it shows becomes bytes that outlive its folder."""
        data = event.model_dump(mode="json", exclude={"kind"})
        if isinstance(event, Measured):  # a number that is none has no place in JSON
            data["values"] = {name: value for name, value in event.values.items() if math.isfinite(value)}
        if isinstance(event, Preview | Artifact):
            path = Path(data.pop("path"))
            if path.is_file():
                data |= {"sha256": self.blobs.put(path.read_bytes()), "suffix": path.suffix}
        name = {"preview": "sheet"}.get(event.kind, event.kind)
        return name, data

    def prepare(self, job: Job) -> Iterator[Event]:
        ask = PrepareAsk.model_validate(job.request)
        if ask.path is None:
            source = self._named(str(ask.upload))
            try:
                yield from self._prepared(source, ask)
            finally:
                source.unlink(missing_ok=True)
            return
        yield from self._prepared(Path(ask.path), ask)

    @staticmethod
    def _prepared(source: Path, ask: PrepareAsk) -> Iterator[Event]:
        settings = ask.model_dump(include={"size", "channels", "fit", "licence"})
        return prepare(source, home() / "sets" / ask.to, None, name=ask.to, min_side=min(16, ask.size), **settings)

    def _named(self, sha256: str) -> Path:
        """An upload under a name that says what it is: the scanner goes by endings."""
        path = self.blobs.path(sha256)
        with path.open("rb") as file:
            ending = ".zip" if file.read(4) == b"PK\x03\x04" else ".jsonl"
        named = home() / "uploads" / f"{sha256[:16]}{ending}"
        named.parent.mkdir(parents=True, exist_ok=True)
        if not named.exists():
            os.link(path, named)
        return named

    def train(self, job: Job) -> Generator[Event]:
        ask = TrainAsk.model_validate(job.request)
        recipe = config.load_recipe(ask.recipe, ask.overrides)
        from sojourn.train.build import run_recipe

        folder = home() / "runs" / f"job-{ask.goes_on or job.id}"
        if ask.goes_on and not folder.is_dir():
            raise NotFound("the run of job {id} is not on this machine; start a new training", id=ask.goes_on)
        start = card.find(ask.start, paths=False) if ask.start else None
        last: Event | None = None
        with closing(run_recipe(recipe, folder, start)) as events:
            for event in events:
                last = event
                if not isinstance(event, Done):
                    yield event
        made = Path(getattr(last, "path", ""))
        target = home() / "models" / ask.to
        packages.keep(made, target)
        yield Done(path=str(target), text=ask.to)

    def evaluate(self, job: Job) -> Iterator[Event]:
        from sojourn.data.dataset import PackedSet
        from sojourn.measure import report
        from sojourn.measure.bench import Bench, Findings
        from sojourn.measure.evaluate import evaluate
        from sojourn.measure.features import load_features
        from sojourn.measure.judged import appoint
        from sojourn.measure.texts import evaluate_texts
        from sojourn.train.build import find_set

        ask = EvaluateAsk.model_validate(job.request)
        data, models = PackedSet(find_set(ask.data)), [self.model(name) for name in ask.packages]
        if data.info.kind == "text":
            measuring = evaluate_texts(models, data, ask.count)
        else:
            bench = Bench(data, load_features("efflite0"), None, ask.count, 0)
            if (left_out := appoint(bench, ask.judge)) is not None:
                yield Log.warn("the default judge is left out: {why}", why=left_out)
            bench.options = {} if ask.steps is None else {"steps": ask.steps}
            measuring = evaluate(models, bench)
        found: list[Findings] = []
        for event in measuring:
            if isinstance(event, Findings):
                found.append(event)
            else:
                yield event
        folder = home() / "reports" / f"job-{job.id}"
        page = report.write(found, folder, f"{', '.join(ask.packages)} / {ask.data}")
        yield Artifact(name="report", path=str(page))
        yield Artifact(name="scores", path=str(page.with_suffix(".json")))
        yield Done(path=str(page), text=ask.data)


def _ask(job: Job) -> GenerateAsk:
    kind = EditAsk if job.kind == "edit" else GenerateAsk
    return kind.model_validate(job.request)


def until_stop(text: str, stops: Sequence[str]) -> tuple[str, int, bool]:
    """A text up to its first stop; how many characters of it cannot be part of one to come; whether there was one."""
    places = [at for stop in stops if (at := text.find(stop)) >= 0]
    if places:
        return text[: min(places)], min(places), True
    sure = len(text)
    for stop in stops:
        for size in range(1, len(stop)):
            if text.endswith(stop[:size]):
                sure = min(sure, len(text) - size)
    return text, sure, False


def _told(likely: Sequence[Likelihood], read: int, size: int, whole: bool) -> list[dict[str, Any]]:
    """The tokens that the first `size` characters after a prompt of `read` tokens begin in; whole: its own before."""
    out, count, reader = [], 0, codecs.getincrementaldecoder("utf-8")("replace")
    for place, one in enumerate(likely):
        if place < read and not whole:
            continue
        if place >= read:
            if count >= size or not one.token:
                break
            count += len(reader.decode(one.token))
        others = [{"bytes": list(token), "logprob": logprob} for token, logprob in one.others]
        out.append({"bytes": list(one.token), "logprob": one.logprob, "others": others})
    return out


def _due(step: int, steps: int, count: int) -> bool:
    """Whether one of `count` previews, evenly spread over the steps before the last, is due at this one."""
    if not count or step >= steps:
        return False
    return step * (count + 1) // steps > (step - 1) * (count + 1) // steps
