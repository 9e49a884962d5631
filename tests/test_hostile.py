"""Packages made to harm (T20 of the fault list): refused in a line, fast, in little memory, and nothing runs."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import toy
from torch import Tensor
from toy import FROZEN, reseal

from sojourn import package
from sojourn.errors import OutOfRoom, PackageError, SojournError


@pytest.fixture(autouse=True)
def toy_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SOJOURN_HOME", str(tmp_path / "home"))
    toy.enter()
    yield
    toy.leave()


def texts(problems: Sequence[SojournError]) -> str:
    return "\n".join(str(problem) for problem in problems)


# Hostile folders (T20). Each is sealed with hashes and identity that fit, as its author would.


def edit(folder: Path, **changes: Any) -> None:
    raw = json.loads((folder / "card.json").read_text()) | changes
    (folder / "card.json").write_text(json.dumps(raw))
    reseal(folder)


def config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        edit(folder, config=json.loads((folder / "card.json").read_text())["config"] | changes)

    return change


def file_named(name: str) -> Callable[[Path], None]:
    return lambda folder: edit(folder, files=json.loads((folder / "card.json").read_text())["files"] | {name: "0" * 64})


def header(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """Change the header of the weights, the tensors' bytes staying as they are."""

    def apply(folder: Path) -> None:
        path = folder / "weights.safetensors"
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        head = json.loads(data[8 : 8 + size])
        change(head)
        new = json.dumps(head).encode()
        path.write_bytes(len(new).to_bytes(8, "little") + new + data[8 + size :])
        reseal(folder)

    return apply


def tensor(name: str, **values: Any) -> Callable[[Path], None]:
    return header(lambda head: head[name].update(values))


def swapped(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = safetensors.torch.load_file(folder / "weights.safetensors")
        safetensors.torch.save_file(tensors | {name: change(tensors[name])}, folder / "weights.safetensors")
        reseal(folder)

    return apply


def raw_card(data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "card.json").write_bytes(data)


def weights(make_data: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "weights.safetensors"
        path.write_bytes(make_data(path.read_bytes()))
        reseal(folder)

    return apply


def long_header(folder: Path) -> None:
    path = folder / "weights.safetensors"
    with path.open("wb") as file:
        file.write((100 << 20).to_bytes(8, "little") + b'{"a":' + b" " * 1000)
        file.truncate((100 << 20) + 8)
    reseal(folder)


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.path}'",)


def pickled(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        data = pickle.dumps(Trap(folder.parent / "canary"))
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
        (folder / "sitecustomize.py").write_text(f"open({str(folder.parent / 'canary')!r}, 'w')")
        reseal(folder)

    return apply


def torch_zip(folder: Path) -> None:
    torch.save({"trap": Trap(folder.parent / "canary")}, folder / "weights.safetensors")
    reseal(folder)


def linked(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / name
        moved = folder.parent / "elsewhere"
        shutil.move(path, moved)
        path.symlink_to(moved)

    return apply


def pipe(folder: Path) -> None:
    (folder / "codec" / "tokenizer.json").unlink()
    os.mkfifo(folder / "codec" / "tokenizer.json")


def deep(folder: Path) -> None:
    for depth in range(1, 8):
        place = folder / Path(*["parts/inner"] * depth)
        if not (place / "parts" / "inner").exists():
            shutil.copytree(FROZEN / "parts" / "inner", place / "parts" / "inner")
    for depth in range(7, -1, -1):
        place = folder / Path(*["parts/inner"] * depth)
        edit(place, parts={"inner": json.loads((place / "parts" / "inner" / "card.json").read_text())["identity"]})


def other_part(folder: Path) -> None:
    edit(folder / "parts" / "inner", options={"steps": 2})


def tampered(folder: Path) -> None:
    raw = json.loads((folder / "card.json").read_text())
    raw["options"] = {"steps": 9}
    (folder / "card.json").write_text(json.dumps(raw))


def flipped(folder: Path) -> None:
    data = bytearray((folder / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(data)


def many_files(folder: Path) -> None:
    for i in range(2000):
        (folder / "codec" / f"x{i}").touch()


def doubled(folder: Path) -> None:
    text = (folder / "card.json").read_text()
    (folder / "card.json").write_text(text.replace('"format": 1,', '"format": 1, "format": 1,', 1))


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "header of 100 MB": (long_header, "header claims 104857600 bytes"),
    "header of 2^63": (weights(lambda data: (2**63).to_bytes(8, "little") + data[8:]), "header claims"),
    "header longer than the file": (weights(lambda data: (4000).to_bytes(8, "little") + b"{}"), "header claims 4000"),
    "three bytes": (weights(lambda data: b"abc"), "header claims"),
    "no weights at all": (weights(lambda data: b""), "header claims"),
    "truncated": (weights(lambda data: data[:-10]), "tensors fill"),
    "bytes behind the tensors": (weights(lambda data: data + b"x"), "tensors fill"),
    "deep header": (weights(lambda data: (90_000).to_bytes(8, "little") + b"[" * 90_000), "nested too deeply"),
    "header no JSON": (weights(lambda data: (9).to_bytes(8, "little") + b"\xff" * 9), "not sound JSON"),
    "header a list": (weights(lambda data: (2).to_bytes(8, "little") + b"[]"), "not a JSON object"),
    "overlap": (tensor("norm.weight", data_offsets=[0, 32]), "overlaps another or leaves a hole"),
    "offset out of range": (tensor("start", data_offsets=[2**40, 2**40 + 32]), "overlaps another or leaves a hole"),
    "offsets backwards": (tensor("start", data_offsets=[64, 32]), "does not fit its -32 bytes"),
    "offset negative": (tensor("start", data_offsets=[-32, 0]), "not sizes"),
    "shape 2^60": (tensor("start", shape=[2**60]), "not sizes"),
    "shape 2^40": (tensor("start", shape=[2**40]), "does not fit its 32 bytes"),
    "shape overflows 64 bits": (tensor("start", shape=[2**32, 2**32, 2]), "does not fit its 32 bytes"),
    "shape of a million axes": (tensor("start", shape=[1] * 100_000), "not sizes"),
    "shape of floats": (tensor("start", shape=[8.0]), "not sizes"),
    "shape of booleans": (tensor("start", shape=[True] * 3), "not sizes"),
    "dtype unknown": (tensor("start", dtype="F3"), "has the dtype F3"),
    "dtype no text": (tensor("start", dtype=["F32"]), "has the dtype"),
    "dtype of integers": (tensor("start", dtype="I32"), "the net has dtype float32, the weights int32"),
    "tensor not described": (header(lambda head: head.update(x=[])), "not described"),
    "metadata no text": (header(lambda head: head.update(__metadata__={"a": []})), "metadata"),
    "wrong shape": (tensor("layers.0.weight", shape=[4, 16]), "the net has shape (8, 8), the weights (4, 16)"),
    "another name": (header(lambda head: head.update(odd=head.pop("start"))), "only in the net"),
    "name with escapes": (header(lambda head: head.update({"\x1b[2J": head.pop("start")})), "only in the net"),
    "NaN": (swapped("start", lambda t: t * float("nan")), '"start" of "p" is not finite'),
    "one Inf of fp16": (swapped("enter.weight", lambda t: t + torch.eye(8, 5).half() / 0), "is not finite"),
    "pickle as weights": (pickled("weights.safetensors"), "header claims"),
    "torch zip as weights": (torch_zip, "header claims"),
    "pickle beside": (pickled("model.pt"), "may run code"),
    "bin beside": (pickled("pytorch_model.bin"), "may run code"),
    "pickle in a folder": (pickled("codec/cache.PKL"), "may run code"),
    "pickle on the card": (file_named("codec/x.pkl"), "which no package has"),
    "hash": (flipped, "does not match its sha256"),
    "card changed": (tampered, "does not match its identity"),
    "part exchanged": (other_part, 'part "inner" of "p" is another package'),
    "card of 2 MB": (raw_card(b" " * (2 << 20)), "at most 1048576 are read"),
    "card nested deep": (raw_card(b'{"a":' * 100_000), "nested too deeply"),
    "card no JSON": (raw_card(b"\x80\x04K\x01."), "not sound JSON"),
    "card a list": (raw_card(b"[1]"), "not a JSON object"),
    "card with NaN": (raw_card(b'{"format": NaN}'), "not sound JSON"),
    "card with 1e400": (raw_card(b'{"format": 1, "seen": 1e400}'), "not sound JSON"),
    "card with a huge number": (raw_card(b'{"format": ' + b"9" * 5000 + b"}"), "not sound JSON"),
    "card with half a letter": (raw_card(b'{"format": 1, "name": "\\ud800"}'), "not sound JSON"),
    "card with a key twice": (doubled, "a key stands twice"),
    "card of a newer format": (lambda folder: edit(folder, format=2), "made by a newer Sojourn"),
    "card without a format": (lambda folder: edit(folder, format=None), "no format number"),
    "unknown key": (lambda folder: edit(folder, auto_map="x.py"), "auto_map: Extra inputs"),
    "unknown setting": (config(trust=True), "trust: Extra inputs"),
    "unknown option": (lambda folder: edit(folder, options={"steps": 10**9}), "steps: Input should be"),
    "unknown family": (lambda folder: edit(folder, family="os.system"), 'no family "os.system"'),
    "name of a path": (lambda folder: edit(folder, name="../../x"), "package name"),
    "name with escapes in it": (lambda folder: edit(folder, name="\x1b[31m"), "package name"),
    "file above": (file_named("../canary"), "which no package has"),
    "file above in a folder": (file_named("codec/../../x"), "which no package has"),
    "file absolute": (file_named("/etc/passwd"), "which no package has"),
    "file with a backslash": (file_named("codec/..\\x"), "which no package has"),
    "file not there": (file_named("codec/none.json"), 'file "codec/none.json" is missing'),
    "part above": (lambda folder: edit(folder, parts={"..": "0"}), "which is not a name"),
    "part absolute": (lambda folder: edit(folder, parts={"/etc": "0"}), "which is not a name"),
    "part not there": (lambda folder: edit(folder, parts={"other": "0"}), 'card.json" is missing'),
    "no weights on the card": (lambda folder: edit(folder, files={}), "must name weights.safetensors"),
    "weights a link": (linked("weights.safetensors"), "is a link"),
    "file a link": (linked("codec/tokenizer.json"), "is a link"),
    "folder a link": (linked("codec"), "is a link"),
    "part a link": (linked("parts/inner"), "is a link"),
    "parts a link": (linked("parts"), "is a link"),
    "card a link": (linked("card.json"), "is a link"),
    "a pipe": (pipe, "is a link or a device"),
    "thousands of files": (many_files, "over 1000 files"),
    "parts in parts": (deep, "more than 4 deep"),
    "codec that breaks": (
        lambda folder: edit(folder, codec={"id": "toy", "config": {"size": "x"}}),
        'codec "toy" cannot be built',
    ),
    "sample of 2^40": (
        lambda folder: edit(folder, codec={"id": "toy", "config": {"size": 2**40}}),
        "would have the shape",
    ),
    "sample of -1": (lambda folder: edit(folder, codec={"id": "toy", "config": {"size": -1}}), "would have the shape"),
    "net that breaks": (config(broken=1), "cannot be built: of the toy"),
    "2^40 channels": (config(width=2**40), "far larger than its weights"),
    "2^20 channels": (config(width=2**20), "far larger than its weights"),
    "2^70 channels": (config(width=2**70), "the net on the card cannot be built|far larger"),
    "-1 channels": (config(width=-1), "cannot be built"),
    "10^6 layers": (config(depth=10**6), "far larger than its weights"),
    "10^6 layers of width 1": (config(depth=10**6, width=1), "far larger than its weights"),
    "table of 2^40": (config(table=2**40), "far larger than its weights"),
    "table of 2^27": (config(table=2**27), "far larger than its weights"),
    "grid of 2^28": (config(grid=2**14), "far larger than its weights"),
    "five layers": (config(depth=5), "do not fit the net"),
}


def peak() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM"))


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    shutil.copytree(FROZEN, tmp_path / "p")
    assert package.load(tmp_path / "p").parts["inner"].family.seen == 123_456_789
    return tmp_path / "p"


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_packages_are_refused(hostile: Path, name: str) -> None:
    spoil, message = HOSTILE[name]
    spoil(hostile)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak counts from here
    before, start = peak(), time.process_time()
    with pytest.raises(SojournError, match=message if "|" in message else None) as caught:
        package.load(hostile)
    line = str(caught.value)
    assert "|" in message or message in line
    assert line.isprintable()
    assert len(line) < 600
    assert time.process_time() - start < 2
    assert peak() - before < 200 << 20
    assert not (hostile.parent / "canary").exists()
    if message != "no format number" and (hostile / "card.json").is_file():
        assert message in texts(package.verify(hostile)) or "|" in message
    assert not (hostile.parent / "canary").exists()


def test_verify_lists_all_it_finds(hostile: Path) -> None:
    (hostile / "notes.txt").write_text("mine")
    (hostile / "parts" / "inner" / "evil.pkl").write_bytes(b"x")
    (hostile / "parts" / "other").mkdir()
    flipped(hostile)
    tampered(hostile)
    found = texts(package.verify(hostile))
    for piece in ("notes.txt", "evil.pkl", "parts/other", "sha256 on the card", "does not match its identity"):
        assert piece in found
    shutil.rmtree(hostile)
    shutil.copytree(FROZEN, hostile)
    (hostile / "notes.txt").write_text("mine")
    assert texts(package.verify(hostile)) == '"notes.txt" does not belong to the package; remove it'
    package.load(hostile)


def test_verify_false_skips_hashes_but_never_shapes(hostile: Path) -> None:
    flipped(hostile)
    tampered(hostile)
    assert package.load(hostile, verify=False).card.options == {"steps": 9}
    swapped("start", lambda t: t * float("nan"))(hostile)
    with pytest.raises(PackageError, match="not finite"):
        package.load(hostile, verify=False)


def test_more_weights_than_memory_is_said_so(hostile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1 << 20}))
    held = 100 << 20
    path = hostile / "weights.safetensors"
    head = json.dumps({"w": {"dtype": "F16", "shape": [held], "data_offsets": [0, 2 * held]}}).encode()
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.truncate(8 + len(head) + 2 * held)
    with pytest.raises(OutOfRoom, match="needs 600 MB of memory, 1 MB are free"):
        package.load(hostile, verify=False)
