"""Files as bytes: whole or not at all when written, guarded when read. Knows nothing above the errors.

Writing goes beside the place, is synced and renamed. Reading follows no link, has a size limit, and believes no
number of a JSON or safetensors file before it has been checked. Nothing is ever unpickled.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import io
import json
import math
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from sojourn.errors import InvalidInput, OutOfRoom, PackageError

if TYPE_CHECKING:
    from torch import Tensor

HEADER_BYTES = 4 << 20
"""A safetensors header at most: some 40,000 tensors. As Python objects it is about twenty times as large."""
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_TORCH = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the file at `path` by `data` in one step. Raises OutOfRoom, InvalidInput."""
    write_stream(path, io.BytesIO(data))


def write_stream(path: Path, source: BinaryIO) -> None:
    """The same with what is left of `source`, which need not fit into memory."""
    with new_file(path) as file:
        shutil.copyfileobj(source, file, 1 << 20)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file open for writing that takes the place of `path` when the block ends without an error.

    Raises OutOfRoom, InvalidInput.
    """
    part = _beside(path)
    with writing(path):
        try:
            with part.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
            _sync(path.parent)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """An empty folder that becomes `target`, replacing what is there, when the block ends without an error.

    Where the system can swap two names in one step (Linux), `target` is the old or the new folder at every moment;
    elsewhere a crash between two renames is mended by the next `settle`. All files in it are synced before. Raises
    OutOfRoom, InvalidInput.
    """
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        settle(target)
        _sweep(target.parent)
        part = _beside(target)
        part.mkdir()
        try:
            yield part
            for folder, _, files in os.walk(part):
                for name in files:
                    _sync(Path(folder, name))
                _sync(Path(folder))
            if target.exists() and not _swap(part, target):
                aside = _aside(target)
                os.rename(target, aside)
                os.rename(part, target)
                part = aside
            elif not target.exists():
                os.rename(part, target)
            _sync(target.parent)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def settle(target: Path) -> None:
    """Put the old folder back where a crash came between the two renames of `new_folder`."""
    aside = _aside(target)
    if aside.is_dir():
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.rename(aside, target)


def open_inside(folder: Path, name: str) -> BinaryIO:
    """The regular file `name` ("a/b") under `folder`, opened to read. Follows no link below `folder`."""
    path = folder
    for piece in name.split("/")[:-1]:
        path = path / piece
        if path.is_symlink():
            raise PackageError('"{file}" in "{folder}" lies behind a link; links are refused', file=name, folder=folder)
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(folder / name, flags)
    except FileNotFoundError:
        raise PackageError('file "{file}" is missing in "{folder}"', file=name, folder=folder) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise PackageError(
                '"{file}" in "{folder}" is a link; links are refused', file=name, folder=folder
            ) from None
        raise PackageError(
            'file "{file}" in "{folder}" cannot be read: {reason}', file=name, folder=folder, reason=error.strerror
        ) from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise PackageError('"{file}" in "{folder}" is not a plain file', file=name, folder=folder)
    return os.fdopen(handle, "rb")


def read_inside(folder: Path, name: str, limit: int) -> bytes:
    """Bytes of the file `name` under `folder`, at most `limit` of them."""
    with open_inside(folder, name) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(limit + 1) if size <= limit else b""
    if size > limit or len(data) > limit:
        raise PackageError(
            'file "{file}" has {size} bytes, at most {limit} are read', file=name, size=size, limit=limit
        )
    return data


def sha256_inside(folder: Path, name: str) -> str:
    """sha256 of the file `name` under `folder`, in hex."""
    with open_inside(folder, name) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def canonical(value: Any) -> bytes:
    """`value` as JSON in one fixed spelling: keys sorted, no spaces, UTF-8. Raises ValueError, TypeError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8")


def parse_json(data: bytes, name: str) -> dict[str, Any]:
    """The object in `data`: no double keys, no NaN or infinity, no lone surrogate, no depth that breaks the parser."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
        canonical(value)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else printable(str(error))
        raise PackageError('"{file}" is not sound JSON: {reason}', file=name, reason=reason) from None
    if not isinstance(value, dict):
        raise PackageError('"{file}" is not a JSON object', file=name)
    return value


def printable(text: str, limit: int = 120) -> str:
    """Foreign text fit for a message: one line, control characters escaped, at most `limit` characters."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: limit + 1])
    return line if len(line) <= limit else line[: limit - 1] + "…"


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor of a safetensors file is."""

    dtype: str
    shape: tuple[int, ...]
    size_bytes: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def torch_name(self) -> str:
        """ "float32", "int64" …: the name of its dtype in torch."""
        return _TORCH[self.dtype]


class TensorFile:
    """A safetensors file with a checked header; iterate once over (name, tensor), then ask for `sha256`.

    Header, hash and tensors come from one reading of one open file, so what was checked is what is used.
    """

    def __init__(self, folder: Path, name: str) -> None:
        """Raises PackageError for a header that is too long, unsound or does not fit the file's size."""
        self.name = name
        self._file = open_inside(folder, name)
        try:
            head = self._file.read(8)
            length = int.from_bytes(head, "little")
            rest = os.fstat(self._file.fileno()).st_size - 8 - length
            if len(head) < 8 or length > HEADER_BYTES or rest < 0:
                self._refuse(f"its header claims {length} bytes")
            raw = self._file.read(length)
            self._digest = hashlib.sha256(head + raw)
            header = parse_json(raw, name)
            meta = header.pop("__metadata__", {})
            if not isinstance(meta, dict) or not all(isinstance(value, str) for value in meta.values()):
                self._refuse("its metadata is not text")
            self.entries = self._checked(header, rest)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Each tensor in file order, in its stored dtype, with memory of its own."""
        import torch

        for name, entry in self.entries.items():
            flat = torch.empty(entry.size_bytes, dtype=torch.uint8)
            view = memoryview(flat.numpy())  # type: ignore[arg-type]
            done = 0
            while done < entry.size_bytes:
                count = self._file.readinto(view[done:])  # type: ignore[attr-defined]
                if not count:
                    self._refuse("it ends early")
                done += count
            self._digest.update(view)
            # a bool is one byte that could hold anything
            typed = flat != 0 if entry.dtype == "BOOL" else flat.view(getattr(torch, entry.torch_name))
            yield name, typed.reshape(entry.shape)

    @property
    def sha256(self) -> str:
        """sha256 of the whole file, once all tensors were read."""
        return self._digest.hexdigest()

    def _checked(self, header: dict[str, Any], size: int) -> dict[str, TensorEntry]:
        found: list[tuple[int, int, str, TensorEntry]] = []
        for name, item in header.items():
            if not isinstance(item, dict) or set(item) != {"dtype", "shape", "data_offsets"}:
                self._refuse(f"tensor {printable(name)} is not described by dtype, shape and data_offsets")
            dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
            if not isinstance(dtype, str) or dtype not in _SIZES:
                self._refuse(f"tensor {printable(name)} has the dtype {printable(str(dtype))}")
            if not _sizes(shape) or len(shape) > 16 or not _sizes(offsets) or len(offsets) != 2:
                self._refuse(f"tensor {printable(name)} has a shape or offsets that are not sizes")
            entry = TensorEntry(dtype, tuple(shape), offsets[1] - offsets[0])
            if entry.size_bytes != entry.numel * _SIZES[dtype]:
                self._refuse(f"tensor {printable(name)} does not fit its {entry.size_bytes} bytes")
            found.append((offsets[0], offsets[1], name, entry))
        end = 0
        for start, stop, name, _ in sorted(found, key=lambda row: row[:3]):
            if start != end:
                self._refuse(f"tensor {printable(name)} overlaps another or leaves a hole")
            end = stop
        if end != size:
            self._refuse(f"its tensors fill {end} bytes, it holds {size}")
        return {name: entry for _, _, name, entry in sorted(found, key=lambda row: row[:3])}

    def _refuse(self, why: str) -> NoReturn:
        raise PackageError('tensor file "{file}" is not sound: {why}', file=self.name, why=why)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write `tensors` as safetensors, in the order given and in their own dtypes; returns the file's sha256.

    It is not synced: write into a `new_folder`, which does that.

    The same tensors give the same bytes in every version of Sojourn: a package's identity hangs on it.
    """
    header: dict[str, Any] = {}
    start = 0
    for name, tensor in tensors.items():
        dtype = next(key for key, value in _TORCH.items() if str(tensor.dtype) == f"torch.{value}")
        stop = start + tensor.numel() * _SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, stop]}
        start = stop
    head = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    head += b" " * (-len(head) % 8)
    digest = hashlib.sha256()
    with writing(path), path.open("wb") as file:
        for block in (len(head).to_bytes(8, "little"), head, *map(_raw, tensors.values())):
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def _raw(tensor: Tensor) -> Any:
    import torch

    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def _sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**48 for item in value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        raise ValueError("a key stands twice")
    return out


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the system while writing `path` into OutOfRoom or InvalidInput."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = 0
            with suppress(OSError):
                free = shutil.disk_usage(path.parent).free
            raise OutOfRoom(
                'no room to write "{path}": {free_mb} MB are free; make room and try again',
                path=path, free_mb=free >> 20,
            ) from None  # fmt: skip
        raise InvalidInput('cannot write "{path}": {reason}', path=path, reason=error.strerror or error) from None


def writable(folder: Path) -> None:
    """Raise InvalidInput for a folder that one cannot write to, or cannot make; nothing is made yet."""
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        code = errno.ENOTDIR
    elif not os.access(there, os.W_OK | os.X_OK):
        code = errno.EACCES
    else:
        return
    raise InvalidInput('cannot write to "{path}": {reason}', path=folder, reason=os.strerror(code))


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(3)}.part")


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _sweep(folder: Path) -> None:
    """Remove what killed processes left half-written in `folder`."""
    for part in folder.iterdir():
        if found := re.fullmatch(r"\..+\.(\d{1,9})-[0-9a-f]{6}\.part", part.name):
            import psutil

            if psutil.pid_exists(int(found[1])):
                continue
            if part.is_dir() and not part.is_symlink():
                shutil.rmtree(part, ignore_errors=True)
            else:
                part.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # folders cannot be opened on Windows
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _swap(a: Path, b: Path) -> bool:
    """Exchange two names in one step (renameat2, RENAME_EXCHANGE); False where the system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    return bool(renameat2(-100, os.fsencode(a), -100, os.fsencode(b), 2) == 0)
