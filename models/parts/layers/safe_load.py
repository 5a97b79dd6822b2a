"""Files of tensors, read without running anything that lies in them."""

import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import safetensors.torch
import torch
from safetensors import SafetensorError

_TENSORS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def read_tensors(file: str | Path | IO[bytes], what: str = "") -> dict[str, Any]:
    """What ``torch.save`` or safetensors wrote: a dictionary of tensors and plain values, on the CPU.

    Args:
        file: Path, by whose ending ``.safetensors`` is known, or what ``torch.save`` wrote as an open file.
        what: Names it in errors.

    Raises:
        ValueError: It holds code or any other object, is packed, damaged, or no dictionary. Nothing of it was run.
        OSError: It cannot be read.
    """
    what = what or str(file)
    with refused_code(what):
        if isinstance(file, str | Path) and str(file).endswith(".safetensors"):
            return dict(safetensors.torch.load_file(file))
        _refuse_packed(file, what)
        stored = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(stored, dict):
        raise ValueError(f"{what} holds a {type(stored).__name__}, expected a dictionary of tensors")
    return stored


@contextmanager
def refused_code(what: str) -> Iterator[None]:
    """Within, PyTorch reads tensors and runs no code, whatever its callers ask for; its refusal becomes one line.

    Raises:
        ValueError: ``what`` holds more than tensors, or is damaged.
    """
    before = os.environ.get(_TENSORS_ONLY)
    os.environ[_TENSORS_ONLY] = "1"  # torchvision reads what it downloaded with everything allowed
    try:
        yield
    except (UnpicklingError, SafetensorError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        why = f"it would run {named[1]}" if named else (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{what} is refused, and nothing of it was run: it is damaged, or holds more than tensors ({why[:200]}); "
            "give a .safetensors file, or one of torch.save(model.state_dict(), file)"
        ) from None
    finally:
        if before is None:
            del os.environ[_TENSORS_ONLY]
        else:
            os.environ[_TENSORS_ONLY] = before


def _refuse_packed(file: str | Path | IO[bytes], what: str) -> None:
    """``torch.save`` never compresses: a file that is small here and huge in memory was made to harm."""
    if not zipfile.is_zipfile(file):
        packed = False
    else:
        with zipfile.ZipFile(file) as archive:
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
    if not isinstance(file, str | Path):
        file.seek(0)
    if packed:
        raise ValueError(f"{what} is refused: it is compressed, as torch.save never writes it; save it with torch.save")
