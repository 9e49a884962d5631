"""`prepare`: a folder, zip or table of pictures or texts to a packed set with a report. The way data comes in.

Bad items never stop it; what stops it is one clear line, and then nothing is left behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sojourn import safefile
from sojourn.data import documents, pictures
from sojourn.data.assemble import busy, room
from sojourn.data.report import Report
from sojourn.data.scan import scan, shown
from sojourn.data.settings import PrepareConfig
from sojourn.errors import ConfigError, DataError
from sojourn.schema import Artifact, Done, Event, Log, reason

__all__ = ["PrepareConfig", "prepare"]


def prepare(
    source: Path | str, to: Path | str, config: PrepareConfig | None = None, **settings: Any
) -> Iterator[Event]:
    """Make the packed set `to` from `source`; settings are fields of PrepareConfig, over those of `config`.

    Yields Progress, Log and Artifact, at the end Done. The same input and settings give the same bytes. An existing
    set at `to` is replaced when the new one is whole. Closing the generator cancels and leaves nothing. Raises
    NotFound, DataError, ConfigError, OutOfRoom.
    """
    source, to = Path(source), Path(to).absolute()
    config = _resolve(config, settings)
    with safefile.writing(to):
        _check_place(source, to)
    title = shown(source.stem if source.is_file() else source.resolve().name)
    chosen = config.model_dump(mode="json", exclude={"workers"})
    report = Report(name=config.name or to.name, source=config.source_name or title, settings=chosen)
    found, archive = yield from busy(lambda: scan(source, (to,), config.caps), "looking")
    try:
        report.kind, report.found, report.other = found.kind, len(found.items) + len(found.dropped), found.other
        for name, reason, detail in sorted(found.dropped):
            report.drop(name, reason, detail)
        for name, note in sorted(found.notes):
            report.note(name, note)
        if not found.items:
            raise DataError(
                'no pictures or texts in "{path}"{reasons}; give a folder, zip or table that has some',
                path=source, reasons=f" ({report.reasons()})" if report.dropped else "",
            )  # fmt: skip
        with safefile.writing(to):
            to.parent.mkdir(parents=True, exist_ok=True)
            with room(to, 0):
                yield from (pictures if found.kind == "image" else documents).build(found, to, config, report)
    finally:
        if archive is not None:
            archive.close()
    if report.lost:
        yield Log.warn("left out {count}: {reasons}", count=report.lost, reasons=report.reasons())
    yield Artifact(name="report", path=str(to / "report.html"))
    yield Artifact(name="sheet", path=str(to / ("sheet.png" if found.kind == "image" else "sheet.txt")))
    unit = "pictures" if found.kind == "image" else "texts"
    shape = f" of {' x '.join(map(str, report.shape))}" if report.shape else ""
    yield Done(path=str(to), text=f"{report.kept} {unit}{shape} in {to.name}, {report.lost} left out")


def _resolve(config: PrepareConfig | None, settings: dict[str, Any]) -> PrepareConfig:
    try:
        return PrepareConfig.model_validate({**(config.model_dump() if config else {}), **settings})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(
            "setting {field} is wrong: {reason}", field=str(first["loc"][0]), reason=reason(first)
        ) from None


def _check_place(source: Path, to: Path) -> None:
    """Refuse places where a set would overwrite something that is no set, or the source."""
    if to.exists() and not (to / "set.json").is_file() and (not to.is_dir() or any(to.iterdir())):
        raise DataError('"{path}" exists and is not a data set; choose another place', path=to)
    if source.exists() and source.resolve().is_relative_to(to.resolve()):
        raise DataError('the set would replace its source "{path}"; choose another place', path=source)
