"""What is installed in the image: patched files, versions, size, imports."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

VERSIONS = ("vllm", "torch", "transformers", "flashinfer-python")


def test_patched_files(host: Any, plan: dict[str, Any], site: str) -> None:
    """patched files have their recorded SHA-256"""
    wanted = plan["patched_files"]
    if not wanted:
        record = json.loads(host.file("/opt/fp4forge/patches.json").content_string)
        assert record["patches"] == [], "the plan has no patches, the image's record has some"
        return
    done = host.run("sha256sum -- " + " ".join(f"{site}/{path}" for path in wanted))
    found = {line[66:].removeprefix(site + "/"): line[:64] for line in done.stdout.splitlines()}
    wrong = [path for path, digest in wanted.items() if found.get(path) != digest]
    assert not wrong, f"not the patched file of the record: {', '.join(wrong)}"


def test_patch_record(host: Any, plan: dict[str, Any]) -> None:
    """the image's own patch record is the plan's"""
    record = json.loads(host.file("/opt/fp4forge/patches.json").content_string)
    found = {path: hashes["after"] for path, hashes in record["files"].items()}
    assert found == plan["patched_files"], "/opt/fp4forge/patches.json differs from the plan"


def test_versions(host: Any, plan: dict[str, Any]) -> None:
    """versions of vLLM, torch, CUDA, transformers, FlashInfer are the release's"""
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


def test_imports(host: Any) -> None:
    """vllm, torch, flashinfer and transformers import without a GPU"""
    done = host.run("python3 -c 'import vllm, torch, flashinfer, transformers'")
    assert done.rc == 0, f"import failed: {done.stderr.strip().splitlines()[-1:]}"


def test_entrypoint_runs(host: Any, plan: dict[str, Any]) -> None:
    """the entrypoint prints vLLM's version"""
    done = host.run("vllm --version")
    assert plan["vllm_version"] in done.stdout, f"vllm --version: {done.stdout} {done.stderr}"


def test_unpacked_size(
    host: Any, plan: dict[str, Any], record_property: Callable[[str, object], None]
) -> None:
    """unpacked size is within the release's budget"""
    size = int(host.run("du -sxB1 / 2>/dev/null").stdout.split()[0])
    record_property("unpacked_bytes", size)
    budget = plan["unpacked_gb"]
    assert size <= budget * 1e9, f"{size / 1e9:.2f} GB unpacked, the budget is {budget} GB"


def test_left_out(host: Any, plan: dict[str, Any], site: str) -> None:
    """no static archives and nothing that the requested GPUs have no code for"""
    found = host.check_output(f"find {site} -name '*.a' -o -name '_vllm_fa3_C*' | head -3")
    assert not found, f"left in the image: {found}"


def test_bytecode(host: Any, site: str) -> None:
    """bytecode is compiled with checked hashes, patched files included"""
    files = [f"{site}/vllm/__init__.py", f"{site}/vllm/model_executor/models/gemma4.py"]
    code = (
        "import importlib.util as u, sys\n"
        f"for f in {files!r}:\n"
        "    b = open(u.cache_from_source(f), 'rb').read(16)\n"
        "    assert b[4] == 3, f\n"
        "    assert b[8:] == u.source_hash(open(f, 'rb').read()), f\n"
    )
    done = host.run("python3 -c %s", code)
    assert done.rc == 0, f"bytecode missing or stale: {done.stderr.strip().splitlines()[-1:]}"


def test_ledger(host: Any, plan: dict[str, Any], config: dict[str, Any]) -> None:
    """the ledger is the labelled one and has native or family NVFP4 for every requested GPU"""
    path = "/opt/fp4forge/ledger.json"
    digest = host.check_output(f"sha256sum {path}").split()[0]
    label = (config.get("Labels") or {}).get("io.fp4forge.ledger")
    assert label == f"sha256:{digest}", f"{path} is not the labelled one ({label})"
    gpus = json.loads(host.file(path).content_string)["gpus"]
    lost = [g for g in plan["gpus"] if not gpus[g]["ok"] and g not in plan["allow_missing"]]
    assert not lost, f"no native or family NVFP4 kernels for {', '.join(lost)}"


def test_ledger_is_of_these_files(host: Any, site: str) -> None:
    """every extension in the ledger has the SHA-256 that the ledger says"""
    files = json.loads(host.file("/opt/fp4forge/ledger.json").content_string)["files"]
    listed = {f"{site}/vllm/{file['path']}": file["sha256"] for file in files}
    done = host.run("sha256sum -- " + " ".join(listed))
    found = {line[66:]: line[:64] for line in done.stdout.splitlines()}
    wrong = [path for path, digest in listed.items() if found.get(path) != digest]
    assert not wrong, f"not the file of the ledger: {', '.join(wrong)}"
