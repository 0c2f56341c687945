"""Options that several commands share; a build and its checks name one plan by the same ones."""

from __future__ import annotations

from collections.abc import Callable, Container
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from fp4forge.core import paths
from fp4forge.core.errors import UsageError
from fp4forge.kernels.gpus import TARGETS
from fp4forge.plan.image_kinds import KINDS, REPOSITORIES, SERVE

if TYPE_CHECKING:
    from fp4forge.oci.cosign import Signer, Trust

Function = TypeVar("Function", bound=Callable[..., Any])

_PLAN = (
    click.option(
        "--kind",
        type=click.Choice(KINDS),
        default=SERVE,
        show_default=True,
        help="What the image is for: serve has vLLM; quantise has ModelOpt, for every GPU.",
    ),
    click.option("--arch", help=f"GPU the image is for: {', '.join(TARGETS)}."),
    click.option("--arch-list", help="TORCH_CUDA_ARCH_LIST to compile for; by default the GPU's."),
    click.option(
        "--allow-missing",
        multiple=True,
        metavar="GPU",
        help="Build even if this GPU of --arch gets no FP4.",
    ),
    click.option(
        "--allow-vulnerable",
        multiple=True,
        metavar="ID",
        help="Accept this advisory that --advisories finds; recorded in the plan.",
    ),
    click.option(
        "--release",
        help="Release under releases/; by default the reference's, or the newest with --from."
        " Of --kind quantise: modelopt-VERSION, by default the newest.",
    ),
    click.option("--variant", help="awq (all patches; the default) or plain."),
    click.option("--from", "strategy", help="source (compile; the default) or wheel."),
    click.option(
        "--components",
        default="all",
        show_default=True,
        help="What to compile: all, core, or a comma-separated list.",
    ),
    click.option(
        "--source",
        "sources",
        multiple=True,
        metavar="NAME=git|pypi|DIR",
        help="Where an external source comes from, such as cutlass=DIR.",
    ),
    click.option("--cross", is_flag=True, help="Cross-compile for linux/arm64 on x86-64."),
    click.option(
        "--aot",
        help="FlashInfer modules to compile into the image: none, gemma4 (the"
        " default: NVFP4 linear layers) or all.",
    ),
    click.option(
        "--with",
        "extras",
        multiple=True,
        metavar="NAME",
        help="Add to the image: rdma (libraries for RoCE and InfiniBand), ray (vLLM on Ray).",
    ),
    click.option(
        "--base", help="Base image: ubuntu:24.04 (the default), or bootstrap, which needs no hub."
    ),
    click.option(
        "--platform",
        help="linux/amd64, linux/arm64, or both, separated by a comma; by default the GPU's.",
    ),
)


def plan_options(function: Function) -> Function:
    """The options that decide what is in an image: the fields of ``plan.request.Request``."""
    for option in reversed(_PLAN):
        function = option(function)
    return function


def _make_output_folder(
    ctx: click.Context, option: click.Parameter, folder: Path | None
) -> Path | None:
    """Creates the folder now, so that a failure shows before a long build."""
    try:
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.BadParameter(f"{folder} cannot be created: {error.strerror}") from None
    return folder


reports_option = click.option(
    "--reports",
    type=click.Path(file_okay=False, writable=True, path_type=Path),
    callback=_make_output_folder,
    help="Folder for the checks' reports: JUnit XML, JSON, HTML.",
)


def given_options(names: Container[str] | None = None) -> list[str]:
    """The options of the running command that were given on its command line.

    Args:
        names: only these, as the command's function has them; None: all.
    """
    context = click.get_current_context()
    return [
        parameter.opts[-1]
        for parameter in context.command.params
        if (names is None or parameter.name in names)
        and context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
    ]


def runs_itself(ctx: click.Context) -> bool:
    """Whether a group was called without one of its commands, and so acts itself.

    Raises:
        UsageError: one of its commands follows options of the group, which would have no effect.
    """
    command = ctx.invoked_subcommand
    given = given_options()
    if command and given:
        raise UsageError(
            f"{', '.join(given)} before '{command}' has no effect",
            rule="options follow the command that they belong to",
            remedy=f"{ctx.command_path} {command} --help lists the options of '{command}'",
        )
    return command is None


def _reference_arch() -> str:
    from fp4forge.inputs import defaults

    return defaults.table().reference.arch


arch_option = click.option(
    "--arch",
    default=_reference_arch,
    show_default="the reference's",
    help=f"GPU of the image: {', '.join(TARGETS)}.",
)
repo_option = click.option(
    "--repo",
    default=REPOSITORIES[SERVE],
    show_default=True,
    help="Repository in the registry.",
)
registry_option = click.option(
    "--registry",
    envvar="REGISTRY",
    help="Registry, HOST[:PORT][/PATH]; by default the one make setup starts. [env: REGISTRY]",
)


def resolve_registry(given: str | None) -> str | None:
    """The registry that was asked for; else the one on loopback that ``make setup`` started."""
    started = paths.STATE / "registry"
    if given or not started.exists():
        return given or None
    from fp4forge.core import reading

    return reading.text(started, UsageError, 300).strip()


def sign_options(function: Function) -> Function:
    """Who signs what is published; ``signer_of`` reads them."""
    for option in (
        click.option(
            "--sign-keyless",
            is_flag=True,
            help="Sign as the identity that an OIDC issuer vouches for, in a public log.",
        ),
        click.option(
            "--sign-key",
            envvar="FP4FORGE_SIGN_KEY",
            metavar="FILE|URI",
            help="Sign with this cosign key, or a KMS's; a file's password is in COSIGN_PASSWORD."
            " [env: FP4FORGE_SIGN_KEY]",
        ),
    ):
        function = option(function)
    return function


def signer_of(o: dict[str, Any]) -> Signer | None:
    """Who signs, as the options of ``sign_options`` have it; the key has been used once.

    Raises:
        UsageError: both are given, or one without --push.
        ForgeError: as ``cosign.signer``.
    """
    context = click.get_current_context()
    given = context.get_parameter_source("sign_key") is click.core.ParameterSource.COMMANDLINE
    if o["sign_keyless"] and given:
        raise UsageError("--sign-key and --sign-keyless exclude each other")
    if not o["push"]:
        if given or o["sign_keyless"]:
            raise UsageError(
                "--sign-key and --sign-keyless go with --push",
                rule="signatures lie beside the image in a registry",
            )
        return None
    from fp4forge.oci import cosign

    if o["sign_keyless"]:
        cosign.require()
        return cosign.Signer()
    return cosign.signer(o["sign_key"]) if o["sign_key"] else None


class CommandGroup(click.Group):
    """A group whose help shows the whole first sentence of each command."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands with their sentences; click would cut them at the line's end."""
        commands = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, command.get_short_help_str(500)) for name, command in commands if command]
            )


def trust_options(function: Function) -> Function:
    """Whose signature is demanded; ``trust_of`` reads them."""
    for option in (
        click.option("--issuer", metavar="URL", help="OIDC issuer that vouches for --identity."),
        click.option(
            "--identity",
            metavar="NAME",
            help="Require a keyless signature of this identity (e-mail address or workflow).",
        ),
        click.option(
            "--key",
            envvar="FP4FORGE_KEY",
            metavar="FILE|URI",
            help="Require a signature that this public key verifies, or a KMS's key."
            " [env: FP4FORGE_KEY]",
        ),
    ):
        function = option(function)
    return function


def trust_of(key: str | None, identity: str | None, issuer: str | None) -> Trust | None:
    """Whose signature is demanded; None if nobody's is.

    Raises:
        UsageError: an identity without its issuer, or the reverse, or no such key.
        ToolError: cosign is not installed.
    """
    if bool(identity) != bool(issuer):
        raise UsageError(
            "--identity and --issuer go together",
            rule="an identity is what one issuer vouches for",
        )
    if not key and not identity:
        return None
    context = click.get_current_context()
    said = context.get_parameter_source("key") is click.core.ParameterSource.COMMANDLINE
    if identity and key and said:
        raise UsageError("--key and --identity exclude each other", rule="one signer is required")
    from fp4forge.oci import cosign

    cosign.require()
    if identity and issuer:  # said on the command line; the key may come from the environment
        return cosign.Trust(identity=identity, issuer=issuer)
    return cosign.Trust(cosign.key(key or "", "--key"))


class NamedPath(click.Path):
    """A path that is not empty: pathlib would take an empty one for the working folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path, as click's own; an empty one is refused."""
        if value == "":
            self.fail("it is empty; '.' names this folder", param, ctx)
        return super().convert(value, param, ctx)


model_option = click.option(
    "--model", type=NamedPath(path_type=Path), required=True, help="The checkpoint's folder."
)
json_option = click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")


def split_options(function: Function) -> Function:
    """Options that divide a model over GPUs."""
    for option in (
        click.option("--expert-parallel", is_flag=True, help="Whole experts to each GPU."),
        click.option(
            "--data-parallel",
            type=click.IntRange(1, 64),
            default=1,
            show_default=True,
            help="Ranks that answer requests of their own, and share the experts.",
        ),
        click.option(
            "--pipeline-parallel",
            type=click.IntRange(1, 64),
            default=1,
            show_default=True,
            help="Stages of layers.",
        ),
        click.option(
            "--tensor-parallel",
            type=click.IntRange(1, 64),
            default=1,
            show_default=True,
            help="GPUs that share each layer.",
        ),
    ):
        function = option(function)
    return function


def split_of(o: dict[str, Any]) -> Any:
    """The split that the options of ``split_options`` mean."""
    from fp4forge.serve.split import GpuSplit

    return GpuSplit(
        o["tensor_parallel"], o["pipeline_parallel"], o["expert_parallel"], o["data_parallel"]
    )


_WHICH_IMAGE = (
    click.option("--release", help="Release of the image; by default the newest that has a wheel."),
    click.option("--variant", help="awq (all patches; the default) or plain."),
    click.option(
        "--from", "strategy", help="How the image was built: wheel (the default) or source."
    ),
    click.option("--base", help="Base of the image; by default that of make image."),
    click.option("--platform", help="Platform of the image; by default the GPU's."),
    click.option("--image", help="Image; by default the release's moving tag in --registry."),
    registry_option,
    repo_option,
)
_SERVER = (
    click.option(
        "--workload",
        default="interactive",
        show_default=True,
        help="interactive, balanced, throughput or long-context.",
    ),
    *_WHICH_IMAGE,
    trust_options,
    click.option("--name", help="The model's name in the API; by default the folder's."),
    click.option(
        "--listen",
        default="127.0.0.1",
        show_default=True,
        help="Address of this host that the port is published on; 0.0.0.0 for all.",
    ),
    click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True),
    click.option(
        "--api-key-file",
        type=click.Path(path_type=Path, dir_okay=False),
        help="File with the key that the API asks for.",
    ),
    click.option(
        "--recipe",
        type=click.Path(path_type=Path, dir_okay=False),
        help="A recipe of vllm-project/recipes; its flags override the family's.",
    ),
    click.option(
        "--recipe-variant", default="", help="The recipe's variant; by default its NVFP4."
    ),
    click.option(
        "--feature", "features", multiple=True, help="The recipe's feature, or FEATURE=MODE."
    ),
    click.option("--speculative", help="Speculative decoding: mtp, eagle3, dflash or ngram."),
    click.option(
        "--draft", type=click.Path(path_type=Path, file_okay=False), help="Drafter's folder."
    ),
    click.option("--lora", multiple=True, metavar="NAME=DIR", help="A LoRA adapter, by its name."),
    click.option("--offline", is_flag=True, help="Ask no hub: the site has none."),
    click.option(
        "--kv-cache-dtype",
        default="fp8_e4m3",
        show_default=True,
        help="Type of the KV cache: one that the release's attention takes on the GPU.",
    ),
    split_options,
)


with_option = click.option(
    "--with",
    "extras",
    multiple=True,
    type=click.Choice(["monitoring"]),
    help="Prometheus, Grafana, a dashboard and alerts beside the server.",
)


def server_options(function: Function) -> Function:
    """Options that say how a model is served: those of ``serve compose`` and ``serve up``."""
    for option in reversed(_SERVER):
        function = option(function)
    return function


def server_options_of_image(function: Function) -> Function:
    """The same for a command whose argument is the image: none of them names another one."""
    for option in reversed([option for option in _SERVER if option not in _WHICH_IMAGE]):
        function = option(function)
    return function
