"""Packs vLLM, patched and plain, for a GPU machine without network: pieces under ``.gpu/``.

    .venv/bin/python scripts/gpu_bundle.py --release R [--have FILE] [--piece-mib 56] [--keep WORD]

The machine has Python 3.12 and torch 2.11 on CUDA 13.0. --have names the packages that are there,
one a line; the rest of the release's lock travels, without what a test on one GPU never loads.
--keep takes along what is otherwise left behind, such as _vllm_fa3_C: MLA needs it on a Hopper.
``sh gpu-unpack.sh`` beside the pieces makes /tmp/fp4forge-gpu/{site,plain} of them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from fp4forge.image.stages.apply_patches import apply_series  # noqa: E402
from fp4forge.inputs import locks as lock  # noqa: E402
from fp4forge.inputs import patches as series  # noqa: E402
from fp4forge.maintain import sources  # noqa: E402

# Other versions than vLLM's lock has would break Gemma-4 (transformers 5.15 does).
ALWAYS = {"vllm", "transformers", "tokenizers"}
# Never loaded by these tests: FlashInfer and its compilers, attention that Gemma-4 cannot use,
# telemetry, command-line extras.
NEVER = (
    "nvidia-",
    "cuda-",
    "flashinfer",
    "tilelang",
    "z3-solver",
    "torch-c-dlpack",
    "opentelemetry",
    "googleapis",
    "sentry",
    "fastapi-cli",
    "fastapi-cloud",
    "rignore",
    "cryptography",
    "quack",
    "fastsafetensors",
    "detect-installer",
    "rich-toolkit",
    "fastar",
    "torch",
)
DEAD = ("_vllm_fa2_C", "_vllm_fa3_C", "deep_gemm/include", "swagger-ui")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--have", type=Path)
    parser.add_argument("--release", required=True)
    parser.add_argument("--piece-mib", type=int, default=56)
    parser.add_argument("--keep", action="append", default=[])
    args = parser.parse_args()
    have = set(args.have.read_text().split()) if args.have else set()
    out = ROOT / ".gpu"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    entries = lock.read(lock.LockName(args.release, "wheel", "linux/amd64", "3.12"))
    wanted = [
        block
        for name, block in entries.items()
        if name in ALWAYS or (name not in have and not name.startswith(NEVER))
    ]
    with tempfile.TemporaryDirectory() as folder:
        site, pins = Path(folder, "site"), Path(folder, "pins.txt")
        pins.write_text("".join(wanted))
        uv = [str(ROOT / ".venv/bin/uv"), "pip", "install", "--target", str(site), "--no-deps"]
        uv += ["--python-version", "3.12", "--python-platform", "x86_64-manylinux_2_39"]
        uv += ["--only-binary", ":all:", "--link-mode", "copy", "--require-hashes"]
        subprocess.run([*uv, "-r", str(pins)], check=True)
        for path in sorted(site.rglob("*"), reverse=True):
            if any(word in path.as_posix() for word in DEAD if word not in args.keep):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        sequence = series.load("vllm", args.release)
        record = {"patches": [sequence.instructions(p) for p in sequence.for_variant("awq")]}
        plain = Path(folder, "originals")
        for patch in sequence.for_variant("awq"):
            for path in patch.files:
                target = plain / path
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(sources.source_tree(args.release) / path, target)
        apply_series(record, sequence.folder, site, site)
        pack = ["tar", "-C", folder, "-czf", "-", "site", "originals"]
        split = ["split", "-b", f"{args.piece_mib}M", "-", str(out / "piece-")]
        with subprocess.Popen(pack, stdout=subprocess.PIPE) as packing:
            subprocess.run(split, stdin=packing.stdout, check=True)
    (out / "gpu-unpack.sh").write_text(UNPACK)
    for path in sorted(out.iterdir()):
        sys.stdout.write(f"{path.relative_to(ROOT)} {path.stat().st_size / 2**20:.1f} MiB\n")
    os.sync()


UNPACK = """\
set -eu
cd "$(dirname "$0")"
rm -rf /tmp/fp4forge-gpu && mkdir -p /tmp/fp4forge-gpu
cat piece-* | tar -xzf - -C /tmp/fp4forge-gpu
cd /tmp/fp4forge-gpu
# The unpatched package: links to the patched one, but for the files that patches change.
mkdir plain && cp -rs "$PWD/site/vllm" plain/
(cd originals && find vllm -type f) | while read -r file; do
  rm "plain/$file" && cp "originals/$file" "plain/$file"
done
# flash-attention's extensions stay behind, Gemma-4 uses Triton's; unpatched, vLLM must import one.
touch plain/vllm/vllm_flash_attn/_vllm_fa2_C.py
"""

if __name__ == "__main__":
    main()
