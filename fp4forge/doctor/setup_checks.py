"""Checks of how a server was set up: image, mounts, flags, environment, model.

Each yields findings, and says nothing if the evidence does not reach.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from packaging.version import Version

from fp4forge.checkpoint import config as configs
from fp4forge.core import reading
from fp4forge.core.errors import CheckpointError
from fp4forge.doctor import evidence as evidences
from fp4forge.doctor.diagnosis import ERROR, NOTE, WARNING, Finding, check, line_of, read_log
from fp4forge.doctor.evidence import Evidence
from fp4forge.models import gemma4
from fp4forge.serve.switches import SWITCHES

SITE = "dist-packages/vllm/"


@check
def image(found: Evidence) -> Iterator[Finding]:
    """Another image, or the variant without patches."""
    if not found.image:
        return
    variant = found.labels.get("io.fp4forge.variant")
    if variant == "plain" or (
        variant is None and re.search(r"vllm-spark-gemma4-nvfp4(?!-awq)(?=[:@]|$)", found.image)
    ):
        yield Finding(
            "variant",
            ERROR,
            f"image {found.image}: no patches in it",
            gemma4.UNPATCHED,
            "use the awq variant of the same release",
        )
    elif variant is None and found.labels:
        yield Finding(
            "image",
            WARNING,
            f"image {found.image} has no io.fp4forge labels",
            "not an image of fp4forge: what is in it is not known",
            "build.py ledger IMAGE shows its kernels; build.py --push makes a verified image",
        )


@check
def patch_mounts(found: Evidence) -> Iterator[Finding]:
    """A file mounted over one that the image's patches made, or any over vLLM's code."""
    files = found.record.files if found.record else {}
    said = False
    for mount in found.mounts:
        if SITE not in mount.target:
            continue
        name = mount.target.split("dist-packages/", 1)[1]
        hashes, there = files.get(name), evidences.digest(mount.source)
        if hashes and there == hashes.after:
            continue
        seen = f"{mount.source} is mounted over {mount.target}"
        if hashes and there:
            seen += f" (SHA-256 {there[:12]}, the image's is {hashes.after[:12]})"
        said = True
        yield Finding(
            "patch-mount",
            ERROR,
            seen,
            "an old patch over a baked one inverts scales twice, or does not fit this vLLM",
            f"remove the mount that ends in :{mount.target}",
        )
    # Without the mounts, as from a saved log, the entrypoint's own words are the evidence.
    line = line_of(found, r"fp4forge: error: .* is not the file that this image's patches made")
    if line and not said:
        yield Finding(
            "patch-mount",
            ERROR,
            line,
            "the image refused to start with a replaced file",
            "remove the mount that the message names",
        )


@check
def quantization(found: Evidence) -> Iterator[Finding]:
    """compressed-tensors asked for with a ModelOpt checkpoint."""
    line = line_of(found, r"KeyError: .*weight_packed")
    if found.flag("--quantization") == "compressed-tensors" or line:
        yield Finding(
            "quantization",
            ERROR,
            line or "--quantization compressed-tensors",
            "ModelOpt's NVFP4 has other tensor names: KeyError 'weight_packed'",
            "--quantization modelopt",
        )


@check
def moe_backend(found: Evidence) -> Iterator[Finding]:
    """MoE layers not on Marlin, where Gemma-4 needs it."""
    backend = read_log(found.log or "").moe
    if backend and backend != "MARLIN":
        yield Finding(
            "moe-backend",
            ERROR,
            f"Using '{backend}' NvFp4 MoE backend",
            gemma4.MOE_ONLY_MARLIN,
            "--moe-backend marlin",
        )
        return
    if backend or not found.command or "serve" not in found.command:
        return
    forced = found.environment.get("VLLM_TEST_FORCE_FP8_MARLIN") == "1"
    version = found.version
    if forced and version and not SWITCHES["VLLM_TEST_FORCE_FP8_MARLIN"].known(version):
        forced = False
    if not forced and found.flag("--moe-backend") != "marlin":
        yield Finding(
            "moe-backend",
            ERROR,
            "neither --moe-backend marlin nor VLLM_TEST_FORCE_FP8_MARLIN=1",
            "SM12x would pick VLLM_CUTLASS for the experts: KeyError or garbage",
            "--moe-backend marlin",
        )


@check
def linear_backend(found: Evidence) -> Iterator[Finding]:
    """Marlin for linear layers, on a GPU with native FP4."""
    backend = read_log(found.log or "").linear
    forced = found.environment.get("VLLM_NVFP4_GEMM_BACKEND", "") == "marlin"
    forced |= found.flag("--linear-backend") == "marlin"
    native = not line_of(found, "does not have native support for FP4")
    if forced or ("marlin" in backend.lower() and native):
        yield Finding(
            "linear-backend",
            WARNING,
            f"{backend} for NVFP4 GEMM" if backend else "Marlin is forced for linear layers",
            "weight-only: the FP4 tensor cores stay idle in attention and dense layers",
            "remove VLLM_NVFP4_GEMM_BACKEND and --linear-backend: only MoE needs Marlin",
        )


@check
def removed_switches(found: Evidence) -> Iterator[Finding]:
    """Switches that this release does not read, or that break this model."""
    if not found.version:
        return
    names = {*found.environment, *(w.split("=")[0] for w in found.command if w.startswith("--"))}
    for name in sorted(names & set(SWITCHES)):
        switch = SWITCHES[name]
        if not switch.known(found.version):
            yield Finding(
                "removed-switch",
                WARNING,
                f"{name} is set; vLLM {found.version} does not read it",
                f"known from {switch.since}" + (f" until {switch.gone}" if switch.gone else ""),
                f"use {switch.successor}" if switch.successor else "remove it",
            )
        elif name == "VLLM_USE_FLASHINFER_MOE_FP4" and found.environment[name] == "1":
            yield Finding("flashinfer-moe", ERROR, f"{name}=1", switch.note, "remove it")


@check
def kv_cache(found: Evidence) -> Iterator[Finding]:
    """The KV cache's format by its short name."""
    if found.flag("--kv-cache-dtype") == "fp8":
        yield Finding(
            "kv-cache-dtype",
            NOTE,
            "--kv-cache-dtype fp8",
            "the same as fp8_e4m3 today; a release may choose another one by that name",
            "--kv-cache-dtype fp8_e4m3",
        )


@check
def speculative(found: Evidence) -> Iterator[Finding]:
    """Speculative decoding, which Gemma-4 cannot use in these releases."""
    line = line_of(found, r"AttributeError: .*image_token_index")
    names = ("--speculative-config", "--speculative-model")
    flags = [name for name in names if found.flag(name) is not None]
    eagle = [m.target for m in found.mounts if "eagle" in m.target.lower()]
    if line or flags or eagle:
        yield Finding(
            "speculative",
            ERROR,
            line or ", ".join(flags + eagle),
            gemma4.NO_EAGLE3,
            "leave speculative decoding out",
        )


@check
def expert_split(found: Evidence) -> Iterator[Finding]:
    """Experts that tensor parallelism cuts to a width which Marlin has no kernel for."""
    line = line_of(found, r"Invalid thread config: .*MKN = ")
    size, cut = found.flag("--tensor-parallel-size") or found.flag("-tp") or "1", ""
    if (
        re.fullmatch("[0-9]{1,4}", size)
        and int(size) > 1
        and found.flag("--enable-expert-parallel") is None
    ):
        widths = [_expert_width(folder) for folder in _model_folders(found)]
        cut = ", ".join(
            f"--tensor-parallel-size {size} makes {width / int(size):g} of {width} wide experts"
            for width in widths
            if width % (64 * int(size))
        )
    if line or cut:
        yield Finding(
            "expert-split",
            ERROR,
            line or cut,
            "Marlin multiplies by multiples of 64 (vLLM csrc/moe/marlin_moe_wna16/ops.cu)",
            "add --enable-expert-parallel: each GPU gets whole experts",
        )


def _expert_width(folder: Path) -> int:
    """moe_intermediate_size of a checkpoint; 0 if it has none, or cannot be read."""
    try:
        return configs.width(configs.read(folder).text.moe_intermediate_size)
    except CheckpointError:
        return 0


def _model(found: Evidence) -> str | None:
    """The model that the command line names."""
    words = found.command
    if "serve" in words and words.index("serve") + 1 < len(words):
        return found.flag("--model") or words[words.index("serve") + 1]
    return found.flag("--model")


def _model_folders(found: Evidence) -> Iterator[Path]:
    """Where a mount has the model on this host."""
    model = _model(found)
    for mount in found.mounts:
        if not model or mount.kind != "bind":
            continue
        if model == mount.target or model.startswith(mount.target + "/"):
            yield Path(mount.source + model[len(mount.target) :])


def _has_files(folder: Path) -> bool:
    try:
        return any(folder.iterdir())
    except OSError:  # not for this user's eyes
        return True


@check
def model_mount(found: Evidence) -> Iterator[Finding]:
    """The model is not where the server looks."""
    model = _model(found)
    for folder in _model_folders(found):
        if not os.path.lexists(folder / "config.json"):
            state = "is empty" if reading.is_folder(folder) else "does not exist on this host"
            if reading.is_folder(folder) and _has_files(folder):
                state = "has no config.json"
            yield Finding(
                "model-mount",
                ERROR,
                f"{folder} {state}",
                "Docker makes an empty folder of a source that is not there",
                "mount the folder with config.json and the weights",
            )
    if (
        model
        and model.startswith("/")
        and found.mounts
        and not any(
            model == m.target or model.startswith(m.target.rstrip("/") + "/") for m in found.mounts
        )
    ):
        yield Finding(
            "model-mount",
            ERROR,
            f"nothing is mounted at {model}",
            "the server looks for the model where the container has none",
            f"mount the checkpoint at {model}",
        )
    if line := line_of(found, r"(Invalid repository ID or local directory|is not a local folder)"):
        yield Finding(
            "model-mount",
            ERROR,
            line,
            "no checkpoint at that place",
            "mount the folder with config.json and the weights",
        )


@check
def versions(found: Evidence) -> Iterator[Finding]:
    """A vLLM too old to know the model."""
    if found.version and Version(found.version) < Version(gemma4.FIRST_VLLM):
        yield Finding(
            "vllm-version",
            ERROR,
            f"vLLM {found.version}",
            gemma4.TOO_OLD,
            f"an image of release {gemma4.FIRST_VLLM} or later",
        )
