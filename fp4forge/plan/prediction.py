"""Predicts what an arch list gives: from the release's table, or by running its script."""

from __future__ import annotations

from functools import cache

from fp4forge.core.errors import UsageError
from fp4forge.inputs import arch_rules
from fp4forge.kernels import archs, groups
from fp4forge.plan import cmake


@cache
def predict(text: str, vllm: str, cuda: str) -> archs.Prediction:
    """What a list gives on each GPU.

    Args:
        text: the arch list.
        vllm: version of a release in ``releases/archs``.
        cuda: version of the compiler.

    Raises:
        UsageError: the list cannot be used: torch, nvcc or vLLM's CMake refuses it.
        ReleaseError: the release's table or script is not what ``arch extract`` writes.
        ToolError: the list is not in the table, and CMake is not installed.
    """
    return by_rules(arch_rules.load(vllm), text, vllm, cuda)


def by_rules(rules: arch_rules.ArchRules, text: str, vllm: str, cuda: str) -> archs.Prediction:
    """As ``predict``, by rules that may not be written yet; then the list must be in their table.

    Raises:
        As ``predict``.
    """
    archs.check(text, cuda)
    plain = ";".join(archs.torch_archs(text))
    found: cmake.Sources | cmake.CmakeRefused | None = rules.sources(plain, cuda)
    if found is None:
        (found,) = cmake.evaluate(arch_rules.script(vllm), cuda, [plain])
    if isinstance(found, cmake.CmakeRefused):
        raise UsageError(
            f"vLLM {vllm} cannot be built for {text!r}: {found}", remedy="such as 10.0;12.0;12.1"
        )
    compiled = groups.of_sources(found)
    return archs.judge(text, vllm, cuda, compiled, tuple(rules.fp8_guards))
