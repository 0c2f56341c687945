"""Checks of servers on more than one GPU or machine, and of stalls."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from fp4forge.checkpoint import config as configs
from fp4forge.core.text import shown
from fp4forge.doctor import facts, logs
from fp4forge.doctor.diagnosis import (
    ERROR,
    NOTE,
    WARNING,
    Diagnosis,
    check,
    failed_line,
    line_of,
)
from fp4forge.doctor.evidence import Evidence
from fp4forge.doctor.inspected import visible

_IF = "if no line follows for minutes"
STALL_SECONDS = 120  # without a line that shows work
_NCCL = re.compile(r"vLLM is using nccl|NCCL INFO|NCCL version|Init COMPLETE|backend=nccl")
_DOWNLOAD = re.compile(r"(?i:download)|Fetching \d+ files|snapshot")
_IDLE = re.compile(r"generation throughput: 0\.0 tokens/s, Running: [1-9]")


@check
def too_few_gpus(found: Evidence) -> Iterator[Diagnosis]:
    """Fewer GPUs than the flags divide the model over."""
    line = failed_line(
        found,
        r"World size \(\d+\) is larger than the number of available GPUs"
        r"|number of required GPUs exceeds the total number of available GPUs"
        r"|tensor parallel size.* (?:exceeds|is larger than)|invalid device ordinal",
    )
    split = facts.split(found)
    here = _visible_gpu_count(found)
    a_node = split.world // split.nodes if split.nodes > 1 else split.world
    a_node *= split.data if split.nodes == 1 else 1
    short = here is not None and a_node > here and not split.ray
    if not line and (not short or found.ready):
        return
    spark = facts.unified(found)
    have = f"; this machine has {here}" if here is not None else ""
    yield Diagnosis(
        "too-few-gpus",
        ERROR,
        line or f"the flags divide the model over {a_node} GPUs a machine{have}",
        f"--tensor-parallel-size {split.tensor} times --pipeline-parallel-size {split.pipeline}"
        + (f", {split.data} copies," if split.data > 1 else "")
        + f" needs {split.world * split.data} GPUs on {split.nodes}"
        + f" machine{'s'[: split.nodes > 1]}{have}"
        + ("; a DGX Spark has one GPU" if spark else ""),
        "with more machines: --nnodes N --node-rank 0 (1 ...) --master-addr ADDRESS on each, and"
        " --headless on all but the first, or --distributed-executor-backend ray; with one: lower"
        " --tensor-parallel-size, or give the container every GPU",
    )


def _visible_gpu_count(found: Evidence) -> int | None:
    """GPUs that the server can see on its machine; None if nothing says."""
    counts = [found.gpu_count, visible(found), len(found.gpus) or None]
    known = [count for count in counts if count is not None]
    return min(known) if known else None


@check
def nodes(found: Evidence) -> Iterator[Diagnosis]:
    """--nnodes without what goes with it."""
    if not found.serves:
        return
    count, rank = facts.split(found).nodes, found.flag("--node-rank")
    address, headless = found.flag("--master-addr"), found.flag("--headless") is not None
    wrong = []
    if count > 1 and not address:
        wrong.append(
            ("--nnodes without --master-addr", "--master-addr: the first machine's address")
        )
    if count > 1 and rank and re.fullmatch("[0-9]{1,4}", rank) and int(rank) >= count:
        wrong.append((f"--node-rank {rank} of {count}", "ranks begin with 0"))
    if count > 1 and rank and rank != "0" and not headless:
        wrong.append(
            (f"--node-rank {rank} without --headless", "add --headless: one machine serves the API")
        )
    if count > 1 and facts.split(found).world % count:
        wrong.append(
            (
                f"{facts.split(found).world} GPUs on {count} machines",
                "tensor times pipeline parallelism must be a multiple of --nnodes",
            )
        )
    if count == 1 and (rank or address) and not facts.split(found).ray:
        wrong.append(("--node-rank or --master-addr without --nnodes", "add --nnodes"))
    for seen, fix in wrong:
        yield Diagnosis(
            "nodes",
            WARNING if found.ready else ERROR,
            seen,
            "the machines do not find each other, or each serves alone",
            fix,
        )


@check
def expert_split(found: Evidence) -> Iterator[Diagnosis]:
    """Experts that tensor parallelism cuts to a width which Marlin has no kernel for."""
    line = failed_line(found, r"Invalid thread config: .*MKN = ")
    size, cut = facts.split(found).tensor, ""
    known = facts.config(found)
    width = configs.width(known.text.moe_intermediate_size) if known else 0
    whole = found.flag("--enable-expert-parallel") is not None
    if (
        size > 1
        and not whole
        and not found.ready
        and width % (64 * size)
        and _experts_on_marlin(found)
    ):
        cut = f"--tensor-parallel-size {size} makes {width / size:g} of {width} wide experts"
    if line or cut:
        yield Diagnosis(
            "expert-split",
            ERROR,
            line or cut,
            "Marlin multiplies by multiples of 64 (vLLM csrc/moe/marlin_moe_wna16/ops.cu)",
            "add --enable-expert-parallel: each GPU gets whole experts",
        )


def _experts_on_marlin(found: Evidence) -> bool:
    """Whether Marlin computes the experts, by choice."""
    forced = found.environment.get("VLLM_TEST_FORCE_FP8_MARLIN") == "1"
    return forced or (facts.setting(found, "moe-backend") or "").lower() == "marlin"


@check
def stalled(found: Evidence) -> Iterator[Diagnosis]:
    """No line that shows work for minutes."""
    log = found.parsed
    if log.ready >= 0:
        yield from _idle_requests(found, log)
        return
    seconds, alive = logs.silence(log), logs.alive(log)
    waits = len(re.findall(r"No available shared memory broadcast block found", log.text))
    if seconds < STALL_SECONDS and not (waits >= 2 and alive >= 0):
        if _on_several_gpus(found) and _nccl_last(log, alive):
            hang = _nccl_hang(found, log.excerpt(alive))
            yield replace(hang, id="nccl-start", severity=NOTE, cause=f"{_IF}: {hang.cause}")
        return
    if logs.root(log):
        return
    last = log.lines[alive].text if alive >= 0 else ""
    said = f"{log.excerpt(alive)}; then {max(seconds, waits * 60):.0f} s without a sign of work"
    if _on_several_gpus(found) and _nccl_last(log, alive):
        yield _nccl_hang(found, said)
    elif _DOWNLOAD.search(last):
        yield Diagnosis(
            "download-stall",
            ERROR,
            said,
            "the download does not go on: network, proxy, or the Hub's limits",
            "build.py checkpoint fetch downloads beforehand and resumes; mount the folder",
        )
    else:
        yield Diagnosis(
            "stall", ERROR, said, "cause not known here", "py-spy dump shows where it is"
        )


def _on_several_gpus(found: Evidence) -> bool:
    """Whether several GPUs serve the model, by the flags or the log."""
    logged = re.search(r"world_size=(?:[2-9]|[1-9][0-9])", found.parsed.text)
    return facts.split(found).world > 1 or bool(logged)


def _nccl_last(log: logs.ServerLog, alive: int) -> bool:
    """Whether NCCL's start is among the last lines that show work."""
    return any(_NCCL.search(line.text) for line in log.lines[max(0, alive - 2) : alive + 1])


def _nccl_hang(found: Evidence, said: str) -> Diagnosis:
    """A hang in NCCL's start, by what connects the GPUs."""
    if facts.split(found).nodes > 1 or facts.unified(found):
        return Diagnosis(
            "nccl-hang",
            ERROR,
            said,
            "the machines do not reach each other through NCCL: another interface, a firewall, or"
            " NCCL versions that differ or hang between machines",
            "on each machine the same image; NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME name the"
            " interface between them; NCCL_DEBUG=INFO shows which one NCCL takes",
        )
    linked = bool(found.gpus) and all(re.search(r"\bG?[BH][1-9]00", g.name) for g in found.gpus)
    if linked:
        return Diagnosis(
            "nccl-hang",
            ERROR,
            said,
            "the GPUs do not reach each other through NVLink",
            "nvidia-smi nvlink --status, and the fabric manager's log; NCCL_DEBUG=INFO shows more",
        )
    return Diagnosis(
        "nccl-hang",
        ERROR,
        said,
        "GPUs on PCIe: peer-to-peer traffic goes astray in the IOMMU, or ACS sends it around",
        "NCCL_P2P_DISABLE=1 and --disable-custom-all-reduce; for good: switch IOMMU and ACS off"
        " (kernel parameters iommu=pt and pci=noacs, or the BIOS)",
        "NVIDIA/nccl#2079; vllm-project/vllm#33041",
    )


def _idle_requests(found: Evidence, log: logs.ServerLog) -> Iterator[Diagnosis]:
    """Requests that run and get no token, at the end of the log."""
    idle = []
    for line in reversed(log.lines):
        if _IDLE.search(line.text) and re.search(r"prompt throughput: 0\.0 ", line.text):
            idle.append(line)
        elif "throughput" in line.text:
            break
    waits = sum(1 for line in log.lines[logs.alive(log) + 1 :] if line.text.strip())
    if len(idle) >= 3 or waits >= 2:
        yield Diagnosis(
            "stall",
            ERROR,
            shown(idle[0].text, 300)
            if len(idle) >= 3
            else log.excerpt(len(log.lines) - 1) or log.excerpt(logs.alive(log) + 1),
            "requests run and get no token, or processes wait for each other: the engine hangs",
            "py-spy dump --pid of the engine shows where it is",
        )


@check
def peers(found: Evidence) -> Iterator[Diagnosis]:
    """What NCCL itself says of its network."""
    line = failed_line(
        found, r"NCCL WARN .{0,200}(?:Connection|connect|Timeout|timed out|no route|refused)"
    )
    line = line or failed_line(found, r"Watchdog caught collective operation timeout")
    if line:
        yield Diagnosis(
            "nccl-network",
            ERROR,
            line,
            "the processes do not reach each other",
            "NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME name the right interface; open the firewall"
            " between the machines; the same image on each",
        )
    if not found.ready and (other := line_of(found, r"Unable to find address for: \S+")):
        yield Diagnosis(
            "nccl-network",
            ERROR,
            other,
            "GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME names an interface that does not exist",
            "ip -brief address lists them",
        )
