"""What is installed in the image: patched files, versions, size, imports."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fp4forge.core.paths import ROOT
from fp4forge.kernels.gpus import GPUS

# e_machine of an ELF header; EM_CUDA is device code.
MACHINES = {"linux/amd64": 62, "linux/arm64": 183}
GPU_MACHINE = 190
VERSIONS = ("vllm", "torch", "transformers", "flashinfer-python")


def test_patched_files(
    host: Any, plan: dict[str, Any], site: str, sha256: Callable[..., dict[str, str]]
) -> None:
    """patched files have their recorded SHA-256"""
    wanted = plan["patched_files"]
    if not wanted:
        record = json.loads(host.file("/opt/fp4forge/patches.json").content_string)
        assert record["patches"] == [], "the plan has no patches, the image's record has some"
        return
    found = sha256([f"{site}/{path}" for path in wanted])
    wrong = [path for path, digest in wanted.items() if found.get(f"{site}/{path}") != digest]
    assert not wrong, f"not the patched file of the record: {', '.join(wrong)}"


def test_patch_record(host: Any, plan: dict[str, Any]) -> None:
    """the image's patch record matches the plan"""
    record = json.loads(host.file("/opt/fp4forge/patches.json").content_string)
    found = {path: hashes["after"] for path, hashes in record["files"].items()}
    assert found == plan["patched_files"], "/opt/fp4forge/patches.json differs from the plan"


def test_versions(host: Any, plan: dict[str, Any]) -> None:
    """vLLM, torch, CUDA, transformers and FlashInfer have the release's versions"""
    code = (
        "import importlib.metadata as m, json;"
        f"print(json.dumps({{n: m.version(n) for n in {VERSIONS}}}))"
    )
    found = json.loads(host.check_output("python3 -c %s", code))
    wanted = {
        "vllm": plan["vllm_version"],
        "torch": plan["torch"],
        "transformers": plan["transformers"],
        "flashinfer-python": plan["flashinfer"],
    }
    wrong = [f"{n} {found[n]}, wanted {wanted[n]}" for n in VERSIONS if found[n] != wanted[n]]
    assert not wrong, "; ".join(wrong)
    nvcc = host.check_output("nvcc --version")
    assert f"release {plan['cuda']}," in nvcc, f"nvcc is not CUDA {plan['cuda']}: {nvcc[-80:]}"


def test_imports(host: Any, plan: dict[str, Any]) -> None:
    """vllm, torch, flashinfer and transformers import; what --with added loads, and answers"""
    done = host.run("python3 -c 'import vllm, torch, flashinfer, transformers'")
    assert done.rc == 0, done.stderr.strip().splitlines()[-1]
    for library in (name for names in plan["extras"].values() for name in names):
        done = host.run("python3 -c 'import ctypes, sys; ctypes.CDLL(sys.argv[1])' %s", library)
        assert done.rc == 0, done.stderr.strip().splitlines()[-1]
    for program in plan["programs"]:
        done = host.run("%s --version", program)
        version = plan["packages"][program]
        assert version in done.stdout, f"{program} --version: {done.stdout} {done.stderr}"


def test_extensions(host: Any, proofs: str, site: str) -> None:
    """vLLM's extensions load and report FP4 for exactly the GPU families they contain"""
    from fp4forge.kernels.gpus import RUNS

    done = host.run(f"python3 {proofs}/extensions.py {site}")
    assert done.rc == 0, f"an extension does not load: {done.stderr.strip().splitlines()[-1:]}"
    said = {int(capability): fp4 for capability, fp4 in json.loads(done.stdout).items()}
    gpus = json.loads(host.file("/opt/fp4forge/ledger.json").content_string)["gpus"]
    there = [GPUS[g].major for g, have in gpus.items() if have["nvfp4_gemm"] in RUNS]
    wrong = {c: fp4 for c, fp4 in said.items() if fp4 != (c // 10 in there)}
    assert not wrong, f"cutlass_scaled_mm_supports_fp4 says {wrong}, which the ledger does not"


def test_entrypoint_runs(host: Any, plan: dict[str, Any]) -> None:
    """the entrypoint prints vLLM's version"""
    done = host.run("vllm --version")
    assert plan["vllm_version"] in done.stdout, f"vllm --version: {done.stdout} {done.stderr}"


def test_unpacked_size(
    host: Any,
    plan: dict[str, Any],
    history: list[tuple[int, str]],
    record_property: Callable[[str, object], None],
) -> None:
    """the unpacked size is within the release's budget"""
    # Proofs that run beside it write there.
    size = int(host.run("du -sxB1 --exclude=/tmp --exclude=/home / 2>/dev/null").stdout.split()[0])
    record_property("unpacked_bytes", size)
    budget = plan["unpacked_gb"]
    layers = sorted((step for step in history if step[0]), reverse=True)
    record_property("layers", layers)
    table = "".join(f"\n  {size / 1e9:6.2f} GB  {command[:90]}" for size, command in layers)
    assert size <= budget * 1e9, f"{size / 1e9:.2f} GB unpacked, the budget is {budget} GB{table}"


def test_left_out(host: Any, plan: dict[str, Any], site: str) -> None:
    """no static archives, and no files without code for the requested GPUs"""
    found = host.check_output(f"find {site} -name '*.a' -o -name '_vllm_fa3_C*' | head -3")
    assert not found, f"left in the image: {found}"


def test_bytecode(in_image: Callable[..., Any], site: str) -> None:
    """bytecode is compiled with checked hashes, patched files included"""
    files = [f"{site}/vllm/__init__.py", f"{site}/vllm/model_executor/models/gemma4.py"]
    wrong = in_image("bytecode", files)
    assert not wrong, f"bytecode missing or stale: {', '.join(wrong)}"


def test_startup(in_image: Callable[..., Any]) -> None:
    """nothing runs when Python starts but what the image was built with"""
    wrong = in_image("startup")
    assert not wrong, f"not in /opt/fp4forge/startup: {', '.join(wrong)}"


def test_ledger(host: Any, plan: dict[str, Any], config: dict[str, Any]) -> None:
    """the ledger matches its label and has NVFP4 for every requested GPU"""
    path = "/opt/fp4forge/ledger.json"
    digest = host.check_output(f"sha256sum {path}").split()[0]
    label = (config.get("Labels") or {}).get("io.fp4forge.ledger")
    assert label == f"sha256:{digest}", f"{path} is not the labelled one ({label})"
    gpus = json.loads(host.file(path).content_string)["gpus"]
    lost = [g for g in plan["gpus"] if not gpus[g]["ok"] and g not in plan["allow_missing"]]
    assert not lost, f"no native or family NVFP4 kernels for {', '.join(lost)}"


def test_ledger_is_of_these_files(
    host: Any, site: str, sha256: Callable[..., dict[str, str]]
) -> None:
    """every extension has the SHA-256 in the ledger"""
    files = json.loads(host.file("/opt/fp4forge/ledger.json").content_string)["files"]
    listed = {f"{site}/{file['path']}": file["sha256"] for file in files}
    found = sha256(list(listed))
    wrong = [path for path, digest in listed.items() if found.get(path) != digest]
    assert not wrong, f"not the file of the ledger: {', '.join(wrong[:5])}"


def test_kernels(
    request: pytest.FixtureRequest, plan: dict[str, Any], progress: Callable[[str], None]
) -> None:
    """the binaries contain FP4 kernels for every requested GPU"""
    from fp4forge.checks import ledgers
    from fp4forge.kernels import ledger

    found = ledgers.read(request.config.getoption("--container"), progress)
    wanted = tuple(gpu for gpu in plan["gpus"] if gpu not in plan["allow_missing"])
    lost = [f"{gpu} lacks {what}" for gpu, what in ledger.lost(found, wanted).items()]
    lost += ledger.differences(plan["predicted"], found.targets())
    assert not lost, "; ".join(lost)


def test_aot(
    host: Any,
    plan: dict[str, Any],
    put_files: Callable[[dict[str, Path]], None],
    in_image: Callable[..., Any],
) -> None:
    """FlashInfer finds its modules for every requested GPU and compiles nothing"""
    from fp4forge.plan import aot

    choice = aot.AotModules(**plan["aot"])
    if choice.name == "none":
        pytest.skip("the plan has no modules ahead of time: FlashInfer compiles at first use")
    # The build's own list of modules; those that this model looks up are loaded too.
    folder = "/tmp/fp4forge-aot"
    build = [f"fp4forge/image/stages/{name}.py" for name in ("aot", "install", "jobs")]
    put_files({f"{folder}/{name}": ROOT / name for name in build})
    # The driver's library is the GPU machine's; its stub here lets the modules load.
    stub = (
        "mkdir -p /tmp/aot && ln -sf /usr/local/cuda/lib64/stubs/libcuda.so /tmp/aot/libcuda.so.1"
    )
    assert host.run(stub).rc == 0
    missing = in_image(
        "modules", folder, choice.archs, choice.instructions(), len(choice.generators)
    )
    named = ", ".join(missing[:5])
    assert not missing, f"FlashInfer would compile {len(missing)} modules: {named}"


def test_files(request: pytest.FixtureRequest, plan: dict[str, Any]) -> None:
    """every file belongs to a package, or to a rule that says why it is there"""
    from fp4forge.inputs.sbom import table
    from fp4forge.oci import engine
    from fp4forge.sbom import contents

    container = request.config.getoption("--container")
    found = contents.read_running(engine.connect(), container, plan["python"], table())
    # Other checks that run beside this one write there.
    written = ("/tmp/", "/home/", "/var/tmp/", "/root/.")
    strange = [name for name in found.unowned if not name.startswith(written)]
    assert not strange, f"belong to nothing: {', '.join(strange[:5])}"
    assert not found.empty, f"packages of which no file is there: {', '.join(found.empty[:5])}"


def test_machine(over_files: Callable[..., Any], plan: dict[str, Any]) -> None:
    """every ELF file is for the image's processor or a GPU"""
    seen, foreign = over_files("elf", [MACHINES[plan["platform"]], GPU_MACHINE])
    assert seen > 500, f"only {seen} ELF files were found"
    assert not foreign, f"for another processor: {', '.join(foreign[:5])}"


def readelf(host: Any, options: str, files: str) -> dict[str, str]:
    """readelf's output for each file that a ``find`` names; one process for all of them."""
    said = host.run(f"{files} | sort -u | xargs readelf {options} /dev/null 2>/dev/null").stdout
    parts = [part.partition("\n") for part in said.split("\nFile: ")[1:]]
    return {name.strip(): text for name, _, text in parts}


def test_driver(host: Any, site: str) -> None:
    """every file that calls the driver links its library"""
    found = readelf(host, "-dW --dyn-syms", f"find {site}/vllm {site}/flashinfer/data -name '*.so'")
    calls = {f: re.findall(r" UND (cu[A-Z]\w*)", text) for f, text in found.items()}
    named = {f for f, text in found.items() if re.search(r"NEEDED.*libcuda\.so\.1", text)}
    assert named, "no extension calls the driver"
    lost = [f"{f} ({called[0]})" for f, called in calls.items() if called and f not in named]
    assert not lost, f"libcuda.so.1 is not named by {', '.join(lost[:3])}"


def test_times(host: Any, plan: dict[str, Any]) -> None:
    """every file has the release's time stamp, so that layers are reproducible"""
    newer = host.run(
        f"find / -xdev -newermt @{plan['epoch']} -not -path '/proc*' -not -path '/sys*'"
        " -not -path '/dev*' -not -path '/tmp*' -not -path '/etc/*' -not -path /etc"
        " -not -path '/run*' -not -path '/home*' -not -path /.dockerenv -not -path /"
        " 2>/dev/null | head -3"
    ).stdout.split()
    assert not newer, f"newer than the release: {', '.join(newer)}"


def test_installed_files(over_files: Callable[..., Any], plan: dict[str, Any], site: str) -> None:
    """every installed file matches its wheel's RECORD, except patched files"""
    count, wrong = over_files("installed", site, list(plan["patched_files"]))
    assert not wrong, f"not as their wheels installed them: {', '.join(wrong)}"
    assert count > 10_000, f"only {count} files are listed in any RECORD"


def test_requirements(in_image: Callable[..., Any], plan: dict[str, Any]) -> None:
    """every package has its requirements, except the release's overrides"""
    allowed = set(plan["packages_overridden"])
    found = in_image("requirements")
    wrong = [f"{who} needs {what}: {why}" for who, what, why in found if what not in allowed]
    assert not wrong, "; ".join(wrong[:5])


# Set by distributions; nothing of ours needs one.
SETUID = {
    "su",
    "mount",
    "umount",
    "passwd",
    "chsh",
    "chfn",
    "gpasswd",
    "newgrp",
    "chage",
    "expiry",
    "unix_chkpwd",
    "sudo",
    "wall",
    "write.ul",
}


def test_setuid(host: Any) -> None:
    """no setuid or setgid files except the distribution's"""
    found = host.run("find / -xdev -type f -perm /6000 2>/dev/null").stdout.split()
    strange = [path for path in found if path.rsplit("/", 1)[1] not in SETUID]
    assert not strange, f"setuid or setgid: {', '.join(strange)}"


def test_cuda_once(host: Any, site: str, sha256: Callable[..., dict[str, str]]) -> None:
    """no CUDA library exists twice, by soname or by content"""
    files = (
        f"find {site} /usr/lib /usr/local/lib -xdev -type f \\( -name 'libcu*.so*'"
        " -o -name 'libnv*.so*' -o -name 'libnccl*.so*' \\) | sort -u"
    )
    # torchvision's wheel carries a CUDA runtime of its own under another name (0.7 MB).
    found = [f for f in host.run(files).stdout.splitlines() if "/torchvision.libs/" not in f]
    assert found, "no CUDA library was found"
    dynamic, contents = readelf(host, "-d", files), sha256(found)
    seen: dict[str, str] = {}
    twice = set()
    for path in found:
        # Only ELF files have a soname.
        for key in (*re.findall(r"SONAME.*\[(.*)\]", dynamic.get(path, "")), contents[path]):
            if seen.setdefault(key, path) != path:
                twice.add(f"{path} and {seen[key]}")
    assert not twice, f"twice: {'; '.join(sorted(twice)[:3])}"


def test_runtime_compilers(host: Any) -> None:
    """run-time compilation has ptxas, nvcc, g++ and ninja"""
    for command in ("/usr/local/cuda/bin/ptxas", "/usr/local/cuda/bin/nvcc", "g++", "ninja"):
        done = host.run(f"{command} --version")
        assert done.rc == 0, f"{command} is missing or does not run"


def test_leftovers(host: Any) -> None:
    """no repositories, caches, package lists or credentials remain"""
    names = " -o ".join(
        f"-name {name}"
        for name in (".git", ".netrc", ".pypirc", ".aws", "id_rsa", "id_ed25519", ".docker", ".ssh")
    )
    found = host.run(
        f"find / -xdev \\( {names} \\) -not -path '/proc/*' 2>/dev/null"
    ).stdout.split()
    for folder in ("/root/.cache", "/var/lib/apt/lists", "/var/cache/apt/archives"):
        # apt leaves its lock, which holds nothing.
        found += host.run(
            f"find {folder} -type f -not \\( -name lock -size 0 \\) 2>/dev/null | head -2"
        ).stdout.split()
    assert not found, f"left in the image: {', '.join(found[:4])}"
