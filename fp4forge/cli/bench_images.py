"""The command that measures two images, one after the other, and compares them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fp4forge.cli import bringing_up, results_shown, servers, wanted_server
from fp4forge.cli.options import json_option, model_option, server_options_of_image
from fp4forge.core import reading
from fp4forge.core.console import Console, print_json, print_rows
from fp4forge.core.errors import NoGpuError, UsageError

if TYPE_CHECKING:
    from fp4forge.bench.suite import NamedSuite
    from fp4forge.kernels.gpus import Product
    from fp4forge.launch.alternation import ComparedImages, ServingTurn
    from fp4forge.launch.deployment import Deployment
    from fp4forge.serve.settings import ServerSettings


@click.command("images")
@click.argument("old")
@click.argument("new")
@model_option
@click.option(
    "--suite", default="quick", show_default=True, metavar="NAME|FILE", help="As bench --suite."
)
@click.option("--only", multiple=True, metavar="TABLE", help="Only these tables of the suite.")
@click.option("--max-context", type=click.IntRange(1), help="Leave out points with more tokens.")
@click.option(
    "--rounds",
    type=click.IntRange(1, 50),
    default=1,
    show_default=True,
    help="Measure each image this many times, alternating: OLD NEW, NEW OLD, and so on.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(0.001, 0.9),
    help="A difference beyond it is a regression; by default the suite's.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of both results; by default one of these images, model and suite.",
)
@click.option(
    "--image", "client", help="Image whose vllm bench serve sends the load; by default OLD."
)
@click.option("--allow-empty", is_flag=True, help="Accept answers without text (random weights).")
@click.option("--gpu", "product", help="This machine's GPU; by default what nvidia-smi reports.")
@server_options_of_image
@click.option("--utilization", type=float, help="Share of the GPU's memory; by default 0.85.")
@click.option(
    "--override",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A compose file that is merged over the written ones.",
)
@servers.timeout_option
@servers.smoke_option
@click.option("--dry-run", is_flag=True, help="Print what would be started; start nothing.")
@json_option
def images(old: str, new: str, as_json: bool, dry_run: bool, rounds: int, **o: Any) -> None:
    """Measure image OLD, then image NEW, with one model on this machine, and compare them.

    Starts each as `serve up` would, runs the suite, and stops it. The same line again goes on where
    it was interrupted.

    Exit code 23 if NEW is worse by more than the threshold, with 95 % confidence.
    """
    from fp4forge.bench import suite as suites
    from fp4forge.launch import alternation, this_machine

    suite = suites.load(o["suite"], o["only"])
    wanted_server.check_key_file(o["api_key_file"])
    override = reading.text(o["override"], UsageError, where="--override") if o["override"] else ""
    console = Console()
    size = _weights(o["model"])
    with console.step("gpu") as step:
        product, number = this_machine.product(o["product"])
        step.detail = f"{number} x {product.title}"
    o["product"] = product.name
    wanted = _wanted(old, new, suite, o, console)
    folder = o["out"] or _result_folder(wanted)
    before = alternation.kept(folder)
    if o["utilization"] is None and before:  # what is free now may be another share
        o["utilization"] = before.utilization
    o["utilization"] = wanted_server.utilization(o, product, size, console)
    wanted = _with_utilization(wanted, o["utilization"])
    if before:
        alternation.check_same(before, wanted, folder)
    named = {side: _options_of(wanted.image(side), o, product) for side in alternation.SIDES}
    pair = {
        side: replace(
            wanted_server.on_this_machine(options, number, console, own_image=True),
            name=alternation.server_name(folder, side),
        )
        for side, options in named.items()
    }
    order = alternation.turns(rounds)
    if dry_run:
        _say_plan(wanted, pair, order, suite, folder, as_json)
        return
    releases = {side: options["release"] or "" for side, options in named.items()}
    measuring = _Measuring(
        wanted, pair, releases, suite, folder, override, o, size, console, as_json
    )
    with results_shown.hold_result_folder(folder):
        alternation.clear(folder)
        if todo := [turn for turn in order if not alternation.is_done(turn, folder, suite)]:
            try:
                measuring.prepare()
                measuring.run(todo)
            except KeyboardInterrupt as stopped:
                stopped.add_note(f"its server does not run; what was measured is in {folder}")
                raise
        else:
            console.say(f"  note  everything is measured already: {folder}; --out names another")
    first, second = alternation.both(folder, suite, rounds)
    about = {"old": wanted.old, "new": wanted.new, "folder": str(folder)}
    if not as_json:
        click.echo(f"old and new: {folder}")
    results_shown.compare(first, second, o["threshold"], as_json, about=about)


def _weights(model: Path) -> int:
    """Bytes of a checkpoint's tensors.

    Raises:
        UsageError: it is not a folder.
        CheckpointError: it cannot be read.
    """
    from fp4forge.checkpoint import tensors

    if not reading.is_folder(model):
        raise UsageError(f"--model {model} is not a folder", rule="a folder with config.json")
    return sum(tensor.size for tensor in tensors.read(model).tensors.values())


def _wanted(
    old: str, new: str, suite: NamedSuite, o: dict[str, Any], console: Console
) -> ComparedImages:
    """What is compared, with images by digest; the servers' share of memory is not known yet.

    Raises:
        UsageError: both are one image.
    """
    from fp4forge.bench import identity
    from fp4forge.launch.alternation import ComparedImages
    from fp4forge.oci import reference
    from fp4forge.serve import manifest

    with console.step("images") as step:
        named = [wanted_server.checked_image(image, o) for image in (old, new)]
        if len({reference.parse(image).digest for image in named}) == 1:
            raise UsageError(
                f"OLD and NEW are one image: {named[0]}", rule="two images are compared"
            )
        client = manifest.by_digest(o["client"]) if o["client"] else named[0]
        step.detail = " and ".join(named)
    return ComparedImages(
        old=named[0],
        new=named[1],
        client=client,
        suite=suite.hash,
        model=identity.checkpoint(o["model"]),
        max_context=o["max_context"] or 0,
        utilization=0,
    )


def _with_utilization(wanted: ComparedImages, share: float) -> ComparedImages:
    import msgspec

    found: ComparedImages = msgspec.structs.replace(wanted, utilization=share)
    return found


def _result_folder(wanted: ComparedImages) -> Path:
    """The folder of this comparison: the same line finds it again."""
    import hashlib

    from fp4forge.core.paths import STATE

    parts = (wanted.old, wanted.new, wanted.model, wanted.suite)
    return STATE / "bench" / f"images-{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:12]}"


def _options_of(image: str, o: dict[str, Any], product: Product) -> dict[str, Any]:
    """The options with what an image's labels say of it: its release decides the flags.

    Raises:
        NoGpuError: the image is for another GPU.
        PlatformError: the image is for another platform.
    """
    from fp4forge.core.platform import host_platform
    from fp4forge.kernels import gpus
    from fp4forge.launch import image as launched

    labels = launched.labels(image, host_platform())
    names = ("release", "variant", "strategy")
    said = {name: labels.get(f"io.fp4forge.{name}") or None for name in names}
    arch = labels.get("io.fp4forge.arch") or launched.targets(product.gpu, None)[0]
    if product.gpu not in {chip.name for chip in gpus.target(arch).gpus}:
        raise NoGpuError(
            f"{image} is for {arch}, and this machine has {product.title}",
            rule="an image is measured on a GPU that it is for",
        )
    return o | said | {"arch": arch, "image": image, "platform": host_platform(), "base": None}


def _say_plan(
    wanted: ComparedImages,
    pair: dict[str, ServerSettings],
    order: list[ServingTurn],
    suite: NamedSuite,
    folder: Path,
    as_json: bool,
) -> None:
    """Prints what would be started."""
    import shlex

    from fp4forge.launch import alternation

    todo = [turn.side for turn in order if not alternation.is_done(turn, folder, suite)]
    if as_json:
        servers_ = {side: found.as_json() for side, found in pair.items()}
        facts = {"client": wanted.client, "suite": suite.name, "folder": str(folder)}
        print_json(servers_ | facts | {"order": todo})
        return
    rows = [
        (side, f"{found.image}\nvllm serve {shlex.join(found.arguments)}")
        for side, found in pair.items()
    ]
    trials = sum(load.trials for load in suite.loads())
    rows += [
        ("load", wanted.client),
        ("suite", f"{suite.name}, {trials} trials a turn"),
        ("order", " ".join(todo) or "everything is measured already"),
        ("folder", str(folder)),
    ]
    print_rows(rows)


@dataclass(frozen=True)
class _Measuring:
    """Both servers' settings, and how they are started and measured."""

    wanted: ComparedImages
    pair: dict[str, ServerSettings]
    releases: dict[str, str]
    suite: NamedSuite
    folder: Path
    override: str  # the text of a second compose file
    o: dict[str, Any]
    weights: int  # bytes
    console: Console
    as_json: bool

    def prepare(self) -> None:
        """Refuses a port that is taken, fetches every image, and says what the folder is about."""
        from fp4forge.core.platform import host_platform
        from fp4forge.oci import engine

        _check_port(self.pair["old"])
        client = engine.connect()
        for image in dict.fromkeys((self.wanted.old, self.wanted.new, self.wanted.client)):
            with self.console.step("pull") as step:
                step.detail = engine.have(client, image, host_platform(), step.report)
        self.wanted.save(self.folder)

    def run(self, turns: list[ServingTurn]) -> None:
        """Makes these turns."""
        for place, turn in enumerate(turns, 1):
            image = self.pair[turn.side].image
            self.console.say(f"  turn  {place} of {len(turns)}: {turn.side}, {image}")
            with self._server(turn) as made:
                self._measure(turn, made)

    @contextmanager
    def _server(self, turn: ServingTurn) -> Iterator[Deployment]:
        """The server of a turn, ready; nothing of it runs afterwards."""
        from fp4forge.launch import alternation
        from fp4forge.serve import manifest

        found = self.pair[turn.side]
        made = bringing_up.deployment_of(
            found,
            self.releases[turn.side],
            override=bool(self.override),
            weights=self.weights,
        )
        made.write(manifest.render(found, "compose"), self.override)
        try:
            bringing_up.bring_up(
                made,
                self.console,
                self.o["timeout"] * 60,
                smoke=not self.o["no_smoke"],
                as_json=self.as_json,
                show=False,
                may_stay=False,
            )
            bringing_up.log_in(made)
            yield made
        except KeyboardInterrupt:
            alternation.remove(made)
            raise
        except BaseException:
            alternation.give_up(made)
            raise
        with self.console.step("stop"):
            alternation.remove(made)

    def _measure(self, turn: ServingTurn, made: Deployment) -> None:
        """Makes the turn's trials.

        Raises:
            BenchError: a trial has a fault.
            ServingError: the server died.
        """
        from fp4forge.bench.opening import BenchRequest
        from fp4forge.launch import alternation

        folder = self.folder / turn.side
        request = BenchRequest(
            url=made.url,
            suite=self.suite,
            folder=folder,
            container=made.name,
            image=self.wanted.client,
            max_context=self.wanted.max_context,
            checkpoint=self.o["model"],
            gpu=self.o["product"],
            allow_empty=self.o["allow_empty"],
        )
        with self.console.step(f"bench {turn.side}") as step:
            folder.mkdir(exist_ok=True)
            running = alternation.measurement(request, turn, step.report)
            try:
                running.run()
            finally:
                if running.result.tables:
                    results_shown.write_report(running.result, folder)
            step.detail = str(folder)
        results_shown.refuse_faults(running.result, as_json=False)


def _check_port(found: ServerSettings) -> None:
    """Refuses a port that is taken; names the server of this machine that has it.

    Raises:
        UsageError: with the reason.
    """
    from fp4forge.launch import deployment, this_machine

    try:
        this_machine.check_port(found.listen, found.port)
    except UsageError:
        for made in map(deployment.load, deployment.names()):
            if made.url.endswith(f":{found.port}") and servers.state(made) == "running":
                raise UsageError(
                    f"{made.name} is running at {made.url}, and is not touched",
                    rule="each image is served at a port that nothing else has",
                    remedy=f"--port takes another one; or build.py serve stop {made.name}",
                ) from None
        raise
