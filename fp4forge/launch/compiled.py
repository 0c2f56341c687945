"""What a server that runs here has compiled, out of its container and onto this machine."""

from __future__ import annotations

from pathlib import Path

from fp4forge.core.errors import NoGpuError, ServingError
from fp4forge.core.limits import COLLECT_SECONDS
from fp4forge.core.text import shown
from fp4forge.image.runtime.opt.fp4forge import warm
from fp4forge.kernels.base import Progress
from fp4forge.oci import dockercli
from fp4forge.publish.warming import PROGRAM
from fp4forge.serve.settings import CACHE_DIR, MODEL_DIR

# In the volume of caches: the container's other folders are read-only, or memory.
_PACKED = f"{CACHE_DIR}/.fp4forge-warm"


def collect(container: str, served_name: str, target: Path, report: Progress) -> str:
    """Packs the compile caches of a server that has answered.

    Args:
        container: its name.
        served_name: the model's name in the API, which its folder has in the container.
        target: the new folder, for ``cache.tar`` and ``key.json``.
        report: called with progress.

    Returns:
        What was packed, as a line.

    Raises:
        NoGpuError: the container sees no GPU.
        ServingError: nothing was compiled, or the image has no program that packs it.
    """
    report("packing")
    program = ["python3", "-IS", PROGRAM, "collect", CACHE_DIR, _PACKED]
    model = f"--model={MODEL_DIR}/{served_name}"
    done = dockercli.run("exec", container, *program, model, seconds=COLLECT_SECONDS)
    said = shown(done.stderr.strip().rpartition("\n")[2].removeprefix("fp4forge: "), 400)
    if done.returncode == warm.NO_GPU:
        raise NoGpuError(f"{container}: {said}")
    if done.returncode != 0:
        raise ServingError(
            f"the compile caches of {container} cannot be packed: {said}",
            rule=f"the image has {PROGRAM}, and the server has compiled and answered",
            remedy="build the image with this checkout, if it is older than build.py warm",
        )
    report("copying")
    copied = dockercli.run("cp", f"{container}:{_PACKED}", str(target), seconds=COLLECT_SECONDS)
    if copied.returncode != 0:
        raise ServingError(f"docker cp fails: {shown(copied.stderr.strip(), 300)}")
    return said
