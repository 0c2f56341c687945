"""The one table of platforms: how OCI, the kernel, Debian and wheels each name them."""

from __future__ import annotations

import platform as host
from dataclasses import dataclass

from fp4forge.kernels.base import UsageError


@dataclass(frozen=True)
class Platform:
    """One platform that vLLM is built for."""

    name: str  # as OCI writes it (image specification, "platform")
    machine: str  # uname -m, and the wheels' tags
    debian: str  # dpkg --print-architecture
    aliases: tuple[str, ...] = ()  # other spellings of the machine, in lower case
    runner: str = ""  # label of a self-hosted GitHub runner

    @property
    def wheel(self) -> str:
        """The platform tag that uv resolves and installs wheels for."""
        return f"{self.machine}-manylinux_2_39"

    @property
    def slug(self) -> str:
        """The name as part of a file name."""
        return self.name.replace("/", "-")

    @property
    def architecture(self) -> str:
        """The name without the operating system, such as ``arm64``."""
        return self.name.partition("/")[2]


AMD64 = "linux/amd64"
ARM64 = "linux/arm64"
PLATFORMS: dict[str, Platform] = {
    platform.name: platform
    for platform in (
        Platform(AMD64, "x86_64", "amd64", ("amd64",), "X64"),
        Platform(ARM64, "aarch64", "arm64", ("arm64",), "ARM64"),
    )
}


def host_platform() -> str:
    """This machine's platform as OCI writes it.

    Raises:
        UsageError: vLLM is not built for this machine.
    """
    machine = host.machine().lower()
    for platform in PLATFORMS.values():
        if machine == platform.machine or machine in platform.aliases:
            return platform.name
    raise UsageError(
        f"this machine is {machine!r}",
        rule="vLLM images exist for " + " and ".join(PLATFORMS),
        remedy="give --platform and --builder",
    )


def check(name: str) -> str:
    """The platform's name after validation.

    Raises:
        UsageError: vLLM is not built for it.
    """
    if name not in PLATFORMS:
        raise UsageError(
            f"--platform {name!r} is not a platform that images are built for",
            rule="one of " + ", ".join(PLATFORMS),
            remedy="leave it out: the default is the GPU's, or this machine's",
        )
    return name
