"""Compiles the kernels on the machine that runs them, once, and loads them.

The library lies in the user's cache folder, under a name made of all that it depends on: source, compiler, flags, CPU.
"""

import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from lth_lightning.errors import SettingError

SOURCE = Path(__file__).with_name("kernels.c")
HEADER = Path(__file__).with_name("vectors.h")
FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
REALS = {"float": 4, "double": 8}
TARGETS = (("-march=native",), ("-mcpu=native",), ())  # not every compiler knows each for every CPU
INSTALL = "install a C compiler (gcc or clang), or one from pip: pip install 'lth_lightning[native]'"


class NoCompilerError(SettingError):
    """No C compiler is there, or none that compiles the kernels."""


class Kernels:
    """The compiled kernels for one type of numbers.

    Args:
        path: the compiled library.
        dtype: torch.float32 or torch.float64.
    """

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        library = ctypes.CDLL(str(path))
        self.run = library.lth_run
        self.run.restype = None
        self.run.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 2
        self.apply = library.lth_apply
        self.apply.restype = None
        self.apply.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64]
        library.lth_width.restype = ctypes.c_int64
        self.width = int(library.lth_width())
        self.dtype = dtype


@functools.cache
def kernels(dtype: torch.dtype) -> Kernels:
    """Return the kernels for float32 or float64, compiled at the first call on this machine.

    Raises:
        NoCompilerError: there is no compiler, or it fails; the error says what to install.
    """
    return Kernels(library(SOURCE, dtype), dtype)


def library(source: Path, dtype: torch.dtype) -> Path:
    """Return the compiled library of a C file for numbers of a type, as for `kernels`."""
    real, text = "double" if dtype == torch.float64 else "float", HEADER.read_bytes() + source.read_bytes()
    tried = []
    for compiler in _compilers():
        for target in TARGETS:
            command = [*compiler, *FLAGS, *target, f"-DREAL={real}", f"-DREAL_BYTES={REALS[real]}"]
            key = hashlib.sha256(text + repr((command, _version(tuple(compiler)), _cpu())).encode()).hexdigest()[:20]
            path = _cache() / f"{source.stem}-{key}{'.dylib' if sys.platform == 'darwin' else '.so'}"
            if path.exists():
                return path
            if (said := _compile([*command, str(source)], path)) is None:
                return path
            tried.append(said)
    if tried:
        raise NoCompilerError(f"the sparse kernels do not compile ({tried[0]}); {INSTALL}.")
    raise NoCompilerError(f"sparse kernels need a C compiler, and there is none: {INSTALL}.")


def compiled(source: Path, to: Path) -> ctypes.CDLL:
    """Compile a C99 file that needs no library, and load it.

    Args:
        source: the file; headers may lie beside it.
        to: where the library goes.

    Raises:
        NoCompilerError: there is no compiler, or it fails.
    """
    said: str | None = f"there is no C compiler: {INSTALL}"
    for compiler in _compilers():
        said = _compile([*compiler, "-std=c99", "-O2", "-shared", "-fPIC", str(source)], to)
        if said is None:
            return ctypes.CDLL(str(to))
    raise NoCompilerError(f"{source} does not compile ({said}).")


def _compile(command: list[str], path: Path) -> str | None:
    """Compile to `path`, which appears at once and whole; return the compiler's first complaint if it fails."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        done = subprocess.run([*command, "-o", str(made), "-lm"], capture_output=True, text=True, check=False)
        if done.returncode:
            return next((line for line in done.stderr.splitlines() if "error" in line), f"exit code {done.returncode}")
        os.replace(made, path)
    return None


def _compilers() -> Iterator[list[str]]:
    if given := os.environ.get("CC"):
        yield given.split()
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            yield [found]
    if importlib.util.find_spec("ziglang") is not None:
        yield [sys.executable, "-m", "ziglang", "cc"]


@functools.cache
def _version(compiler: tuple[str, ...]) -> str:
    try:
        return subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False).stdout[:200]
    except OSError:
        return ""


@functools.cache
def _cpu() -> str:
    """What the kernels are compiled for: two machines that share a cache folder may differ in it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "Features", "CPU part")
    return " ".join(sorted({line for line in lines if line.startswith(wanted)}))


def _cache() -> Path:
    """The folder for compiled kernels; a temporary one where the user's cannot be written."""
    base = os.environ.get("XDG_CACHE_HOME") or (
        os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else Path.home() / ".cache"
    )
    folder = Path(base or tempfile.gettempdir()) / "lth_lightning"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    # One folder a user, closed to others: a library that is loaded must not be anybody's to replace.
    folder = Path(tempfile.gettempdir()) / f"lth_lightning-{getattr(os, 'getuid', lambda: 0)()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
        raise NoCompilerError(f"{folder} belongs to another user, so compiled kernels cannot be kept there.")
    return folder
