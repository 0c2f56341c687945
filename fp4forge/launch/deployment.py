"""What is known of a server that was started here: its files, and how Docker Compose is called."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from fp4forge.core import files, reading
from fp4forge.core.errors import EngineError, ServingError, UsageError
from fp4forge.core.limits import PROGRAM_SECONDS
from fp4forge.core.paths import STATE
from fp4forge.core.text import shown
from fp4forge.oci import dockercli, engine, process
from fp4forge.serve import gateway, manifest, monitoring, settings

FOLDER = STATE / "serve"
_FILE = "deployment.json"


class DeployedServer(Struct, frozen=True, kw_only=True):
    """One of several servers on one GPU.

    Attributes:
        service: its name in the compose file.
        container: its container's name.
        served_name: the model's name in the API.
        weights: bytes of the checkpoint's tensors.
        expected: tokens a second of one stream, at most; 0 if it is not known.
        seconds: of each phase of its last start.
    """

    service: str
    container: str
    served_name: str
    weights: int = 0
    expected: float = 0
    seconds: dict[str, float] = {}


class Deployment(Struct, frozen=True, kw_only=True):
    """A server, or several behind a gateway.

    Attributes:
        name: of its container, its Compose project and its folder.
        model: the checkpoint's folder; of several models, the first's, as in served_name.
        served_name: the model's name in the API.
        image: by digest.
        release: of the image.
        url: the server's root, as this machine reaches it.
        key_file: file with the API's key, or empty.
        override: whether a second compose file was given.
        monitoring: whether Prometheus and Grafana run beside it.
        started: when, in ISO 8601.
        weights: bytes of the checkpoint's tensors; 0 if it was not read.
        expected: tokens a second of one stream, at most; 0 if it is not known.
        seconds: of each phase of its last start.
        servers: if there are several, each of them, in the order in which they start.
    """

    name: str
    model: str
    served_name: str
    image: str
    release: str
    url: str
    key_file: str = ""
    override: bool = False
    monitoring: bool = False
    started: str = ""
    weights: int = 0
    expected: float = 0
    seconds: dict[str, float] = {}
    servers: list[DeployedServer] = []

    @property
    def models(self) -> list[str]:
        """The models' names in the API."""
        return [server.served_name for server in self.servers] or [self.served_name]

    @property
    def gateway(self) -> str:
        """The container at the address: the gateway before several servers, else the server."""
        return manifest.container_of(self.name, "gateway") if self.servers else self.name

    @property
    def containers(self) -> list[str]:
        """Containers that must run for it to answer."""
        return [*(server.container for server in self.servers), self.gateway]

    @property
    def last_services(self) -> list[str]:
        """What starts after several servers, as the compose file names it."""
        return ["gateway", *(["prometheus", "grafana"] if self.monitoring else [])]

    @property
    def rates(self) -> list[float]:
        """Tokens a second of one stream of each model, at most; 0 if it is not known."""
        return [server.expected for server in self.servers] or [self.expected]

    @property
    def health(self) -> str:
        """The path that answers when it is up."""
        return gateway.HEALTH if self.servers else "/health"

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return FOLDER / self.name

    @property
    def compose_files(self) -> list[Path]:
        """Its compose files."""
        more = [self.folder / "override.yaml"] if self.override else []
        return [self.folder / "compose.yaml", *more]

    def write(
        self, compose: str, override: str, servers: Sequence[settings.ServerSettings] = ()
    ) -> None:
        """Writes its files and its record; an override that it had before goes.

        Args:
            compose: the compose file.
            override: a second one that is merged over it, or empty.
            servers: the settings of several servers, for their gateway.
        """
        if self.monitoring:
            targets = [f"{server.name}:{settings.PORT}" for server in servers]
            monitoring.write(self.folder, self.name, targets or (monitoring.TARGET,))
        if servers:
            gateway.write(self.folder, self.name, servers)
        files.replace(self.folder / "compose.yaml", compose)
        if override:
            files.replace(self.folder / "override.yaml", override)
        else:
            (self.folder / "override.yaml").unlink(missing_ok=True)
        self.save()

    def save(self) -> None:
        """Writes the record."""
        files.replace(self.folder / _FILE, msgspec.json.format(msgspec.json.encode(self)))

    def compose(self, *words: str) -> list[str]:
        """A command line of Docker Compose about this server.

        Raises:
            EngineError: it is not installed.
        """
        line = dockercli.compose()
        if not line:
            raise EngineError(
                "Docker Compose is not installed",
                rule="a server is started by 'docker compose' or docker-compose",
                remedy="run make setup, or install Docker's compose plugin",
            )
        named = [word for file in self.compose_files for word in ("-f", str(file))]
        profile = ["--profile", monitoring.PROFILE] if self.monitoring else []
        return [*line, "-p", self.name, *named, *profile, *words]

    def run(self, *words: str, seconds: float = PROGRAM_SECONDS) -> str:
        """Has Docker Compose do something; returns its output.

        Raises:
            EngineError: no engine answers.
            ServingError: it fails, with its last line.
        """
        done = process.run(self.compose(*words), seconds, ServingError)
        if done.returncode != 0:
            engine.connect()  # an engine that does not answer has its own message
            said = [line for line in done.stderr.splitlines() if line.strip()]
            raise ServingError(
                f"docker compose {words[0]} fails: {shown(said[-1] if said else '', 400)}",
                remedy=f"the files are in {self.folder}",
            )
        return done.stdout

    def remove(self) -> None:
        """Forgets the server."""
        shutil.rmtree(self.folder, ignore_errors=True)


def names() -> list[str]:
    """Servers that were started here."""
    return sorted(path.parent.name for path in FOLDER.glob(f"*/{_FILE}"))


def load(name: str | None) -> Deployment:
    """A server by its name; None: the only one.

    Raises:
        UsageError: there is none of that name, or there are several.
        ServingError: its record is damaged.
    """
    known = names()
    if name is None and len(known) == 1:
        name = known[0]
    if name is None or name not in known:
        what = f"no server {shown(name, 100)!r}." if name else "which server?"
        raise UsageError(
            f"{what} " + (f"Here: {', '.join(known)}" if known else "none was started here"),
            rule="a name that build.py serve status lists",
            remedy="build.py serve up MODEL starts one",
        )
    try:
        return reading.record(FOLDER / name / _FILE, Deployment, ServingError)
    except ServingError as error:
        error.remedy = f"docker compose -p {name} down, then remove {FOLDER / name}"
        raise
