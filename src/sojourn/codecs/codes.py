"""A vector-quantised autoencoder as a codec: a picture is a row of codes, which a language model writes.

Imports no family: it is given one. Tokens are numbered as text is (codecs/text): begin, then the codes line by line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sojourn.codecs.text import BOS, FIRST
from sojourn.errors import ConfigError
from sojourn.registry import register
from sojourn.types import DataSpec

if TYPE_CHECKING:
    import numpy as np


@register("codec", "codes", about="codes of a vector-quantised autoencoder, for a language model that writes pictures")
class CodesCodec:
    """config: part (name of the nested package)."""

    id = "codes"

    def __init__(
        self, config: Mapping[str, Any], parts: Mapping[str, Any], files: Mapping[str, bytes] | None = None
    ) -> None:
        self.part = str(config.get("part", "autoencoder"))
        if self.part not in parts or not hasattr(parts[self.part].family, "decode_codes"):
            raise ConfigError('a codec of codes needs the part "{part}", a vq-vae package', part=self.part)
        inner = parts[self.part]
        self.family, self.inner = inner.family, inner.codec
        self.side: tuple[int, int] = self.family.latent_shape[1:]
        places = self.side[0] * self.side[1]
        self.spec = DataSpec("codes", (1 + places,), vocab=FIRST + self.family.config.codes)

    @property
    def config(self) -> dict[str, Any]:
        return {"part": self.part}

    def pack(self, media: Any) -> np.ndarray:
        packed: np.ndarray = self.inner.pack(media)
        return packed

    @torch.no_grad()
    def encode(self, raw: Tensor) -> Tensor:
        """Stored pictures to tokens (b, 1 + places) long."""
        index: Tensor = self.family.codes(self.inner.encode(raw))
        return torch.nn.functional.pad(index.flatten(1) + FIRST, (1, 0), value=BOS)

    def decode(self, x: Tensor) -> Tensor:
        """Tokens, the last of which may still be padding, to raw pictures."""
        index = (x[:, 1:] - FIRST).clamp(min=-1).view(len(x), *self.side)
        out: Tensor = self.inner.decode(self.family.decode_codes(index))
        return out

    def unpack(self, raw: Tensor) -> list[Any]:
        media: list[Any] = self.inner.unpack(raw)
        return media
