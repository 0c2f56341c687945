"""The command that serves one model over several machines."""

from __future__ import annotations

import re
import secrets
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fp4forge.cli import cluster_files, clusters
from fp4forge.cli.options import (
    CommandGroup,
    arch_option,
    given_options,
    json_option,
    runs_itself,
    server_options,
)
from fp4forge.core import files, reading
from fp4forge.core.console import Console, print_json, print_rows, rich, table
from fp4forge.core.errors import ServingError, TransferError, UsageError

if TYPE_CHECKING:
    from fp4forge.launch.cluster.division import ClusterOption
    from fp4forge.launch.cluster.hosts import ClusterHost, ProbedHost
    from fp4forge.launch.cluster.preflight import PreflightItem
    from fp4forge.serve.settings import ServerSettings


def _reference_product() -> str:
    from fp4forge.inputs import defaults

    return defaults.table().reference.product


@click.group(cls=CommandGroup, invoke_without_command=True)
@click.option("--hosts", metavar="USER@HOST,…", help="The machines; the first one answers.")
@click.option(
    "--model", type=click.Path(path_type=Path), help="The model, at the same path on all."
)
@click.option(
    "--gpu",
    "product",
    default=_reference_product,
    show_default="the reference's",
    help="Their GPU, one in each.",
)
@arch_option
@click.option(
    "--backend",
    type=click.Choice(["mp", "ray"]),
    default="mp",
    show_default=True,
    help="How vLLM's processes find each other: its own, or Ray.",
)
@server_options
@click.option("--utilization", type=float, default=0.85, show_default=True)
@click.option(
    "--interface",
    default="",
    help="Network interface between the machines, if the route does not show it.",
)
@click.option(
    "--ssh-config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="ssh configuration file to use instead of the default.",
)
@click.option("--copy", is_flag=True, help="Copy the model to machines that lack it (rsync).")
@click.option("--check", is_flag=True, help="Check the machines; start nothing.")
@click.option(
    "--override",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A compose file that is merged over each machine's.",
)
@click.option(
    "--any-gpu",
    is_flag=True,
    help="Do not check for GPUs: the override runs the engine without one.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0.1, 600),
    default=30,
    show_default=True,
    help="Minutes until the server must be ready.",
)
@click.option("--no-smoke", is_flag=True, help="Ask the ready server no question.")
@click.option("--dry-run", is_flag=True, help="Write the files here; start nothing.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for --dry-run's files.",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["compose", "lws", "kuberay"]),
    default="compose",
    show_default=True,
    help="lws prints a LeaderWorkerSet for Kubernetes, kuberay a RayCluster, of --machines pods.",
)
@click.option("--machines", type=click.IntRange(2, 64), help="Pods that serve together.")
@click.option("--rdma-resource", help="Kubernetes' name of the RDMA device resource.")
@json_option
@click.pass_context
def cluster(ctx: click.Context, /, **o: Any) -> None:
    """Serve one model over several machines, or check whether they could.

    Example: build.py serve cluster --hosts spark1,spark2 --model /models/big. Each machine gets
    the same image by digest, and the model must have the same files on each.
    """
    if runs_itself(ctx):
        _start(o)


# Options for machines that are reached over ssh, and those for Kubernetes.
_ON_MACHINES = (
    "hosts",
    "backend",  # of Kubernetes' formats each has its own
    "check",
    "dry_run",
    "interface",
    "ssh_config",
    "override",
    "copy",
    "any_gpu",
    "no_smoke",
)
_IN_KUBERNETES = ("machines", "rdma_resource")
_INTERFACE = re.compile(r"[A-Za-z0-9._:@-]{1,15}")  # IFNAMSIZ, less the closing NUL


def _refuse_given(names: tuple[str, ...], beside: str, rule: str) -> None:
    """Refuses options that would be ignored.

    Raises:
        UsageError: one of them was given; the message names all that were.
    """
    if given := given_options(names):
        verb = "does" if len(given) == 1 else "do"
        raise UsageError(
            f"{', '.join(given)} {verb} not go with {beside}", rule=rule, remedy="leave it out"
        )


def _start(o: dict[str, Any]) -> None:
    from fp4forge.launch.cluster import division, preflight
    from fp4forge.oci import reference
    from fp4forge.publish import distribute
    from fp4forge.serve import ray

    if o["kind"] != "compose":
        _refuse_given(
            _ON_MACHINES,
            f"--format {o['kind']}",
            "Kubernetes chooses and starts the machines; the manifest is only printed",
        )
        cluster_files.kubernetes(o)
        return
    _refuse_given(_IN_KUBERNETES, "--hosts", "they belong to --format lws and kuberay")
    if o["dry_run"]:
        _refuse_given(("check", "copy"), "--dry-run", "a dry run asks the machines nothing")
    hosts = _hosts(o)
    # Read before anything is sent to a machine.
    override = reading.text(o["override"], UsageError, where="--override") if o["override"] else ""
    division.check_port(o["backend"], o["port"])
    if o["interface"] and not _INTERFACE.fullmatch(o["interface"]):
        raise UsageError(
            f"--interface {o['interface']!r} is not the name of an interface",
            rule="at most 15 letters, digits, '.', '_', ':', '@' and '-' (ip link lists them)",
        )
    console = Console()
    with console.step("fit") as step:
        options, chosen = cluster_files.fit(o, len(hosts))
        step.detail = f"{chosen.split.text}: at most {chosen.rate:.0f} tokens a second"
    whole, image, name = cluster_files.server(o, chosen)
    digest = reference.parse(whole.image).digest
    if o["backend"] == division.RAY:
        cluster_files.check_ray(image, digest, whole.version)
    whole = replace(whole, image=name)
    if o["dry_run"]:
        cluster_files.dry_run(o, whole, hosts, options)
        return
    wanted = preflight.ClusterNeeds(
        model=whole.model,
        image=name,
        digest=digest,
        ports=division.ports(o["backend"], whole.port),
        interface=o["interface"],
        weights=chosen.weights,
        gpus=not o["any_gpu"],
    )
    if not o["check"]:
        with console.step("image") as step:
            nodes = [host.address for host in hosts]
            sent = distribute.distribute(image, nodes, name, o["ssh_config"], step.report)
            step.detail = "; ".join(node.text() for node in sent)
        if o["copy"]:
            _rsync_model(whole.model, hosts, console)
    # Ray's own meeting point; vLLM's processes choose theirs from its port upwards.
    meeting = ray.GCS_PORT if o["backend"] == division.RAY else division.MASTER_PORT + 1
    with console.step("check") as step:
        found = preflight.look(hosts, wanted)
        items = preflight.judge(hosts, found, wanted)
        if all(one.address for one in found):
            items += preflight.connections(hosts, found, meeting)
        wrong = [item for item in items if not item.ok]
        step.detail = f"{len(items) - len(wrong)} of {len(items)} are right"
        step.verdict = "failed" if wrong else "ok"
    if o["check"] or wrong:
        _show_preflight(items, o["as_json"])
    if wrong:
        error = TransferError(
            f"{len(wrong)} of {len(items)} checks failed on {', '.join(hosts_of(wrong))}",
            rule="machines that serve together are alike and reach each other",
            remedy="each failed check has its fix; nothing was started",
        )
        if o["as_json"]:
            sys.exit(error.exit_code)
        raise error
    if all(one.rdma for one in found) and not cluster_files.has_extra(image, digest, "rdma"):
        console.say(
            "  note  the machines have RDMA devices and the image has no libraries for them, so"
            " NCCL uses sockets: build.py --with rdma makes one that has, for --image"
        )
    if o["check"]:
        return
    _start_cluster(o, override, whole, hosts, found, (name, digest, chosen), console)


def hosts_of(items: list[PreflightItem]) -> list[str]:
    """The machines that items are about."""
    return list(dict.fromkeys(item.host for item in items))


def _hosts(o: dict[str, Any]) -> list[ClusterHost]:
    from fp4forge.launch.cluster.hosts import ClusterHost
    from fp4forge.publish import distribute

    if not o["hosts"] or not o["model"]:
        raise UsageError(
            "which machines, and which model?",
            rule="--hosts A,B --model DIR",
            remedy="build.py serve cluster status lists what runs",
        )
    names = distribute.parse_nodes(o["hosts"], "--hosts")
    if len({name.rpartition("@")[2] for name in names}) < max(2, len(names)):
        raise UsageError(
            f"--hosts {o['hosts']} names "
            + ("one machine" if len(names) == 1 else "a machine twice"),
            rule="a cluster has at least two different machines",
            remedy="build.py serve up MODEL serves on this machine",
        )
    return [ClusterHost(name, o["ssh_config"]) for name in names]


def _rsync_model(model: str, hosts: list[ClusterHost], console: Console) -> None:
    """Has rsync bring the model to every machine, one after the other."""
    import shlex

    from fp4forge.core.limits import COPY_SILENCE_SECONDS
    from fp4forge.oci import process

    for host in hosts:
        ssh = shlex.join(host.line()[: host.line().index(host.address)])
        line = ["rsync", "-a", "--checksum", "--partial", "--info=progress2", "-e", ssh]
        with console.step("copy") as step:
            host.ask("mkdir", "-p", model)
            code = process.follow(
                [*line, f"{model}/", f"{host.address}:{model}/"],
                step.report,
                COPY_SILENCE_SECONDS,
                TransferError,
            )
            if code != 0:
                raise TransferError(
                    f"rsync to {host.address} ends with {code}",
                    rule="rsync must be installed here and there",
                    remedy="running again goes on where it stopped",
                )
            step.detail = host.address


def _show_preflight(items: list[PreflightItem], as_json: bool) -> None:
    if as_json:
        print_json([asdict(item) | {"ok": item.ok} for item in items])
        return
    rows = (
        ("ok" if item.ok else "FAILED", item.name, item.host, item.seen, item.fix) for item in items
    )
    rich().print(table(("", "check", "machine", "seen", "fix"), rows))


def _start_cluster(
    o: dict[str, Any],
    override: str,
    whole: ServerSettings,
    hosts: list[ClusterHost],
    found: list[ProbedHost],
    what: tuple[str, str, ClusterOption],
    console: Console,
) -> None:
    from fp4forge.launch.cluster import division, lifecycle
    from fp4forge.serve import client, manifest

    image, digest, chosen = what
    ranks = division.ranks(found)
    listening = replace(whole, listen=ranks[0].address)
    token = secrets.token_hex(32)
    servers = [division.server(listening, rank, o["backend"], token) for rank in ranks]
    made = lifecycle.Cluster(
        name=whole.name,
        hosts=[host.address for host in hosts],
        ssh_config=str(o["ssh_config"] or ""),
        url=f"http://{ranks[0].address}:{whole.port}",
        image=image,
        digest=digest,
        model=whole.model,
        split=chosen.split.text,
    )
    texts = [manifest.render(server, "compose") for server in servers]
    for host, text in zip(hosts, texts, strict=True):
        files.replace(made.folder / f"{host.address}.yaml", text, 0o600)  # Ray's token is in it
    made.save()
    with console.step("files") as step:
        lifecycle.write(made, texts, override)
        step.detail = f"{len(texts)} machines"
    with console.step("start") as step:
        lifecycle.start(made, step.report)
        step.detail = made.name
    with console.step("ready") as step:
        why = lifecycle.wait(made, o["timeout"] * 60, step.report)
        step.detail, step.verdict = (why, "failed") if why else (made.url, "ok")
    if not why and not o["no_smoke"]:
        with console.step("smoke") as step:
            answer = client.paris(made.url)
            step.detail = answer.text[:100] or answer.problem
            why = "" if answer.ok else answer.problem or "it does not know France's capital"
            step.verdict = "failed" if why else "ok"
    if why:
        clusters.diagnose(made, as_json=o["as_json"])
        lifecycle.stop(made)
        raise ServingError(
            f"{made.name} did not come up: {why}",
            rule="every machine runs, and the first one answers",
            remedy="the machine that differs from the others is the first place to look",
        )
    if o["as_json"]:
        import msgspec

        print_json(msgspec.to_builtins(made))
        return
    print_rows(
        [
            ("server", f"{made.name} at {made.url}, {made.split}"),
            ("machines", ", ".join(made.hosts)),
            ("image", f"{made.image} ({made.digest[:19]})"),
            ("expect", f"at most {chosen.rate:.0f} tokens a second for one stream"),
            ("link", f"{chosen.link_bytes / 1e3:.0f} kB a token that a GPU sends"),
            ("logs", f"build.py serve cluster logs {made.name}"),
            ("stop", f"build.py serve cluster stop {made.name}"),
        ]
    )


for command in clusters.COMMANDS:
    cluster.add_command(command)
