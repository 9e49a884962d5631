"""The picture codec, the cleaning of single files, and the pool that bears hostile ones (fault T18)."""

import io
import json
import os
import struct
import threading
import zlib

import numpy as np
import psutil
import pytest
import torch
from PIL import Image, ImageCms

from sojourn.codecs.image import ImageCodec
from sojourn.data import clean
from sojourn.data.clean import Limits, Refused, load_picture
from sojourn.data.dataset import PackedSet
from sojourn.data.pool import Job, Pool, Work
from sojourn.data.prepare import prepare
from sojourn.errors import ConfigError, DataError, NotFound

SIDE = 48


def art(seed, size=(SIDE, SIDE), mode="RGB"):
    """A picture of soft random colours; different seeds are different pictures to every hash."""
    rng = np.random.default_rng(seed)
    bands = len(Image.new(mode, (1, 1)).getbands())
    noise = rng.integers(0, 256, (6, 6, bands), dtype=np.uint8)
    layers = [Image.fromarray(noise[:, :, i]).resize(size, Image.Resampling.BICUBIC) for i in range(bands)]
    return layers[0] if bands == 1 else Image.merge(mode, layers)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def read(data, **options):
    return clean.read(io.BytesIO(data), Limits(**options))


# The codec


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("stored", [1, 3, 4])
def test_encode_matches_pillow(channels, stored):
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[stored]
    images = [art(seed, mode=mode) for seed in range(3)]
    raw = torch.from_numpy(np.stack([np.asarray(i).reshape(SIDE, SIDE, stored) for i in images]))
    codec = ImageCodec({"height": SIDE, "width": SIDE, "channels": channels})
    before = raw.clone()
    x = codec.encode(raw)
    assert torch.equal(raw, before)
    assert x.shape == (3, *codec.spec.shape)
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert x.min() >= -1.0001
    assert x.max() <= 1.0001
    for row, image in zip(x, images, strict=True):
        if channels < 4:
            flat = Image.new("RGBA", image.size, "white")
            flat.alpha_composite(image.convert("RGBA"))
            expected = flat.convert({1: "L", 3: "RGB"}[channels])
        else:
            expected = image.convert("RGBA").convert("RGBa")
        wanted = np.asarray(expected, np.float32).reshape(SIDE, SIDE, channels).transpose(2, 0, 1) / 127.5 - 1
        assert np.abs(row.numpy() - wanted).max() <= 2.5 / 127.5


def test_background_black_and_none():
    raw = torch.zeros(1, 8, 8, 4, dtype=torch.uint8)
    shape = {"height": 8, "width": 8}
    assert ImageCodec(shape).encode(raw).eq(1).all()
    assert ImageCodec({**shape, "background": "black"}).encode(raw).eq(-1).all()
    with pytest.raises(DataError, match="no background"):
        ImageCodec({**shape, "background": None}).encode(raw)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_pack_encode_unpack_returns_the_picture(mode):
    channels = len(Image.new(mode, (1, 1)).getbands())
    codec = ImageCodec({"height": SIDE, "width": SIDE, "channels": channels})
    image = art(7, mode=mode)
    if mode == "RGBA":
        image.putalpha(image.getchannel("A").point(lambda v: max(v, 128)))
    packed = codec.pack(image)
    assert packed.shape == (SIDE, SIDE, channels)
    back = codec.unpack(codec.decode(codec.encode(torch.from_numpy(packed)[None])))[0]
    assert back.mode == mode
    assert np.abs(np.asarray(back, np.int16) - np.asarray(image, np.int16)).max() <= (2 if mode == "RGBA" else 0)


def test_unpack_clips_and_clears_what_cannot_be_seen():
    x = torch.tensor([3.0, -3.0, 0.2, -1.0]).view(1, 4, 1, 1)
    assert ImageCodec({"channels": 4}).unpack(x)[0].getpixel((0, 0)) == (0, 0, 0, 0)
    assert ImageCodec({}).unpack(x[:, :3])[0].getpixel((0, 0)) == (255, 0, 153)


def test_decode_is_differentiable():
    x = torch.zeros(1, 3, 64, 64, requires_grad=True)
    (ImageCodec({}).decode(x) * 3).sum().backward()
    assert x.grad.eq(3).all()


@pytest.mark.parametrize("shape", [(1, 32, 64, 3), (1, 64, 64, 2), (64, 64, 3)])
def test_encode_refuses_other_sizes_in_one_line(shape):
    with pytest.raises(DataError, match="wants stored pictures") as caught:
        ImageCodec({}).encode(torch.zeros(shape, dtype=torch.uint8))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config", [{"channels": 2}, {"height": 0}, {"colour": 1}])
def test_wrong_config_is_named(config):
    with pytest.raises(ConfigError, match=next(iter(config))):
        ImageCodec(config)


def test_config_round_trip():
    codec = ImageCodec({"height": 32, "width": 48, "channels": 1, "fit": "pad"})
    assert ImageCodec(json.loads(json.dumps(codec.config)), {}).config == codec.config
    assert codec.spec.shape == (1, 32, 48)


# Fitting


def test_crop_takes_the_middle_and_pad_keeps_all():
    wide = Image.new("RGB", (90, 30), "red")
    wide.paste("blue", (30, 0, 60, 30))
    assert np.asarray(clean.fit(wide, 30, 30))[2:-2, 4:-4].reshape(-1, 3).min(axis=0).tolist() == [0, 0, 255]
    padded = np.asarray(clean.fit(wide, 30, 30, "pad"))
    assert padded[0].min() == 255
    assert padded[15, 2].tolist() == [255, 0, 0]
    assert np.asarray(clean.fit(wide.convert("RGBA"), 30, 30, "pad"))[0, :, 3].max() == 0


def test_resize_does_not_bleed_hidden_colours():
    image = Image.new("RGBA", (64, 64), (0, 255, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 32, 64))
    small = np.asarray(clean.fit(image, 15, 15))
    assert small[:, :, 1].max() <= 1
    image.paste((255, 0, 0, 255), (0, 0, 64, 64))
    assert clean.pixels(clean.fit(image, 15, 15)).shape == (15, 15, 3)


def test_big_pictures_are_reduced_in_strips_to_the_same():
    image = art(3, (2000, 1500), "RGBA")
    straight = np.asarray(clean.fit(image, 64, 64).convert("RGBa"), np.int16)
    picture = clean.read(io.BytesIO(encoded(image, "PNG", compress_level=1)), Limits(), (64, 64))
    assert picture.size == (2000, 1500)
    assert picture.image.width < 1000
    strips = np.asarray(clean.fit(picture.image, 64, 64).convert("RGBa"), np.int16)
    assert np.abs(strips - straight).mean() <= 1.5
    assert np.abs(strips - straight).max() <= 8


# Kinds of files


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_rotation(turn, kind):
    upright = art(1, (64, 40)).resize((64, 40))
    inverse = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[turn]  # Pillow's transposes that undo the tag's
    stored = upright if inverse is None else upright.transpose(Image.Transpose(inverse))
    exif = Image.Exif()
    exif[0x0112] = turn
    picture = read(encoded(stored, kind, exif=exif, **({"quality": 95} if kind in ("JPEG", "WEBP") else {})))
    assert picture.image.size == picture.size == (64, 40)
    assert np.abs(np.asarray(picture.image, np.int16) - np.asarray(upright, np.int16)).mean() < 6


def test_16_bit_keeps_its_range():
    ramp = np.linspace(0, 65535, SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint16)
    for kind in ("PNG", "TIFF"):
        picture = read(encoded(Image.fromarray(ramp), kind))
        assert picture.image.mode == "L"
        assert np.asarray(picture.image).min() == 0
        assert np.asarray(picture.image).max() == 255
        assert "more than 8 bit: reduced" in picture.notes


def test_float_and_32_bit_tiff():
    unit = np.linspace(0, 1, SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE)
    assert np.asarray(read(encoded(Image.fromarray(unit), "TIFF")).image).max() == 255
    assert np.asarray(read(encoded(Image.fromarray(unit * 1e6 - 5), "TIFF")).image).min() == 0
    with pytest.raises(Refused, match="not finite"):
        read(encoded(Image.fromarray(np.where(unit > 0.5, np.nan, unit).astype(np.float32)), "TIFF"))


def test_modes_become_plain():
    palette = art(2).quantize(16)
    palette.info["transparency"] = 0
    assert read(encoded(palette, "PNG", transparency=0)).image.mode == "RGBA"
    assert read(encoded(art(2).quantize(16), "PNG")).image.mode == "RGB"
    assert read(encoded(art(2, mode="L").convert("1"), "PNG")).image.mode == "L"
    assert read(encoded(art(2, mode="LA"), "PNG")).image.mode == "RGBA"
    assert read(encoded(art(2), "PNG", transparency=(1, 2, 3))).image.mode == "RGBA"
    cmyk = read(encoded(art(2).convert("CMYK"), "JPEG", quality=95))
    assert cmyk.image.mode == "RGB"
    assert cmyk.notes == ["CMYK"]
    assert np.abs(np.asarray(cmyk.image, np.int16) - np.asarray(art(2), np.int16)).mean() < 4


def test_colour_profiles():
    good = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    other = srgb.replace("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be"))
    image = art(5)
    for profile, note in ((b"rubbish" * 20, "ignored"), (good, "ignored"), (other, "applied")):
        picture = read(encoded(image, "PNG", icc_profile=profile))
        assert picture.notes == [f"colour profile {note}"]
        assert np.abs(np.asarray(picture.image, np.int16) - np.asarray(image, np.int16)).max() <= 2
    assert read(encoded(image, "PNG", icc_profile=srgb)).notes == []


def test_perceptual_hash_is_near_for_near_and_far_for_far():
    def near(one, other):
        return (clean.perceptual_hash(np.asarray(one)) ^ clean.perceptual_hash(np.asarray(other))).bit_count()

    for seed in range(10):
        image = art(seed, (128, 128))
        recompressed = Image.open(io.BytesIO(encoded(image.resize((100, 100)), "JPEG", quality=60))).resize((128, 128))
        assert near(image, recompressed) <= 6
        assert near(image, art(seed + 100, (128, 128))) > 12
    drawings = []
    for box in ((2, 2, 20, 40), (25, 5, 45, 20)):
        image = Image.new("RGBA", (SIDE, SIDE), (255, 255, 255, 0))
        image.paste((255, 255, 255, 255), box)
        drawings.append(image)
    assert near(*drawings) > 6


# One picture for a prompt


def test_load_picture(tmp_path):
    path = tmp_path / "红.png"
    art(1, mode="L").save(path)
    assert load_picture(path).mode == "RGB"
    assert load_picture(encoded(art(1, mode="RGBA"), "PNG")).mode == "RGBA"
    with pytest.raises(DataError, match="too many pixels"):
        load_picture(path, Limits(pixels=100))
    with pytest.raises(DataError, match="file too big"):
        load_picture(path, Limits(file_bytes=100))
    with pytest.raises(NotFound):
        load_picture(tmp_path / "none.png")
    with pytest.raises(DataError, match="cannot be read"):
        load_picture(tmp_path)
    with pytest.raises(DataError, match=r"the upload.*SVG"):
        load_picture(b"<svg xmlns='x'><script>alert(1)</script></svg>")


# The pool


def test_a_poison_file_costs_itself_only(tmp_path, monkeypatch):
    patch = tmp_path / "path"
    patch.mkdir()
    (patch / "sitecustomize.py").write_text(
        "import os, signal, time\n"
        "from sojourn.data import clean\n"
        "plain = clean.read\n"
        "def read(file, *rest):\n"
        "    head = file.read(4)\n"
        "    if head == b'SEGV': os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    if head == b'LOOP':\n"
        "        while True: pass\n"
        "    if head == b'HANG': time.sleep(60)\n"
        "    if head == b'HOGS': bytearray(1 << 30)\n"
        "    return plain(file, *rest)\n"
        "clean.read = read\n"
    )
    monkeypatch.syspath_prepend(str(patch))
    poison = {5: b"SEGV", 20: b"LOOP", 21: b"HANG", 33: b"HOGS"}
    jobs = []
    for i in range(50):
        path = tmp_path / f"{i}.png"
        path.write_bytes(poison[i] if i in poison else encoded(art(i), "PNG"))
        jobs.append(Job(str(path)))
    with Pool(Work(32, 32, time_s=0.4, clock_s=6), 2) as pool:
        results = dict(r for r in pool.run(jobs) if r is not None)
    assert sorted(results) == list(range(50))
    bad = {i: r.reason for i, r in results.items() if r.pixels is None}
    assert bad == {5: "crashed the decoder", 20: "too slow", 21: "too slow", 33: "too much memory"}
    assert results[5].detail == "SIGSEGV"


def test_a_killed_process_loses_nothing(tmp_path):
    jobs = []
    for i in range(300):
        path = tmp_path / f"{i}.png"
        art(i).save(path)
        jobs.append(Job(str(path)))
    done = []
    with Pool(Work(32, 32), 2) as pool:
        for result in pool.run(jobs):
            if result is not None:
                done.append(result)
                if len(done) in (10, 100):
                    children = [c for c in psutil.Process().children() if "sojourn.data.pool" in " ".join(c.cmdline())]
                    children[0].kill()
    assert sorted(index for index, _ in done) == list(range(300))
    assert all(result.pixels is not None for _, result in done)


def test_closing_ends_the_processes(tmp_path):
    art(1).save(tmp_path / "a.png")
    with Pool(Work(32, 32), 2) as pool:
        running = pool.run(Job(str(tmp_path / "a.png")) for _ in range(100_000))
        next(r for r in running if r is not None)
        assert _children()
    assert not _children()


def _children():
    return [c for c in psutil.Process().children() if c.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("executable", ["/bin/false", "/nowhere/python"])
def test_a_child_that_cannot_start_is_said(monkeypatch, executable):
    monkeypatch.setattr("sys.executable", executable)
    with pytest.raises(DataError, match="does not start"), Pool(Work(8, 8), 1) as pool:
        list(pool.run([Job("x.png")]))


# T18: the matrix


def _chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png(width, height, bits, colour, data, extra=b""):
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + extra + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _zeros(count):
    packer = zlib.compressobj(1)
    parts = [packer.compress(bytes(min(1 << 20, count - start))) for start in range(0, count, 1 << 20)]
    return b"".join([*parts, packer.flush()])


def _many_frames(kind, frames=10_000):
    first = art(900 + len(kind) + ord(kind[0]))
    second = first.copy()
    second.paste("red", (0, 0, 4, 4))
    data = encoded(first, kind, save_all=True, append_images=[second], **({"lossless": True} if kind == "WEBP" else {}))
    if kind == "GIF":
        start = data.rfind(b"\x21\xf9\x04")
        return data[:start] + data[start:-1] * frames + b";"
    if kind == "WEBP":
        start = data.rfind(b"ANMF")
        data = data[:start] + data[start:] * frames
        return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
    at, chunks = 8, []
    while at < len(data):
        size = struct.unpack_from(">I", data, at)[0]
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    names = [name for name, _ in chunks]
    still = names.index(b"IDAT") + names.count(b"IDAT")
    frame = [chunk for chunk in chunks[still:] if chunk[0] in (b"fcTL", b"fdAT")]
    repeated = [(name, body[4:]) for _ in range(frames) for name, body in frame]
    out = [(n, struct.pack(">II", frames + 1, 0)) if n == b"acTL" else (n, body) for n, body in chunks[:still]]
    out += [(name, struct.pack(">I", number) + body) for number, (name, body) in enumerate(repeated, 1)]
    return data[:8] + b"".join(_chunk(*chunk) for chunk in [*out, (b"IEND", b"")])


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    """The folder of bad pictures, and what must become of each: None = kept, else the reasons allowed."""
    folder = tmp_path_factory.mktemp("t18")
    fate = {}
    whole = {}

    def put(name, data, *reasons):
        (folder / name).write_bytes(data)
        fate[name] = set(reasons)

    for i, (kind, options) in enumerate(
        [("PNG", {}), ("JPEG", {"quality": 90}), ("GIF", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {})]
    ):
        noise = Image.fromarray(np.random.default_rng(i).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
        data = encoded(noise, kind, **options)
        whole[kind.lower()] = read(data).image
        for share in (2, 30, 60, 90, 99):
            put(f"cut{share}.{kind.lower()}", data[: max(4, len(data) * share // 100)],
                "truncated", "corrupt", "not a picture")  # fmt: skip
    put("cmyk.jpg", encoded(art(10).convert("CMYK"), "JPEG"))
    put("cmyk.tif", encoded(art(11).convert("CMYK"), "TIFF"))
    put("grey16.png", encoded(Image.fromarray(np.asarray(art(12, mode="L")).astype(np.uint16) * 257), "PNG"))
    put("grey16.tif", encoded(Image.fromarray(np.asarray(art(13, mode="L")).astype(np.uint16) * 257), "TIFF"))
    deep = np.asarray(art(14)).astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    put("rgb16.png", _png(SIDE, SIDE, 16, 2, zlib.compress(rows)))
    put("bit1.png", encoded(art(15, mode="L").convert("1"), "PNG"))
    put("bit1.tif", encoded(art(16, mode="L").convert("1"), "TIFF"))
    put("palette.png", encoded(art(17).quantize(8), "PNG", transparency=bytes([0, 90, 255, 255, 255, 255, 255, 255])))
    put("palette.gif", encoded(art(18).quantize(8), "GIF", transparency=1))
    put("grey_alpha.png", encoded(art(19, mode="LA"), "PNG"))
    put("hidden.png", encoded(Image.new("RGBA", (SIDE, SIDE), (9, 9, 9, 0)), "PNG"), "nothing visible")
    for kind in ("GIF", "PNG", "WEBP"):
        put(f"frames.{kind.lower()}", _many_frames(kind))
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        put(f"turn{turn}.jpg", encoded(art(20 + turn, (64, 40)), "JPEG", exif=exif))
    put("bad_exif.jpg", encoded(art(30), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"))
    put("bad_icc.jpg", encoded(art(31), "JPEG", icc_profile=b"\0" * 200))
    put("bad_icc.png", encoded(art(32), "PNG", icc_profile=b"junk" * 99))
    put("one.png", encoded(Image.new("RGB", (1, 1)), "PNG"), "too small")
    put("line.png", encoded(Image.new("L", (1, 65535)), "PNG"), "too small")
    put("thin.png", encoded(art(33, (16, 30000), "L"), "PNG", compress_level=1))
    put("huge.png", _png(30000, 30000, 1, 0, _zeros(30000 * 3751)), "too many pixels")
    put("wide.png", _png(10000, 8000, 1, 0, _zeros(8000 * 1251)), "too many pixels")
    put("lies.png", _png(60000, 1000, 8, 2, zlib.compress(b"\0" * 100)), "truncated", "corrupt")
    put("ztxt.png", _png(16, 16, 8, 0, zlib.compress(b"\0" * 272), _chunk(b"zTXt", b"a\0\0" + _zeros(64 << 20))),
        "corrupt")  # fmt: skip
    put("ratio.png", _png(8000, 8000, 8, 0, _zeros(8000 * 8001)))
    put("script.svg", b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        "format not supported")  # fmt: skip
    put("svg.png", b"<?xml version='1.0'?><svg><script>alert(1)</script></svg>", "format not supported")
    put("photo.heic", b"\0\0\0\x18ftypheic" + b"\0" * 50, "format not supported")
    put("pages.tif", encoded(art(40), "TIFF", save_all=True, append_images=[art(41), art(42)]))
    put("eps.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (w) file", "not a picture")
    put("empty.jpg", b"", "empty file")
    put("text.jpg", b"this is not a picture at all", "not a picture")
    put("wrong_name.jpg", encoded(art(43), "PNG"))
    put("gif_js.gif", encoded(art(44).quantize(64), "GIF") + b"=1;alert(1)/*")
    put("jpeg_zip.jpg", encoded(art(45), "JPEG") + b"PK\x03\x04" + b"\0" * 200)
    put("png_html.png", encoded(art(46), "PNG") + b"<script>alert(1)</script>")
    put("two.mpo", encoded(art(47), "MPO", save_all=True, append_images=[art(48)]))
    put("no_suffix", encoded(art(49), "PNG"))
    put("红 心\n.png", encoded(art(50), "PNG"))
    (folder / "dir.png").mkdir()
    fate["dir.png"] = {"not a regular file"}
    os.symlink("/etc/hostname", folder / "outside.png")
    fate["outside.png"] = {"link that leads outside"}
    os.symlink("nowhere.png", folder / "broken.png")
    fate["broken.png"] = {"broken link"}
    os.symlink(folder, folder / "loop")
    fate["loop"] = {"link to a folder"}
    os.mkfifo(folder / "pipe.png")
    fate["pipe.png"] = {"not a regular file"}
    return folder, fate, whole


def test_t18_every_bad_picture_has_its_fate(matrix, tmp_path):
    folder, fate, whole = matrix
    assert len(fate) >= 70
    peaks, stop = {}, threading.Event()
    ours = psutil.Process().cmdline()

    def measure():
        while not stop.wait(0.005):
            for child in psutil.Process().children():
                try:
                    rss = child.memory_info().rss
                    if child.cmdline() != ours:  # until it has its own program, a new child shows our memory
                        peaks[child.pid] = max(peaks.get(child.pid, 0), rss)
                except psutil.Error:
                    continue

    watcher = threading.Thread(target=measure)
    watcher.start()
    own = psutil.Process().memory_info().rss
    try:
        events = list(prepare(folder, tmp_path / "set", size=SIDE, near=0, workers=2, licence="CC0-1.0"))
    finally:
        stop.set()
        watcher.join()
    assert events[-1].kind == "done"
    assert psutil.Process().memory_info().rss - own < 300 << 20
    assert max(peaks.values()) < (300 + 80) << 20, "an idle child with numpy and Pillow has about 50 MB"

    report = json.loads((tmp_path / "set" / "report.json").read_text())
    dropped = {name: r for r, remark in report["dropped"].items() for name, _ in remark["files"]}
    packed = PackedSet(tmp_path / "set")
    kept = {row["id"]: np.asarray(packed.data[i]) for i, row in enumerate(packed.rows)}
    for name, reasons in fate.items():
        shown = name.replace("\n", " ")
        assert (shown in kept) != (shown in dropped), name
        if not reasons:
            assert shown in kept, f"{name}: {dropped.get(shown)}"
        elif shown in kept:
            assert name.startswith("cut"), name
            expected = clean.to_channels(np.asarray(whole[name.split(".")[1]]), packed.info.shape[2])
            assert np.array_equal(kept[shown], expected), f"{name} was kept with damage"
        else:
            assert dropped[shown] in reasons, f"{name}: {dropped[shown]}"
    notes = {note: {name for name, _ in remark["files"]} for note, remark in report["notes"].items()}
    assert {f"frames.{kind}" for kind in ("gif", "png", "webp")} <= notes["animated"]
    assert notes["several pages"] == {"pages.tif"}
    assert {"bad_icc.jpg", "bad_icc.png"} <= notes["colour profile ignored"]
    assert packed.info.shape == (SIDE, SIDE, 4)


def test_t18_each_file_is_quick(matrix):
    folder, fate, _ = matrix
    paths = [str(folder / name) for name in fate if (folder / name).is_file()]
    with Pool(Work(SIDE, SIDE, limits=Limits(min_side=16), time_s=2), 1) as pool:
        results = [r[1] for r in pool.run(map(Job, paths)) if r is not None]
    assert len(results) == len(paths)
    assert "too slow" not in {result.reason for result in results}


def test_limits_are_the_processes_own(tmp_path):
    path = tmp_path / "big.png"
    path.write_bytes(_png(7000, 7000, 8, 2, _zeros(7000 * 21001)))
    big = Job(str(path))

    def reason(**limits):
        with Pool(Work(32, 32, **limits), 1) as pool:
            return next(r for r in pool.run([big]) if r is not None)[1].reason

    assert reason(time_s=0.05) == "too slow"
    assert reason(memory_bytes=100 << 20) == "too much memory"
    assert reason(time_s=30) == ""
