"""Makes the page's Chinese font, for machines that have none: src/sojourn/http/static/han.woff2.

    pip install "fonttools[woff]" && python docs/font.py /usr/share/fonts/truetype/wqy/wqy-microhei.ttc

WenQuanYi Micro Hei (WenQuanYi Project, Google; Apache-2.0), cut to the 6,763 simplified characters of GB 2312,
those of the page's texts, and those of the names that the bundled model knows.
"""

from __future__ import annotations

import json
import sys
from importlib import resources
from pathlib import Path

from fontTools import subset

STATIC = Path(__file__).parent.parent / "src/sojourn/http/static"


def wanted() -> set[str]:
    """The characters it holds: all from Latin letters on that may be on the page."""
    common = {bytes([row, cell]).decode("gb2312", "ignore") for row in range(0xB0, 0xF8) for cell in range(0xA1, 0xFF)}
    locale = resources.files("sojourn") / "locale"
    texts = "".join((locale / name).read_text("utf-8") for name in ("zh.json", "page.zh.json", "names.zh.json"))
    names = json.loads((resources.files("sojourn") / "starter/emoji/conditioner/vocabulary.json").read_text("utf-8"))
    return {char for char in {*"".join(common), *texts, *"".join(names["names"])} if ord(char) >= 0x2000}


def main() -> None:
    options = subset.Options(flavor="woff2", hinting=False, layout_features=[], notdef_outline=True, font_number=0)
    options.name_IDs = [0, 1, 2, 13, 14]  # whose it is, its name, its licence
    font = subset.load_font(sys.argv[1], options)
    cut = subset.Subsetter(options)
    cut.populate(unicodes=[ord(char) for char in wanted()])
    cut.subset(font)
    subset.save_font(font, str(STATIC / "han.woff2"), options)


if __name__ == "__main__":
    main()
