"""Checks of how a server runs: GPU, kernels, loading, memory, and what it answers.

The log lines are those of vLLM 0.19.1 and 0.20.2; tests hold them against real logs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from fp4forge.doctor.diagnosis import ERROR, NOTE, WARNING, Finding, check, line_of, read_log
from fp4forge.doctor.evidence import Evidence
from fp4forge.serve import client

DRIVER = 580  # CUDA 13.0's first driver branch (CUDA Toolkit 13.0 release notes, table 3)
HEADROOM_GIB = 8  # unified memory that the host's own programs and page cache need


@check
def gpu(found: Evidence) -> Iterator[Finding]:
    """No GPU, not Blackwell, or a driver too old for CUDA 13."""
    line = line_of(found, r"no NVIDIA GPU is visible|Failed to infer device type|no CUDA-capable")
    if line or found.gpu_requested is False:
        yield Finding(
            "no-gpu",
            ERROR,
            line or "the container asks for no GPU",
            "the container runtime put no GPU into the container",
            "--gpus all, or deploy.resources.reservations.devices in compose; install"
            " nvidia-container-toolkit",
        )
    weak = [g for g in found.gpus if float(g.capability) < 10]
    line = line_of(found, r"has no FP4 tensor cores|does not have native support for FP4")
    if weak or line:
        names = ", ".join(f"{g.name} (compute capability {g.capability})" for g in weak)
        yield Finding(
            "not-blackwell",
            ERROR,
            names or line,
            "native FP4 begins with compute capability 10.0",
            "a Blackwell GPU: GB10, RTX 5090, RTX PRO 6000 Blackwell, B200",
        )
    old = sorted({g.driver for g in found.gpus if int(g.driver.split(".")[0]) < DRIVER})
    line = line_of(found, r"driver (version )?is (too old|insufficient)|unsupported.* driver")
    if old or line:
        yield Finding(
            "driver",
            ERROR,
            f"driver {', '.join(old)}" if old else line,
            f"CUDA 13.0 needs driver {DRIVER} or later",
            "update the NVIDIA driver",
        )


@check
def kernels(found: Evidence) -> Iterator[Finding]:
    """No kernels for this GPU in the image."""
    line = line_of(found, r"No compiled nvfp4|no kernel image is available|has no FP4 kernels for")
    if line:
        yield Finding(
            "kernels",
            ERROR,
            line,
            "the image was not compiled for this GPU",
            "build.py ledger IMAGE shows which GPUs it serves; build for this one with --arch",
        )
        return
    served = found.ledger.gpus if found.ledger else {}
    for device in found.gpus:
        name = "sm" + device.capability.replace(".", "")
        if served and float(device.capability) >= 10 and not served.get(name, {}).get("ok"):
            yield Finding(
                "kernels",
                ERROR,
                f"{device.name} is {name}; the image's ledger does not serve it",
                "FP4 calls fail or return garbage",
                f"build.py --arch {name}",
            )


@check
def loading(found: Evidence) -> Iterator[Finding]:
    """What went wrong while the checkpoint was read."""
    cases = (
        (
            "unexpected-tensors",
            WARNING,
            r"\bUNEXPECTED\b",
            "the checkpoint has tensors that the model has no place for: some layers stay random",
            "build.py checkpoint inspect DIR",
        ),
        (
            "moe-prefix",
            ERROR,
            r"KeyError: .*\.moe\.moe\.",
            "expert names already carry .moe.; this vLLM has no patch gemma4-moe-prefix",
            "use the awq variant",
        ),
        (
            "missing-input-scale",
            ERROR,
            r"input_scale of \d+ of \d+ experts is missing",
            "experts saw no token in calibration",
            "build.py checkpoint inspect DIR names them",
        ),
        (
            "nan-block-scales",
            WARNING,
            r"FP8 block scales are NaN; they are set to zero",
            "ModelOpt before 0.44 overflowed; the patch made these blocks zero",
            "quantise again with a later ModelOpt where quality matters",
        ),
        (
            "uninitialised",
            ERROR,
            r"weights were not initialized from checkpoint",
            "tensors are missing from the checkpoint",
            "build.py checkpoint inspect DIR",
        ),
        (
            "patch-signature",
            ERROR,
            r"TypeError: .*unexpected keyword argument 'swizzle'",
            "a modelopt.py made for another vLLM",
            "remove the mount: the image has its own",
        ),
    )
    for name, severity, pattern, cause, fix in cases:
        if line := line_of(found, pattern):
            yield Finding(name, severity, line, cause, fix)


@check
def memory(found: Evidence) -> Iterator[Finding]:
    """Out of memory: on the GPU, on the host, or in what both share."""
    line = line_of(found, r"OutOfMemoryError|CUDA out of memory|No available memory for the cache")
    line = line or line_of(found, r"Free memory on device .* is less than desired")
    line = line or line_of(found, r"To serve at least one request with the models's max seq len")
    if line:
        yield Finding(
            "gpu-memory",
            ERROR,
            line,
            "weights, activations and KV cache do not fit",
            "build.py serve fit --model DIR --gpu NAME says which context and batch do",
        )
    if found.out_of_memory or found.exit_code == 137:
        yield Finding(
            "killed",
            ERROR,
            "OOMKilled" if found.out_of_memory else "exit code 137 (SIGKILL)",
            "the kernel took the memory back; on unified memory GPU and host share it",
            "lower --gpu-memory-utilization; see that MAX_JOBS caps FlashInfer's compiling",
        )
    unified = any("GB10" in g.name for g in found.gpus)
    share = _share(found.flag("--gpu-memory-utilization"))
    if unified and found.memory_total:
        rest = found.memory_total * (1 - share) / 2**30
        if rest < HEADROOM_GIB:
            yield Finding(
                "unified-headroom",
                WARNING,
                f"--gpu-memory-utilization {share:g} leaves the host {rest:.1f} GiB",
                "GB10's memory is the host's: without room it freezes",
                f"leave {HEADROOM_GIB} GiB: at most"
                f" {1 - HEADROOM_GIB * 2**30 / found.memory_total:.2f}",
            )
    if found.shm_bytes is not None and found.shm_bytes < 2**30 and found.ipc != "host":
        yield Finding(
            "shm",
            WARNING,
            f"/dev/shm has {found.shm_bytes // 2**20} MiB",
            "vLLM's processes pass images and tensors through it",
            "ipc: host, or shm_size: 8g",
        )
    if line := line_of(found, r"[Bb]us error|No space left on device.*shm|/dev/shm.*No space"):
        yield Finding("shm", ERROR, line, "/dev/shm is full", "ipc: host, or shm_size: 8g")


def _share(text: str | None) -> float:
    """The value of --gpu-memory-utilization; vLLM's default if it is none."""
    return float(text) if text and re.fullmatch(r"0?\.[0-9]{1,6}|1(\.0{1,6})?", text) else 0.9


@check
def compiling(found: Evidence) -> Iterator[Finding]:
    """Kernels compiled at run time, or that cannot be."""
    cases = (
        (
            "jit",
            NOTE,
            r"ninja: |\[\d+/\d+\] (/\S+)?nvcc ",
            "FlashInfer compiles kernels at the first request: minutes, and much memory",
            "an image with --aot gemma4 has them",
        ),
        (
            "ptxas",
            ERROR,
            r"ptxas .*(is not defined for option|unsupported.*gpu)|"
            r"Value 'sm_\d+a?' is not defined",
            "this ptxas does not know the GPU",
            "an image of fp4forge sets TRITON_PTXAS_PATH; another needs CUDA 13's ptxas",
        ),
        (
            "nvcc",
            ERROR,
            r"(Could not find nvcc|nvcc.*[Nn]o such file)",
            "FlashInfer or Triton wants to compile and there is no compiler",
            "use fp4forge's image",
        ),
    )
    for name, severity, pattern, cause, fix in cases:
        if line := line_of(found, pattern):
            yield Finding(name, severity, line, cause, fix)


@check
def state(found: Evidence) -> Iterator[Finding]:
    """The container is not running, or not healthy."""
    if found.status == "exited":
        yield Finding(
            "exited",
            ERROR,
            f"the container ended with exit code {found.exit_code}",
            "the last lines of its log: " + " / ".join((found.log or "").splitlines()[-2:])[-300:],
            "docker logs shows the rest; mend what the other findings name",
        )
    if found.health == "unhealthy":
        yield Finding(
            "unhealthy",
            ERROR,
            "the health check fails",
            "the server hangs or never started",
            "docker inspect --format '{{json .State.Health}}' shows its answers",
        )


@check
def flash_attention(found: Evidence) -> Iterator[Finding]:
    """vLLM 0.20.2 does not start without one of its flash-attention extensions."""
    if line := line_of(found, r"requires the CUDA flash attention extensions"):
        version = found.version or "this vLLM"
        yield Finding(
            "flash-attention",
            ERROR,
            line,
            f"{version} imports one of _vllm_fa2_C and _vllm_fa3_C, used or not",
            "build with the component fa2",
        )


@check
def server(found: Evidence) -> Iterator[Finding]:
    """The live server: reachable, and does it know Paris."""
    if not found.url:
        return
    reason = client.unreachable(found.url)
    if reason:
        starting = found.log is not None and not read_log(found.log).ready
        yield Finding(
            "port",
            WARNING if starting and found.status == "running" else ERROR,
            f"{found.url}/health: {reason}",
            "the server is still loading" if starting else "nothing answers at that port",
            "wait: loading takes 4 to 5 minutes on a DGX Spark"
            if starting
            else "publish the port, start the server with --host 0.0.0.0",
        )
        return
    answer = client.paris(found.url)
    if answer.ok:
        return
    text = answer.text
    symptom = "empty-answer" if not text.strip() else "wrong-answer"
    if re.search(r"(-?\w{2,}-?)\1{3,}", text[:2000]):
        symptom = "gibberish"
    yield Finding(
        symptom,
        ERROR,
        answer.problem or f"asked for France's capital: {text[:120]!r}",
        "scales are read wrongly, or the chat template is not the model's",
        "see the other findings; then build.py checkpoint inspect DIR",
    )
