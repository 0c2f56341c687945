"""The one place that names an image: its immutable tag, and the moving tags that follow it.

An immutable tag carries the plan's id and names one image for ever. A moving tag names the newest
verified image of one release, GPU, variant, strategy, base and platform: two images that differ in
one of these never take each other's tag. The tag without a platform belongs to the image index of
several platforms (``--platform A,B``).
"""

from __future__ import annotations

import re

from fp4forge.core.errors import UsageError
from fp4forge.core.image_names import TAG
from fp4forge.core.platform import PLATFORMS
from fp4forge.inputs import modelopt
from fp4forge.inputs.release import STRATEGIES
from fp4forge.kernels.gpus import TARGETS

_TAG = re.compile(TAG)
# The end of an immutable tag: a plan's id, and a digest's beginning for a second image of the plan.
_IMMUTABLE = re.compile(r"-[0-9a-f]{12}(-[0-9a-f]{8})?$")
# The beginning of a moving tag.
_MOVING = re.compile(
    rf"[^-]+-({'|'.join(TARGETS)})-[^-]+-({'|'.join(STRATEGIES)})-"
    rf"|{modelopt.PREFIX}[^-]+-[^-]+-[^-]+-{modelopt.STRATEGY}-"
)


def index(release: str, arch: str, variant: str, strategy: str, base: str) -> str:
    """The moving tag of the index of several platforms; ``base``: its slug, and extras' names."""
    return f"{release}-{arch}-{variant}-{strategy}-{base}"


def moving(release: str, arch: str, variant: str, strategy: str, base: str, platform: str) -> str:
    """The moving tag of one platform's image, ``RELEASE-sm121-awq-wheel-bootstrap-arm64``."""
    architecture = PLATFORMS[platform].architecture
    return f"{index(release, arch, variant, strategy, base)}-{architecture}"


def immutable(release: str, arch: str, variant: str, identity: str) -> str:
    """The tag that names this plan's image, or this index, and never another."""
    return f"{release}-{arch}-{variant}-{identity}"


def warm(release: str, arch: str, variant: str, identity: str, digest: str) -> str:
    """The tag of a plan's image with compile caches: immutable, and by the image's own digest.

    Args:
        release: and the following three: of the plan, as for ``immutable``.
        arch: the GPU.
        variant: the patches.
        identity: the plan's id.
        digest: of the manifest with the layer of caches, ``sha256:...``.
    """
    own = digest.removeprefix("sha256:")[:12]
    return f"{immutable(release, arch, variant, identity)}-warm-{own}"


def is_immutable(tag: str) -> bool:
    """Whether a tag has the form of one that names a plan's image for ever."""
    return bool(_IMMUTABLE.search(tag))


def is_moving(tag: str) -> bool:
    """Whether a tag has the form of one that follows verified images."""
    return bool(_MOVING.match(tag))


def check(tag: str) -> str:
    """A user's further tag (``--tag``) after validation.

    Raises:
        UsageError: it is malformed, or has the form of a tag that is given to something else.
    """
    if not _TAG.fullmatch(tag):
        raise UsageError(
            f"--tag {tag!r} is not a tag",
            rule="at most 128 letters, digits and . _ -, not starting with . or -",
        )
    if is_immutable(tag):
        raise UsageError(
            f"--tag {tag!r} has the form of an immutable tag",
            rule="a tag that ends in a plan's id names that plan's image for ever",
            remedy="choose a name that does not end in - and 12 hex digits",
        )
    if is_moving(tag):
        raise UsageError(
            f"--tag {tag!r} has the form of a moving tag",
            rule="a tag that begins with release, GPU, variant and strategy follows these images",
            remedy="choose another name; a push moves its own moving tag by itself",
        )
    return tag
