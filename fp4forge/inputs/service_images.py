"""The images that run beside servers: ``releases/services.yaml``."""

from __future__ import annotations

from functools import cache
from typing import Annotated

from msgspec import Meta, Struct

from fp4forge.core.errors import ReleaseError
from fp4forge.core.image_names import TAGGED
from fp4forge.core.paths import RELEASES
from fp4forge.inputs.bases import PinnedDigest
from fp4forge.inputs.reader import InputFormat


class PinnedImage(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An image of a hub."""

    image: Annotated[
        str,
        Meta(
            pattern=f"^{TAGGED}$",
            description="a reference with a tag",
            examples=["prom/prometheus:TAG"],
        ),
    ]
    digest: PinnedDigest = ""

    @property
    def reference(self) -> str:
        """What a compose file names: by digest, as soon as it is known."""
        return f"{self.image}@{self.digest}" if self.digest else self.image


class ServiceImages(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What watches servers, and what puts several behind one address."""

    prometheus: Annotated[PinnedImage, Meta(description="stores metrics and evaluates alerts")]
    grafana: Annotated[PinnedImage, Meta(description="shows the dashboard")]
    gateway: Annotated[PinnedImage, Meta(description="LiteLLM's proxy, before several servers")]


class ServiceTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a compose file may have beside vLLM."""

    images: Annotated[ServiceImages, Meta(description="images by the name of their service")]


FORMAT = InputFormat(ServiceTable, "services", ReleaseError)


@cache
def images() -> ServiceImages:
    """The images.

    Raises:
        ReleaseError: ``releases/services.yaml`` cannot be read, or is malformed.
    """
    return FORMAT.read(RELEASES / "services.yaml", f"{RELEASES.name}/services.yaml").images
