"""Benchmarks of what users wait for. Every figure is a ratio of two things measured in one run.

Method: docs/benchmarks.md. Usage: make bench, or run.py NAME ... for some of them. Needs the
image of `make image`; writes benchmarks/results/<name>.json.
"""

from __future__ import annotations

import functools
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.archs import archs  # noqa: E402
from benchmarks.cross import cross  # noqa: E402
from benchmarks.recompile import EDITS, edited_patches, recompile, warm_cache  # noqa: E402
from benchmarks.signing import sign  # noqa: E402
from benchmarks.transfer import distribute  # noqa: E402
from benchmarks.wheels import ledger_wheels  # noqa: E402
from fp4forge.core import paths  # noqa: E402
from fp4forge.core.platform import PLATFORMS  # noqa: E402
from fp4forge.image import context as contexts  # noqa: E402
from fp4forge.inputs import defaults  # noqa: E402
from fp4forge.oci import buildkit as builder  # noqa: E402
from fp4forge.oci import copying, engine_checks  # noqa: E402
from fp4forge.oci.layout import OciLayout  # noqa: E402
from fp4forge.plan.plan import Plan  # noqa: E402
from fp4forge.plan.request import ImageRequest  # noqa: E402
from fp4forge.plan.resolve import resolve  # noqa: E402
from fp4forge.publish import base_images  # noqa: E402
from fp4forge.publish import build as building  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
REGISTRY = os.environ.get("REGISTRY", "127.0.0.1:5000")
REPO = f"{REGISTRY}/fp4forge/bench"
RELEASE = defaults.newest("wheel", "awq")
REQUEST = ImageRequest("blackwell", RELEASE, "awq", "wheel", "bootstrap", aot="none")
BUILD = [
    sys.executable,
    str(ROOT / "build.py"),
    "--arch",
    "blackwell",
    "--release",
    RELEASE,
    "--from",
    "wheel",
    "--base",
    "bootstrap",
    "--aot",
    "none",
    "--push",
    "--registry",
    REGISTRY,
    "--repo",
    "fp4forge/bench",
]


def quiet(_: str) -> None:
    """Takes progress and drops it."""


def seconds(action: Callable[[], object], repeat: int = 1) -> float:
    """Median wall seconds of an action."""
    times = []
    for _ in range(repeat):
        start = time.monotonic()
        action()
        times.append(time.monotonic() - start)
    return statistics.median(times)


def shell(line: list[str], **environment: str) -> str:
    """Output of a command that must succeed."""
    return subprocess.run(
        line, check=True, capture_output=True, text=True, env=os.environ | environment
    ).stdout


def export(context: Path, prepared: Plan, layout: Path, compression: str) -> str:
    """Builds a context into an OCI layout with plain buildx; returns the index digest."""
    attributes = f"force-compression=true,oci-mediatypes=true,compression={compression}"
    line = building.command(
        prepared,
        context,
        [f"type=oci,tar=false,dest={layout},{attributes}"],
        builder.BuildOptions(),
    )
    digest = builder.build(line, quiet, builder.BuildOptions()).digest
    OciLayout(layout).name_only(digest)
    return digest


def layer_sizes(layout: Path, digest: str) -> dict[str, int]:
    """Compressed size in bytes of each layer, by digest."""
    return {layer.digest: layer.size for layer in OciLayout(layout).layers(digest)}


def no_op() -> dict[str, Any]:
    """A build that changes nothing, against the raw buildx command line of the same Dockerfile."""
    shell(BUILD)
    context = contexts.assemble(resolve(REQUEST))
    prepared = context.plan
    staged = contexts.stage(context)
    with tempfile.TemporaryDirectory(dir=paths.STATE) as folder:
        layout = Path(folder)
        export(staged, prepared, layout, "zstd")
        raw_line = building.command(
            prepared,
            staged,
            [f"type=oci,tar=false,dest={layout},{builder.COMPRESSION}"],
            builder.BuildOptions(),
        )
        lines = {"ours_s": BUILD, "raw_buildx_s": [*raw_line, "--progress=quiet"]}
        took: dict[str, list[float]] = {name: [] for name in lines}
        for _ in range(15):  # by turns: what else the machine does meets both
            for name, line in lines.items():
                took[name].append(seconds(functools.partial(shell, line)))
    ours, raw = (statistics.median(times) for times in took.values())
    return {"ours_s": ours, "raw_buildx_s": raw, "ratio": ours / raw, "goal": "at most 1.3"}


def patch_edit() -> dict[str, Any]:
    """One line of a patch: rebuilt and pushed, against patching before vLLM's layer is made."""
    shell(BUILD)
    with tempfile.TemporaryDirectory(dir=paths.STATE) as name:
        folder, original = Path(name), paths.PATCHES
        measured: dict[str, list[tuple[float, int]]] = {"ours": [], "before_install": []}
        for layout_name in measured:
            layout = folder / layout_name
            known: dict[str, int] = {}
            for number in range(4):
                if layout_name == "ours":
                    edit = EDITS["python"]
                    paths.PATCHES = edited_patches(folder, RELEASE, *edit, number)
                else:
                    paths.PATCHES = folder / f"patches-{EDITS['python'][0]}-{number}"
                context = contexts.assemble(resolve(REQUEST))
                prepared = context.plan
                if layout_name == "before_install":
                    changed = patch_first(context.files["Dockerfile"].decode())
                    context.files["Dockerfile"] = changed.encode()
                staged = contexts.stage(context)
                start = time.monotonic()
                digest = export(staged, prepared, layout, "zstd")
                copying.push(layout, f"{REPO}-{layout_name.replace('_', '-')}", digest, quiet)
                took = time.monotonic() - start
                sizes = layer_sizes(layout, digest)
                pushed = sum(size for layer, size in sizes.items() if layer not in known)
                known |= sizes
                if number:  # the first build is the base of the edits
                    measured[layout_name].append((took, pushed))
        paths.PATCHES = original
    ours, theirs = (
        tuple(statistics.median(column) for column in zip(*rows, strict=True))
        for rows in measured.values()
    )
    return {
        "ours_s": ours[0],
        "ours_bytes": ours[1],
        "patch_before_install_s": theirs[0],
        "patch_before_install_bytes": theirs[1],
        "ratio_s": ours[0] / theirs[0],
        "ratio_bytes": ours[1] / theirs[1],
        "goal": "under 5 s and under 200 KB",
    }


def patch_first(dockerfile: str) -> str:
    """The same Dockerfile with the patches applied to vLLM before its one layer is made."""
    apply = (
        "FROM vllm AS vllm-patched\n"
        "COPY image/stages/apply_patches.py /fp4forge/\nCOPY patches/ /fp4forge/patches/\n"
        "RUN mkdir /in && cp -al /out/. /in && python3 /fp4forge/apply_patches.py"
        " --series /fp4forge/patches/series.json"
        " --installed /in/usr/local/lib/python3.13/dist-packages"
        " --out /tmp/p/usr/local/lib/python3.13/dist-packages"
        " --record /tmp/p/opt/fp4forge/patches.json"
        " && cp -a --remove-destination /tmp/p/. /out/ && rm -rf /in /tmp/p\n\n"
    )
    text = dockerfile.replace("# ---- system:", apply + "# ---- system:")
    text = text.replace("COPY --link --from=vllm /out /\n", "")
    text = re.sub(r"COPY --link --from=patched /out/(?!record).*\n", "", text)
    return text.replace("--from=patched /out/record /", "--from=vllm-patched /out /")


def first_push() -> dict[str, Any]:
    """The first export and push of the whole image, zstd against gzip; one run each."""
    context = contexts.assemble(resolve(REQUEST))
    prepared = context.plan
    staged = contexts.stage(context)
    found: dict[str, Any] = {}
    for compression in ("zstd", "gzip"):
        with tempfile.TemporaryDirectory(dir=paths.STATE) as name:
            layout = Path(name)
            # Another level than the default, so that no layer is compressed already.
            level = {"zstd": 4, "gzip": 6}[compression]
            start = time.monotonic()
            digest = export(staged, prepared, layout, f"{compression},compression-level={level}")
            copying.push(layout, f"{REPO}-first-{compression}", digest, quiet)
            found[f"{compression}_s"] = time.monotonic() - start
            found[f"{compression}_bytes"] = sum(layer_sizes(layout, digest).values())
    found["ratio_s"] = found["zstd_s"] / found["gzip_s"]
    found["ratio_bytes"] = found["zstd_bytes"] / found["gzip_bytes"]
    return found


def bytecode() -> dict[str, Any]:
    """A fresh container's imports with the image's bytecode, against none."""
    shell(BUILD)
    image = f"{REPO}:{resolve(REQUEST).moving_tag}"
    line = ["docker", "run", "--rm", "--network=none", "--entrypoint=python3"]
    code = ["-c", "import vllm, torch, flashinfer, transformers"]
    without = ["-e", "PYTHONDONTWRITEBYTECODE=1", "-e", "PYTHONPYCACHEPREFIX=/nonexistent"]
    shell([*line, image, *code])  # the page cache is warm for both
    compiled = seconds(lambda: shell([*line, image, *code]), 3)
    plain = seconds(lambda: shell([*line, *without, image, *code]), 3)
    return {"compiled_s": compiled, "none_s": plain, "ratio": compiled / plain}


def help_start() -> dict[str, Any]:
    """CPU time of build.py --help, against an empty Python program."""

    def cpu(line: list[str]) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        for _ in range(10):
            shell(line)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime) / 10

    ours = cpu([sys.executable, str(ROOT / "build.py"), "--help"])
    empty = cpu([sys.executable, "-c", "pass"])
    return {
        "ours_cpu_s": ours,
        "empty_python_cpu_s": empty,
        "ratio": ours / empty,
        "goal": "under 0.150 s of CPU",
    }


def ledger_reading() -> dict[str, Any]:
    """Reading one extension with the ledger, against disassembling all of it with cuobjdump."""
    import zipfile

    from fp4forge.inputs import release
    from fp4forge.kernels import cubins
    from fp4forge.maintain import sources

    wheel = sources.fetch(release.load(RELEASE).wheels["linux/amd64"])
    with tempfile.TemporaryDirectory(dir=paths.STATE) as name:
        with zipfile.ZipFile(wheel) as archive:
            library = Path(archive.extract("vllm/_C.abi3.so", name))

        def read() -> None:
            shutil.rmtree(paths.STATE / "ledger", ignore_errors=True)
            cubins.read(library, paths.STATE / "ledger", quiet)

        def dump() -> None:
            line = [cubins.tool("cuobjdump"), "--dump-sass", str(library)]
            subprocess.run(line, check=True, stdout=subprocess.DEVNULL)

        dump_s, read_s, size = seconds(dump), seconds(read), library.stat().st_size
    return {"ours_s": read_s, "cuobjdump_sass_s": dump_s, "ratio": read_s / dump_s, "bytes": size}


def foreign_packages() -> dict[str, Any]:
    """arm64's layer of Python packages, unpacked by this platform's uv and Python, or emulated."""
    return _against_emulation("python")


def foreign_image() -> dict[str, Any]:
    """The whole Dockerfile for arm64: what runs on the build platform here, or all emulated."""
    return _against_emulation("")


def _against_emulation(stage: str) -> dict[str, Any]:
    """Builds a stage, or the image, with no step cached; both make their tools first.

    Downloaded packages are there for both: ours, which runs first, may have to download them.
    Needs `make setup PLATFORM=linux/arm64`.
    """
    request = replace(REQUEST, arch="sm121", platform="linux/arm64")
    if not engine_checks.emulated("linux/arm64"):
        return {"not_run": "make setup PLATFORM=linux/arm64 first"}
    context = contexts.assemble(resolve(request))
    prepared = context.plan
    staged = contexts.stage(context)
    for platform in PLATFORMS:
        base_images.ensure(prepared.inputs.base, platform, quiet)
    options = builder.BuildOptions(no_cache=True)
    line = building.command(prepared, staged, ["type=cacheonly"], options, target=stage)
    emulated = [
        f"--build-arg=BUILD_BASE={prepared.base_image}" if "BUILD_BASE" in word else word
        for word in line
    ]
    ours_s = seconds(lambda: builder.build(line, quiet, options))
    emulated_s = seconds(lambda: builder.build(emulated, quiet, options))
    return {"ours_s": ours_s, "emulated_s": emulated_s, "ratio": ours_s / emulated_s}


BENCHMARKS: dict[str, Callable[[], dict[str, Any]]] = {
    "help-start": help_start,
    "no-op": no_op,
    "patch-edit": patch_edit,
    "bytecode": bytecode,
    "ledger": ledger_reading,
    "ledger-wheels": ledger_wheels,
    "first-push": first_push,
    "distribute": distribute,
    "sign": sign,
    "foreign-packages": foreign_packages,
    "foreign-image": foreign_image,
    "recompile": recompile,
    "warm-cache": warm_cache,
    "cross": cross,
    "archs": archs,
}


def main() -> None:
    """Runs the named benchmarks, or all."""
    RESULTS.mkdir(exist_ok=True)
    for name in sys.argv[1:] or BENCHMARKS:
        result = BENCHMARKS[name]()
        rounded = json.loads(json.dumps(result), parse_float=lambda text: round(float(text), 4))
        if "not_run" not in result:
            (RESULTS / f"{name}.json").write_text(json.dumps(rounded, indent=2) + "\n")
        print(f"{name:<11} " + "  ".join(f"{k}={v}" for k, v in rounded.items()), flush=True)


if __name__ == "__main__":
    main()
