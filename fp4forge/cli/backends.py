"""build.py backends: which kernels a release's vLLM selects, on which GPU, and why not others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fp4forge.cli import checkout, origins
from fp4forge.cli.options import json_option, registry_option, repo_option, resolve_registry
from fp4forge.core.console import Console, fields, print_json, rich, table
from fp4forge.core.errors import UsageError
from fp4forge.kernels import gpus as chips
from fp4forge.models import backend_answers as kept
from fp4forge.models import backend_kernels, family
from fp4forge.models.backend_answers import BackendAnswer, BackendDecision
from fp4forge.oci.acquire import RecordedKernels, RecordedOrigin
from fp4forge.plan.backend_origins import label

_INDENT = 16


@click.command()
@click.option("--release", help="Release to ask; by default the newest that has a wheel.")
@click.option("--gpu", "gpus", multiple=True, type=click.Choice(list(chips.GPUS)), help="The GPU.")
@click.option("--family", "families", multiple=True, help="A model family, by its example.")
@click.option("--model", type=click.Path(path_type=Path), help="A checkpoint's folder.")
@click.option("--all", "everything", is_flag=True, help="Every GPU and every family.")
@click.option("--image", help="Image to ask; by default the release's moving tag in --registry.")
@click.option(
    "--arch",
    help="GPU, or set of GPUs, in the image's tag; by default the smallest set with --gpu.",
)
@click.option("--variant", help="Variant of the image's tag: awq (the default) or plain.")
@click.option("--platform", help="Platform of the image's tag; by default the GPU's.")
@registry_option
@repo_option
@click.option(
    "--kept", "offline", is_flag=True, help="Show the answers in releases/backends; needs no image."
)
@click.option("--write", is_flag=True, help="Keep the answers in releases/backends.")
@click.option("--verbose", is_flag=True, help="List every backend, with vLLM's reason.")
@json_option
def backends(as_json: bool, verbose: bool, write: bool, everything: bool, **o: Any) -> None:
    """Show what vLLM selects for NVFP4 layers, experts, attention and KV cache, and why.

    Runs the image's own vLLM on this machine's CPU, with a stand-in for the GPU. Nothing is
    downloaded but the image, and nothing is computed.
    """
    if write:
        checkout.require("backends --write")
    if everything:
        o["gpus"] = o["gpus"] or tuple(chips.GPUS)
        o["families"] = o["families"] or tuple(family.table())
    if not o["gpus"] or not (o["families"] or o["model"]):
        raise UsageError(
            "which GPU and which model?",
            rule="--gpu with --family or --model, or --all",
            remedy="build.py backends --gpu sm121 --family gemma4",
        )
    if o["offline"]:
        asked = {"--image": o["image"], "--arch": o["arch"], "--write": write}
        if given := [name for name, value in asked.items() if value]:
            raise UsageError(
                f"{', '.join(given)} with --kept",
                rule="--kept shows what is recorded for a release, and asks no image",
                remedy="leave one of them out",
            )
        found, kernels = _kept_answers(o), _predicted_kernels(o)
    else:
        found, kernels = _ask_image(o)
    if write:
        backend_kernels.check(found)
        click.echo(f"wrote {kept.write(found)}", err=True)
    if as_json:
        print_json([_answer_json(answer, kernels) for answer in found])
    elif not write:
        for answer in found:
            _show_backends(answer, kernels, verbose)


def _answer_json(answer: BackendAnswer, kernels: RecordedKernels) -> dict[str, Any]:
    """An answer, with where its GPU's kernels come from."""
    import msgspec

    own = kernels.gpus.get(answer.gpu, {})
    extra = {"kernels": msgspec.to_builtins(own), "compilers": kernels.compilers}
    found: dict[str, Any] = msgspec.to_builtins(answer)
    return found | extra


def _predicted_kernels(o: dict[str, Any]) -> RecordedKernels:
    """Where the kernels come from in the usual image of each GPU."""
    from fp4forge.image import context
    from fp4forge.inputs import defaults
    from fp4forge.plan.request import ImageRequest
    from fp4forge.plan.resolve import resolve

    usual = defaults.table().image
    found = RecordedKernels()
    for gpu in dict.fromkeys(o["gpus"]):
        request = ImageRequest(
            gpu,
            o["release"] or defaults.image_release(),
            o["variant"] or usual.variant,
            "wheel",
            usual.base,
            o["platform"],
        )
        one = origins.of_plan(context.assemble(resolve(request)).plan)
        found = RecordedKernels(one.compilers, found.gpus | one.gpus)
    return found


def _kept_answers(o: dict[str, Any]) -> tuple[BackendAnswer, ...]:
    from fp4forge.inputs import defaults, release

    if o["model"]:
        raise UsageError("--kept has no answers for --model", rule="--kept --family NAME")
    version = release.load(o["release"] or defaults.image_release()).vllm_version
    found = []
    for gpu in o["gpus"]:
        for name in o["families"]:
            family.get(name)
            answer = kept.find(version, gpu, name)
            if answer is None:
                raise UsageError(
                    f"releases/backends has no answer of {version} for {name} on {gpu}",
                    rule="--kept shows what was written",
                    remedy="build.py backends --all --write --image IMAGE",
                )
            found.append(answer)
    return tuple(found)


def _ask_image(o: dict[str, Any]) -> tuple[tuple[BackendAnswer, ...], RecordedKernels]:
    from fp4forge.backends import ask, model
    from fp4forge.checks import recorded_kernels

    models = [model.of_family(name) for name in o["families"]]
    models += [model.of_folder(o["model"])] if o["model"] else []
    capabilities = {name: chips.GPUS[name].capability for name in o["gpus"]}
    image, platform = _image_to_ask(o)
    console = Console()
    with console.step("ask") as step:
        found = ask.ask(image, platform, capabilities, tuple(models), step.report)
        step.detail = f"vLLM {found[0].vllm}: {sum(len(a.decisions) for a in found)} decisions"
    if o["release"] and o["image"]:
        _check_image_version(o["release"], found[0].vllm, image)
    return found, recorded_kernels.of(image)


def _check_image_version(name: str, version: str, image: str) -> None:
    from fp4forge.inputs import release

    wanted = release.load(name).vllm_version
    if wanted != version:
        raise UsageError(
            f"{image} has vLLM {version}, and release {name} has {wanted}",
            rule="--image is asked as it is",
            remedy="leave --release out, or give an image of that release",
        )


def _image_to_ask(o: dict[str, Any]) -> tuple[str, str]:
    """The image to ask, and its platform if it must be pulled."""
    from fp4forge.cli.wanted_server import published
    from fp4forge.core.platform import host_platform
    from fp4forge.inputs import defaults
    from fp4forge.oci import reference

    if o["image"]:
        return o["image"], o["platform"] or host_platform()
    registry = resolve_registry(o["registry"])
    if not registry:
        raise UsageError(
            "which image? neither --image nor --registry is given",
            rule="the release's own vLLM is asked, in its image",
            remedy="--image IMAGE, --registry HOST:PORT, or --kept for the answers in the checkout",
        )
    wanted = set(o["gpus"])
    image = defaults.table().image
    fitting = (t for t in chips.TARGETS.values() if wanted <= {gpu.name for gpu in t.gpus})
    target = min(fitting, key=lambda t: len(t.gpus), default=chips.TARGETS[image.arch])
    tag, *_ = published({"strategy": None, "base": None, **o, "arch": o["arch"] or target.name})
    platform = o["platform"] or target.default_platform or host_platform()
    return f"{reference.repository(registry, o['repo'])}:{tag}", platform


def _show_backends(answer: BackendAnswer, kernels: RecordedKernels, verbose: bool) -> None:
    console = rich()
    major, minor = answer.capability
    console.print(
        f"vLLM {answer.vllm} on {answer.gpu} (capability {major}.{minor}): {answer.model}",
        style="bold",
    )
    shared: dict[tuple[str, str], list[BackendDecision]] = {}
    for decision in answer.decisions:
        shared.setdefault((decision.kind, decision.layer), []).append(decision)
    for decisions in shared.values():
        own = kernels.gpus.get(answer.gpu, {}).get(decisions[0].kind, {})
        console.print(
            _backend_rows(decisions, own) if verbose else _backend_choices(decisions, own)
        )
        for line in [*_backend_notes(decisions, answer), *_kernel_notes(decisions, own)]:
            console.print("\n".join(fields([("  note", line)], _INDENT)))
    for problem in answer.problems:
        console.print(f"  not asked: {problem}")
    console.print()


def _backend_choices(decisions: list[BackendDecision], own: dict[str, RecordedOrigin]) -> str:
    """What vLLM selects, and what else it could; for attention by KV cache."""
    first = decisions[0]
    rows = [(first.kind, first.layer)]
    for one in decisions:
        usable = [option.name for option in one.options if option.usable]
        others = ", ".join(name for name in usable if name != one.selected)
        named = f"  KV {one.cache}" if one.cache else "  selected"
        said = one.selected or "none"
        rows.append((named, f"{said}\nor {others}" if others else said))
        if origin := own.get(label(one.selected, one.cache)) or own.get(one.selected):
            rows.append(("  kernels", str(origin)))
    return "\n".join(fields(rows, _INDENT))


def _backend_rows(decisions: list[BackendDecision], own: dict[str, RecordedOrigin]) -> Any:
    """A row for each backend; for attention a column for each KV cache."""
    first = decisions[0]
    columns = [f"KV cache {one.cache}" if one.cache else "verdict" for one in decisions]
    columns += ["kernels"] if own else []
    names = dict.fromkeys(option.name for one in decisions for option in one.options)
    rows = (
        (
            name,
            *(_backend_verdict(one, name) for one in decisions),
            *([origins.short(own.get(name))] if own else []),
        )
        for name in names
    )
    return table((f"{first.kind}: {first.layer}", *columns), rows)


def _backend_verdict(decision: BackendDecision, name: str) -> str:
    option = next((one for one in decision.options if one.name == name), None)
    if option is None:
        return ""
    if option.name == decision.selected:
        return "SELECTED"
    if option.usable:
        return "usable" if option.automatic else "usable, only when asked for"
    return option.reason


def _kernel_notes(decisions: list[BackendDecision], own: dict[str, RecordedOrigin]) -> list[str]:
    """Backends that vLLM would run, though their kernels are not there and nothing makes them."""
    usable = [option.name for one in decisions for option in one.options if option.usable]
    found = {name: own[name] for name in usable if name in own}
    return [f"{name} is {one}" for name, one in found.items() if not one.runs]


def _backend_notes(decisions: list[BackendDecision], answer: BackendAnswer) -> list[str]:
    """What the table does not say: who leaves vLLM no choice."""
    notes = []
    first = decisions[0]
    if first.demanded:
        notes.append(f"vLLM's own rule for this model allows {first.demanded} alone")
    for decision in decisions:
        if decision.image != decision.selected:
            variables = " ".join(f"{k}={v}" for k, v in sorted(answer.environment.items()))
            notes.append(f"this image selects {decision.image or 'none'}: it sets {variables}")
    for setting in kept.demands(answer.family, answer.vllm, answer.gpu, first.kind):
        notes.append(
            f"models/families/{answer.family}.yaml sets {setting.flag} {setting.value}:"
            f" {setting.why}"
        )
    return list(dict.fromkeys(notes))
