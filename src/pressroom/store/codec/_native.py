"""The kernel, compiled once on the machine it runs on and loaded with ctypes, which lets go of the GIL while it works.

It is compiled on first use, when there is a C compiler, for the very processor (`-march=native`), into the user's cache
directory under a name that contains a digest of source, compiler, flags and processor: another machine that shares the
home directory gets its own. Without a compiler, or where the result does not load, NumPy does the same work.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np

from pressroom.store.codec.base import Array, DamagedError

_log = logging.getLogger(__name__)

_SOURCES = tuple(Path(__file__).with_name(name) for name in ("kernel.c", "rows.c"))
_FLAGS = ("-O3", "-std=c11", "-shared", "-fPIC", "-fno-strict-aliasing", "-ffp-contract=off")
_LANES = 64
_TOO_LONG = -2


class Kernel:
    """The functions of `kernel.c` and `rows.c`, with their memory. Thread-safe: each thread has its own."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        for name in ("floats_encode", "floats_decode", "bytes_encode", "bytes_decode", "int8_rows"):
            getattr(library, f"pressroom_{name}").restype = ctypes.c_int64
        library.pressroom_tables_size.restype = ctypes.c_size_t
        self.width: int = library.pressroom_kernel_width()
        self._tables = int(library.pressroom_tables_size())
        self._own = threading.local()

    def floats_encode(self, x: Array, p: Array | None, shift: int, groups: int, columns: bool) -> bytes | None:
        """The block, or None where it would not be shorter than the values."""
        n = len(x)
        index, work, apart, out = self._scratch(n)
        length = self._library.pressroom_floats_encode(
            _at(x), _at(p), _size(n), ctypes.c_uint(shift), _size(groups), ctypes.c_int(columns),
            _at(index), _at(work), _at(apart), _at(out), _size(x.nbytes), _at(self._own.tables),
        )  # fmt: skip
        return None if length == _TOO_LONG else out[:length].tobytes()

    def floats_decode(self, data: memoryview, p: Array | None, out: Array) -> None:
        tops, columns, *_ = self._scratch(len(out))
        stored = np.frombuffer(data, np.uint8)
        result = self._library.pressroom_floats_decode(
            _at(stored), _size(len(stored)), _at(p), _at(out), _size(len(out)), _at(tops), _at(columns),
            _at(self._own.tables),
        )  # fmt: skip
        _checked(result)

    def bytes_encode(self, symbol: Array, context: Array | None) -> bytes | None:
        n = len(symbol)
        index, work, _, out = self._scratch(n)
        length = self._library.pressroom_bytes_encode(
            _at(symbol), _at(context), _size(n), _at(index), _at(work), _at(out), _size(n), _at(self._own.tables)
        )
        return None if length == _TOO_LONG else out[:length].tobytes()

    def bytes_decode(self, data: memoryview, context: Array | None, out: Array) -> int:
        self._scratch(0)
        stored = np.frombuffer(data, np.uint8)
        return _checked(
            self._library.pressroom_bytes_decode(
                _at(stored), _size(len(stored)), _at(context), _at(out), _size(len(out)), _at(self._own.tables)
            )
        )

    def int8_rows(self, values: Array, columns: int, out: Array | None, scales: Array | None) -> bool:
        """Quantise rows of `columns` float32 or (as uint16) bfloat16 values. False where one has a NaN: the scales of
        such rows are a NaN, but not always NumPy's."""
        strange: int = self._library.pressroom_int8_rows(
            _at(values), ctypes.c_int(values.itemsize == 4), _size(len(values) // columns), _size(columns),
            _at(out), _at(scales),
        )  # fmt: skip
        return strange == 0

    def _scratch(self, n: int) -> tuple[Array, Array, Array, Array]:
        """Three times n + 128 values of 16 bits, and 2 n bytes; kept by the thread, and the tables with them."""
        own = self._own
        if getattr(own, "room", -1) < n:
            own.tables = np.empty(self._tables, np.uint8)
            own.room = max(n, 1 << 16)
            own.arrays = (
                *(np.empty(own.room + 2 * _LANES, np.uint16) for _ in range(3)),
                np.empty(2 * own.room + 64, np.uint8),
            )
        arrays: tuple[Array, Array, Array, Array] = own.arrays
        return arrays


def _at(array: Array | None) -> Any:
    return None if array is None else ctypes.c_void_p(array.ctypes.data)


def _size(n: int) -> ctypes.c_size_t:
    return ctypes.c_size_t(n)


def _checked(result: int) -> int:
    if result < 0:
        raise DamagedError("a block does not decode: it was altered, or belongs to another parent")
    return result


@functools.cache
def load(architecture: str = "native") -> Kernel | None:
    """The kernel, compiled first where it has to be; None where it cannot be had. `architecture` as for `-march=`."""
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None:
        _log.info("no C compiler: blocks are coded with NumPy, the same bytes, slowly")
        return None
    try:
        return Kernel(ctypes.CDLL(str(_compiled(compiler, architecture))))
    except (OSError, subprocess.SubprocessError) as error:
        _log.warning(
            "the codec's kernel cannot be used (%s): blocks are coded with NumPy, the same bytes, slowly", error
        )
        return None


def _compiled(compiler: str, architecture: str) -> Path:
    flags = [*_FLAGS, f"-march={architecture}" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"]
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=60).stdout
    told = b"\0".join([*(source.read_bytes() for source in _SOURCES), version, " ".join(flags).encode(), _processor()])
    name = f"kernel-{hashlib.sha256(told).hexdigest()[:32]}.so"
    directory = _directory()
    library = directory / name
    if library.is_file():
        return library
    with tempfile.NamedTemporaryFile(dir=directory, prefix=".kernel-", suffix=".so", delete=False) as file:
        unfinished = Path(file.name)
    try:
        done = subprocess.run(
            [compiler, *flags, "-o", str(unfinished), *map(str, _SOURCES)],
            capture_output=True,
            timeout=300,
            check=False,
        )
        if done.returncode:
            raise OSError(f"{compiler} ended with {done.returncode}: {done.stderr.decode(errors='replace')[-500:]}")
        unfinished.rename(library)
    finally:
        unfinished.unlink(missing_ok=True)
    return library


def _directory() -> Path:
    """A directory of this user's that nobody else can write to: what lies in it is executed."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    directory = base / "pressroom"
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = directory.stat()
    except (OSError, RuntimeError) as error:
        raise OSError(f"no cache directory for it: {error}") from error
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(f"{directory} belongs to somebody else or can be written by others")
    return directory


def _processor() -> bytes:
    """What tells processors apart: the flags Linux lists, elsewhere the name."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().split(b"\n")
        return b"\n".join(sorted({line for line in lines if line.startswith((b"flags", b"Features", b"model name"))}))
    except OSError:
        return f"{platform.machine()} {platform.processor()}".encode()
