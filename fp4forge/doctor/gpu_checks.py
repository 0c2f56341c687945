"""Checks of the GPU, its driver, and the kernels for it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from fp4forge.doctor import facts
from fp4forge.doctor.diagnosis import (
    ERROR,
    WARNING,
    Diagnosis,
    check,
    failed_line,
    line_of,
    read_log,
)
from fp4forge.doctor.evidence import Evidence
from fp4forge.models import faults

DRIVER = 580  # CUDA 13.0's first driver branch (CUDA Toolkit 13.0 release notes, table 3)
_USED = r"for NVFP4 GEMM|GPU KV cache size|Loading weights took|NvFp4 MoE backend"


@check
def gpu(found: Evidence) -> Iterator[Diagnosis]:
    """No GPU in the container."""
    line = failed_line(
        found,
        r"no NVIDIA GPU is visible|Failed to infer device type|no CUDA-capable|No CUDA GPUs are"
        r"|libcuda\.so\.1: cannot open|NVML Shared Library Not Found",
    )
    asked = found.gpu_requested is not False or bool(line_of(found, _USED)) or found.ready
    if line or not asked:
        yield Diagnosis(
            "no-gpu",
            ERROR,
            line or "the container asks for no GPU",
            "the container runtime put no GPU into the container",
            "--gpus all, or deploy.resources.reservations.devices in compose; install"
            " nvidia-container-toolkit",
        )


# What nvidia-smi says if it fails: cause, fix (NVIDIA's manual page of nvidia-smi; Xid errors).
_FAILURES = (
    (
        r"mismatch",
        "the driver was updated, and the kernel still runs the old one",
        "restart the machine",
    ),
    (
        r"lost|device handle",
        "a GPU does not answer on PCIe any more",
        "restart the machine; dmesg shows its Xid; power, cooling and seating are the usual causes",
    ),
    (
        r"",
        "the driver's kernel module is not loaded, or sees no GPU",
        "install the driver for this kernel (dkms status, Secure Boot), then restart; lspci shows"
        " whether the GPU is there",
    ),
)


@check
def smi_failed(found: Evidence) -> Iterator[Diagnosis]:
    """nvidia-smi itself fails."""
    if found.smi_failed:
        cause, fix = next(rest for words, *rest in _FAILURES if re.search(words, found.smi_failed))
        yield Diagnosis("nvidia-smi", ERROR, found.smi_failed, cause, fix)


@check
def blackwell(found: Evidence) -> Iterator[Diagnosis]:
    """A GPU without FP4 tensor cores, for an NVFP4 model."""
    refused = failed_line(found, r"has no FP4 tensor cores")
    weak = [g for g in found.gpus if g.capability and float(g.capability) < 10]
    facts_ = read_log(found.parsed.text)
    marlin = "marlin" in facts_.linear.lower()
    # Marlin for the experts is a choice, and says nothing of the GPU; nor does a forced backend.
    said = "" if found.gpus or not marlin or _marlin_chosen(found) else _unsupported_gpus(found)
    if not (weak or refused or said) or not _is_nvfp4(found):
        return
    names = ", ".join(f"{g.name} (compute capability {g.capability})" for g in weak)
    yield Diagnosis(
        "not-blackwell",
        ERROR if refused else WARNING,  # vLLM serves it weight-only, with Marlin
        refused or names or said,
        "native FP4 begins with compute capability 10.0",
        "a Blackwell GPU: GB10, RTX 5090, RTX PRO 6000 Blackwell, B200",
    )


def _unsupported_gpus(found: Evidence) -> str:
    return line_of(found, r"does not have native support for FP4")


def _is_nvfp4(found: Evidence) -> bool:
    """Whether the model is NVFP4, by its name, the flags, the log or the image."""
    named = f"{facts.model(found)} {facts.setting(found, 'quantization') or ''}".lower()
    if re.search(r"nvfp4|modelopt_(?:fp4|mixed)", named) or "io.fp4forge.release" in found.labels:
        return True
    return bool(line_of(found, r"NVFP4|NvFp4|(?:native support for|no) FP4\b"))


def _marlin_chosen(found: Evidence) -> bool:
    """Whether Marlin is chosen for linear layers."""
    forced = found.environment.get("VLLM_NVFP4_GEMM_BACKEND", "") == "marlin"
    return forced or facts.setting(found, "linear-backend") == "marlin"


@check
def linear_backend(found: Evidence) -> Iterator[Diagnosis]:
    """Marlin for linear layers, on a GPU with native FP4."""
    backend = read_log(found.parsed.text).linear
    weak = any(g.capability and float(g.capability) < 10 for g in found.gpus)
    native = bool(found.gpus) and not weak
    chosen = _marlin_chosen(found)
    if not weak and (chosen or ("marlin" in backend.lower() and native)):
        yield Diagnosis(
            "linear-backend",
            WARNING,
            f"{backend} for NVFP4 GEMM" if backend else "Marlin is forced for linear layers",
            "weight-only: the FP4 tensor cores stay idle in attention and dense layers",
            "remove VLLM_NVFP4_GEMM_BACKEND and --linear-backend"
            if chosen
            else "use an image that has FP4 kernels for this GPU: build.py ledger IMAGE shows them",
        )


@check
def driver(found: Evidence) -> Iterator[Diagnosis]:
    """A driver too old for the image's CUDA, or one that only seems so."""
    line = failed_line(
        found,
        r"driver (version )?is (too old|insufficient)|driver on your system is too old"
        r"|unsupported.* driver|unsatisfied condition: (cuda|driver)",
    )
    drivers = sorted({g.driver for g in found.gpus if g.driver})
    wanted, cuda, certain = _driver_needed(found)
    old = [name for name in drivers if int(name.split(".")[0]) < wanted]
    if old:
        yield Diagnosis(
            "driver",
            WARNING if found.ready or not (certain or line) else ERROR,
            f"driver {', '.join(old)}",
            f"CUDA {cuda} needs driver {wanted} or later",
            "update the NVIDIA driver",
        )
    elif line and drivers:
        yield Diagnosis(
            "driver-mismatch",
            ERROR,
            f"{line}; nvidia-smi reports driver {', '.join(drivers)}",
            f"the driver is new enough for CUDA {cuda}: the process loads another libcuda, from the"
            " image's compatibility libraries or from a driver updated without a reboot",
            "restart the machine after a driver update; remove /usr/local/cuda/compat from"
            " LD_LIBRARY_PATH; restart the container",
        )
    elif line:
        yield Diagnosis(
            "driver",
            ERROR,
            line,
            f"the driver is too old for the image's CUDA; CUDA {cuda} needs {wanted} or later",
            "update the NVIDIA driver; nvidia-smi prints its version",
        )


def _driver_needed(found: Evidence) -> tuple[int, str, bool]:
    """The driver branch that is needed, for which CUDA, and whether that is certain."""
    if "io.fp4forge.release" in found.labels:
        return DRIVER, "13.0", True
    needs = faults.driver(found.version)
    return (needs.driver, needs.cuda, True) if needs else (DRIVER, "13.0", False)


@check
def kernels(found: Evidence) -> Iterator[Diagnosis]:
    """No kernels for this GPU in the image."""
    line = failed_line(
        found, r"No compiled nvfp4|no kernel image is available|has no FP4 kernels for"
    )
    if line:
        yield Diagnosis(
            "kernels",
            ERROR,
            line,
            "the image was not compiled for this GPU",
            "build.py ledger IMAGE shows which GPUs it serves; build for this one with --arch",
        )
        return
    ledger = found.records.ledger
    served = ledger.gpus if ledger else {}
    for device in found.gpus:
        name = "sm" + device.capability.replace(".", "")
        able = device.capability and float(device.capability) >= 10
        if served and able and not served.get(name, {}).get("ok"):
            yield Diagnosis(
                "kernels",
                ERROR,
                f"{device.name} is {name}; the image's ledger does not serve it",
                "FP4 calls fail or return garbage",
                f"build.py --arch {name}",
            )
