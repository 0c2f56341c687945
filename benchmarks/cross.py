"""vLLM's stable extension cross-compiled for arm64: the proof of `--cross`, and what it costs.

Builds the plan of `--cross` as far as its gate, then two whole extensions of core in a stage put
behind it; writes their kernels and ELF headers, and the seconds of each object beside those of
the native compile in docs/evidence/source-sm121: compare them on the machine that made both.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.recompile import REQUEST
from fp4forge import base as bases
from fp4forge import builder, gpu, ledger, paths, plan
from fp4forge.errors import BinaryError

NATIVE = paths.ROOT / "docs/evidence/source-sm121/compile.json"
TARGETS = ("_C_stable_libtorch", "cumem_allocator")
STAGE = """
FROM gate AS proof
RUN {mounts} PYTHONPATH=/fp4forge python3 -c 'import json, pathlib, shutil; \\
from fp4forge.image.build.compile import Compile; c = Compile(); c.prepare(); \\
c.ninja({targets}); out = pathlib.Path("/proof"); out.mkdir(); \\
[shutil.copy(path, out) for path in c.build.glob("*.so")]; \\
(out / "objects.json").write_text(json.dumps(c.object_seconds()))'
FROM scratch AS proof-files
COPY --from=proof /proof /
"""


def cross() -> dict[str, Any]:
    """Object seconds crossed and native; what the linked extensions are."""
    request = replace(REQUEST, platform=gpu.ARM64, cross=True)
    prepared, files = plan.identify(plan.resolve(request))
    text = files["Dockerfile"].decode()
    run = text[text.index("RUN --mount=type=secret,id=compile") :].partition("PYTHONPATH")[0]
    stage = STAGE.format(mounts=run.removeprefix("RUN "), targets=json.dumps(TARGETS))
    files["Dockerfile"] = (text + stage).encode()
    bases.ensure(bases.load(request.base), gpu.AMD64, lambda _: None)  # no stage here is arm64's
    context = plan.stage(prepared, files)
    with tempfile.TemporaryDirectory() as name:
        output, options = f"type=local,dest={name}", builder.Options()
        line = builder.command(prepared, context, [output], options, target="proof-files")
        builder.build(line, print, options)
        seconds = json.loads(Path(name, "objects.json").read_text())
        extensions = {path.name: facts(path) for path in Path(name).glob("*.so")}
    own = json.loads(NATIVE.read_text())["objects"]
    shared = sorted(set(seconds) & set(own))
    ours, theirs = sum(seconds[o] for o in shared), sum(own[o] for o in shared)
    return {
        "objects": {o: {"cross_s": seconds[o], "native_s": own[o]} for o in shared},
        "cross_s": ours, "native_s": theirs, "ratio": ours / theirs, "extensions": extensions,
    }  # fmt: skip


def facts(extension: Path) -> dict[str, Any]:
    """Size, processor, needed libraries and kernels of a shared object."""
    said = subprocess.run(
        ["readelf", "-hd", str(extension)], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    kernels: dict[str, int] = {}
    try:
        found = ledger.read(str(extension), lambda _: None).as_json(details=False)["files"]
        for cubin in (cubin for file in found for cubin in file["cubins"]):
            kernels[cubin["arch"]] = kernels.get(cubin["arch"], 0) + cubin["kernels"]
    except BinaryError:
        pass  # the allocator has no device code
    return {
        "bytes": extension.stat().st_size,
        "machine": next(line.split(":")[1].strip() for line in said if "Machine:" in line),
        "needed": [line.split("[")[1].rstrip("]") for line in said if "(NEEDED)" in line],
        "kernels": kernels,
    }
