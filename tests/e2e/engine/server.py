"""A published image serving on this CPU.

Mounted over it: the three extensions of the same version's CPU build, and a version that says so.
Its Python files are the image's own, and so are its patches.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import yaml

from fp4forge.inputs.release import Artefact
from fp4forge.maintain import sources
from tests.e2e.conftest import ROOT, shell

HERE = Path(__file__).parent
PROOFS = ROOT / "tests/image/proofs"
PINS: dict[str, dict[str, str]] = yaml.safe_load((HERE / "pins.yaml").read_text())
NETWORK = "fp4forge-engine"  # internal: containers on it reach nothing but this host
PORT = 8000
# What a CPU cannot take of a manifest.
CUDA_ONLY = ("--kv-cache-dtype", "--gpu-memory-utilization", "--moe-backend")
SETTINGS = {
    "FP4FORGE_ALLOW_ANY_GPU": "1",
    "FP4FORGE_ALLOW_MODIFIED": "1",  # the extensions are mounted over the image's
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NVFP4_GEMM_BACKEND": "emulation",
}


def packages(image: str) -> str:
    """The image's folder of Python packages."""
    find = "ls -d /usr/local/lib/python3.*/dist-packages"
    return shell(
        "docker", "run", "--rm", "--network=none", "--entrypoint=bash", image, "-c", find
    ).stdout.strip()


@dataclass(frozen=True)
class Cpu:
    """What is mounted over an image to serve on a CPU."""

    image: str
    version: str
    folder: Path  # extensions, METADATA

    @classmethod
    def of(cls, image: str, version: str, folder: Path) -> Cpu:
        """Fetches the CPU build of a version; its pin must be there."""
        wheel = sources.fetch(msgspec.convert(PINS[version], Artefact))
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.startswith("vllm/") and name.endswith(".so"):
                    archive.extract(name, folder)
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n"
        )
        shutil.copytree(HERE / "plugin", folder / "plugin")
        for path in folder.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        folder.chmod(0o755)
        return cls(image, version, folder)

    def mounts(self) -> dict[Path, str]:
        """Each file of this machine, and its place in the image."""
        site = packages(self.image)
        found = {path: f"{site}/vllm/{path.name}" for path in (self.folder / "vllm").glob("*.so")}
        found[self.folder / "METADATA"] = f"{site}/vllm-{self.version}.dist-info/METADATA"
        for entry in (self.folder / "plugin").iterdir():
            found[entry] = f"{site}/{entry.name}"
        return found

    def override(self, manifest: str) -> str:
        """A compose file that makes a manifest's server run on a CPU; the rest stays."""
        written = yaml.safe_load(manifest)["services"]["vllm"]
        command, words = [], iter(written["command"])
        for word in words:
            if word in CUDA_ONLY:
                next(words)
            else:
                command.append(word)
        mounts = [
            f"{source}:{target}:ro" for source, target in self.mounts().items() if source.is_file()
        ]
        service = {
            "command": [*command, "--dtype", "bfloat16", "--enforce-eager"],
            "volumes": mounts,
            "environment": SETTINGS,
        }
        text: str = yaml.safe_dump({"services": {"vllm": service}})
        return text.replace("    command:", "    deploy: !reset null\n    command:")


@dataclass
class Server:
    """``vllm serve`` in a container, until it is closed."""

    cpu: Cpu
    model: Path
    options: tuple[str, ...] = ()
    mounts: dict[Path, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    container: str = ""

    def start(self) -> None:
        """Starts the container; ``wait`` says when it answers."""
        line = ["docker", "run", "--detach", f"--network={NETWORK}", "--shm-size=1g"]
        everything = self.cpu.mounts() | {self.model: "/model"} | self.mounts
        line += [f"--volume={source}:{target}:ro" for source, target in everything.items()]
        line += [f"--env={name}={value}" for name, value in (SETTINGS | self.settings).items()]
        line += [self.cpu.image, "serve", "/model", "--served-model-name", "m"]
        line += ["--dtype", "bfloat16", "--max-model-len", "2048", "--enforce-eager"]
        self.container = shell(*line, *self.options).stdout.strip()

    @property
    def url(self) -> str:
        """The server's root."""
        form = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        address = shell("docker", "inspect", "--format", form, self.container).stdout.strip()
        return f"http://{address}:{PORT}"

    def running(self) -> bool:
        """Whether the container still runs."""
        form = "{{.State.Running}}"
        return shell("docker", "inspect", "--format", form, self.container).stdout.strip() == "true"

    def log(self) -> str:
        """What it has printed."""
        done = subprocess.run(
            ["docker", "logs", self.container], capture_output=True, text=True, check=False
        )
        return done.stdout + done.stderr

    def wait(self, seconds: float = 400) -> float:
        """Seconds until it answers.

        Raises:
            AssertionError: it ended, or took too long; the message has the log's end.
        """
        begin = time.monotonic()
        while time.monotonic() - begin < seconds:
            if not self.running():
                break
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2):
                    return time.monotonic() - begin
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        raise AssertionError(f"no server after {seconds} s:\n{self.log()[-3000:]}")

    def ended(self, seconds: float = 300) -> str:
        """The log of a server that ends by itself."""
        begin = time.monotonic()
        while self.running():
            assert time.monotonic() - begin < seconds, "it still runs"
            time.sleep(0.5)
        return self.log()

    def ask(self, path: str, body: Any = None, key: str = "", timeout: float = 120) -> Any:
        """Status and content of a request; JSON if it is."""
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {key}"} if key else {}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                status, text = answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read().decode()
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text

    def close(self) -> None:
        """Removes the container."""
        shell("docker", "rm", "--force", self.container, check=False)
