"""Commands about architecture lists: arch explain, arch extract."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from fp4forge.cli import checkout
from fp4forge.cli.options import CommandGroup
from fp4forge.core.console import Console, print_json, rich, table
from fp4forge.inputs import defaults, release
from fp4forge.kernels import archs
from fp4forge.plan.prediction import predict


@click.group(cls=CommandGroup)
def arch() -> None:
    """Show what a TORCH_CUDA_ARCH_LIST becomes in vLLM, before compiling anything."""


@arch.command()
@click.argument("list_", metavar="LIST")
@click.option("--vllm", help="vLLM version; by default the reference's.")
@click.option("--cuda", help="CUDA version of the compiler; by default the release's.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def explain(list_: str, vllm: str | None, cuda: str | None, as_json: bool) -> None:
    """Predict every kernel group's targets for LIST, and what each Blackwell GPU gets.

    Exit code 0 if every Blackwell GPU that LIST names gets NVFP4, 3 if one does not, 2 if
    LIST cannot be used.
    """
    reference = release.load(defaults.table().reference.release)
    version = vllm or reference.vllm_version
    prediction = predict(list_, version, cuda or reference.cuda)
    if as_json:
        print_json(prediction.as_json())
    else:
        _show_prediction(prediction)
    if prediction.lost(prediction.named) or not prediction.named:
        sys.exit(3)


def _show_prediction(prediction: archs.Prediction) -> None:
    groups = table(
        ("kernel group", "compiled for"),
        ((name, " ".join(targets) or "(left out)") for name, targets in prediction.groups.items()),
    )
    gpus = table(
        ("GPU", "NVFP4", "FP8", "MoE Marlin", "why"),
        (
            (
                name + (" (named)" if name in prediction.named else ""),
                *(verdict[column] for column in ("fp4", "fp8", "moe_marlin", "reason")),
            )
            for name, verdict in prediction.gpus.items()
        ),
    )
    head = f"{prediction.list} with vLLM {prediction.vllm} and CUDA {prediction.cuda}"
    rich().print(head, groups, gpus)


@arch.command()
@click.argument(
    "tree", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option("--vllm", required=True, help="Version of the sources.")
@click.option("--check", is_flag=True, help="Write nothing; exit code 15 if a file would change.")
@checkout.required
def extract(tree: Path | None, vllm: str, check: bool) -> None:
    """Run the CMake files of a vLLM source TREE and keep what they compile in releases/archs/.

    Without TREE, the sources are those of the package index, with the pinned hash.
    """
    from fp4forge.inputs.release import check_version
    from fp4forge.maintain import sources, write_arch_rules

    version = check_version(vllm)
    console = Console()
    with console.step("extract") as step:
        extracted = write_arch_rules.extract(tree or sources.source_tree(version), version)
        if check:
            write_arch_rules.check(extracted)
        else:
            write_arch_rules.write(extracted)
        step.detail = f"releases/archs/{version}: " + ("as committed" if check else "written")
