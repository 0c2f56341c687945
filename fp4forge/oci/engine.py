"""The Docker engine: is it there, its images, and containers that never stay behind."""

from __future__ import annotations

import contextlib
import io
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from msgspec import Struct

from fp4forge.core import reading
from fp4forge.core.errors import (
    DiskError,
    EngineError,
    ForgeError,
    PlatformError,
    RegistryError,
)
from fp4forge.core.limits import LOAD_SECONDS, PULL_SILENCE_SECONDS
from fp4forge.core.text import shown
from fp4forge.kernels.base import Progress
from fp4forge.oci import dockercli, process
from fp4forge.oci.reference import listed

ROLE = "io.fp4forge.role"
# Why the engine does not answer, by what the SDK says.
_SILENCES = (
    (r"FileNotFoundError|No such file", "there is no such socket, so no engine runs"),
    (r"PermissionError|Permission denied", "this user may not use it, and is not in group docker"),
    (r"[Cc]onnection ?[Rr]efused", "nothing listens there"),
    (r"[Tt]imed? ?out", "it does not answer in time"),
    (r"NameResolutionError|Name or service not known", "no machine has that name"),
    (r"Client Error", "something other than an engine listens there"),
    (r"paramiko", "the Docker SDK cannot use an ssh:// address here"),
)


def connect() -> Any:
    """A docker SDK client of an engine that answers.

    Raises:
        EngineError: none answers; the message has the address that was tried.
    """
    import docker
    from docker.errors import DockerException

    try:
        client = docker.from_env()
        client.ping()
    except (DockerException, OSError, ValueError) as error:  # ValueError: an odd DOCKER_HOST
        where = os.environ.get("DOCKER_HOST", "the default socket")
        raise EngineError(
            f"no Docker engine answers at {shown(where, 200)}: {_silence(str(error))}",
            rule="this command needs a running engine",
            remedy="run make setup, start the engine, or set DOCKER_HOST",
        ) from None
    require_client()
    return client


def find_container(name: str) -> Any:
    """A container as docker's SDK has it; None if the engine has none of that name.

    Raises:
        EngineError: no engine answers.
    """
    from docker.errors import APIError

    try:
        return connect().containers.get(name)
    except APIError:  # NotFound, and what an engine says of a name that no container can have
        return None


def _silence(said: str) -> str:
    """Why an engine does not answer; the SDK's own text is a chain of its libraries' exceptions."""
    return next((why for pattern, why in _SILENCES if re.search(pattern, said)), last_words(said))


def require_client() -> None:
    """Checks that the docker client is installed.

    Raises:
        EngineError: PATH does not have it.
    """
    if not dockercli.installed():
        raise EngineError("the docker client is not in PATH", remedy="run make setup")


def is_here() -> bool:
    """Whether the engine is on this machine: its kernel and its containers' processes are ours."""
    return os.environ.get("DOCKER_HOST", "unix://").partition("://")[0] == "unix"


def present(reference: str) -> bool:
    """Whether the engine has an image. Asks docker's client: the SDK takes longer to import.

    Raises:
        EngineError: the client does not end.
    """
    if not dockercli.installed():
        return False
    return dockercli.run("image", "inspect", reference).returncode == 0


def load(archive: Path, kind: type[ForgeError] = RegistryError) -> None:
    """Gives the engine the images of an archive (docker save's, or an OCI layout).

    Raises:
        ForgeError: of the given class: the engine refuses it, or takes longer than an hour.
    """
    done = dockercli.run("load", "--quiet", "-i", str(archive), seconds=LOAD_SECONDS, kind=kind)
    if done.returncode != 0:
        raise kind(f"docker load failed: {shown(done.stderr[-300:])}")


@contextlib.contextmanager
def container(client: Any, image: str, platform: str, gpu: bool = False) -> Iterator[str]:
    """The id of a container of the image in which nothing runs; removed in any case.

    It lives as long as this process holds its standard input: killed outright, it goes too.

    Raises:
        PlatformError: the engine has no such image for that platform.
        EngineError: gpu, and the engine cannot give a container a GPU.
    """
    from docker.errors import APIError, NotFound
    from docker.types import DeviceRequest

    requests = [DeviceRequest(count=-1, capabilities=[["gpu"]])] if gpu else None

    try:
        made = client.containers.create(
            image,
            entrypoint=["cat"],
            command=[],
            platform=platform,
            network_mode="none",
            stdin_open=True,
            auto_remove=True,
            device_requests=requests,
            labels={ROLE: "verify"},
        )
    except NotFound:
        raise PlatformError(
            f"{image} is not here, or not for {platform}",
            rule="an image is checked on the platform of its plan",
            remedy="docker pull it, or give the --platform it is for",
        ) from None
    held = made.attach_socket(params={"stdin": 1, "stream": 1})
    try:
        try:
            made.start()
        except APIError as error:
            if not gpu:
                raise
            raise EngineError(
                f"the engine has no GPU for a container: {last_words(str(error.explanation))}",
                rule="--gpu tests on this machine's GPU",
                remedy="install the NVIDIA driver and container toolkit, or leave --gpu out",
            ) from None
        yield made.id
    finally:
        discard(made)
        held.close()


def have(client: Any, image: str, platform: str | None, report: Progress) -> str:
    """Makes sure that the engine has an image; returns what was done for it.

    Raises:
        RegistryError: it is not here and cannot be pulled.
    """
    from docker.errors import ImageNotFound

    try:
        client.images.get(image)
    except ImageNotFound:
        report(f"pulling {image}")
        pull(client, image, platform, report)
        return "pulled"
    return "the engine has it"


def discard(made: Any) -> None:
    """Removes a container of this process; that it is gone already is no failure."""
    from docker.errors import DockerException

    with contextlib.suppress(DockerException, OSError):
        made.remove(force=True)


def images(client: Any, labels: list[str]) -> list[dict[str, Any]]:
    """The engine's images with all of these labels, as its API lists them, the newest first.

    The list as the engine gives it: the SDK would inspect each image, of which another process
    removes some. With the containerd store the list itself fails then ("content digest not
    found"), and is asked for again.

    Raises:
        APIError: docker's; the list failed three times.
    """
    from docker.errors import APIError

    tries = 3
    while True:
        try:
            return list(client.api.images(filters={"label": labels}))
        except APIError:
            tries -= 1
            if not tries:
                raise
            time.sleep(0.5)


def retire(client: Any, repository: str, keep: str, labels: dict[str, str]) -> None:
    """Removes local copies, pulled by digest for their checks, that a newer build replaced.

    Args:
        client: docker SDK client.
        repository: only images of it are touched, and only those without a tag.
        keep: digest of the image that stays; its unpacked layers make the next check fast.
        labels: labels that a copy must have.
    """
    from docker.errors import APIError

    # The containerd store calls nothing dangling that has a digest of a repository.
    for image in images(client, [f"{name}={value}" for name, value in labels.items()]):
        if set(image.get("RepoTags") or ()) - {"<none>:<none>"}:
            continue
        for named in listed(image.get("RepoDigests")):
            if named.repository == repository and named.digest != keep:
                with contextlib.suppress(APIError):
                    client.images.remove(str(named))


def last_words(text: str) -> str:
    """The last line that a program printed, for a message."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return shown(lines[-1], 300) if lines else "no reason given"


class _Chunks(io.RawIOBase):
    """Chunks of an answer as a file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.chunks, self.rest = chunks, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self.rest:
            self.rest = next(self.chunks, b"")
        size = min(len(buffer), len(self.rest))
        buffer[:size], self.rest = self.rest[:size], self.rest[size:]
        return size


def as_file(chunks: Iterator[bytes]) -> IO[bytes]:
    """What the engine streams (an image, a container's folder) as a file to read once."""
    return io.BufferedReader(_Chunks(chunks), 4 << 20)


class _Event(Struct, frozen=True):
    """One line of POST /images/create."""

    error: str = ""
    status: str = ""
    id: str = ""


def pull(client: Any, reference: str, platform: str | None, report: Progress) -> None:
    """Pulls an image, with progress.

    docker's SDK drops the errors that the engine sends while it pulls; here they are raised.

    Raises:
        RegistryError: the image cannot be obtained, with the engine's reason.
        DiskError: it can, and does not fit.
    """
    from docker.errors import APIError

    try:
        # docker's SDK waits for the engine without end.
        stream = client.api.pull(reference, platform=platform, stream=True, decode=True)
        for raw in process.timed(stream, PULL_SILENCE_SECONDS):
            event = reading.shaped(raw, _Event, "an event of the engine", RegistryError)
            if "no space left" in event.error:
                raise DiskError(
                    f"{reference} cannot be unpacked: the engine's disk is full",
                    remedy="docker image prune and docker buildx prune free some;"
                    " running again resumes",
                )
            if event.error:
                raise RegistryError(
                    f"{reference} cannot be pulled: {shown(event.error, 300)}",
                    rule="a stock docker pull must be able to fetch a published image",
                    remedy="check the registry's storage and log; running again resumes",
                )
            if event.status and event.id:
                report(f"{event.id} {event.status}")
    except APIError as error:
        raise RegistryError(
            f"{reference} cannot be pulled: {shown(error.explanation or error, 300)}",
            rule="the engine pulls from the registry by itself",
            remedy="check the registry and 'docker login'",
        ) from None
    except TimeoutError:
        raise RegistryError(
            f"{reference}: the engine reported no progress for {PULL_SILENCE_SECONDS} s",
            rule="a working pull reports progress",
            remedy="check whether engine and registry still answer; running again resumes",
        ) from None


def name(client: Any, image: str, repository: str, tag: str) -> None:
    """Gives an image that the engine has a name in the engine."""
    from docker.errors import NotFound

    try:
        client.images.get(image).tag(repository, tag)
    except NotFound:
        raise EngineError(
            f"the engine does not have {image} any more",
            remedy="another program removed it; run again: the build is in the cache",
        ) from None


def forget(client: Any, name: str) -> None:
    """Removes a name from the engine, if it is there."""
    from docker.errors import DockerException

    with contextlib.suppress(DockerException):
        client.images.remove(name)
