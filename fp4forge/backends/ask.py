"""Asks a release's own selection code, inside its image: no GPU, no network, nothing is changed."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import Struct, structs

from fp4forge.core import reading
from fp4forge.core.errors import EngineError, RegistryError, ToolError
from fp4forge.core.limits import BACKENDS_SILENCE_SECONDS
from fp4forge.core.text import shown
from fp4forge.kernels.base import Progress
from fp4forge.models.backend_answers import BackendAnswer
from fp4forge.oci import dockercli, engine, process

INSIDE = Path(__file__).parent / "inside"
_PLACE = "/tmp/fp4forge-backends"
_MARK = "fp4forge "  # of inside/ask.py
# What a server's KV cache can be: the model's type, and the two that save memory.
CACHES = ("auto", "fp8_e4m3", "nvfp4")


@dataclass(frozen=True)
class QueriedModel:
    """A model to ask for: a label, its config.json, its family (empty: none covers it)."""

    name: str
    config: dict[str, Any]
    family: str


class _SelectionLine(Struct, frozen=True):
    """A line of the program."""

    note: str = ""
    answers: tuple[BackendAnswer, ...] | None = None


def ask(
    image: str,
    platform: str,
    gpus: dict[str, tuple[int, int]],
    models: tuple[QueriedModel, ...],
    report: Progress,
) -> tuple[BackendAnswer, ...]:
    """What the vLLM of an image selects on each GPU for each model.

    Args:
        image: reference of an image that the engine has or can pull.
        platform: the one to pull, if the engine does not have the image.
        gpus: compute capabilities by GPU.
        models: their names differ.
        report: called with what is being done.

    Raises:
        RegistryError: the image is not here and cannot be pulled.
        ToolError: its vLLM cannot be asked; the message has the last lines of the program.
    """
    client = engine.connect()
    try:
        engine.have(client, image, platform, report)
    except RegistryError as error:
        raise RegistryError(
            error.message,
            rule="the release's own vLLM is asked, in its image",
            remedy="--image names another one; --kept shows the answers in releases/backends",
        ) from None
    with engine.container(client, image, _image_platform(client, image)) as container:
        return ask_in(client, container, image, gpus, models, report)


def ask_in(
    client: Any,
    container: str,
    image: str,
    gpus: dict[str, tuple[int, int]],
    models: tuple[QueriedModel, ...],
    report: Progress,
) -> tuple[BackendAnswer, ...]:
    """The same in a container of the image that runs already.

    Raises:
        ToolError: as ``ask``.
    """
    request = {
        "gpus": gpus,
        "models": {model.name: model.config for model in models},
        "caches": CACHES,
    }
    listener = _Listener(report)
    client.api.put_archive(container, "/tmp", archive(request))
    words = ["exec", f"--workdir={_PLACE}", container, "python3", "-m", "inside.ask"]
    report("starting Python in the image")
    code = process.follow(
        dockercli.line(*words, "request.json"), listener.hear, BACKENDS_SILENCE_SECONDS, EngineError
    )
    families = {model.name: model.family for model in models}
    return tuple(
        structs.replace(answer, family=families.get(answer.model, ""))
        for answer in listener.answers(image, code)
    )


class _Listener:
    """Tells the program's lines from what vLLM and PyTorch print."""

    def __init__(self, report: Progress) -> None:
        self.report = report
        self.found: tuple[BackendAnswer, ...] | None = None
        self.rest: list[str] = []

    def hear(self, line: str) -> None:
        """One line of output."""
        if not line.startswith(_MARK):
            self.rest = [*self.rest[-20:], line.rstrip()]
            return
        said = reading.json(line.removeprefix(_MARK), _SelectionLine, "inside.ask", ToolError)
        if said.answers is not None:
            self.found = said.answers
        if said.note:
            self.report(said.note)

    def answers(self, image: str, code: int) -> tuple[BackendAnswer, ...]:
        """What was answered.

        Raises:
            ToolError: nothing was.
        """
        if code == 0 and self.found is not None:
            return self.found
        last = "\n".join(text for text in self.rest[-4:] if text)
        raise ToolError(
            f"the vLLM of {image} cannot be asked (exit code {code}):\n{shown(last, 1500)}",
            rule="an image with vLLM, torch, and the CUDA toolkit's stub of libcuda.so",
        )


def archive(request: dict[str, Any]) -> bytes:
    """The program and a request as a tar, to unpack in the image's /tmp."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        contents = {f"inside/{p.name}": p.read_bytes() for p in sorted(INSIDE.glob("*.py"))}
        contents["request.json"] = json.dumps(request).encode()
        for name, content in contents.items():
            entry = tarfile.TarInfo(f"{_PLACE.removeprefix('/tmp/')}/{name}")
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def _image_platform(client: Any, image: str) -> str:
    """The platform of an image that the engine has."""
    attributes = client.images.get(image).attrs
    return f"{attributes['Os']}/{attributes['Architecture']}"
