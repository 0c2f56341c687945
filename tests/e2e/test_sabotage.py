"""A test of the tests: each way to spoil an image is caught, and by the check that claims it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fp4forge.checks import runner as verify
from fp4forge.core.errors import PlatformError
from fp4forge.maintain import sources
from fp4forge.oci import engine
from tests.e2e.conftest import REGISTRY, REPO, ROOT, put, raw, shell

SITE = "/usr/local/lib/python3.13/dist-packages"
CUDA = f"{SITE}/nvidia/cu13"
# Checks that take seconds run only where a sabotage names them; a new layer's files are new.
SLOW = (
    "imports",
    "entrypoint_runs",
    "installed_files",
    "requirements",
    "test_proofs",
    "test_backends",
    "test_backend_kernels",
    "times",
    "runtime_compilers",
    "versions",
    "unpacked_size",
    "cuda_once",
    "test_kernels",
    "test_layers",
    "test_files",
    "test_machine",
    "test_extensions",
    "test_aot",
    "test_provenance",
)


@dataclass(frozen=True)
class Sabotage:
    """A thin layer on the real image, or another plan, and the checks that must catch it."""

    name: str
    lines: str  # of a Dockerfile
    caught_by: tuple[str, ...]  # names of image tests
    plan: tuple[tuple[str, Any], ...] = ()


def edit_version(package: str, version: str) -> str:
    return f"RUN sed -i 's/^Version: .*/Version: {version}/' {SITE}/{package}-*.dist-info/METADATA"


# The FP4 extension replaced by one with the test's own kernels.
KERNELS = (
    "COPY fp4.cu /tmp/\nRUN nvcc {flags} -c -Xcompiler -fPIC /tmp/fp4.cu -o /tmp/fp4.o"
    f" && g++ -shared /tmp/fp4.o -o {SITE}/vllm/_C_stable_libtorch.abi3.so"
)
AHEAD = {
    "name": "gemma4",
    "archs": "12.0f",
    "generators": ["fp4_quantization.gen_fp4_quantization_sm120f_module"],
}

LEDGER = (
    'import json; p = "/opt/fp4forge/ledger.json"; d = json.load(open(p));'
    ' [d["gpus"][g].update(nvfp4_gemm="missing") for g in ("sm100", "sm103")];'
    ' json.dump(d, open(p, "w"))'
)

SABOTAGES = (
    Sabotage(
        "a program that no package lists",
        "RUN cp /usr/bin/true /usr/local/bin/implant",
        ("files",),
    ),
    Sabotage(
        "a package without its record of files",
        f"RUN rm {SITE}/aiohttp-*.dist-info/RECORD",
        ("files",),
    ),
    Sabotage(
        "the unpatched modelopt.py",
        f"COPY modelopt.py {SITE}/vllm/model_executor/layers/quantization/modelopt.py",
        ("patched_files",),
    ),
    Sabotage(
        "a byte appended to gemma4.py",
        f"RUN echo >> {SITE}/vllm/model_executor/models/gemma4.py",
        ("patched_files", "bytecode"),
    ),
    Sabotage(
        "the patch record edited",
        'RUN sed -i \'0,/"after": "./s//"after": "0/\' /opt/fp4forge/patches.json',
        ("patch_record",),
    ),
    Sabotage(
        "an extension without FP4 in place of the FP4 extension",
        f"RUN cp {SITE}/vllm/_moe_C.abi3.so {SITE}/vllm/_C_stable_libtorch.abi3.so",
        ("ledger_is_of_these_files", "installed_files", "kernels", "extensions"),
    ),
    Sabotage(
        "FP4 kernels only for sm_120a, sm121 requested",
        KERNELS.format(flags="-gencode arch=compute_120a,code=sm_120a"),
        ("ledger_is_of_these_files", "installed_files", "kernels"),
    ),
    Sabotage(
        "FP4 kernels emptied, symbols kept",
        KERNELS.format(flags="-DEMPTY -gencode arch=compute_120f,code=sm_120f"),
        ("ledger_is_of_these_files", "installed_files", "kernels"),
    ),
    Sabotage(
        "an extension that calls the driver without linking its library",
        "RUN echo 'int cuInit(int); int f() {return cuInit(0);}'"
        f" | gcc -shared -fPIC -x c - -o {SITE}/flashinfer/data/extra.so",
        ("driver",),
    ),
    Sabotage(
        "the table of backends edited",
        "RUN sed -i 's/MARLIN/CUTLASS/' /opt/fp4forge/backends.json",
        ("backends_file",),
    ),
    Sabotage(
        "a plan that predicts another backend",
        "",
        ("backends",),
        (("backends", {"sm121": {"gemma4": {}, "qwen3": {}}}),),
    ),
    Sabotage("ninja removed", "RUN rm /usr/local/bin/ninja", ("backend_kernels",)),
    Sabotage(
        "CuTe DSL removed",
        f"RUN rm -r {SITE}/nvidia_cutlass_dsl",
        ("backend_kernels",),
    ),
    Sabotage(
        "a plan that predicts a compiler less",
        "",
        ("backend_kernels",),
        (("backend_kernels", {"compilers": {"nvcc": "ninja"}, "gpus": {}}),),
    ),
    Sabotage("FlashInfer's modules missing", "", ("aot",), (("aot", AHEAD),)),
    Sabotage(
        "a file that Python runs when it starts",
        f"RUN echo 'import os' > {SITE}/extra.pth",
        ("startup",),
    ),
    Sabotage(
        "the ledger edited", "RUN sed -i 's/family/native/' /opt/fp4forge/ledger.json", ("ledger",)
    ),
    Sabotage(
        "a ledger without FP4 for SM10x", f"RUN python3 -c '{LEDGER}'", ("ledger", "extensions")
    ),
    Sabotage("transformers 5.5.0", edit_version("transformers", "5.5.0"), ("versions",)),
    Sabotage("transformers 5.15.0", edit_version("transformers", "5.15.0"), ("versions",)),
    Sabotage("a different torch", edit_version("torch", "2.10.0"), ("versions", "requirements")),
    Sabotage("ptxas removed", f"RUN rm {CUDA}/bin/ptxas", ("runtime_compilers",)),
    Sabotage("nvcc removed", f"RUN rm {CUDA}/bin/nvcc", ("runtime_compilers", "versions")),
    Sabotage("the host compiler removed", "RUN rm /usr/bin/g++", ("runtime_compilers",)),
    Sabotage("root user", "USER root", ("user",)),
    Sabotage("a token in the environment", "ENV HF_TOKEN=abc", ("secrets",)),
    Sabotage("a token in the history", "RUN : hf_abcdefghijklmnopqrstuvwxyz", ("secrets",)),
    Sabotage(
        "a token in a layer, deleted by the next layer",
        "RUN printf hf_%s abcdefghijklmnopqrstuvwxyzabcdefgh >/opt/x\nRUN rm /opt/x",
        ("layers",),
    ),
    Sabotage("a password in a label", "LABEL registry.password=abc", ("secrets",)),
    Sabotage("a static archive", f"RUN touch {CUDA}/lib/libcudart_static.a", ("left_out",)),
    Sabotage(
        "FlashAttention 3",
        f"RUN touch {SITE}/vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so",
        ("left_out",),
    ),
    Sabotage(
        "a second libcudart",
        f"RUN cp {CUDA}/lib/libcudart.so.13 {SITE}/torch/lib/libcudart.so.13",
        ("cuda_once",),
    ),
    Sabotage("a file of a wheel deleted", f"RUN rm {SITE}/vllm/envs.py", ("installed_files",)),
    Sabotage(
        "a file of a wheel changed",
        f"RUN echo >> {SITE}/transformers/utils/hub.py",
        ("installed_files",),
    ),
    Sabotage("a package removed", f"RUN rm -r {SITE}/regex-*.dist-info", ("requirements",)),
    Sabotage("a label missing", "LABEL io.fp4forge.plan=", ("labels",)),
    Sabotage("entrypoint changed", 'ENTRYPOINT ["sh"]', ("entrypoint",)),
    Sabotage("no health check", "HEALTHCHECK NONE", ("healthcheck",)),
    Sabotage("the JIT cap removed", "ENV MAX_JOBS=64", ("environment",)),
    Sabotage("a Git repository", "RUN mkdir /opt/src && touch /opt/src/.git", ("leftovers",)),
    Sabotage("a netrc file", "RUN touch /home/vllm/.netrc", ("leftovers",)),
    Sabotage("package lists", "RUN touch /var/lib/apt/lists/x", ("leftovers",)),
    Sabotage(
        "a setuid file",
        "RUN cp /bin/true /usr/bin/become && chmod u+s /usr/bin/become",
        ("setuid",),
    ),
    Sabotage("a file with the build's time stamp", "RUN touch /opt/fp4forge/bin/vllm", ("times",)),
    Sabotage(
        "torch that cannot be imported",
        f"RUN echo 'raise ImportError' >> {SITE}/torch/__init__.py",
        ("imports",),
    ),
    Sabotage(
        "another version's entrypoint",
        "RUN ln -sf /bin/true /opt/fp4forge/bin/vllm",
        ("entrypoint_runs",),
    ),
    Sabotage("an image over the size budget", "", ("unpacked_size",), (("unpacked_gb", 1.0),)),
)


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sabotage")
    name = "vllm/model_executor/layers/quantization/modelopt.py"
    (folder / "fp4.cu").write_bytes((Path(__file__).parent / "kernels" / "fp4.cu").read_bytes())
    (folder / "modelopt.py").write_bytes((sources.source_tree("0.20.2") / name).read_bytes())
    return folder


def spoil(image: str, sabotage: Sabotage, context: Path) -> str:
    """The image with one layer more."""
    reference = f"fp4forge.local/sabotage:{SABOTAGES.index(sabotage)}"
    user = "" if "USER" in sabotage.lines else "\nUSER 2000:2000"
    text = f"FROM {image}\nUSER 0\n{sabotage.lines}{user}\n"
    done = subprocess.run(
        ["docker", "buildx", "build", "-q", "-t", reference, "-f", "-", str(context)],
        input=text,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return reference


def failed(image: str, plan: dict[str, Any], only: str) -> dict[str, str]:
    checks = verify.run(image, plan, lambda _: None, only=only)
    return {check.test: check.message for check in checks if check.outcome == "failed"}


def examine(published: dict[str, Any], sabotage: Sabotage, context: Path) -> dict[str, str]:
    """The checks that the spoilt image fails, with their messages."""
    plan = published["plan"] | dict(sabotage.plan)
    image = spoil(published["image"], sabotage, context)
    claimed = " or ".join(f"test_{name}" for name in sabotage.caught_by)
    try:
        return failed(image, plan, f"{claimed} or not ({' or '.join(SLOW)})")
    finally:
        shell("docker", "rmi", "-f", image, check=False)


@pytest.fixture(scope="module")
def examined(
    request: pytest.FixtureRequest, published: dict[str, Any], built_upon: None, stock: Path
) -> Iterator[dict[str, Future[dict[str, str]]]]:
    """All selected sabotages, some at a time: each waits for the engine more than it computes."""
    parameters = [
        item.callspec.params["sabotage"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and "examined" in item.fixturenames
    ]
    selected = [value for value in parameters if isinstance(value, Sabotage)]
    with ThreadPoolExecutor(3) as pool:
        yield {s.name: pool.submit(examine, published, s, stock) for s in selected}


@pytest.mark.parametrize("sabotage", SABOTAGES, ids=[s.name for s in SABOTAGES])
def test_a_spoilt_image_is_caught(
    examined: dict[str, Future[dict[str, str]]], sabotage: Sabotage
) -> None:
    caught = examined[sabotage.name].result()
    assert set(caught) == {f"test_{name}" for name in sabotage.caught_by}, caught
    assert all(len(message) > 10 for message in caught.values()), caught


def test_an_image_for_another_platform_is_refused(published: dict[str, Any]) -> None:
    with pytest.raises(PlatformError, match="not for linux/arm64"):
        verify.run(published["image"], published["plan"] | {"platform": "linux/arm64"}, print)


def with_provenance(published: dict[str, Any], change: Callable[[dict[str, Any]], None]) -> str:
    """The published image with its provenance changed; a reference in the registry."""
    import requests

    index = raw(published["image"])
    entry = index["manifests"][-1]
    manifest = raw(f"{REGISTRY}/{REPO}@{entry['digest']}")
    layer = next(x for x in manifest["layers"] if "slsa" in str(x["annotations"]))
    session = requests.Session()
    session.trust_env = False
    blob = session.get(f"http://{REGISTRY}/v2/{REPO}/blobs/{layer['digest']}").json()
    change(blob)
    layer |= put(blob, "blobs")
    entry |= put(manifest, "manifests", manifest["mediaType"])
    return f"{REGISTRY}/{REPO}@{put(index, 'manifests', index['mediaType'])['digest']}"


def without_provenance(published: dict[str, Any]) -> str:
    index = raw(published["image"])
    index["manifests"] = [m for m in index["manifests"] if m["platform"]["os"] != "unknown"]
    return f"{REGISTRY}/{REPO}@{put(index, 'manifests', index['mediaType'])['digest']}"


def another_plan(statement: dict[str, Any]) -> None:
    arguments = statement["predicate"]["invocation"]["parameters"]["args"]
    arguments["build-arg:PLAN_ID"] = "0" * 12


def set_time(name: str, value: str) -> Callable[[dict[str, Any]], None]:
    def change(statement: dict[str, Any]) -> None:
        statement["predicate"]["metadata"][name] = value

    return change


PROVENANCES = {
    "provenance of a builder whose clock is ahead": set_time(
        "buildFinishedOn", "2199-01-01T00:00:00Z"
    ),
    "provenance of a builder whose clock is behind": set_time(
        "buildStartedOn", "2001-01-01T00:00:00Z"
    ),
    "another plan's provenance": another_plan,
    "no provenance": None,
}


@pytest.mark.parametrize("name", PROVENANCES)
def test_spoilt_provenance_is_caught(published: dict[str, Any], name: str) -> None:
    change = PROVENANCES[name]
    image = with_provenance(published, change) if change else without_provenance(published)
    client = engine.connect()
    # The engine keeps the newest of a plan's copies only: another test may have built one since.
    for each in (image, published["image"]):
        engine.pull(client, each, published["plan"]["platform"], lambda _: None)
    try:
        caught = failed(image, published["plan"], "test_provenance")
        assert list(caught), "not caught"
        assert failed(published["image"], published["plan"], "test_provenance") == {}
    finally:
        shell("docker", "rmi", image, check=False)


def table() -> str:
    """docs/sabotage.md: each sabotage and the checks that catch it."""
    lines = [
        "# Sabotage",
        "",
        "GENERATED by `python -m tests.e2e.test_sabotage`. Each row spoils the real image with one",
        "thin layer (or compares it with another plan). The test demands that these checks of",
        "`tests/image` catch it and that no other quick check does.",
        "",
        "| sabotage | caught by |",
        "|---|---|",
    ]
    lines += [f"| {s.name} | {', '.join(s.caught_by)} |" for s in SABOTAGES]
    lines += [f"| {name} | provenance |" for name in PROVENANCES]
    lines += ["| an image for another platform | refused before any check, exit code 9 |", ""]
    return "\n".join(lines)


def write() -> None:
    """Writes the page and the rows that every report shows (fp4forge/checks/image_page.py)."""
    text = table()
    (ROOT / "docs/sabotage.md").write_text(text)
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    data = ROOT / "fp4forge/checks/sabotages.json"
    data.write_text(json.dumps(rows[1:], indent=1) + "\n")


if __name__ == "__main__":
    write()
