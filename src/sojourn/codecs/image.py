"""Pictures to tensors and back: grey, colour, or colour with alpha. Knows nothing about files, nets or training.

Stored form: uint8 (h, w, c) with c of 1, 3 or 4, alpha straight. Model space: float32 in [-1, 1], RGBA premultiplied.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field, ValidationError
from torch import Tensor

from sojourn.data import clean
from sojourn.errors import ConfigError, DataError
from sojourn.registry import register
from sojourn.schema import Strict, reason
from sojourn.types import DataSpec

if TYPE_CHECKING:
    from sojourn.data.dataset import PackedSet

_LUMA = (0.299, 0.587, 0.114)  # BT.601


class ImageConfig(Strict):
    """How pictures are stored and shown to the nets."""

    height: int = Field(64, ge=1, le=4096)
    """Pixels, 1..4096."""
    width: int = Field(64, ge=1, le=4096)
    """Pixels, 1..4096."""
    channels: Literal[1, 3, 4] = 3
    """1 grey, 3 colour, 4 colour with alpha (premultiplied in the nets)."""
    background: Literal["white", "black"] | None = "white"
    """What transparent pictures are laid on when channels is 1 or 3. None = such pictures are refused."""
    fit: clean.Fit = "crop"
    """How a picture of another shape is fitted: "crop" cuts out the centre, "pad" adds bars."""


@register("codec", "image", about="Pictures as they are: grey, colour, or colour with alpha")
class ImageCodec:
    """Pixels as model space."""

    id = "image"

    def __init__(self, config: Mapping[str, Any], parts: Mapping[str, Any] | None = None) -> None:
        try:
            self._config = ImageConfig.model_validate(dict(config))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ConfigError(
                'codec "image": {field} is wrong: {reason}', field=where or "config", reason=reason(first)
            ) from None
        own = self._config
        self.spec = DataSpec("image", (own.channels, own.height, own.width))

    @classmethod
    def fit_to(cls, config: Mapping[str, Any], parts: Mapping[str, Any], data: PackedSet) -> ImageCodec:
        """A codec of the set's size; its channels too, unless `config` says otherwise."""
        height, width, channels = data.info.shape
        return cls({"height": height, "width": width, "channels": channels, **config}, parts)

    @property
    def config(self) -> dict[str, Any]:
        return self._config.model_dump(mode="json")

    def pack(self, media: Image.Image) -> np.ndarray:
        """An upright picture of any size and mode as uint8 (h, w, channels)."""
        own = self._config
        if media.mode not in ("L", "RGB", "RGBA"):
            media = media.convert("RGBA" if media.has_transparency_data else "RGB")
        fitted = clean.fit(media, own.width, own.height, own.fit, own.background or "black")
        array = np.array(fitted)  # a copy, for torch wants to write
        return clean.to_channels(array[:, :, None] if array.ndim == 2 else array, own.channels, own.background)

    def encode(self, raw: Tensor) -> Tensor:
        """Stored uint8 (b, h, w, 1|3|4) to (b, c, h, w) in [-1, 1], channels_last in memory."""
        own = self._config
        if raw.dim() != 4 or tuple(raw.shape[1:3]) != (own.height, own.width) or raw.shape[3] not in (1, 3, 4):
            raise DataError(
                "the codec wants stored pictures (b, {height}, {width}, 1|3|4), found {found}; prepare the set again",
                height=own.height, width=own.width, found=tuple(raw.shape),
            )  # fmt: skip
        x = raw.to(torch.float32)
        have = raw.shape[3]
        if have == 4 and own.channels == 4:
            alpha = x[..., 3:].mul(1 / 255)
            x[..., :3].mul_(alpha)
            return x.div_(127.5).sub_(1).permute(0, 3, 1, 2)
        if have == 4:
            return self._flat(x).permute(0, 3, 1, 2)
        x = x.div_(127.5).sub_(1)
        if have == 3 and own.channels == 1:
            x = _luma(x)
        elif have == 1 and own.channels > 1:
            x = x.expand(-1, -1, -1, 3)
        if own.channels == 4:
            x = torch.cat([x, torch.ones_like(x[..., :1])], dim=3)
        return x.contiguous().permute(0, 3, 1, 2)

    def _flat(self, x: Tensor) -> Tensor:
        """Straight RGBA in 0..255 (b, h, w, 4) on the background: (b, h, w, 1|3) in [-1, 1]."""
        if self._config.background is None:
            raise DataError(
                "the stored pictures have alpha, the codec has {channels} channels and no background; set one",
                channels=self._config.channels,
            )
        base = 1.0 if self._config.background == "white" else -1.0
        colour, alpha = x[..., :3], x[..., 3:]
        if self._config.channels == 1:
            colour = _luma(colour)
        return (colour - (base + 1) * 127.5).mul_(alpha).mul_(1 / (127.5 * 255)).add_(base)

    def decode(self, x: Tensor) -> Tensor:
        """Model space is the raw form."""
        return x

    def unpack(self, raw: Tensor) -> list[Image.Image]:
        """(b, c, h, w) in [-1, 1] to pictures of mode L, RGB or RGBA (straight alpha); values beyond are clipped."""
        levels = raw.detach().float().clamp(-1, 1).add(1).div(2).permute(0, 2, 3, 1).cpu()
        if levels.shape[3] == 4:
            alpha = levels[..., 3:]
            colour = (levels[..., :3] / alpha.clamp_min(1 / 510)).clamp_(0, 1)
            levels = torch.cat([torch.where(alpha < 1 / 510, 0, colour), alpha], dim=3)
        arrays = levels.mul(255).round().to(torch.uint8).numpy()
        return [Image.fromarray(np.ascontiguousarray(a[..., 0] if a.shape[2] == 1 else a)) for a in arrays]


def _luma(x: Tensor) -> Tensor:
    """(b, h, w, 3) to (b, h, w, 1)."""
    red, green, blue = _LUMA
    return (x[..., 0] * red).add_(x[..., 1], alpha=green).add_(x[..., 2], alpha=blue)[..., None]
