"""Compares the backends that a log names with those that the release's own code selects."""

from __future__ import annotations

from collections.abc import Iterator

from fp4forge.doctor import facts
from fp4forge.doctor.diagnosis import NOTE, Diagnosis, check, read_log
from fp4forge.doctor.evidence import Evidence
from fp4forge.inputs import switches
from fp4forge.kernels.gpus import GPUS
from fp4forge.models import backend_answers

# Environment variables that choose, by what they decide (models/switches.yaml).
_VARIABLES = {
    "linear": ("VLLM_NVFP4_GEMM_BACKEND",),
    "experts": ("VLLM_TEST_FORCE_FP8_MARLIN", "VLLM_USE_FLASHINFER_MOE_FP4"),
    "attention": ("VLLM_ATTENTION_BACKEND",),
}


@check
def selected(found: Evidence) -> Iterator[Diagnosis]:
    """A backend that vLLM would not select by itself, and that nothing given asks for."""
    gpu = _one_gpu(found)
    answer = backend_answers.find(found.version, gpu, facts.family_name(found)) if gpu else None
    if answer is None:
        return
    log = read_log(found.parsed.text)
    cache = facts.setting(found, "kv-cache-dtype") or "auto"
    for kind, name in (
        ("linear", log.linear),
        ("experts", log.moe),
        ("attention", log.attention),
    ):
        # A cache type that was not asked for says nothing of attention.
        decisions = [one for one in answer.of(kind) if one.cache in ("", cache)]
        predicted = [one.selected for one in decisions]
        if not name or not predicted or name in predicted or _backend_demanded(found, kind):
            continue
        option = next((o for one in decisions if (o := one.option(name))), None)
        refused = f"; of {name} it says: {option.reason}" if option and option.reason else ""
        yield Diagnosis(
            "another-backend",
            NOTE,
            f"the log names {name} for {kind}",
            f"vLLM {found.version} itself selects {' or '.join(dict.fromkeys(predicted))} on {gpu}"
            f" for this family{refused}: an unseen setting chose it, or this is another vLLM",
            f"{_backend_flag(found.version, kind)}build.py backends --kept --release"
            f" {found.version} --gpu {gpu} --family {answer.family} shows the alternatives",
            "releases/backends, vLLM's own selection code",
        )


def _one_gpu(found: Evidence) -> str:
    """The GPU, if all that were listed are of one chip."""
    capabilities = {gpu.capability for gpu in found.gpus}
    return next((g.name for g in GPUS.values() if {g.label} == capabilities), "")


def _backend_flag(version: str, kind: str) -> str:
    """The flag that chooses, if the release has it."""
    flag, known = backend_answers.FLAGS[kind], switches.load(version)
    return f"{flag} says which; " if known and known.flag(flag) else ""


def _backend_demanded(found: Evidence, kind: str) -> bool:
    flag = backend_answers.FLAGS[kind].removeprefix("--")
    given = facts.setting(found, flag)
    return given not in (None, "auto") or any(
        name in found.environment for name in _VARIABLES[kind]
    )
