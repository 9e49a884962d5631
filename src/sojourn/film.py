"""Walks between pictures, as films; and pictures that mix the styles of two. Draws through the engine."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image

from sojourn import safefile
from sojourn.data.sheet import grid
from sojourn.engine import Model
from sojourn.errors import InvalidInput, Unsupported
from sojourn.schema import Prompt
from sojourn.types import Between, Noise, Spliced
from sojourn.wishes import Request

ROWS = 16
"""Frames of one walk."""
FORMATS = (".webp", ".gif", ".mp4")
FRAMES_MAX = 10_000


def between(
    model: Model,
    prompt: str | Prompt,
    seeds: Sequence[int],
    frames: int,
    loop: bool = False,
    options: Mapping[str, Any] | None = None,
    **more: Any,
) -> Iterator[Image.Image]:
    """A film from the picture of each seed to that of the next, `frames` pictures a leg, and back to the first with
    `loop`. The way is an arc: every place on it is as likely as any other (Shoemake 1985; White 2016, sec. 3.1).

    All in the style of the first. more: as for `Model.request`. Raises InvalidInput for fewer than two seeds.
    """
    if len(set(seeds)) < 2:
        raise InvalidInput("a walk needs two seeds at least, found {found}; give more", found=len(set(seeds)))
    stops = [*seeds, seeds[0]] if loop else list(seeds)
    legs = [(a, b, i / frames) for a, b in pairwise(stops) for i in range(frames)]
    if not loop:
        legs.append((stops[-1], stops[-1], 0.0))
    if len(legs) > FRAMES_MAX:
        raise InvalidInput("a film has {most} pictures at most, found {found}", most=FRAMES_MAX, found=len(legs))
    asked = model.request(prompt, n=1, seed=seeds[0], **more)
    for at in range(0, len(legs), ROWS):
        first, second, share = zip(*legs[at : at + ROWS], strict=True)
        yield from _drawn(model, asked, Between(first, second, share), options)


def along(
    model: Model,
    prompt: str | Prompt,
    seed: int,
    option: str,
    low: float,
    high: float,
    frames: int,
    options: Mapping[str, Any] | None = None,
    **more: Any,
) -> Iterator[Image.Image]:
    """A film of one picture while an option of its family goes from low to high."""
    fields = model.family.Options.model_fields
    if option not in fields:
        raise Unsupported('"{name}" has no option "{option}"; it has {known}',
                          name=model.card.name, option=option, known=", ".join(fields))  # fmt: skip
    whole = fields[option].annotation in (int, int | None)
    asked = model.request(prompt, n=1, seed=seed, **more)
    for i in range(frames):
        value = low + (high - low) * i / max(1, frames - 1)
        given = {**(options or {}), option: round(value) if whole else value}
        yield from _drawn(model, asked, Noise([seed]), given)


def mixed(
    model: Model,
    prompt: str | Prompt,
    rows: Sequence[int],
    columns: Sequence[int],
    layer: int,
    options: Mapping[str, Any] | None = None,
    **more: Any,
) -> Image.Image:
    """A table of pictures: coarse styles of the row's seed, fine ones (from `layer` on) of the column's, beside the
    pictures they are of. Source: Karras et al. 2019, fig. 3."""
    if "mix" not in model.family.Options.model_fields:
        raise Unsupported('"{name}" has no styles to mix; use a stylegan2 package', name=model.card.name)
    asked = model.request(prompt, n=1, seed=rows[0], **more)

    def one(noise: Noise, **mixing: int) -> Image.Image:
        return _drawn(model, asked, noise, {**(options or {}), **mixing})[0]

    top = [one(Noise([seed])) for seed in columns]
    table = [Image.new(top[0].mode, top[0].size, "white"), *top]
    for seed in rows:
        table += [one(Noise([seed])), *(one(Spliced([seed], [other]), mix=layer) for other in columns)]
    return grid(table, 1 + len(columns))


def _drawn(model: Model, asked: Request, noise: Noise, options: Mapping[str, Any] | None) -> list[Image.Image]:
    """One picture for each row of `noise`, all of them as the one row of `asked` wants it."""
    request = replace(
        asked,
        prompts=asked.prompts * len(noise),
        seeds=list(noise.seeds),
        options={**asked.options, **(options or {})},
        noise=noise,
    )
    for frame in model.walk(request):  # noqa: B007 - the last is the result
        pass
    return frame.pictures


def check(path: Path) -> None:
    """Raise, before anything is drawn, what `write` would: InvalidInput for another ending or a folder that cannot be
    written to, Unsupported without ffmpeg."""
    if path.suffix.lower() not in FORMATS:
        raise InvalidInput('"{path}" is no film; it can end in {known}', path=path, known=", ".join(FORMATS))
    if path.suffix.lower() == ".mp4" and shutil.which("ffmpeg") is None:
        raise Unsupported("an .mp4 needs ffmpeg (Debian: apt-get install ffmpeg); install it, or write a .webp")
    if path.is_dir():
        raise InvalidInput('cannot write to "{path}": {reason}', path=path, reason=os.strerror(errno.EISDIR))
    safefile.writable(path.parent)


def write(pictures: Iterable[Image.Image], path: Path, fps: float, scale: int = 1) -> None:
    """Write a film as .webp, .gif or .mp4 (by ffmpeg), each picture `scale` times as large.

    The file appears whole or not at all. Raises what `check` raises.
    """
    check(path)
    frames = [_shown(picture, scale) for picture in pictures]
    part = path.with_name(f".{path.name}.part{path.suffix}")
    try:
        with safefile.writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix.lower() == ".mp4":
                _encode(frames, part, fps)
            else:
                kind = "WEBP" if path.suffix.lower() == ".webp" else "GIF"
                more = {"quality": 90} if kind == "WEBP" else {}
                first, *rest = frames
                first.save(part, kind, save_all=True, append_images=rest, duration=round(1000 / fps), loop=0, **more)
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _shown(picture: Image.Image, scale: int) -> Image.Image:
    """On white, larger."""
    if picture.mode == "RGBA":
        ground = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(ground, picture)
    picture = picture.convert("RGB")
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.LANCZOS)


def _encode(frames: Sequence[Image.Image], path: Path, fps: float) -> None:
    width, height = frames[0].size
    command = [
        "ffmpeg", "-loglevel", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}",
        "-r", str(fps), "-i", "-", "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-pix_fmt", "yuv420p", str(path),
    ]  # fmt: skip
    done = subprocess.run(command, input=b"".join(frame.tobytes() for frame in frames), capture_output=True)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["?"]
        raise Unsupported("ffmpeg could not write the film: {reason}", reason=safefile.printable(lines[-1]))
