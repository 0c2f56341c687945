"""Compiles vLLM's extensions and packs its wheel; runs in the build's compile stages.

    compile.py gate   configures, compiles the FP4 quantise object and reads its instructions
    compile.py all    compiles the rest, links, and packs the wheel into /wheels

Source tree and build folder live in a cache mount under a key of everything that goes in but the
csrc patches: an interrupted compile goes on where it stopped, and other patches compile what
includes a file that they change. sccache has its own mount, shared by all keys. For what it caches
of nvcc (cudafe++, cicc) it hashes the working directory's real path too (sccache 0.15.0), so
whichever key is compiled lies at one path meanwhile.
"""

from __future__ import annotations

import argparse
import filecmp
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from fp4forge.image.stages import apply_patches, cross, jobs
from fp4forge.image.stages.jobs import Failed, say, short, tail

HERE = Path("/fp4forge")
CACHE = Path("/root/.cache/compile")
CURRENT = CACHE / "current"  # the key that is compiled now, or was last; its file "key" says which
WHEELS = Path("/wheels")
RECORD = Path("/record/compile.json")


class Compile:
    """One configuration's source tree and build folder."""

    def __init__(self) -> None:
        self.instructions: dict[str, Any] = json.loads((HERE / "compile.json").read_text())
        self.settings = jobs.settings()
        self.key = self._key()
        self.source, self.build = CURRENT / "vllm", CURRENT / "build"
        self.patched = CURRENT / "patches"  # the series that the source tree has, and since when
        self.timings_file = CACHE / "timings.json"
        self.environment = os.environ | {
            "TORCH_CUDA_ARCH_LIST": self.instructions["arch_list"],
            "VLLM_TARGET_DEVICE": "cuda",
            "CUDA_HOME": "/usr/local/cuda",
            "SCCACHE_DIR": "/root/.cache/sccache",
            "SCCACHE_CACHE_SIZE": "20G",
            "SCCACHE_IDLE_TIMEOUT": "0",
            **{k: v for k, v in self.settings.items() if k.startswith(("SCCACHE_", "AWS_"))},
            **self.instructions["sources"],
        }
        self.cross: dict[str, str] | None = self.instructions.get("cross")
        if self.cross:
            self.environment["CUDA_TOOLKIT_ROOT"] = str(cross.CUDA)  # torch's FindCUDA wants it
        self.environment["PATH"] = "/usr/local/cuda/bin:" + os.environ["PATH"]

    def _key(self) -> str:
        """Of what decides the objects, save the patches: release, toolchain, instructions."""
        inputs = [HERE / "compile.json", HERE / "locks/build.txt", HERE / "locks/sdist.txt"]
        digest = _digest(inputs)
        for package in ("torch", "nvidia-cuda-nvcc", "nvidia-cuda-runtime"):
            digest.update(metadata.version(package).encode())
        return digest.hexdigest()[:16]

    def prepare(self) -> None:
        """Makes the sources those of this series of patches, and configures."""
        self._enter()
        self._lay_sources()
        if self.cross:
            cross.lay_out(self.cross)
        line = self._configure_line()
        configured = CURRENT / "configure.json"
        if not configured.is_file() or json.loads(configured.read_text()) != line:
            configured.unlink(missing_ok=True)
            self._configure(line)
            configured.write_text(json.dumps(line))

    def _enter(self) -> None:
        """Makes this key's folder the current one; another key's goes back under its name."""
        mark = CURRENT / "key"
        if CURRENT.is_dir() and mark.read_text() != self.key:
            CURRENT.rename(CACHE / mark.read_text())
        if not CURRENT.is_dir():
            home = jobs.folder_of(CACHE, self.key)
            (home / "key").write_text(self.key)
            home.rename(CURRENT)
        CURRENT.touch()

    def _lay_sources(self) -> None:
        """Unpacks and patches the sources, and puts what differs into the tree."""
        patches = _digest(sorted((HERE / "csrc").iterdir())).hexdigest()
        if self.patched.is_file() and self.patched.read_text() == patches:
            return
        fresh = CURRENT / "fresh"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        archive = next((HERE / "sdist").glob("vllm-*.tar.gz"))
        subprocess.run(["tar", "-xf", archive, "-C", fresh], check=True)  # hash checked
        tree = fresh / archive.name.removesuffix(".tar.gz")
        self._patch(tree)
        for done in (self.patched, CURRENT / "configure.json"):  # CMake generates sources of others
            done.unlink(missing_ok=True)
        update(tree, self.source)
        shutil.rmtree(fresh)
        self.patched.write_text(patches)

    def _patch(self, tree: Path) -> None:
        series = json.loads((HERE / "csrc/series.json").read_text())
        try:
            apply_patches.apply_series(series, HERE / "csrc", tree, tree)
        except apply_patches.Refused as refusal:
            raise Failed(str(refusal)) from None
        for name in self.instructions["without"]:
            file = tree / "cmake/external_projects" / f"{name}.cmake"
            if file.is_file():
                file.write_text(f'message(STATUS "fp4forge: {name} is left out")\n')

    def _configure_line(self) -> list[str]:
        """CMake's command line; another one configures the same folder again."""
        launchers = [f"-DCMAKE_{lang}_COMPILER_LAUNCHER=sccache" for lang in ("C", "CXX", "CUDA")]
        line = ["cmake", "-G", "Ninja", "-S", str(self.source), "-B", str(self.build), *launchers]
        line += ["-DCMAKE_BUILD_TYPE=Release", "-DVLLM_TARGET_DEVICE=cuda", "-DNVCC_THREADS=1"]
        line += [f"-DVLLM_PYTHON_EXECUTABLE={sys.executable}"]
        line += [f"-DVLLM_PYTHON_PATH={':'.join(filter(None, sys.path))}"]
        line += ["-DCMAKE_CUDA_COMPILER=/usr/local/cuda/bin/nvcc"]
        line += [f"-DFETCHCONTENT_BASE_DIR={CURRENT / 'deps'}"]
        if self.cross:
            line += cross.flags(self.cross, CURRENT / "cross.cmake")
        cutlass = Path(self.environment["VLLM_CUTLASS_SRC_DIR"])
        if not (cutlass / "CMakeLists.txt").is_file():  # wheels carry headers only
            line += [f"-DCUTLASS_INCLUDE_DIR={cutlass / 'include'}"]
            line += [f"-DCUTLASS_DIR={cutlass}"]  # CUTLASS MLA includes its examples
            line += [f"-DCUTLASS_TOOLS_UTIL_INCLUDE_DIR={cutlass / 'tools/util/include'}"]
        return line

    def _configure(self, line: list[str]) -> None:
        say("configuring")
        done = subprocess.run(
            line, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        (CURRENT / "configure.log").write_text(done.stdout)
        if done.returncode != 0:
            raise Failed("CMake cannot configure vLLM:\n" + tail(done.stdout, 25))

    def ninja(self, targets: list[str]) -> None:
        """Compiles targets; after an out-of-memory kill again with half the jobs.

        Raises:
            Failed: an object cannot be compiled; its command and last lines are in the message.
        """
        jobs.run(
            ["-C", str(self.build), *targets],
            self.environment,
            self.settings.get("FP4FORGE_JOBS"),
            self._timings,
            self._keep_timings,
        )

    def _timings(self) -> dict[str, float]:
        """The longest time seen: a hit in the compiler's cache says nothing about the next."""
        old: dict[str, float] = {}
        if self.timings_file.is_file():
            old = json.loads(self.timings_file.read_text())
        for name, seconds in jobs.timings(self.build).items():
            old[name] = max(seconds, old.get(name, 0.0))
        return old

    def _keep_timings(self) -> None:
        self.timings_file.write_text(json.dumps(self._timings()))

    def gate(self) -> None:
        """Compiles two objects with the build's own flags and reads the FP4 instructions in one.

        The quantise object shows toolchain and arch list, the entry that CUTLASS is found.

        Raises:
            Failed: it does not compile, or lacks FP4 instructions for a predicted target.
        """
        gate, names = self.instructions["gate"], self._cuda_objects()
        objects = [name for name in names if f"/{gate['source']}." in name]
        entries = [name for name in names if f"/{gate['entry']}." in name]
        if not objects or not entries:
            raise Failed(f"gate: vLLM's CMake compiles no {gate['source']} for this list")
        start = time.monotonic()
        self.ninja(objects + entries)
        from fp4forge.kernels import cubins, ledger

        files = [
            ledger.File(Path(o).name, cubins.read(self.build / o, CACHE / "ledger", say))
            for o in objects
        ]
        found = ledger.Ledger("gate", tuple(files)).targets()["nvfp4_quantise"]
        if sorted(found) != sorted(gate["targets"]):
            raise Failed(
                f"gate: {gate['source']} has FP4 instructions for {' '.join(found) or 'nothing'},"
                f" predicted {' '.join(gate['targets'])}: check toolchain, arch list and CUTLASS"
            )
        took = f"{time.monotonic() - start:.0f} s"
        say(f"gate: FP4 instructions for {' '.join(found)}, {took}; {reused(self._cached())}")

    def _cuda_objects(self) -> list[str]:
        """The outputs that nvcc makes."""
        listed = subprocess.run(
            ["ninja", "-C", str(self.build), "-t", "targets", "all"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        return [line.split(": ")[0] for line in listed.splitlines() if ": CUDA_COMPILER" in line]

    def compile(self) -> None:
        """Compiles everything, what includes CUTLASS first.

        These objects take longest, and another CUTLASS than vLLM's own breaks them: that the
        index's 4.2.0 lacks a name of 4.2.1 showed in the 58th of 112 objects, after 70 minutes.
        """
        targets = self.instructions["targets"]
        folders = tuple(f"CMakeFiles/{target}.dir/" for target in targets)
        first = [
            name
            for name in self._cuda_objects()
            if name.startswith(folders) and includes_cutlass(self.source / short(name))
        ]
        if first:  # without a target ninja would make everything
            self.ninja(first)
        self.ninja(targets)

    def wheel(self) -> None:
        """Packs vLLM's Python tree and the extensions into one wheel."""
        tree, parts, unpacked = (CURRENT / n for n in ("wheel-tree", "extensions", "unpacked"))
        for folder in (tree, parts, unpacked, WHEELS):
            shutil.rmtree(folder, ignore_errors=True)
        for target in self.instructions["targets"]:
            line = ["cmake", "--install", str(self.build), "--prefix", str(parts)]
            subprocess.run([*line, "--component", target], check=True, stdout=subprocess.DEVNULL)
        shutil.copytree(self.source, tree, ignore=shutil.ignore_patterns("csrc", "tests", "docs"))
        version = next((HERE / "sdist").glob("*.tar.gz")).name.split("-")[1][: -len(".tar.gz")]
        # "empty" compiles nothing; the extensions are those from above.
        environment = os.environ | {
            "VLLM_TARGET_DEVICE": "empty",
            "VLLM_VERSION_OVERRIDE": version,
            "SETUPTOOLS_SCM_PRETEND_VERSION": version,
        }
        pip = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-q"]
        subprocess.run([*pip, "-w", str(unpacked), str(tree)], check=True, env=environment)
        pure = next(unpacked.glob("*.whl"))
        wheel = [sys.executable, "-m", "wheel"]
        subprocess.run([*wheel, "unpack", "-d", str(unpacked), str(pure)], check=True)
        folder = next(p for p in unpacked.iterdir() if p.is_dir())
        shutil.copytree(parts / "vllm", folder / "vllm", dirs_exist_ok=True)
        info = next(folder.glob("*.dist-info")) / "WHEEL"
        text = re.sub(r"(?m)^Tag: .*\n?", "", info.read_text())
        text = text.replace("Root-Is-Purelib: true", "Root-Is-Purelib: false").rstrip("\n")
        machine = self.cross["processor"] if self.cross else os.uname().machine
        info.write_text(f"{text}\nTag: cp38-abi3-linux_{machine}\n")
        WHEELS.mkdir()
        subprocess.run([*wheel, "pack", "-d", str(WHEELS), str(folder)], check=True)
        shutil.rmtree(tree)
        shutil.rmtree(unpacked)

    def _cached(self) -> dict[str, dict[str, int]]:
        """Steps of the compilers in this run: from sccache and not, by kind; refused, by reason."""
        said = subprocess.run(
            ["sccache", "--show-stats", "--stats-format=json"],
            capture_output=True,
            text=True,
            env=self.environment,
            check=True,
        ).stdout
        stats = json.loads(said)["stats"]
        counts = {kind: stats[f"cache_{kind}"]["counts"] for kind in ("hits", "misses")}
        return counts | {"refused": stats["not_cached"]}

    def record(self, seconds: float) -> None:
        """Writes what the compile took, for the closing table and the evidence."""
        extensions = sorted((CURRENT / "extensions").rglob("*.so"))
        objects = dict(sorted(jobs.timings(self.build).items(), key=lambda item: -item[1]))
        since = jobs.timings(self.build, self.patched.stat().st_mtime_ns)
        for name, took in list(objects.items())[:10]:
            print(f"fp4forge: slowest {took:7.1f} s  {name}", flush=True)
        RECORD.parent.mkdir(exist_ok=True)
        RECORD.write_text(
            json.dumps(
                {
                    "key": self.key,
                    "instructions": self.instructions,
                    "seconds": round(seconds, 1),
                    "objects": objects,
                    "since_patched": sorted(since),
                    "extension_bytes": {path.name: path.stat().st_size for path in extensions},
                    "compiler_cache": self._cached(),
                },
                indent=1,
            )
            + "\n"
        )


def reused(cached: dict[str, dict[str, int]]) -> str:
    """What the compiler's cache did, in words; what it refuses is compiled at every build."""
    kept, made, refused = (sum(cached[kind].values()) for kind in ("hits", "misses", "refused"))
    if refused:
        return f"the compiler's cache refuses {refused} compiles: {', '.join(cached['refused'])}"
    if kept + made == 0:
        return "compiled before"
    return f"{kept} of {kept + made} steps from the compiler's cache"


def includes_cutlass(source: Path) -> bool:
    """Whether a source names CUTLASS, or lies where vLLM keeps what includes it."""
    return "cutlass" in source.parts or (source.is_file() and b"cutlass" in source.read_bytes())


def update(fresh: Path, tree: Path) -> None:
    """Moves files of fresh to tree where they are not the same there.

    What is the same keeps its time, what is moved gets the present one: ninja compiles what
    includes it. Files of tree alone stay: CMake made them, and no patch adds or removes a file.
    """
    if not tree.exists():
        fresh.rename(tree)
        return
    for file in (path for path in fresh.rglob("*") if path.is_file()):
        here = tree / file.relative_to(fresh)
        if not (here.is_file() and filecmp.cmp(file, here, shallow=False)):
            os.utime(file)
            file.replace(here)


def _digest(files: list[Path]) -> hashlib._Hash:
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest


def main() -> None:
    """Command line of the compile stages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["gate", "all"])
    args = parser.parse_args()
    with jobs.alone_on_engine(CACHE):
        start = time.monotonic()
        compile_ = Compile()
        try:
            compile_.prepare()
            compile_.gate()
            if args.what == "all":
                compile_.compile()
                compile_.wheel()
                compile_.record(time.monotonic() - start)
        except Failed as reason:
            print(f"fp4forge: compile: {reason}", file=sys.stderr)
            raise SystemExit(1) from None
        finally:
            stop = ["sccache", "--stop-server"]
            subprocess.run(stop, capture_output=True, env=compile_.environment)


if __name__ == "__main__":
    main()
