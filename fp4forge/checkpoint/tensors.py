"""Reads a checkpoint's config, index and safetensors headers; weights stay on disk.

The format: 8 bytes little-endian header length, a JSON header, then the tensors' bytes
(safetensors, "Format" in its documentation). The safetensors package opens tensors by framework
and knows no FP8 without torch; here only headers and the bytes of scales are read.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Raw, Struct, json

from fp4forge.checkpoint import config as configs
from fp4forge.checkpoint.config import ModelConfig, Quantisation
from fp4forge.core import reading
from fp4forge.core.errors import CheckpointError
from fp4forge.core.limits import DIMENSIONS, HEADER_BYTES
from fp4forge.core.text import shown

# Bytes of one element, by safetensors' dtype names.
ELEMENT_BYTES = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
INDEX = "model.safetensors.index.json"
SHARDS = 10_000  # files of one checkpoint
_FILE = re.compile(r"(?!\.)[^/\\\x00-\x1f]{1,255}")
_RANK = re.compile(r"(?:^|-)rank-?\d+(?:-part-\d+)?\.safetensors$")
_NUMBERED = re.compile(r"(.*-)(\d{5})-of-(\d{5})\.safetensors")
_OTHERS = (".bin", ".gguf", ".pt", ".pth", ".ckpt", ".h5", ".npz", ".distcp", ".engine")
_LFS = b"version https://git-lfs"
_Place = Annotated[int, Meta(ge=0, le=1 << 48)]  # a size or an offset in a file


class Tensor(Struct, frozen=True, gc=False):  # a checkpoint may have 200,000
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
class FileProblem:
    """A file that is not what it should be."""

    where: str
    text: str


@dataclass(frozen=True)
class Checkpoint:
    """A folder's tensors by name, its configuration, and what was wrong with its files."""

    folder: Path
    config: ModelConfig
    quantisation: Quantisation  # config.json's; what it leaves out, from hf_quant_config.json
    modelopt: Quantisation | None  # hf_quant_config.json alone
    tensors: dict[str, Tensor]
    index: dict[str, str] | None  # tensor -> file, of model.safetensors.index.json
    problems: tuple[FileProblem, ...] = field(default=())
    skipped: tuple[str, ...] = ()  # files that the index does not name: vLLM reads none of them


class _Index(Struct, frozen=True):
    """model.safetensors.index.json: the file of each tensor."""

    weight_map: dict[str, str]


def read(folder: Path) -> Checkpoint:
    """Reads a checkpoint's folder.

    Args:
        folder: with config.json and \\*.safetensors, as Hugging Face lays a model out.

    Returns:
        The checkpoint; files that cannot be read are among its problems.

    Raises:
        CheckpointError: there is no folder, no config.json, or no safetensors file.
    """
    if not reading.is_folder(folder):
        raise CheckpointError(
            f"{shown(folder, 300)} is not a folder",
            rule="a checkpoint is a folder with config.json and *.safetensors",
            remedy="build.py checkpoint fetch REPO downloads one",
        )
    if not os.path.lexists(folder / "config.json"):
        raise CheckpointError(
            f"{shown(folder, 300)} has no config.json",
            rule="a checkpoint is a folder with config.json and *.safetensors",
        )
    config = configs.read(folder)
    quantisation = config.quantisation
    modelopt = None
    if os.path.lexists(folder / "hf_quant_config.json"):
        modelopt = configs.read_modelopt(folder)
        quantisation = configs.merged(quantisation, modelopt)
    index = _tensor_index(folder)
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    if not files:
        raise _no_files(folder)
    _by_rank(folder, files)
    skipped = [name for name in files if index is not None and name not in index.values()]
    if len(skipped) == len(files):
        raise CheckpointError(
            f"{shown(folder, 300)}/{INDEX} names none of the folder's files",
            rule="vLLM reads the files that the index names",
            remedy="write the index again, or remove it",
        )
    tensors: dict[str, Tensor] = {}
    problems = (
        []
        if index is not None
        else [FileProblem(name, "is missing") for name in _lost_shards(files)]
    )
    for name in files:
        if name in skipped:
            continue
        twice: dict[str, str] = {}
        try:
            for tensor in header(folder / name):
                if tensor.name in tensors:
                    twice[tensor.name] = tensors[tensor.name].file
                tensors[tensor.name] = tensor
        except CheckpointError as error:
            problems.append(FileProblem(name, error.message.removeprefix(f"{shown(name, 200)}: ")))
        if twice:
            first, other = next(iter(twice.items()))
            more = f", and {len(twice) - 1} more tensors" if len(twice) > 1 else ""
            problems.append(FileProblem(name, f"{first}{more}: also in {other}"))
    return Checkpoint(
        folder=folder,
        config=config,
        quantisation=quantisation,
        modelopt=modelopt,
        tensors=tensors,
        index=index,
        problems=tuple(problems),
        skipped=tuple(skipped),
    )


def _tensor_index(folder: Path) -> dict[str, str] | None:
    """The file of each tensor, as the index says; None without one.

    Raises:
        CheckpointError: it is not one, or names what cannot be a file of the folder.
    """
    if not os.path.lexists(folder / INDEX):
        return None
    found = reading.json_file(folder / INDEX, _Index, CheckpointError).weight_map
    for tensor, file in found.items():
        if not _FILE.fullmatch(file):
            raise CheckpointError(
                f"{shown(folder, 300)}/{INDEX}: {shown(tensor, 200)} is in {shown(file, 200)!r}",
                rule="a file of the same folder, by its name alone; vLLM looks nowhere else",
                remedy="move the files beside config.json, and write the index again",
            )
    return found


def _no_files(folder: Path) -> CheckpointError:
    others = sorted(path.name for path in folder.iterdir() if path.suffix in _OTHERS)
    there = f"; {shown(others[0], 100)} is there" if others else ""
    return CheckpointError(
        f"{shown(folder, 300)} has no *.safetensors{there}",
        rule="weights are read from safetensors files",
        remedy="export the model as safetensors"
        if others
        else "build.py checkpoint fetch REPO downloads a checkpoint whole",
    )


def _by_rank(folder: Path, files: list[str]) -> None:
    """Refuses files that each have one GPU's part of every tensor.

    Raises:
        CheckpointError: they are named as vLLM's sharded_state_loader.py or TensorRT-LLM does it.
    """
    ranks = [name for name in files if _RANK.search(name)]
    if ranks and len(ranks) == len(files):
        raise CheckpointError(
            f"{shown(folder, 300)}: {shown(ranks[0], 200)} has one GPU's part of the tensors",
            rule="only whole tensors can be inspected; a set by ranks fits only its own split",
            remedy="give the checkpoint that it was split from",
        )


def _lost_shards(files: list[str]) -> list[str]:
    """Files of a numbered set that are not there."""
    sets = {
        (match[1], int(match[3]))
        for name in files
        if (match := _NUMBERED.fullmatch(name)) and int(match[3]) <= SHARDS
    }
    wanted = [
        f"{before}{number + 1:05}-of-{count:05}.safetensors"
        for before, count in sorted(sets)
        for number in range(count)
    ]
    return [name for name in wanted if name not in files]


class _HeaderEntry(Struct, frozen=True):
    """One tensor in a header."""

    dtype: str
    shape: Annotated[tuple[_Place, ...], Meta(max_length=DIMENSIONS)]
    data_offsets: tuple[_Place, _Place]


_ENTRY = json.Decoder(_HeaderEntry)


def header(path: Path) -> list[Tensor]:
    """The tensors of one safetensors file.

    Raises:
        CheckpointError: it is a git-LFS pointer, truncated, not safetensors, or no plain file.
    """
    name = shown(path.name, 200)
    with reading.opened(path, CheckpointError) as handle:
        size = os.fstat(handle.fileno()).st_size
        first = handle.read(len(_LFS))
        if first == _LFS:
            raise CheckpointError(
                f"{name}: a git-LFS pointer, not the weights",
                remedy="git lfs pull, or build.py checkpoint fetch REPO",
            )
        if size < 8:
            raise CheckpointError(f"{name} is not a safetensors file ({size} bytes)")
        length = int.from_bytes(first[:8], "little")
        if not 2 <= length <= min(HEADER_BYTES, size - 8):
            raise CheckpointError(
                f"{name}: its header should be {length} bytes, the file has {size}"
            )
        handle.seek(8)
        text = handle.read(length)
    start = 8 + length
    file = path.name
    found = [_tensor(file, tensor, entry, start) for tensor, entry in _header_entries(text, name)]
    end = max((tensor.end for tensor in found), default=start)
    if end > size:
        raise CheckpointError(
            f"{name} is truncated: it has {size} of {end} bytes",
            remedy="fetch the file again; build.py checkpoint fetch resumes",
        )
    _refuse_overlap(name, found)
    return found


def _refuse_overlap(name: str, found: list[Tensor]) -> None:
    """Refuses tensors that share bytes.

    Raises:
        CheckpointError: two do; the message names them.
    """
    placed = sorted((one for one in found if one.size), key=lambda one: one.start)
    for one, other in pairwise(placed):
        if other.start < one.end:
            raise CheckpointError(
                f"{name}: {shown(one.name, 200)} and {shown(other.name, 200)} overlap",
                rule="each tensor of a safetensors file has bytes of its own",
                remedy="write the file again",
            )


def _header_entries(text: bytes, name: str) -> Iterator[tuple[str, _HeaderEntry]]:
    where = f"{name}: its header"
    for tensor, raw in reading.json(text, dict[str, Raw], where, CheckpointError).items():
        if tensor == "__metadata__":
            continue
        try:
            yield tensor, _ENTRY.decode(raw)
        except (ValueError, RecursionError):  # once more, for the message
            place = f"{where}, {shown(tensor, 200)}"
            yield tensor, reading.json(raw, _HeaderEntry, place, CheckpointError)


def _tensor(file: str, name: str, entry: _HeaderEntry, start: int) -> Tensor:
    begin, end = entry.data_offsets
    found = Tensor(name, file, entry.dtype, entry.shape, start + begin, start + end)
    wanted = math.prod(entry.shape) * ELEMENT_BYTES.get(entry.dtype, 0)
    if begin > end or (entry.dtype in ELEMENT_BYTES and end - begin != wanted):
        raise CheckpointError(
            f"{shown(file, 200)}: {shown(name, 200)} has {found.size} bytes;"
            f" {shown(entry.dtype, 20)} of shape {list(entry.shape)} needs {wanted}"
        )
    return found
