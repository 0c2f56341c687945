"""Predicts what a TORCH_CUDA_ARCH_LIST becomes: targets of every kernel group, and what GPUs get.

Rules: torch's select_compute_arch.cmake (torch 2.12.0, share/cmake/Caffe2/Modules_CUDA_fix), then
vLLM's cmake/utils.cmake and CMakeLists.txt as extracted by ``cmake_rules``. A test runs vLLM's own
function under ``cmake -P`` against ``loose_intersection`` over thousands of lists.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from fp4forge.kernels.base import UsageError
from fp4forge.kernels.gpus import GPUS, RUNS, VERDICTS, Gpu, serves

# What each nvcc can name on Blackwell (CUDA Toolkit release notes 12.8, 12.9, 13.0): sm_121 and
# the family suffix came with 12.9; 13.0 renamed 10.1 to 11.0.
_BLACKWELL = {
    "12.8": {"10.0", "10.0a", "10.1", "10.1a", "12.0", "12.0a"},
    "12.9": {b + s for b in ("10.0", "10.1", "10.3", "12.0", "12.1") for s in ("", "a", "f")},
    "13.0": {b + s for b in ("10.0", "10.3", "11.0", "12.0", "12.1") for s in ("", "a", "f")},
}
_NAMES = {
    "Ampere": ["8.0", "8.6"], "Ada": ["8.9"], "Hopper": ["9.0"], "Turing": ["7.5"],
    "Blackwell": ["10.0", "12.0"], "Blackwell+Tegra": ["10.1"],
}  # fmt: skip
_ENTRY = re.compile(r"[0-9]{1,4}\.[0-9][af]?")


def version(text: str) -> tuple[int, ...]:
    """A version as CMake compares it: integer components up to the first that is not one."""
    found: list[int] = []
    for part in text.split("."):
        match = re.match(r"[0-9]{1,9}", part)
        if not match:
            break
        found.append(int(match[0]))
        if match[0] != part:
            break
    return tuple(found) + (0,) * (4 - len(found))


def _natural(text: str) -> list[tuple[int, int, str]]:
    parts = re.findall(r"[0-9]{1,9}|[^0-9]+", text)
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts]


def _major(text: str) -> str:
    return re.sub(r"^([0-9]+)\..*$", r"\1", text)


def _unique(values: list[str]) -> list[str]:
    return list(dict.fromkeys(values))


def loose_intersection(source: list[str], target: list[str]) -> list[str]:
    """vLLM's ``cuda_archs_loose_intersection`` (cmake/utils.cmake, 0.19.1 and 0.20.2 alike).

    Args:
        source: what kernels are written for, such as ``["12.0f"]`` or ``["8.0+PTX"]``.
        target: what is asked for, such as ``["10.0", "12.0", "12.1"]``.

    Returns:
        What is compiled, in vLLM's order.
    """
    wanted = [a for a in target if a]
    asked = list(wanted)  # TGT_CUDA_ARCHS as passed: the first test below does not see removals
    ptx = [a.removesuffix("+PTX") for a in source if a.endswith("+PTX")]
    # CMake moves an entry with +PTX to the end of the list when it strips the suffix.
    rest = _unique([a for a in source if a and not a.endswith("+PTX")] + ptx)
    out: list[str] = []

    def take(entry: str, result: str) -> None:
        wanted[:] = [a for a in wanted if a != entry]
        out.append(result)

    for arch in [a for a in rest if a[-1] in "af"]:
        rest.remove(arch)
        base = arch[:-1]
        if base in asked:
            take(base, arch)
        elif base + "a" in wanted:
            take(base + "a", base + "a")
        elif base + "f" in wanted:
            take(base + "f", base + "f")
        elif arch.endswith("f"):
            same = [t for t in wanted if _major(re.sub("[af]$", "", t)) == _major(base)]
            if same:
                take(same[0], same[0])
    for arch in list(wanted):
        if arch[-1] in "af" and arch[:-1] in rest:
            rest.remove(arch[:-1])
            take(arch, arch)
    rest.sort(key=_natural)
    for arch in wanted:
        best = ""
        for candidate in rest:
            if version(candidate) > version(arch):
                break
            if candidate in ptx or _major(candidate) == _major(arch):
                best = candidate
        if best:
            out.append(best)
    return [a + "+PTX" if a in ptx else a for a in _unique(out)]


def torch_archs(text: str) -> list[str]:
    """The architectures that torch's CMake and vLLM's flag extraction make of a list.

    Raises:
        UsageError: an entry that torch refuses, or that depends on the building machine.
    """
    entries = [e for e in re.split(r"[;\s]+", text) if e]
    if not entries:
        raise UsageError("the arch list is empty", rule="such as 10.0;12.0;12.1")
    found: list[str] = []
    for entry in _unique(entries):
        plain = entry if entry in _NAMES else entry.removesuffix("+PTX")
        if plain in _NAMES:
            found += _NAMES[plain]
        elif _ENTRY.fullmatch(plain):
            found.append(plain)
        else:
            raise UsageError(
                f"{entry!r} in the arch list is not an architecture",
                rule="X.Y with an optional a or f and an optional +PTX, separated by ;",
                remedy="such as 10.0;12.0;12.1",
            )
    return sorted(_unique(found), key=_natural)


def _holds(condition: str, cuda: tuple[int, ...], variables: dict[str, list[str]]) -> bool:
    negated = condition.startswith("! ")
    result = True
    for term in re.split(r"\s+AND\s+", condition.removeprefix("! ")):
        if term.startswith("DEFINED "):
            value = True
        elif match := re.fullmatch(r"\S*COMPILER_VERSION\S* VERSION_GREATER_EQUAL (\S+)", term):
            value = cuda >= version(match[1])
        elif re.fullmatch(r"\w+_ARCHS", term):
            value = bool(variables.get(term))
        else:
            raise ValueError(f"condition not understood: {condition}")
        result = result and value
    return result != negated


def group_targets(text: str, rules: dict[str, Any], cuda: str) -> dict[str, list[str]]:
    """Targets of every CUDA kernel group; an empty list for a group that is left out.

    Args:
        text: the arch list.
        rules: of a release, as ``cmake_rules.extract`` reads them.
        cuda: version of the compiler.
    """
    number = version(cuda)
    variables: dict[str, list[str]] = {"CUDA_ARCHS": torch_archs(text)}
    groups: dict[str, list[str]] = {}
    for step in rules["steps"]:
        holds = all(_holds(condition, number, variables) for condition in step["if"])
        if step["do"] == "group":
            groups.setdefault(step["name"], [])
            if holds:
                groups[step["name"]] = variables.get(step["var"], [])
        if not holds:
            continue
        if step["do"] == "supported":
            archs = step["archs"].split(";")
            variables["CUDA_ARCHS"] = loose_intersection(archs, variables["CUDA_ARCHS"])
        elif step["do"] == "set":
            variables[step["var"]] = step["archs"].split(";")
        elif step["do"] == "append":
            variables.setdefault(step["var"], []).extend(step["archs"].split(";"))
        elif step["do"] == "intersect":
            source = step["archs"]
            if source.startswith("${"):
                source = ";".join(variables.get(source[2:-1], []))
            variables[step["var"]] = loose_intersection(source.split(";"), variables["CUDA_ARCHS"])
    return groups


@dataclass(frozen=True)
class Prediction:
    """What a list gives, as ``arch explain --json`` prints it."""

    vllm: str
    cuda: str
    list: str
    groups: dict[str, list[str]]  # type: ignore[valid-type]
    gpus: dict[str, dict[str, Any]]
    named: tuple[str, ...]

    def lost(self, wanted: tuple[str, ...]) -> dict[str, str]:
        """Requested GPUs without FP4, with the reason."""
        return {g: self.gpus[g]["reason"] for g in wanted if not self.gpus[g]["ok"]}

    def as_json(self) -> dict[str, Any]:
        """The documented JSON."""
        return {
            "vllm": self.vllm,
            "cuda": self.cuda,
            "list": self.list,
            "groups": self.groups,
            "gpus": self.gpus,
            "named": self.named,
        }


def predict(text: str, vllm: str, rules: dict[str, Any], cuda: str) -> Prediction:
    """What a list gives on each GPU.

    Args:
        text: the arch list.
        vllm: the version that the rules are of.
        rules: as ``cmake_rules.extract`` reads them.
        cuda: version of the compiler.

    Raises:
        UsageError: the list cannot be used with this CUDA: torch or nvcc refuses an entry.
    """
    if not re.fullmatch(r"1[0-9]\.[0-9]", cuda):
        raise UsageError(f"--cuda {cuda!r} is not a CUDA version", rule="such as 13.0")
    groups = group_targets(text, rules, cuda)
    _check_nvcc(groups, text, cuda)
    gpus = {gpu.name: _verdict(gpu, groups, rules, cuda) for gpu in GPUS.values()}
    named = {re.sub("[af]$", "", arch) for arch in torch_archs(text)}
    return Prediction(
        vllm, cuda, text, groups, gpus,
        tuple(gpu.name for gpu in GPUS.values() if gpu.label in named),
    )  # fmt: skip


def _check_nvcc(groups: dict[str, list[str]], text: str, cuda: str) -> None:
    release = max((c for c in _BLACKWELL if version(c) <= version(cuda)), default=None,
                  key=version)  # fmt: skip
    known = _BLACKWELL[release] if release else set()
    named = {t.removesuffix("+PTX") for targets in groups.values() for t in targets}
    named |= set(torch_archs(text))
    unknown = sorted(a for a in named if int(_major(a)) >= 10 and a not in known)
    if unknown:
        raise UsageError(
            f"nvcc {cuda} does not know {', '.join('sm_' + u.replace('.', '') for u in unknown)}",
            rule="sm_121 and family targets (f) need CUDA 12.9, 11.0 needs 13.0",
            remedy="CUDA 13.0, or leave the entry out",
        )


def _best(targets: list[str], gpu: Gpu) -> tuple[str, str]:
    found = [(serves(t, gpu), t) for t in targets]
    return min(found, key=lambda pair: VERDICTS.index(pair[0]), default=("missing", ""))


def _verdict(
    gpu: Gpu, groups: dict[str, list[str]], rules: dict[str, Any], cuda: str
) -> dict[str, Any]:
    targets = groups.get(f"nvfp4_{gpu.family}", [])
    bare = [t for t in targets if t[-1] not in "af"]
    fp4, by = _best([t for t in targets if t not in bare], gpu)
    fp8, fp8_by = _best(groups.get(f"fp8_scaled_mm_{gpu.family}", []), gpu)
    notes = []
    if bare:
        fp4 = "missing"
        notes.append(
            f"NVFP4 would be compiled for {', '.join(bare)} without a or f, and ptxas refuses FP4"
            " there (cvt .e2m1x2 not supported): the build dies late"
        )
    elif not targets:
        notes.append(f"the list names no {gpu.major}.x architecture that vLLM compiles NVFP4 for")
    elif fp4 == "missing":
        notes.append(f"NVFP4 is compiled for {', '.join(targets)}, which {gpu.name} cannot load")
    else:
        notes.append(f"NVFP4 compiled for {by}")
    only_120 = gpu.major == 12 and rules["sm120_only_fp8"] and not fp8_by.startswith("12.0")
    if fp8 != "missing" and only_120:
        fp8 = "missing"
        notes.append("FP8 scaled_mm traps: enable_sm120_only compiles it for 12.0 alone")
    if fp4 == "missing":
        notes.append(f"use {advice(gpu, cuda)}")
    marlin = _best(groups.get("moe_marlin_sm80", []), gpu)[0]
    return {"fp4": fp4, "fp8": fp8, "moe_marlin": marlin, "ok": fp4 in RUNS,
            "reason": "; ".join(notes)}  # fmt: skip


def advice(gpu: Gpu, cuda: str) -> str:
    """The list that serves a GPU with a CUDA."""
    if version(cuda) >= version("13.0"):
        return gpu.arch_list
    if version(cuda) < version(gpu.nvcc):
        return f"CUDA 13.0 and {gpu.arch_list}"
    return gpu.label + "a"
