"""Asks vLLM's own selection code which kernels it would use on a GPU; runs on a CPU, in the image.

Usage: python3 -m inside.ask request.json. The request has "gpus" {name: [major, minor]}, "models"
{name: config.json's object} and "caches" [--kv-cache-dtype]. Each line that starts with MARK is
JSON: {"note": text} while it runs, then {"answers": [...]}, whose form is ``BackendAnswer`` of
``fp4forge/models/backend_answers.py``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any, get_args

MARK = "fp4forge "
# Variables that change what vLLM selects start like this; without them it selects by itself.
_PREFIX = "VLLM_"
_GIVEN = {name: value for name, value in os.environ.items() if name.startswith(_PREFIX)}

Option = dict[str, Any]
Decision = dict[str, Any]


def say(**value: Any) -> None:
    """A line for the program that reads this one's output."""
    print(MARK + json.dumps(value), flush=True)


@contextmanager
def given(variables: dict[str, str]) -> Iterator[None]:
    """An environment with these of vLLM's variables and no others."""
    before = {name: value for name, value in os.environ.items() if name.startswith(_PREFIX)}
    _set(variables)
    try:
        yield
    finally:
        _set(before)


def _set(variables: dict[str, str]) -> None:
    for name in [name for name in os.environ if name.startswith(_PREFIX)]:
        del os.environ[name]
    os.environ.update(variables)


def _own(variables: dict[str, str]) -> dict[str, str]:
    """Variables, and what keeps vLLM quiet."""
    return {"VLLM_LOGGING_LEVEL": "ERROR", **variables}


def _decide(select: Callable[[], str], options: list[Option], **what: str) -> Decision:
    """A decision: without the image's variables, and with them."""
    found: Decision = {**what, "options": options}
    for field, variables in (("selected", {}), ("image", _GIVEN)):
        try:
            with given(_own(variables)):
                found[field] = select()
        except Exception as error:  # vLLM's refusal is an answer
            found[field] = ""
            found["refused"] = _words(error).partition(" Reasons: ")[0]  # the options have them
    return found


def _words(error: BaseException) -> str:
    return (str(error) or type(error).__name__)[:1000]


def _option(name: str, reason: str | None, kernel: str = "", automatic: bool = True) -> Option:
    return {"name": name, "reason": reason or "", "kernel": kernel, "automatic": automatic}


def linear() -> Decision:
    """Which kernel multiplies NVFP4 weights in linear layers."""
    from vllm.model_executor.kernels import linear as kernels

    if hasattr(kernels, "init_nvfp4_linear_kernel"):
        options, select = _linear_kernels(kernels)
    else:
        options, select = _linear_backends()
    return _decide(select, options, kind="linear", layer="NVFP4 linear layers", cache="")


def _linear_kernels(kernels: Any) -> tuple[list[Option], Callable[[], str]]:
    """Releases whose kernels are classes that are asked one after the other."""
    from vllm.platforms import current_platform

    config = kernels.NvFp4LinearLayerConfig()
    options = []
    for kernel in kernels._POSSIBLE_NVFP4_KERNELS[current_platform._enum]:
        reason = None
        for able, why in (kernel.is_supported(), kernel.can_implement(config)):
            if not able:
                reason = reason or why or "not supported"
        options.append(_option(kernel.__name__, reason))
    return options, lambda: type(kernels.init_nvfp4_linear_kernel()).__name__


def _linear_backends() -> tuple[list[Option], Callable[[], str]]:
    """Releases that choose in one function: each backend is demanded by its variable."""
    from vllm.model_executor.layers.quantization.utils import nvfp4_utils

    select = nvfp4_utils.select_nvfp4_linear_backend
    variables = {"fbgemm": "VLLM_USE_FBGEMM", "emulation": "VLLM_USE_NVFP4_CT_EMULATIONS"}
    options = []
    for backend in nvfp4_utils.NvFp4LinearBackend:
        own = variables.get(backend.value)
        demand = {own: "1"} if own else {"VLLM_NVFP4_GEMM_BACKEND": backend.value}
        reason = None
        try:
            with given(_own(demand)):
                select()
        except Exception as error:  # the reason is what is asked for
            reason = _words(error)
        options.append(_option(backend.name, reason, automatic=not own))
    return options, lambda: str(select().name)


def experts(asked: tuple[Any, Any, Any]) -> Decision:
    """Which kernel runs a layer's NVFP4 experts."""
    import vllm.model_executor.layers.fused_moe.oracle.nvfp4 as oracle

    config, weights, activations = asked
    order = _tried(oracle, asked)
    options = []
    for backend in sorted(oracle.NvFp4MoeBackend, key=lambda b: _place(order, b)):
        kernel, reason = _experts_reason(oracle, backend, asked)
        options.append(_option(backend.value, reason, kernel, backend in order))
    layer = (
        f"{config.num_experts} experts, {config.experts_per_token} a token,"
        f" {config.activation.value}, {config.routing_method.name} routing"
    )
    return _decide(
        lambda: str(oracle.select_nvfp4_moe_backend(config, weights, activations)[0].value),
        options,
        kind="experts",
        layer=layer,
        cache="",
    )


def _place(order: list[Any], backend: Any) -> int:
    return order.index(backend) if backend in order else len(order)


def _tried(oracle: Any, asked: tuple[Any, Any, Any]) -> list[Any]:
    """Backends in the order in which vLLM tries them by itself."""
    order: list[Any] = []
    real = oracle.backend_to_kernel_cls

    def none(backend: Any) -> list[Any]:
        order.append(backend)
        return []

    oracle.backend_to_kernel_cls = none
    try:
        with given(_own({})):
            oracle.select_nvfp4_moe_backend(*asked)
    except NotImplementedError:
        pass  # none of no kernels fits
    finally:
        oracle.backend_to_kernel_cls = real
    return order


def _experts_reason(oracle: Any, backend: Any, asked: tuple[Any, Any, Any]) -> tuple[str, str]:
    """The kernel that a backend would use; or vLLM's reason for none."""
    import vllm.model_executor.layers.fused_moe.modular_kernel as modular

    try:
        kernels = oracle.backend_to_kernel_cls(backend)
    except Exception as error:  # an optional package is not there
        return "", _words(error)
    if not isinstance(kernels, list):
        kernels = [kernels]
    reasons = []
    for kernel in kernels:
        try:
            able, reason = kernel.is_supported_config(
                kernel, *asked, modular.FusedMoEActivationFormat.Standard
            )
        except Exception as error:
            able, reason = False, _words(error)
        if able:
            return kernel.__name__, ""
        reasons.append(reason or "not supported")
    return "", "; ".join(dict.fromkeys(reasons)) or "it has no kernel"


def attention(platform: Any, asked: tuple[Any, Any, Any], cache: str) -> Decision:
    """Which kernel runs a layer's attention with a KV cache of some data type."""
    forced, config, heads = asked
    capability = platform.get_device_capability()
    with given(_own({})):
        valid, invalid = platform.get_valid_backends(
            device_capability=capability, attn_selector_config=config, num_heads=heads
        )
    found: dict[int, Option] = {}
    names: dict[str, str] = {}
    for entry in valid:
        backend = next(part for part in entry if isinstance(part, Enum))
        found[int(entry[-1])] = _option(backend.name, "")
        names[_path(backend)] = backend.name
        for kernel in (part for part in entry if isinstance(part, type)):
            names[f"{kernel.__module__}.{kernel.__qualname__}"] = backend.name
    for backend, (place, reasons) in invalid.items():
        found[place] = _option(backend.name, ", ".join(reasons))
    if forced is not None:
        names[_path(forced)] = forced.name

    def select() -> str:
        chosen = platform.get_attn_backend_cls(forced, attn_selector_config=config, num_heads=heads)
        return names.get(chosen, str(chosen))

    decision = _decide(
        select,
        [found[place] for place in sorted(found)],
        kind="attention",
        layer=_layer(config),
        cache=cache,
    )
    decision["demanded"] = forced.name if forced is not None else ""
    return decision


def _path(backend: Any) -> str:
    return str(backend.get_path())


def _layer(config: Any) -> str:
    """A layer in words: its head size, and whatever is true of it and not of every layer."""
    told = [f"head size {config.head_size}"]
    told += [
        name.partition("_")[2].replace("_", " ").replace("mla", "MLA")
        for name, value in config._asdict().items()
        if value is True
    ]
    if config.attn_type != "decoder":
        told.append(str(config.attn_type))
    return ", ".join(told)


def _cache_types() -> tuple[str, ...]:
    from vllm.config import cache

    return tuple(get_args(cache.CacheDType))


def answers(name: str, capability: tuple[int, int], request: dict[str, Any]) -> list[Any]:
    """What would be selected on one GPU for each model."""
    from . import layers, stand_in

    platform = stand_in.gpu(capability)
    with stand_in.OnMeta():
        layers.prepare()
        from vllm.config import VllmConfig, set_current_vllm_config

        with set_current_vllm_config(VllmConfig()):
            first = linear()
        found = []
        for model, config in request["models"].items():
            say(note=f"{name}: {model}")
            decisions: list[Decision] = [first]
            problems: dict[str, list[str]] = {}  # KV caches by what is wrong
            for cache in request["caches"]:
                if cache not in _cache_types():
                    problems.setdefault("not a type of this release", []).append(cache)
                    continue
                asked = layers.questions(config, cache)
                if asked.problem:
                    what = "not all layers could be made" if asked.config else "refused"
                    problems.setdefault(f"{what}: {asked.problem}", []).append(cache)
                with set_current_vllm_config(asked.config or VllmConfig()):
                    of_experts = [experts(one) for one in asked.experts]
                    decisions += [one for one in of_experts if one not in decisions]
                    decisions += [attention(platform, one, cache) for one in asked.attention]
            told = [f"KV cache {', '.join(caches)}: {what}" for what, caches in problems.items()]
            found.append(_answer(name, capability, model, decisions, told))
    return found


def _answer(
    name: str,
    capability: tuple[int, int],
    model: str,
    decisions: list[Decision],
    problems: list[str],
) -> dict[str, Any]:
    import vllm

    return {
        "vllm": vllm.__version__.partition("+")[0],
        "gpu": name,
        "capability": list(capability),
        "model": model,
        "environment": _GIVEN,
        "decisions": decisions,
        "problems": problems,
    }


def _in_a_process(work: Callable[[], list[Any]]) -> list[Any]:
    """The result of work in a process of its own: vLLM keeps what it learned of its GPU."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        try:
            content = json.dumps({"found": work()})
        except BaseException as error:
            content = json.dumps({"error": f"{type(error).__name__}: {error}"})
        with os.fdopen(writing, "w") as file:
            file.write(content)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        content = file.read()
    os.waitpid(child, 0)
    result = json.loads(content or '{"error": "the process ended without an answer"}')
    if "error" in result:
        raise RuntimeError(result["error"])
    return list(result["found"])


def main() -> None:
    """Answers the request."""
    request = json.loads(Path(sys.argv[1]).read_text())
    os.environ["HF_HUB_OFFLINE"] = "1"
    _set(_own({}))
    say(note="importing torch")
    from . import stand_in

    stand_in.driver()
    found = []
    for name, capability in request["gpus"].items():
        say(note=f"{name}: importing vLLM")
        major, minor = capability

        def work(name: str = name, capability: tuple[int, int] = (major, minor)) -> list[Any]:
            return answers(name, capability, request)

        found += _in_a_process(work)
    say(answers=found)


if __name__ == "__main__":
    main()
