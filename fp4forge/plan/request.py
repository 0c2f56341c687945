"""What a user asks for."""

from __future__ import annotations

from dataclasses import dataclass

from fp4forge.core import platform as platforms
from fp4forge.core.errors import UsageError
from fp4forge.inputs import defaults
from fp4forge.inputs.release import STRATEGIES, VARIANTS
from fp4forge.kernels.gpus import GPUS, Target, target
from fp4forge.plan.image_kinds import SERVE


@dataclass(frozen=True)
class ImageRequest:
    """What a user asks for, as given on the command line; None takes the default."""

    arch: str  # empty for an image that quantises
    release: str | None = None
    variant: str | None = None
    strategy: str | None = None
    base: str | None = None
    platform: str | None = None
    arch_list: str | None = None
    allow_missing: tuple[str, ...] = ()
    allow_vulnerable: tuple[str, ...] = ()  # identifiers of advisories that a person accepts
    components: str = "all"
    sources: tuple[str, ...] = ()  # NAME=git|pypi|DIR
    aot: str | None = None  # FlashInfer's modules; None: gemma4 if this machine can compile them
    cross: bool = False  # compile on another platform than the image's
    extras: tuple[str, ...] = ()  # of releases/extras.yaml
    kind: str = SERVE


@dataclass(frozen=True)
class DecidedRequest:
    """A request with every option decided."""

    target: Target
    release: str
    variant: str
    strategy: str
    base: str
    platform: str


def decide(request: ImageRequest) -> DecidedRequest:
    """Fills in what the request leaves open.

    Raises:
        UsageError: an unknown arch, release, variant, strategy or platform.
    """
    reference = defaults.table().reference
    variant = request.variant or reference.variant
    one_of("--variant", variant, VARIANTS)
    one_of("--from", request.strategy or reference.strategy, STRATEGIES)
    for gpu in request.allow_missing:
        one_of("--allow-missing", gpu, tuple(GPUS))
    chosen = target(request.arch)
    release, strategy = defaults.release_and_strategy(request.release, request.strategy, variant)
    return DecidedRequest(
        target=chosen,
        release=release,
        variant=variant,
        strategy=strategy,
        base=request.base or reference.base,
        platform=platform_for(chosen, request.platform),
    )


def platform_for(chosen: Target, wanted: str | None) -> str:
    """The platform to build: the one asked for, else the GPU's, else the host's.

    Raises:
        UsageError: ``wanted`` is not a platform that vLLM is built for.
    """
    if wanted is None:
        return chosen.default_platform or platforms.host_platform()
    return platforms.check(wanted)


def one_of(flag: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuses a value that a flag does not take.

    Raises:
        UsageError: naming the values that it takes.
    """
    if value not in allowed:
        raise UsageError(f"{flag} {value!r} does not exist", rule="one of " + ", ".join(allowed))
