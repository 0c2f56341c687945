"""Runs ``build.py bench``'s suite twice against a server on this GPU, without Docker.

    python3 bench.py [--out FOLDER] [--port N] [--suite quick]

The load generator is the release's own ``vllm bench serve`` in a process here, not in a container;
all else is the command's own code: suite, prompts, checks, result, comparison.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/image/proofs")]

import torch  # noqa: E402
from checkpoint import float_weights, write, write_tokenizer  # noqa: E402
from serve import CASES, GEMMA, SHAPES, Server, tail  # noqa: E402

import fp4forge  # noqa: E402
from fp4forge.bench import compare, identity, load_command, suite_run  # noqa: E402
from fp4forge.bench import suite as suites  # noqa: E402
from fp4forge.bench.load_command import LoadGenerator  # noqa: E402
from fp4forge.bench.result import BenchResult, MeasuredIdentity  # noqa: E402
from fp4forge.bench.server import MeasuredServer  # noqa: E402


class HereGenerator(LoadGenerator):
    """The load generator in this Python, which sees the folder under its own name."""

    def line(self, folder: Path) -> list[str]:
        """The process that asks for trials on its standard input."""
        return [sys.executable, str(load_command.INSIDE)]


def measure(url: str, name: str, folder: Path, flags: list[str]) -> BenchResult:
    """One run of a suite."""
    suite = suites.load(name)
    described = MeasuredServer(url, "m", "").describe()
    server = MeasuredServer(url, described.model, "")
    who = MeasuredIdentity(
        model=described.model,
        context=described.context,
        server_version=described.version,
        flags=identity.flags(flags),
        gpus=identity.gpus(),
        processor=identity.processor(),
        client_version=described.version,
        allow_empty=True,
    )
    result = BenchResult(
        suite=suite.name,
        suite_hash=suite.hash,
        measured=suite.suite,
        fp4forge=fp4forge.__version__,
        date=suite_run.now(),
        identity=who,
    )
    folder.mkdir(parents=True)
    load_command.WORK = str((folder / suite_run.RAW_FOLDER).resolve())  # no container's mount
    client = HereGenerator("here")
    suite_run.SuiteRun(server, client, suite, result, folder, print).run()
    return result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(tempfile.mkdtemp()))
    parser.add_argument("--port", type=int, default=8424)
    parser.add_argument("--suite", default="quick")
    parser.add_argument("--options", default="", help="More options for vllm serve.")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"device": torch.cuda.get_device_name(), "suite": args.suite}
    with tempfile.TemporaryDirectory() as root:
        model = Path(root, "model")
        shapes = SHAPES["reference"]
        write(model, shapes, CASES[0], float_weights(shapes, device="cuda"))
        write_tokenizer(model)
        torch.cuda.empty_cache()
        flags = [*GEMMA, *args.options.split()]
        server = Server(model, args.out / "bench.log", flags, args.port)
        try:
            if (ready := server.wait(400)) is None:
                found["ended"] = tail(server.log)
            else:
                found["ready_s"] = ready
                url = f"http://127.0.0.1:{args.port}"
                folders = [Path(root, side) for side in ("one", "two")]
                both = [measure(url, args.suite, folder, flags) for folder in folders]
                found["problems"] = [problem for result in both for problem in result.problems]
                one, two = both
                rows = compare.changes(one, two, one.measured.threshold, False)
                found["compared"] = [asdict(row) for row in rows]
                for folder in folders:
                    shutil.copy(folder / "result.json", args.out / f"bench-{folder.name}.json")
        except Exception as error:  # the error is the result
            found["failed"] = f"{type(error).__name__}: {error}"[:400]
        finally:
            server.close()
    (args.out / "bench.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
