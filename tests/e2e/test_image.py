"""What the published image does on a machine without a GPU."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fp4forge.checks import runner as verify
from tests.e2e.conftest import PASSWORD, REGISTRY, REPO, Completed, raw, shell

Inside = Callable[..., Completed]


def test_version_and_usage(inside: Inside) -> None:
    assert inside("--version").stdout.strip() == "0.20.2"
    assert inside("vllm", "--version").stdout.strip() == "0.20.2"
    assert "serve MODEL" in inside().stdout


def test_runs_as_a_user_that_cannot_write_the_packages(inside: Inside) -> None:
    assert inside("bash", "-c", "id -u").stdout.strip() == "2000"
    done = inside("bash", "-c", "touch /usr/local/lib/python3.13/dist-packages/x", check=False)
    assert done.returncode != 0
    inside("bash", "-c", "touch ~/.cache/x")


@pytest.mark.parametrize("capability", [100, 120, 121])
def test_triton_compiles_for_every_requested_gpu(inside: Inside, capability: int) -> None:
    code = f"""
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
open("/tmp/kernel.py", "w").write('''
import triton, triton.language as tl
@triton.jit
def add(x, y, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(y + i, tl.load(x + i, mask=i < n) + 1, mask=i < n)
''')
import sys; sys.path.insert(0, "/tmp")
from kernel import add
source = ASTSource(add, signature={{"x": "*fp32", "y": "*fp32", "n": "i32", "B": "constexpr"}},
                   constexprs={{"B": 128}})
binary = triton.compile(source, target=GPUTarget("cuda", {capability}, 32))
print("cubin", len(binary.asm["cubin"]))
"""
    assert "cubin" in inside("python3", "-c", code).stdout


@pytest.mark.parametrize("target", ["sm_100a", "sm_120f", "sm_121a"])
def test_nvcc_compiles_and_links_as_flashinfer_does(inside: Inside, target: str) -> None:
    arch = target.replace("sm_", "compute_")
    code = f"""cd /tmp && cat > k.cu <<'X'
#include <cuda_fp4.h>
#include <cuda.h>
#include <cuda_runtime.h>
#include <cub/cub.cuh>
__global__ void f(float* x, unsigned char* y) {{
  y[threadIdx.x] = __nv_cvt_float_to_fp4(x[threadIdx.x], __NV_E2M1, cudaRoundNearest);
}}
X
nvcc -gencode arch={arch},code={target} -Xcompiler -fPIC -c k.cu -o k.o
g++ -shared k.o -L$CUDA_HOME/lib64 -L$CUDA_HOME/lib64/stubs -lcudart -lcuda -o k.so
ninja --version
"""
    inside("bash", "-ec", code)


def test_flashinfer_is_usable_by_vllm(inside: Inside) -> None:
    code = "from vllm.utils.flashinfer import has_flashinfer; print(has_flashinfer())"
    assert inside("python3", "-c", code).stdout.strip().endswith("True")


def test_secrets_stay_out(inside: Inside, published: dict[str, Any]) -> None:
    index = raw(published["image"])
    texts = [json.dumps(index)]
    for entry in index["manifests"]:
        reference = f"{REGISTRY}/{REPO}@{entry['digest']}"
        manifest = raw(reference)
        texts.append(json.dumps(manifest))
        blobs = [manifest["config"]] + [
            layer for layer in manifest["layers"] if "json" in layer["mediaType"]
        ]
        for blob in blobs:
            texts.append(
                shell("curl", "-fsS", f"http://{REGISTRY}/v2/{REPO}/blobs/{blob['digest']}").stdout
            )
    assert any("slsa.dev/provenance" in text for text in texts)
    assert not any(PASSWORD in text for text in texts)
    places = "/etc /home /opt /root /run /tmp /var"
    found = inside("bash", "-c", f"grep -rls {PASSWORD} {places} 2>/dev/null", check=False)
    assert found.stdout == ""
    assert (
        "ca.pem" not in inside("bash", "-c", "find / -xdev -name ca.pem 2>/dev/null; true").stdout
    )


def test_the_hosts_own_ca_is_not_in_the_image(inside: Inside) -> None:
    bundle = Path(os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt")).read_text()
    ours = set(bundle.replace("\n", "").split("-----BEGIN CERTIFICATE-----"))
    theirs = (
        inside("cat", "/etc/ssl/certs/ca-certificates.crt", check=False).stdout
        or inside("bash", "-c", "cat /etc/ssl/certs/ca-certificates.crt").stdout
    )
    image = set(theirs.replace("\n", "").split("-----BEGIN CERTIFICATE-----"))
    local = {
        c.read_text().replace("\n", "").split("-----BEGIN CERTIFICATE-----")[-1]
        for c in Path("/usr/local/share/ca-certificates").rglob("*.crt")
    }
    assert image & ours, "the image has Debian's own bundle"
    assert not image & local


def test_layers_hold_nothing_but_their_part(inside: Inside) -> None:
    left = json.loads(inside("bash", "-c", "cat /opt/fp4forge/left-out/vllm.json").stdout)
    assert [entry["path"] for entry in left] == ["vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so"]
    stray = inside(
        "bash",
        "-c",
        "find / -xdev \\( -name __pycache__ -path '/fp4forge*' -o -path /fp4forge"
        " -o -path '/root/.cache/*' -o -name '*.rej' -o -name '*.orig' \\) 2>/dev/null; true",
    ).stdout
    assert stray == ""


PATCHED = "/usr/local/lib/python3.13/dist-packages/vllm/model_executor/models/gemma4.py"


def with_mount(published: dict[str, Any], tmp_path: Path, *arguments: str) -> Completed:
    stale = tmp_path / "gemma4_patched.py"
    stale.write_text("# an older patch, mounted as the card says\n")
    stale.chmod(0o644)
    tmp_path.chmod(0o755)
    line = ["docker", "run", "--rm", "--network=none", f"--volume={stale}:{PATCHED}:ro"]
    line += [*arguments[:-2], published["image"], *arguments[-2:]]
    return shell(*line, check=False)


def test_a_file_mounted_over_a_patched_one_is_refused(
    published: dict[str, Any], tmp_path: Path
) -> None:
    done = with_mount(published, tmp_path, "serve", "/models/x")
    assert done.returncode == 78, done.stdout + done.stderr
    assert f"Remove the mount that ends in :{PATCHED}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_modified_file_can_be_allowed_and_is_warned_of(
    published: dict[str, Any], tmp_path: Path
) -> None:
    done = with_mount(published, tmp_path, "--env=FP4FORGE_ALLOW_MODIFIED=1", "serve", "/models/x")
    assert done.returncode != 78
    assert "WARNING" in done.stderr
    assert PATCHED in done.stderr


SITE = "/usr/local/lib/python3.13/dist-packages"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--env=PYTHONPATH=/models"], "Remove --env PYTHONPATH"),
        (["--env=PYTHONHOME=/models"], "Remove --env PYTHONHOME"),
        (["--env=LD_PRELOAD=/models/x.so"], "Remove --env LD_PRELOAD"),
        ([f"--tmpfs={SITE}/vllm/entrypoints"], f"mount that ends in :{SITE}/vllm/entry"),
        ([f"--volume=/etc/hostname:{SITE}/sitecustomize.py"], f":{SITE}/sitecustomize"),
        ([f"--volume=/etc/hostname:{SITE}/vllm/envs.py"], f"that ends in :{SITE}/vllm/envs.py"),
    ],
)
def test_what_would_replace_the_images_code_is_refused(
    published: dict[str, Any], flags: list[str], said: str
) -> None:
    line = ["docker", "run", "--rm", "--network=none", *flags, published["image"], "serve", "/m"]
    done = shell(*line, check=False)
    assert done.returncode == 78, done.stdout + done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr


def test_a_file_that_python_runs_when_it_starts_is_refused(published: dict[str, Any]) -> None:
    line = ["docker", "run", "--rm", "--network=none", "--user=0", "--entrypoint=sh"]
    spoil = f"echo 'import os' > {SITE}/extra.pth && vllm serve /m"
    done = shell(*line, published["image"], "-c", spoil, check=False)
    assert done.returncode == 78, done.stdout + done.stderr
    assert f"{SITE}/extra.pth runs when Python starts" in done.stderr


def on_gpu(published: dict[str, Any], tmp_path: Path, row: str, *flags: str) -> Completed:
    """`serve` in a container whose nvidia-smi says what a machine with that GPU says."""
    smi, device = tmp_path / "nvidia-smi", tmp_path / "nvidiactl"
    smi.write_text(f"#!/bin/sh\necho '{row}'\n")
    smi.chmod(0o755)
    device.touch()
    tmp_path.chmod(0o755)
    mounts = (f"--volume={smi}:/usr/bin/nvidia-smi:ro", f"--volume={device}:/dev/nvidiactl:ro")
    line = ["docker", "run", "--rm", "--network=none", *(mounts if row else ()), *flags]
    return shell(*line, published["image"], "serve", "/models/x", check=False)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("", "no NVIDIA GPU is visible in this container: run it with --gpus all"),
        ("NVIDIA H200, 9.0", "NVIDIA H200 (compute capability 9.0) has no FP4 tensor cores"),
        ("NVIDIA L4, 8.9", "has no FP4 tensor cores"),
        ("NVIDIA Thor, 11.0", "this image has no FP4 kernels for NVIDIA Thor"),
    ],
)
def test_serving_without_a_fitting_gpu_is_refused_at_once(
    published: dict[str, Any], tmp_path: Path, row: str, said: str
) -> None:
    start = time.monotonic()
    done = on_gpu(published, tmp_path, row)
    assert done.returncode == 69, done.stderr
    assert said in done.stderr and len(done.stderr.splitlines()) == 1
    assert time.monotonic() - start < 30  # not a start of minutes; the machine may be busy


@pytest.mark.parametrize(
    ("row", "flags"),
    [
        ("NVIDIA GB10, 12.1", ()),
        ("NVIDIA L4, 8.9", ("--env=FP4FORGE_ALLOW_ANY_GPU=1",)),
        ("GRID vGPU, [N/A]", ()),  # nothing is known of it
    ],
)
def test_others_get_to_vllm(
    published: dict[str, Any], tmp_path: Path, row: str, flags: tuple[str, ...]
) -> None:
    done = on_gpu(published, tmp_path, row, *flags)
    assert done.returncode not in (0, 69), done.stderr
    assert "fp4forge: error" not in done.stderr
    assert "/opt/fp4forge/bin/vllm" not in done.stderr  # in a traceback


def test_info(inside: Inside) -> None:
    said = inside("fp4forge-info").stdout
    assert "vLLM 0.20.2" in said
    assert "gemma4-moe-prefix" in said
    assert "sm121: nvfp4_gemm family" in said
    assert json.loads(inside("fp4forge-info", "--json").stdout)["plan"]["release"] == "0.20.2"


def test_a_long_check_says_what_it_is_at(published: dict[str, Any]) -> None:
    said: list[str] = []
    only = "test_content and test_kernels"
    (check,) = verify.run(published["image"], published["plan"], said.append, only=only)
    assert check.outcome == "passed", check.message
    assert said[0] == "test_kernels"
    assert said[1].startswith("test_kernels: reading /usr/local/lib/python3")
