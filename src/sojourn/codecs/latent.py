"""An autoencoder used as a codec: pictures to a small, whitened latent and back. Imports no family: it is given one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sojourn.errors import ConfigError
from sojourn.registry import register
from sojourn.types import DataSpec

if TYPE_CHECKING:
    from sojourn.data.dataset import PackedSet

FIT_ROWS = 2048


@register("codec", "latent", about="an autoencoder's latents, each channel at mean 0 and variance 1")
class LatentCodec:
    """config: part (name of the nested package), mean and std (one number per latent channel)."""

    id = "latent"

    def __init__(
        self, config: Mapping[str, Any], parts: Mapping[str, Any], files: Mapping[str, bytes] | None = None
    ) -> None:
        self.part = str(config.get("part", "autoencoder"))
        if self.part not in parts:
            raise ConfigError('a latent codec needs the part "{part}", an autoencoder package', part=self.part)
        inner = parts[self.part]
        self.family, self.inner = inner.family, inner.codec
        shape = tuple(self.family.latent_shape)
        ones = (1,) * (len(shape) - 1)
        self.mean = torch.tensor(config.get("mean", [0.0] * shape[0])).view(-1, *ones)
        self.std = torch.tensor(config.get("std", [1.0] * shape[0])).view(-1, *ones)
        self.spec = DataSpec("latent", shape)

    @classmethod
    def fit_to(cls, config: Mapping[str, Any], parts: Mapping[str, Any], data: PackedSet) -> LatentCodec:
        """A codec whose mean and std are measured on the first rows of the train split."""
        plain = cls({**config, "mean": [0.0], "std": [1.0]}, parts)
        rows = data.draw(0, 0, min(FIT_ROWS, len(data.indices("train"))))
        z = torch.cat([plain.encode(data.raw(chunk)) for chunk in np.array_split(rows, max(1, len(rows) // 64))])
        axes = [axis for axis in range(z.ndim) if axis != 1]
        stats = {"mean": z.mean(axes).tolist(), "std": z.std(axes).clamp(min=1e-6).tolist()}
        return cls({**config, **stats}, parts)

    @property
    def config(self) -> dict[str, Any]:
        return {"part": self.part, "mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist()}

    def pack(self, media: Any) -> np.ndarray:
        packed: np.ndarray = self.inner.pack(media)
        return packed

    @torch.no_grad()
    def encode(self, raw: Tensor) -> Tensor:
        z: Tensor = self.family.encode(self.inner.encode(raw))
        return (z - self.mean) / self.std

    def decode(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner.decode(self.family.decode(x * self.std + self.mean))
        return out

    def unpack(self, raw: Tensor) -> list[Any]:
        media: list[Any] = self.inner.unpack(raw)
        return media
