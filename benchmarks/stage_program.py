"""Runs in the compile stage that benchmarks/stage.py makes; what it found is in /proof."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
from pathlib import Path

from fp4forge.image.stages import compile as stages
from fp4forge.image.stages import jobs

OUT = Path("/proof")


def cpu() -> float:
    """CPU seconds of this container's processes and of their children that have ended.

    The compiler's cache runs the compilers, as children of its server, which goes on.
    """
    stats = [file.read_text() for file in Path("/proc").glob("[0-9]*/stat")]
    ticks = [n for stat in stats for n in stat.rpartition(")")[2].split()[11:15]]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def ninja(build: Path, *arguments: str) -> list[str]:
    """Output of one of ninja's tools."""
    line = ["ninja", "-C", str(build), "-t", *arguments]
    return subprocess.run(line, check=True, capture_output=True, text=True).stdout.splitlines()


def main() -> None:
    """Command line; a nonce keeps BuildKit from answering with an earlier run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("nonce")
    parser.add_argument("--timed", nargs="*", default=[])
    parser.add_argument("--linked", nargs="*", default=[])
    args = parser.parse_args()
    OUT.mkdir()
    with jobs.alone_on_engine(stages.CACHE):
        compile_ = stages.Compile()
        compile_.prepare()
        before = cpu()
        if args.timed:  # ninja without targets makes everything
            ninja(compile_.build, "clean", *args.timed)
            compile_.ninja(args.timed)
        cpu_s, seconds = cpu() - before, jobs.timings(compile_.build)
        folders = tuple(f"CMakeFiles/{t}.dir/" for t in compile_.instructions["targets"])
        outputs = [line.split(": ")[0] for line in ninja(compile_.build, "targets", "all")]
        objects = [name for name in outputs if name.startswith(folders) and name.endswith(".o")]
        found = {"cpu_s": cpu_s, "seconds": seconds, "objects": objects}
        (OUT / "found.json").write_text(json.dumps(found))
        if args.linked:
            compile_.gate()
            compile_.ninja(args.linked)
            for path in compile_.build.glob("*.so"):
                shutil.copy(path, OUT)


if __name__ == "__main__":
    main()
