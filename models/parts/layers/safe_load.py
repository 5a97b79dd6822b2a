"""Reading files of tensors without running code that they contain."""

import errno
import os
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

_DAMAGED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    TypeError,
    ValueError,
    struct.error,
)
"""What PyTorch raises besides ``UnpicklingError`` and ``RuntimeError`` when bytes of a file are not those written."""

_MOST_SHARING = 8
"""How many tensors may show the same stored bytes, on average; tied weights are stored once and shown twice."""

_TENSORS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def read_tensors(file: str | Path | IO[bytes], what: str = "") -> dict[str, Any]:
    """Read a file of ``torch.save`` or safetensors: a dictionary of tensors and plain values, on the CPU.

    Args:
        file: Path (a name that ends in ``.safetensors`` is read as such), or an open file of ``torch.save``.
        what: Name of the file in error messages; default: its path.

    Raises:
        ValueError: The file contains code or other objects, or is compressed, damaged, or not a dictionary. None of
            its code was run.
        OSError: The file cannot be read.
    """
    what = what or str(file)
    with only_tensors(what):
        if isinstance(file, str | Path) and str(file).endswith(".safetensors"):
            return dict(safetensors.torch.load_file(file))
        try:
            compressed = _is_compressed(file)
            with warnings.catch_warnings(action="ignore"):  # of pickle protocols that it may not know
                stored = None if compressed else torch.load(file, map_location="cpu", weights_only=True)
        except (*_DAMAGED, OSError) as error:
            if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: a seek to where no byte can be
                raise
            raise UnpicklingError(f"{type(error).__name__}: {error}") from None
    if compressed:
        raise ValueError(f"{what} is refused: it is compressed, as torch.save never writes it; save it with torch.save")
    if not isinstance(stored, dict):
        raise ValueError(f"{what} holds a {type(stored).__name__}, expected a dictionary of tensors")
    return stored


def check_storage(stored: Any, what: str) -> None:
    """Raise ``ValueError`` if tensors are much larger than what is stored of them.

    A tensor whose strides are 0 shows one stored number as many times as it likes: the first copy of it could take
    terabytes. Whoever compares shapes before anything is copied need not call this.
    """
    waiting, storages, shown = [stored], dict[int, int](), 0
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
                raise ValueError(
                    f"{what} is refused: it holds a {value.layout} tensor on {value.device}, not plain ones"
                )
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            size = value.numel() * value.element_size()
            shown += size
            if size > storage.nbytes():
                raise ValueError(
                    f"{what} is refused: a tensor of shape {tuple(value.shape)} and strides {value.stride()} takes "
                    f"{size:,} bytes, of which it stores {storage.nbytes():,}"
                )
        elif isinstance(value, dict | list | tuple | set | frozenset):
            if id(value) in seen:  # lists in themselves, and lists that many lists share
                continue
            seen.add(id(value))
            waiting += [*value.keys(), *value.values()] if isinstance(value, dict) else value
    if shown > _MOST_SHARING * sum(storages.values()):
        raise ValueError(
            f"{what} is refused: its tensors take {shown:,} bytes, of which it stores {sum(storages.values()):,}"
        )


@contextmanager
def only_tensors(what: str) -> Iterator[None]:
    """Inside this context PyTorch loads tensors only and runs no code, whatever ``weights_only`` a caller passes.

    Raises:
        ValueError: ``what`` contains more than tensors, or is damaged; PyTorch's long message is cut to one line.
    """
    before = os.environ.get(_TENSORS_ONLY)
    os.environ[_TENSORS_ONLY] = "1"  # torchvision loads its downloads with weights_only=False
    try:
        yield
    except (UnpicklingError, SafetensorError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if named:
            why = f"it would run {named[1]}"
        elif why.startswith("Weights only load failed"):  # followed by advice to load it without this protection
            why = "PyTorch cannot read it as tensors"
        raise ValueError(
            f"{what} is refused, and nothing of it was run: it is damaged, or holds more than tensors ({why[:200]}); "
            "give a .safetensors file, or one of torch.save(model.state_dict(), file)"
        ) from None
    finally:
        if before is None:
            del os.environ[_TENSORS_ONLY]
        else:
            os.environ[_TENSORS_ONLY] = before


def _is_compressed(file: str | Path | IO[bytes]) -> bool:
    """Whether a file is compressed: ``torch.save`` never compresses, and a small file could fill the memory."""
    if not zipfile.is_zipfile(file):
        packed = False
    else:
        with zipfile.ZipFile(file) as archive:
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
    if not isinstance(file, str | Path):
        file.seek(0)
    return packed
