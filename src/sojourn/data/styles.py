"""Names people give the emoji styles, in English and Chinese. A table; knows nothing about pictures or nets."""

from __future__ import annotations

import unicodedata

STYLES: dict[str, tuple[str, ...]] = {
    "noto": ("noto", "google", "noto emoji", "谷歌", "谷歌表情"),
    "noto-v1": ("blob", "noto-v1", "blobs", "jelly", "round", "google blob", "圆润", "果冻", "软糖"),
    "twemoji": ("twemoji", "twitter", "x", "推特", "推特表情"),
    "fluent-flat": ("flat", "fluent-flat", "fluent flat design", "扁平", "扁平化", "平面"),
    "fluent-mono": (
        "mono", "fluent-mono", "monochrome", "black and white", "b&w", "high contrast", "line art", "outline",
        "黑白", "单色", "线稿", "线条", "高对比度",
    ),
    "fluent-3d": ("3d", "fluent-3d", "three-dimensional", "fluent", "microsoft", "立体", "3d 立体", "三维", "微软"),
    "emojione": ("emojione", "emoji one", "joypixels", "emoji 一号", "一号表情"),
    "fxemoji": ("fxemoji", "firefox", "firefox os", "fx emoji", "mozilla", "火狐", "火狐表情"),
}  # fmt: skip
"""Style -> what people call it."""
MONO_STYLES = ("fluent-mono",)
COLOUR_STYLES = tuple(style for style in STYLES if style not in MONO_STYLES)
"""Styles to choose from when none is named."""


def fold(text: str) -> str:
    """A style's name with case, width, spaces and dashes taken off, and without a trailing "style" or 风格."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    plain = "".join(letter for letter in plain if not letter.isspace() and letter not in "-_·")
    for suffix in ("style", "风格", "風格", "风", "風"):
        if plain.endswith(suffix) and plain != suffix:
            return plain.removesuffix(suffix)
    return plain


_BY_NAME = {fold(alias): style for style, aliases in STYLES.items() for alias in (style, *aliases)}


def find_style(text: str) -> str | None:
    """The style this text names, None when it names none. The whole text must be a name: `3D`, `３Ｄ`, `扁平风格`."""
    return _BY_NAME.get(fold(text))
