"""Reads a checkpoint's config, index and safetensors headers; weights stay on disk.

The format: 8 bytes little-endian header length, a JSON header, then the tensors' bytes
(safetensors, "Format" in its documentation). The safetensors package opens tensors by framework
and knows no FP8 without torch; here only headers and the bytes of scales are read.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fp4forge.core.errors import CheckpointError

# Bytes of one element, by safetensors' dtype names.
ELEMENT_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2,
    "U16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
_LARGEST_HEADER = 100_000_000  # safetensors' own limit
_LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class Tensor:
    """One tensor: dtype as safetensors names it, shape, and its bytes' place in a file."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start


@dataclass(frozen=True)
class Problem:
    """A file that is not what it should be."""

    where: str
    text: str


@dataclass(frozen=True)
class Checkpoint:
    """A folder's tensors by name, its configuration, and what was wrong with its files."""

    folder: Path
    config: dict[str, Any]
    quantisation: dict[str, Any]  # hf_quant_config.json, else config.json's quantization_config
    tensors: dict[str, Tensor]
    index: dict[str, str] | None  # tensor -> file, of model.safetensors.index.json
    problems: tuple[Problem, ...] = field(default=())

    @property
    def text_config(self) -> dict[str, Any]:
        """The language model's configuration; of a multimodal model, the part of its text."""
        found: dict[str, Any] = self.config.get("text_config") or self.config
        return found

    @contextmanager
    def bytes(self) -> Iterator[Any]:
        """A function from a tensor to a view of its bytes; files are mapped, not read."""
        with ExitStack() as stack:
            maps: dict[str, mmap.mmap] = {}

            def view(tensor: Tensor) -> memoryview:
                if tensor.file not in maps:
                    handle = stack.enter_context((self.folder / tensor.file).open("rb"))
                    mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
                    maps[tensor.file] = mapped
                return memoryview(maps[tensor.file])[tensor.start : tensor.end]

            yield view  # views may outlive this block: their maps close with the last of them


def read(folder: Path) -> Checkpoint:
    """Reads a checkpoint's folder.

    Args:
        folder: with config.json and \\*.safetensors, as Hugging Face lays a model out.

    Returns:
        The checkpoint; files that cannot be read are among its problems.

    Raises:
        CheckpointError: there is no folder, no config.json, or not one safetensors file.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} is not a folder",
            rule="a checkpoint is a folder with config.json and *.safetensors",
            remedy="build.py checkpoint fetch REPO downloads one",
        )
    config = _json(folder / "config.json")
    quantisation = (
        _json(folder / "hf_quant_config.json").get("quantization", {})
        if (folder / "hf_quant_config.json").is_file()
        else config.get("quantization_config") or {}
    )
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(
            f"{folder} has no *.safetensors",
            rule="weights are read from safetensors files",
            remedy="build.py checkpoint fetch REPO downloads a checkpoint whole",
        )
    tensors: dict[str, Tensor] = {}
    problems: list[Problem] = []
    for name in files:
        try:
            for tensor in header(folder / name):
                if tensor.name in tensors:
                    other = tensors[tensor.name].file
                    problems.append(Problem(name, f"{tensor.name} is also in {other}"))
                tensors[tensor.name] = tensor
        except CheckpointError as error:
            problems.append(Problem(name, error.message.removeprefix(f"{name}: ")))
    index_file = folder / "model.safetensors.index.json"
    index = None
    if index_file.is_file():
        index = _json(index_file).get("weight_map")
        if not isinstance(index, dict):
            raise CheckpointError(
                f"{index_file.name} has no weight_map", rule="an object from tensor to file"
            )
    return Checkpoint(folder, config, quantisation, tensors, index, tuple(problems))


def header(path: Path) -> list[Tensor]:
    """The tensors of one safetensors file.

    Raises:
        CheckpointError: it is a git-LFS pointer, truncated, or not safetensors.
    """
    size = path.stat().st_size
    with path.open("rb") as handle:
        first = handle.read(len(_LFS))
        if first == _LFS:
            raise CheckpointError(
                f"{path.name}: a git-LFS pointer, not the weights",
                remedy="git lfs pull, or build.py checkpoint fetch REPO",
            )
        if size < 8:
            raise CheckpointError(f"{path.name}: {size} bytes are no safetensors file")
        length = int.from_bytes(first[:8], "little")
        if not 2 <= length <= min(_LARGEST_HEADER, size - 8):
            raise CheckpointError(
                f"{path.name}: its header should be {length} bytes, the file has {size}"
            )
        handle.seek(8)
        text = handle.read(length)
    try:
        entries = json.loads(text)
        found = [
            Tensor(
                name, path.name, entry["dtype"], tuple(entry["shape"]),
                8 + length + entry["data_offsets"][0], 8 + length + entry["data_offsets"][1],
            )
            for name, entry in entries.items() if name != "__metadata__"
        ]  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise CheckpointError(f"{path.name}: its header is not safetensors' JSON") from None
    for tensor in found:
        wanted = math.prod(tensor.shape) * ELEMENT_BYTES.get(tensor.dtype, 0)
        if tensor.dtype in ELEMENT_BYTES and tensor.size != wanted:
            raise CheckpointError(
                f"{path.name}: {tensor.name} has {tensor.size} bytes,"
                f" {tensor.dtype} {list(tensor.shape)} are {wanted}"
            )
    end = max((tensor.end for tensor in found), default=8 + length)
    if end > size:
        raise CheckpointError(
            f"{path.name}: truncated: {size} bytes of {end}",
            remedy="fetch the file again; build.py checkpoint fetch resumes",
        )
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent} has no {path.name}",
            rule="a checkpoint is a folder with config.json and *.safetensors",
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return found
