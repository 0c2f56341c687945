"""The command line: a group whose default action is to build. Commands are loaded when used."""

from __future__ import annotations

import importlib
import sys
import threading
from typing import Any

import click

from fp4forge.cli import defects, streams
from fp4forge.cli.options import (
    plan_options,
    registry_option,
    reports_option,
    runs_itself,
    sign_options,
)
from fp4forge.core import errors, interrupts, scratch
from fp4forge.core.text import block

# Command name -> module and attribute; nothing is imported before the command is used.
COMMANDS = {
    "release": ("fp4forge.cli.release", "release", "Add, list, show and compare releases."),
    "arch": ("fp4forge.cli.arch", "arch", "Explain what an architecture list gives each GPU."),
    "ledger": ("fp4forge.cli.ledger", "ledger", "Show which GPUs a binary's kernels run on."),
    "backends": ("fp4forge.cli.backends", "backends", "Show which kernels vLLM selects, and why."),
    "compare": ("fp4forge.cli.ledger", "compare", "Show what changed between two images."),
    "patch": ("fp4forge.cli.patch", "patch", "List, check and rebase the patches to vLLM."),
    "lock": ("fp4forge.cli.files", "lock", "Make or check the hashed dependency locks."),
    "render": ("fp4forge.cli.files", "render", "Render generated files, or check them."),
    "context": ("fp4forge.cli.image", "context", "Write a build context, to build it by hand."),
    "verify": ("fp4forge.cli.image", "verify", "Run the image tests against an image."),
    "distribute": ("fp4forge.cli.transfer", "distribute", "Copy an image to machines over ssh."),
    "bundle": ("fp4forge.cli.transfer", "bundle", "Pack an image and its evidence into one file."),
    "unbundle": ("fp4forge.cli.transfer", "unbundle", "Check and unpack a bundle."),
    "audit": ("fp4forge.cli.audit", "audit", "List known vulnerabilities, and the verdicts."),
    "sbom": ("fp4forge.cli.sbom", "sbom", "Show what is in an image, and its licences."),
    "history": ("fp4forge.cli.transfer", "history", "Show which publish moved which tag."),
    "images": ("fp4forge.cli.registry", "images", "List what a registry holds."),
    "rollback": ("fp4forge.cli.registry", "rollback", "Move a tag back to a verified image."),
    "prune": ("fp4forge.cli.registry", "prune", "Remove old images from a registry."),
    "checkpoint": ("fp4forge.cli.checkpoint", "checkpoint", "Inspect or fetch a checkpoint."),
    "quantise": ("fp4forge.cli.quantise", "quantise", "Make a checked NVFP4 checkpoint."),
    "serve": ("fp4forge.cli.serve", "serve", "Run, configure, size and diagnose a server."),
    "bench": ("fp4forge.cli.bench", "bench", "Measure a server, and compare results."),
    "warm": ("fp4forge.cli.warm", "warm", "Add this GPU's compile caches to an image."),
    "matrix": ("fp4forge.cli.files", "matrix", "List everything that can be built."),
    "completion": ("fp4forge.cli.files", "completion", "Print shell completion."),
}


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Help from the table, so that --help imports nothing."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry[2]) for name, entry in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@plan_options
@registry_option
@click.option(
    "--repo", help="Repository in the registry; by default fp4forge/vllm, or fp4forge/quantise."
)
@click.option("--tag", "tags", multiple=True, help="Another tag for the verified image.")
@click.option("--push", is_flag=True, help="Push by digest, verify, then move the tags.")
@click.option(
    "--advisories",
    envvar="FP4FORGE_ADVISORIES",
    metavar="DIR|URL",
    help="OSV data: refuse an image with an unexplained grave vulnerability."
    " [env: FP4FORGE_ADVISORIES]",
)
@click.option(
    "--moved-packages",
    type=click.Choice(["say", "refuse", "record"]),
    default="say",
    show_default=True,
    envvar="FP4FORGE_MOVED_PACKAGES",
    help="If the distribution's packages are not those of releases/packages: say so, refuse the"
    " image, or record the new ones. [env: FP4FORGE_MOVED_PACKAGES]",
)
@sign_options
@click.option("--load", is_flag=True, help="Leave the verified image in the engine (default).")
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout, for scripts.")
@click.option("--jobs", type=click.IntRange(1, 256), help="Parallel compile jobs.")
@click.option("--builder", help="A buildx builder other than the engine's own.")
@click.option("--cache-from", multiple=True, metavar="PLACE", help="BuildKit cache to read.")
@click.option(
    "--cache-to",
    multiple=True,
    metavar="PLACE",
    help="BuildKit cache to write, such as type=registry,ref=HOST/REPO:cache,mode=max.",
)
@click.option("--gpu", is_flag=True, help="Verify on this machine's GPU too, before any tag.")
@reports_option
@click.option("--verbose", is_flag=True, help="Show all of a plan, or of the closing summary.")
@click.option("--no-cache", is_flag=True, help="Rebuild every step.")
@click.version_option(package_name=None, version=__import__("fp4forge").__version__)
@click.pass_context
def cli(ctx: click.Context, /, **options: Any) -> None:
    """Build, check and publish a vLLM image with native NVFP4 for Blackwell GPUs.

    Without a command: build. Example: build.py --arch sm121 --push
    """
    if runs_itself(ctx):
        from fp4forge.cli.image import build

        build(**options)


def main() -> None:
    """Runs the command line; whatever fails becomes one message and an exit code."""
    streams.prepare()
    as_json = "--json" in sys.argv
    interrupts.install()
    threading.excepthook = defects.in_thread
    try:
        with scratch.for_process():
            code = cli.main(standalone_mode=False) or 0
            sys.stdout.flush()
        sys.exit(code)
    except streams.OutputClosed:
        streams.drop()
        sys.exit(streams.OUTPUT_CLOSED)
    except click.ClickException as error:
        wrapped = errors.UsageError(error.format_message(), remedy="build.py --help")
        fail(wrapped, as_json)
    except (KeyboardInterrupt, click.Abort) as error:
        if isinstance(error.__cause__, EOFError):  # click makes an Abort of it, too
            fail(defects.expected(error.__cause__), as_json)
        # click makes an Abort of an interrupt; the notes are the interrupt's.
        notes = getattr(error, "__notes__", ()) or getattr(error.__cause__, "__notes__", ())
        said = "\n".join(notes) or "no tag was moved"
        sys.stderr.write(f"interrupted: {block(said)}; running again resumes from the cache\n")
        sys.exit(errors.INTERRUPTED)
    except Exception as error:
        fail(defects.expected(error), as_json)


def fail(error: errors.ForgeError, as_json: bool) -> None:
    """Prints an error for people, or as JSON, and leaves with its exit code."""
    lines = [f"error: {error.message}"]
    lines += [
        f"  {label}: {text}"
        for label, text in (("rule", error.rule), ("try", error.remedy))
        if text
    ]
    sys.stderr.write(block("\n".join(lines)) + "\n")
    try:
        if as_json:
            from fp4forge.core.console import print_json

            print_json(error.as_json())
        sys.stdout.flush()
    except (streams.OutputClosed, errors.DiskError):  # the message is on stderr
        streams.drop()
    sys.exit(error.exit_code)
