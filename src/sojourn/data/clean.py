"""One file's bytes to a plain picture: decoded within limits, upright, 8 bit, sRGB, fitted to a size.

Knows nothing about folders, captions, sets or torch: the decoding processes import it, and start fast.
"""

from __future__ import annotations

import hashlib
import io
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from sojourn.errors import DataError, NotFound, Reason

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO", "TGA", "QOI")
"""Pillow's names; MPO comes as JPEG. Formats that start other programs (EPS) or are documents (PDF) are left out."""

Fit = Literal["crop", "pad"]
Background = Literal["white", "black"]

_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\x00", b"MM\x00*", b"qoif", b"\x00\x00\x01\x00")
_STRIP_PIXELS = 1 << 20
_ORIENTATION = 0x0112  # EXIF tag
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Refused(Exception):
    """A file that is not taken; `reason` is one of a fixed few, `detail` says what was found."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason
        self.detail = detail

    @property
    def why(self) -> Reason:
        """Both, as a field of an error."""
        reason = Reason(self.reason)
        return Reason("{reason} ({detail})", reason=reason, detail=self.detail) if self.detail else reason


@dataclass(frozen=True)
class Limits:
    """What a single file may ask for."""

    pixels: int = 64_000_000
    """Width times height at most, by the header, before anything is decoded."""
    file_bytes: int = 256 << 20
    """Size of the file at most."""
    min_side: int = 1
    """Pixels of the shorter side at least."""


@dataclass
class Picture:
    """A decoded file."""

    image: Image.Image
    """Upright, mode L, RGB or RGBA; smaller than the file's when a wanted size was given."""
    size: tuple[int, int]
    """Width and height of the file's picture, upright."""
    notes: list[str] = field(default_factory=list)
    """What was done to it: "animated: first frame", "16 bit", …"""


def read(file: BinaryIO, limits: Limits, want: tuple[int, int] | None = None) -> Picture:
    """The picture in `file`. With want (width, height) it may come smaller, but covers twice that size.

    Raises Refused. The first frame or page counts. A call may take much time and memory: strangers' files belong
    into a pool (`data.pool`), which ends a process that goes over its limits.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _read(file, limits, want)
    except Refused:
        raise
    except MemoryError:
        raise Refused("too much memory") from None
    except Image.DecompressionBombError as error:
        raise Refused("too many pixels", str(error)) from None
    except UnidentifiedImageError:
        raise _unidentified(file) from None
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        cut = isinstance(error, EOFError) or any(w in text.lower() for w in ("truncated", "unexpected end", "eof"))
        raise (Refused("truncated", text[:200]) if cut else Refused("corrupt", text[:200])) from None


def _read(file: BinaryIO, limits: Limits, want: tuple[int, int] | None) -> Picture:
    size_bytes = file.seek(0, io.SEEK_END)
    file.seek(0)
    if size_bytes == 0:
        raise Refused("empty file")
    if size_bytes > limits.file_bytes:
        raise Refused("file too big", f"{size_bytes} bytes, at most {limits.file_bytes}")
    image: Image.Image = Image.open(file, formats=FORMATS)
    width, height = image.size
    if width * height > limits.pixels:
        raise Refused("too many pixels", f"{width}x{height}, at most {limits.pixels}")
    if min(width, height) < limits.min_side:
        raise Refused("too small", f"{width}x{height}, the shorter side must have {limits.min_side}")
    notes = []
    if getattr(image, "is_animated", False) and image.format != "MPO":
        notes.append("several pages: first page" if image.format == "TIFF" else "animated: first frame")
    turn = 1 if image.format == "TIFF" else _orientation(image)  # Pillow turns a TIFF itself
    if want and turn in (5, 6, 7, 8):
        want = (want[1], want[0])
    if want:
        scale = max(want[0] / width, want[1] / height) * 2
        if scale < 0.5:
            image.draft(None, (math.ceil(width * scale), math.ceil(height * scale)))
    icc = image.info.get("icc_profile")
    image.load()
    plain = _shrink(image, _converter(image, icc, notes), want)
    if icc and image.mode in ("RGB", "RGBA") and b"sRGB" not in icc.replace(b"\0", b""):
        plain = _to_srgb(plain, icc, notes)
    if turn != 1:
        plain = plain.transpose(_TURN[turn])
        notes.append("turned upright")
        if turn > 4:
            width, height = height, width
    return Picture(plain, (width, height), notes)


def _unidentified(file: BinaryIO) -> Refused:
    file.seek(0)
    head = file.read(512)
    if b"<svg" in head or head.lstrip()[:5] == b"<?xml":
        return Refused("format not supported", "SVG; draw it to PNG first")
    if head.startswith(_MAGIC) or head[4:8] in (b"ftyp", b"jP  "):
        return Refused("corrupt", "the header does not parse, or is of a kind that is not supported")
    return Refused("not a picture", f"starts with {head[:8].hex(' ')}")


def _orientation(image: Image.Image) -> int:
    try:
        turn = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return turn if turn in _TURN else 1


def _converter(image: Image.Image, icc: bytes | None, notes: list[str]) -> Callable[[Image.Image], Image.Image]:
    """How a piece of `image` becomes L, RGB or RGBA."""
    mode = image.mode
    if mode == "F" or mode.startswith("I"):
        notes.append("more than 8 bit: reduced")
        low, high = _range(image)
        return lambda part: _to_8_bit(part, low, high)
    if mode == "CMYK":
        notes.append("CMYK")
        transform = _transform(icc, "CMYK") if icc else None
        if transform is not None:
            return lambda part: ImageCms.applyTransform(part, transform) or part
    if mode in ("1", "L", "RGB") and "transparency" not in image.info:
        target = "L" if mode == "1" else mode
    else:
        target = "RGBA" if image.has_transparency_data else "RGB"
    return lambda part: part if part.mode == target else part.convert(target)


def _range(image: Image.Image) -> tuple[float, float]:
    """The values that become black and white: the format's own range, or the picture's where it has none."""
    low, high = (float(v) for v in image.getextrema())  # type: ignore[arg-type]
    if not (math.isfinite(low) and math.isfinite(high)):
        raise Refused("corrupt", "pixel values are not finite")
    if low >= 0:
        for top in (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0,):
            if high <= top:
                return 0.0, top
    return low, high


def _to_8_bit(part: Image.Image, low: float, high: float) -> Image.Image:
    values = np.asarray(part).astype(np.float32)
    if not np.isfinite(values).all():  # the extremes of a picture do not show these
        raise Refused("corrupt", "pixel values are not finite")
    values = (values - low) * (255.0 / max(high - low, 1e-12))
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def _shrink(
    image: Image.Image, convert: Callable[[Image.Image], Image.Image], want: tuple[int, int] | None
) -> Image.Image:
    """`convert`ed picture, reduced in strips when it is far bigger than wanted, so that no second whole copy exists."""
    width, height = image.size
    factor = int(min(width / want[0], height / want[1]) / 3) if want else 1
    if factor < 2 or width * height <= 2 * _STRIP_PIXELS:
        return convert(image)
    rows = max(1, _STRIP_PIXELS // (width * factor)) * factor
    out: Image.Image | None = None
    for top in range(0, height, rows):
        strip = convert(image.crop((0, top, width, min(top + rows, height))))
        small = _premultiplied(strip).reduce(factor)
        if out is None:
            out = Image.new(small.mode, (small.width, math.ceil(height / factor)))
        out.paste(small, (0, top // factor))
    assert out is not None
    return out.convert("RGBA") if out.mode == "RGBa" else out


def _premultiplied(image: Image.Image) -> Image.Image:
    return image.convert("RGBa") if image.mode == "RGBA" else image


def _to_srgb(image: Image.Image, icc: bytes, notes: list[str]) -> Image.Image:
    transform = _transform(icc, image.mode) if image.mode != "L" else None
    if transform is None:
        notes.append("colour profile ignored")
        return image
    notes.append("colour profile applied")
    return ImageCms.applyTransform(image, transform) or image


@lru_cache(maxsize=8)
def _transform(icc: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From the profile to sRGB, None when the profile is broken or of another colour space."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        out = mode if mode == "RGBA" else "RGB"
        return ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, out)
    except Exception:
        return None


def fit(image: Image.Image, width: int, height: int, how: Fit = "crop", fill: Background = "white") -> Image.Image:
    """`image` (L, RGB or RGBA) at exactly width x height: centre cut out, or whole with bars.

    Lanczos on premultiplied colours. Bars are transparent in RGBA, else of the colour `fill`.
    """
    mode = image.mode
    source = _premultiplied(image)
    ratio = (max if how == "crop" else min)(width / image.width, height / image.height)
    if how == "crop":
        across, down = width / ratio, height / ratio
        left, top = (image.width - across) / 2, (image.height - down) / 2
        box = (max(left, 0.0), max(top, 0.0), min(left + across, image.width), min(top + down, image.height))
        whole = source.resize((width, height), Image.Resampling.LANCZOS, box, reducing_gap=3.0)
    else:
        inner = (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
        small = source.resize(inner, Image.Resampling.LANCZOS, reducing_gap=3.0)
        blank = 0 if source.mode == "RGBa" or fill == "black" else 255
        whole = Image.new(source.mode, (width, height), (blank,) * len(source.getbands()))
        whole.paste(small, ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return whole.convert(mode) if whole.mode != mode else whole


def white_where_clear(mask: Image.Image) -> Image.Image:
    """A mask (RGBA) whose transparent places may change as one whose white places may."""
    return mask.getchannel("A").point(lambda alpha: 255 - alpha)


def pixels(image: Image.Image) -> np.ndarray:
    """uint8 (h, w, c) with the fewest channels that hold the picture: 1 grey, 3 colour, 4 straight alpha."""
    array = np.asarray(image)
    if array.ndim == 2:
        return array[:, :, None]
    if array.shape[2] == 4:
        if array[:, :, 3].min() < 255:
            return array
        array = array[:, :, :3]
    grey = (array[:, :, 0] == array[:, :, 1]).all() and (array[:, :, 1] == array[:, :, 2]).all()
    return array[:, :, :1] if grey else array


def to_channels(array: np.ndarray, channels: int, background: Background | None = "white") -> np.ndarray:
    """uint8 (h, w, 1|3|4) as uint8 (h, w, channels): alpha laid on the background, colour to luma (BT.601)."""
    have = array.shape[2]
    if have == channels:
        return array
    if have == 4:
        if background is None:
            raise DataError(
                "the picture has alpha, the set has {channels} channels and no background; choose white or black",
                channels=channels,
            )
        alpha = array[:, :, 3:].astype(np.float32) / 255
        flat = array[:, :, :3] * alpha + (255.0 if background == "white" else 0.0) * (1 - alpha)
        array = np.rint(flat).astype(np.uint8)
    if array.shape[2] == 3 and channels == 1:
        array = np.rint(array @ np.array([0.299, 0.587, 0.114], np.float32)).astype(np.uint8)[:, :, None]
    if array.shape[2] == 1 and channels > 1:
        array = np.repeat(array, 3, axis=2)
    if channels == 4:
        array = np.concatenate([array, np.full_like(array[:, :, :1], 255)], axis=2)
    return np.ascontiguousarray(array)


def fingerprint(array: np.ndarray) -> str:
    """sha256 (hex) over the shape and the pixels."""
    return hashlib.sha256(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes()).hexdigest()


@cache
def _cosines() -> np.ndarray:
    k, n = np.mgrid[0:8, 0:32]
    table: np.ndarray = np.cos(np.pi * k * (2 * n + 1) / 64)
    return table


def perceptual_hash(array: np.ndarray) -> int:
    """64 bits that stay nearly the same under scaling, recompression and small changes of tone.

    The 8x8 lowest DCT-II coefficients of the 32x32 luma, each bit "above the median of the AC ones". See-through
    pictures are laid on what they stand out from: white drawings on black.
    """
    image = Image.fromarray(array if array.shape[2] > 1 else array[:, :, 0])
    if array.shape[2] == 4:
        grey, alpha = np.asarray(image.convert("L")), array[:, :, 3]
        weight = max(int(alpha.sum(dtype=np.int64)), 1)
        ground = 0 if float((grey.astype(np.float32) * alpha).sum()) / weight > 127 else 255
        backed = Image.new("RGBA", image.size, (ground, ground, ground, 255))
        image = Image.alpha_composite(backed, image)
    grey32 = image.convert("L").resize((32, 32), Image.Resampling.BOX)
    low: np.ndarray = _cosines() @ np.asarray(grey32, np.float64) @ _cosines().T
    ac = low.ravel().copy()
    ac[0] = 0.0
    bits = np.rint(ac) > np.rint(np.sort(ac[1:])[31])
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def load_picture(source: Path | str | bytes, limits: Limits = Limits()) -> Image.Image:
    """One picture from a path or from bytes, upright, 8 bit, mode RGB or RGBA; DataError or NotFound in one line.

    It decodes in this process: for prompts of the machine's own user, and for uploads whose size is limited.
    """
    name = "the upload" if isinstance(source, bytes) else str(source)
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file:
            image = read(file, limits).image
    except Refused as refused:
        raise DataError('picture "{path}" cannot be used: {reason}', path=name, reason=refused.why) from None
    except FileNotFoundError:
        raise NotFound('no picture at "{path}"', path=name) from None
    except OSError as error:
        raise DataError('picture "{path}" cannot be read: {reason}', path=name, reason=error.strerror) from None
    return image if image.mode in ("RGB", "RGBA") else image.convert("RGB")
