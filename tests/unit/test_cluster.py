"""One model over several machines: how it is divided, what each machine gets, what is refused."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import kubernetes_validate
import msgspec
import pytest
import yaml
from msgspec import Struct

from fp4forge.cli import cluster_files
from fp4forge.core.errors import FitError, RegistryError, UsageError
from fp4forge.kernels.gpus import PRODUCTS
from fp4forge.launch.cluster import division, doctor, preflight
from fp4forge.launch.cluster.hosts import PROBE, ClusterHost, HostInterface, HostRoute, ProbedHost
from fp4forge.oci import registry
from fp4forge.serve import link, manifest, placing, ray, settings
from fp4forge.serve import model_sizes as models
from fp4forge.serve.split import GpuSplit
from tests.checkpoints import TINY, gemma4, write
from tests.unit.test_cli import run

SPARK = PRODUCTS["gb10"]
DIGEST = "sha256:" + "a" * 64
IMAGE = f"127.0.0.1:5000/fp4forge/vllm@{DIGEST}"
VERSIONS = ("1.33", "1.35", "1.37")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "model", gemma4(TINY), TINY)


def large(folder: Path, gigabytes: int = 134) -> models.ModelSizes:
    """The tiny model with the weights of a large one."""
    found = models.read(folder, "fp8_e4m3")
    return replace(found, weights=gigabytes * 10**9, experts=0, num_experts=0, num_layers=60)


WANTED = placing.WantedCapacity(context=8192, sequences=1, utilization=0.85)


def test_a_model_too_large_for_one_machine_is_divided(folder: Path) -> None:
    found = division.options(large(folder), SPARK, 2, WANTED, link.ROCE)
    assert {one.split for one in found} == {GpuSplit(2, 1), GpuSplit(1, 2)}
    best = division.choose(found, SPARK, 2)
    assert best.fits and best.split == GpuSplit(2, 1)  # both memories work on each token
    assert best.rate > next(one.rate for one in found if one.split == GpuSplit(1, 2))


def test_a_slow_link_favours_a_pipeline(folder: Path) -> None:
    slow = link.LinkSpeed(bandwidth=1e7, latency=5e-3)
    best = division.choose(division.options(large(folder), SPARK, 2, WANTED, slow), SPARK, 2)
    assert best.split == GpuSplit(1, 2)


def test_what_no_number_of_these_machines_holds_is_refused(folder: Path) -> None:
    found = division.options(large(folder, 900), SPARK, 2, WANTED, link.ROCE)
    with pytest.raises(FitError, match="do not hold this model"):
        division.choose(found, SPARK, 2)
    with pytest.raises(FitError, match="cannot be divided over 3"):
        division.choose(division.options(large(folder), SPARK, 3, WANTED, link.ROCE), SPARK, 3)


def test_bytes_on_the_link(folder: Path) -> None:
    """Two reductions of the hidden state in a layer; a ring of two sends each once."""
    model = large(folder)
    once = model.hidden * 2
    assert link.bytes_per_token(model, GpuSplit(1, 1)) == link.exchanges(model, GpuSplit(1, 1)) == 0
    assert link.bytes_per_token(model, GpuSplit(2, 1)) == 2 * 60 * once
    assert link.exchanges(model, GpuSplit(2, 1)) == 120
    assert link.bytes_per_token(model, GpuSplit(1, 2)) == 2 * once  # and the residual
    assert link.exchanges(model, GpuSplit(1, 2)) == 1


def found(**more: Any) -> ProbedHost:
    values: dict[str, Any] = {
        "name": "spark1",
        "time": 0.0,
        "docker": "28.0",
        "compose": "2.35",
        "gpus": "name, compute_cap, driver_version, memory.total [MiB]\n"
        "NVIDIA GB10, 12.1, 580.95.05, [N/A]",
        "routes": [HostRoute(peer="b", to="10.0.0.2", interface="enp1s0f0np0", address="10.0.0.1")],
        "interface": "enp1s0f0np0",
        "address": "10.0.0.1",
        "link": HostInterface(mtu=9000, speed=200_000, state="up"),
        "rdma": {"rocep1s0f0": ["enp1s0f0np0"], "roceP2p1s0f0": ["enP2p1s0f0np0"]},
        "image": [DIGEST],
        "model": {"config.json": (10, "aa"), "model.safetensors": (100, "bb")},
        "memory": (128 << 30, 120 << 30),
        "memlock": -1,
        "taken": [],
    }
    return ProbedHost(**values | more)


HOSTS = [ClusterHost("spark1"), ClusterHost("spark2")]
CHECKED = preflight.ClusterNeeds(
    model="/models/m", image="x", digest=DIGEST, ports=(29501, 8000), weights=60 << 30
)


def failing(second: ProbedHost) -> set[str]:
    items = preflight.judge(HOSTS, [found(), second], CHECKED)
    assert all(item.fix for item in items if not item.ok)
    return {item.name for item in items if not item.ok and "spark2" in item.host}


def test_two_equal_machines_pass() -> None:
    assert failing(found(name="spark2", address="10.0.0.2")) == set()


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ({"docker": ""}, "engine"),
        ({"compose": ""}, "Compose"),
        ({"gpus": ""}, "GPU"),
        ({"gpus": found().gpus.replace("580.95.05", "570.1")}, "GPU and driver alike"),
        ({"image": ["sha256:" + "b" * 64]}, "image"),
        ({"model": {}}, "model"),
        ({"model": {"config.json": (10, "cc"), "model.safetensors": (100, "bb")}},
         "model's files alike"),
        ({"routes": [HostRoute(error="no route to a")]}, "route"),
        ({"address": ""}, "interface"),
        ({"link": HostInterface(mtu=1500, speed=200_000, state="up")}, "MTU of the link alike"),
        ({"rdma": {}}, "RDMA devices alike"),
        ({"memory": (128 << 30, 20 << 30)}, "free memory"),
        ({"taken": [8000]}, "ports"),
        ({"time": 3600.0}, "clock"),
    ],
)  # fmt: skip
def test_each_difference_is_found(more: dict[str, Any], name: str) -> None:
    assert name in failing(found(**more))


def test_ranks_use_rdma_only_if_all_have_it(folder: Path) -> None:
    first, second = found(), found(address="10.0.0.2")
    rank = division.ranks([first, second])[1]
    names = {s.name: s.value for s in division.environment(rank)}
    assert names["VLLM_HOST_IP"] == "10.0.0.2"
    assert names["NCCL_IB_HCA"] == "=rocep1s0f0,roceP2p1s0f0"  # both twins
    assert names["NCCL_SOCKET_IFNAME"] == names["GLOO_SOCKET_IFNAME"] == "enp1s0f0np0"
    made = division.server(settings.server(folder, IMAGE, settings.ServerWishes(version="0")), rank)
    service = yaml.safe_load(manifest.render(made, "compose"))["services"]["vllm"]
    assert service["ulimits"]["memlock"] == -1
    assert service["devices"] == ["/dev/infiniband:/dev/infiniband"]
    lone = division.ranks([first, found(rdma={})])
    assert {s.name for s in division.environment(lone[0])} & {"NCCL_IB_DISABLE"}


def files(folder: Path, *more: str) -> dict[str, Any]:
    line = ("serve", "cluster", "--hosts", "spark1,me@spark2", "--model", str(folder))
    done = run(*line, "--image", IMAGE, "--workload", "balanced", "--dry-run", "--json", *more)
    assert done.returncode == 0, done.stderr
    return {host: yaml.safe_load(text) for host, text in json.loads(done.stdout)["files"].items()}


def test_an_nccl_that_hangs_between_these_machines_is_refused(folder: Path) -> None:
    line = ("serve", "cluster", "--hosts", "spark1,spark2", "--model", str(folder), "--dry-run")
    done = run(*line, "--workload", "balanced", "--release", "0.20.2", "--from", "wheel")
    assert done.returncode == 2, done.stderr
    assert "release 0.20.2 has NCCL 2.28.9" in done.stderr and "--release" in done.stderr
    other = run(*line, "--image", IMAGE, "--release", "0.20.2", "--from", "wheel")
    assert other.returncode == 2 and "NCCL 2.28.9" in other.stderr
    newer = run(*line, "--workload", "balanced", "--release", "0.33.0", "--from", "wheel")
    assert "NCCL" not in newer.stderr


def test_each_machine_gets_its_file(folder: Path) -> None:
    made = files(folder)
    first, second = (made[name]["services"]["vllm"] for name in ("spark1", "spark2"))
    assert first["network_mode"] == second["network_mode"] == "host"
    assert "ports" not in first and "ulimits" not in first  # without RDMA nothing is locked
    assert "--headless" in second["command"] and "--headless" not in first["command"]
    for number, service in enumerate((first, second)):
        words = service["command"]
        assert words[words.index("--node-rank") + 1] == str(number)
        assert words[words.index("--nnodes") + 1] == "2"
        assert words[words.index("--master-addr") + 1] == "spark1"
    assert second["healthcheck"] == {"disable": True}
    assert first["image"] == second["image"] and first["pull_policy"] == "never"


@pytest.mark.parametrize(
    "name", ["rdma", "a..b/x", "-a/x", "a/x/y", "a/-x", "A/x", f"a/{'x' * 64}"]
)
def test_a_device_resource_has_a_name_that_kubernetes_takes(folder: Path, name: str) -> None:
    line = ("serve", "cluster", "--format", "lws", "--machines", "2", "--model", str(folder))
    done = run(*line, "--image", IMAGE, f"--rdma-resource={name}")
    assert done.returncode == 2 and "not the name of a resource" in done.stderr


def test_a_leader_worker_set(folder: Path) -> None:
    line = ("serve", "cluster", "--format", "lws", "--machines", "2", "--model", str(folder))
    done = run(*line, "--image", IMAGE, "--workload", "balanced", "--rdma-resource", "rdma/hca")
    assert done.returncode == 0, done.stderr
    assert "--shutdown-timeout" not in done.stdout  # without the others it finishes no request
    group, budget, service = yaml.safe_load_all(done.stdout)
    template = group["spec"]["leaderWorkerTemplate"]
    assert template["size"] == 2
    for version in VERSIONS:
        for role in ("leader", "worker"):
            pod = template[f"{role}Template"]
            whole = {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "p"},
                "spec": pod["spec"],
            }
            kubernetes_validate.validate(whole, version, strict=True)
        kubernetes_validate.validate(budget, version, strict=True)
        kubernetes_validate.validate(service, version, strict=True)
    leader, worker = (
        template[f"{role}Template"]["spec"]["containers"][0] for role in ("leader", "worker")
    )
    assert "--headless" in worker["args"] and "--headless" not in leader["args"]
    assert "readinessProbe" in leader and "readinessProbe" not in worker
    assert leader["resources"]["limits"]["rdma/hca"] == 1
    assert service["spec"]["selector"]["role"] == "leader"


# What KubeRay's types require and know of the fields that the manifest has
# (ray-project/kuberay, ray-operator/apis/ray/v1/raycluster_types.go); pods have their own schema.
class _HeadGroup(Struct, rename="camel", forbid_unknown_fields=True):
    ray_start_params: dict[str, str]
    template: dict[str, Any]
    head_service: dict[str, Any]


class _WorkerGroup(Struct, rename="camel", forbid_unknown_fields=True):
    group_name: str
    replicas: int
    min_replicas: int
    max_replicas: int
    ray_start_params: dict[str, str]
    template: dict[str, Any]


class _RayClusterSpec(Struct, rename="camel", forbid_unknown_fields=True):
    head_group_spec: _HeadGroup
    worker_group_specs: list[_WorkerGroup]


class _RayCluster(Struct, rename={"api_version": "apiVersion"}, forbid_unknown_fields=True):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: dict[str, Any]
    spec: _RayClusterSpec


def ray_cluster(folder: Path, *more: str) -> list[Any]:
    line = ("serve", "cluster", "--format", "kuberay", "--machines", "2", "--model", str(folder))
    done = run(*line, "--image", IMAGE, "--workload", "balanced", *more)
    assert done.returncode == 0, done.stderr
    assert "nothing says whether the image has Ray" in done.stderr
    return list(yaml.safe_load_all(done.stdout))


def test_a_ray_cluster(folder: Path) -> None:
    found, budget, service = ray_cluster(folder, "--rdma-resource", "rdma/hca")
    msgspec.convert(found, _RayCluster)
    head, (workers,) = found["spec"]["headGroupSpec"], found["spec"]["workerGroupSpecs"]
    meeting = {"apiVersion": "v1", "kind": "Service", **head["headService"]}
    for version in VERSIONS:
        for group in (head, workers):
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}
            pod["spec"] = group["template"]["spec"]
            kubernetes_validate.validate(pod, version, strict=True)
        for entry in (budget, service, meeting):
            kubernetes_validate.validate(entry, version, strict=True)
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"] == 1
    assert budget["spec"]["minAvailable"] == 2  # the server needs every pod
    assert found["metadata"]["annotations"] == {"ray.io/overwrite-container-cmd": "true"}
    first, other = (g["template"]["spec"]["containers"][0] for g in (head, workers))
    words = first["args"]
    assert words[:2] == ["serve", "/models/model"] and "args" not in other
    assert words[words.index("--distributed-executor-backend") + 1] == "ray"
    assert not {"--nnodes", "--headless", "--master-addr"} & set(words)
    assert "ray start --head" in first["command"][2] and "ray start --block" in other["command"][2]
    # The head's address is known before it is ready; it is ready only with its workers.
    variables = {entry["name"]: entry.get("value") for entry in other["env"]}
    assert variables["RAY_HEAD"] == head["headService"]["metadata"]["name"]
    # Ray demands a token of whoever reaches its ports; it is in no manifest.
    name = found["metadata"]["name"] + "-ray"
    for container in (first, other):
        by_name = {entry["name"]: entry for entry in container["env"]}
        assert by_name["RAY_AUTH_MODE"]["value"] == "token"
        secret = by_name["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
        assert secret == {"name": name, "key": "auth_token"}
    assert head["headService"]["spec"]["publishNotReadyAddresses"] is True
    for container in (first, other):  # else KubeRay adds probes that call wget
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)
        assert container["resources"]["limits"]["rdma/hca"] == 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda spec: spec.pop("headGroupSpec"),
        lambda spec: spec["headGroupSpec"].pop("rayStartParams"),
        lambda spec: spec["headGroupSpec"].update(replicas=1),
        lambda spec: spec["workerGroupSpecs"][0].pop("groupName"),
        lambda spec: spec["workerGroupSpecs"][0].update(replicas="1"),
    ],
)
def test_the_schema_of_a_ray_cluster_refuses(folder: Path, spoil: Any) -> None:
    found = ray_cluster(folder)[0]
    spoil(found["spec"])
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(found, _RayCluster)


def test_each_machine_gets_its_file_on_ray(folder: Path) -> None:
    made = files(folder, "--backend", "ray")
    first, second = (made[name]["services"]["vllm"] for name in ("spark1", "spark2"))
    # Compose makes one dollar sign of two; the script is the same on every machine of a role.
    assert first["entrypoint"][2].replace("$$", "$") == ray.SCRIPTS[ray.HEAD]
    assert second["entrypoint"][2].replace("$$", "$") == ray.SCRIPTS[ray.WORKER]
    words = first["command"]
    assert words[words.index("--distributed-executor-backend") + 1] == "ray"
    assert "--nnodes" not in words and second["command"] == []
    assert words[words.index("--port") + 1] == "8000"
    for service, address in ((first, "spark1"), (second, "spark2")):
        assert service["environment"]["VLLM_HOST_IP"] == address
        assert service["environment"]["RAY_USAGE_STATS_ENABLED"] == "0"
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert service["environment"]["RAY_AUTH_TOKEN"] == "TOKEN"  # a new one for each start
        assert service["network_mode"] == "host"
    assert second["environment"]["RAY_HEAD"] == "spark1"
    assert second["healthcheck"] == {"disable": True} != first["healthcheck"]


@pytest.mark.parametrize("role", [ray.HEAD, ray.WORKER])
def test_the_scripts_pass_every_argument_as_it_is(role: str, tmp_path: Path) -> None:
    """Stand-ins for ray and vllm write down their words."""
    for name in ("ray", "vllm"):
        tool = tmp_path / name
        tool.write_text(f'#!/bin/sh\nprintf "%s\\0" {name} "$@" >> "$OUT"\n')
        tool.chmod(0o755)
    out = tmp_path / "out"
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "OUT": str(out), "VLLM_HOST_IP": "10.0.0.1"}
    line = ["bash", "-c", ray.SCRIPTS[role], "vllm", "serve", "/m/a b", "$(id)"]
    subprocess.run(line, check=True, env=env | {"RAY_HEAD": "10.0.0.2"}, timeout=30)
    words = out.read_text().split("\0")
    assert "--node-ip-address=10.0.0.1" in words
    if role == ray.HEAD:
        assert words[-5:] == ["vllm", "serve", "/m/a b", "$(id)", ""]
    else:
        assert words[:4] == ["ray", "health-check", "--address", "10.0.0.2:6379"]
        assert "--address=10.0.0.2:6379" in words and "vllm" not in words


def test_ray_needs_an_executor_without_cupy() -> None:
    with pytest.raises(UsageError, match="need CuPy"):
        ray.check("0.19.1")
    ray.check("0.20.2")
    ray.check("0.33.0")


@pytest.mark.parametrize(("version", "named"), [("0.20.2", True), ("0.33.0", False)])
def test_the_executor_is_named_to_a_vllm_that_has_two(
    folder: Path, version: str, named: bool
) -> None:
    made = settings.server(folder, IMAGE, settings.ServerWishes(version=version))
    names = {s.name for s in ray.settings(made, ray.HEAD).environment}
    assert ("VLLM_USE_RAY_V2_EXECUTOR_BACKEND" in names) is named


@pytest.mark.parametrize(
    ("labels", "has"),
    [
        ([{"io.fp4forge.extras": "ray,rdma"}], True),
        ([{"io.fp4forge.extras": "rdma"}], False),
        ([{"io.fp4forge.extras": "rdma,raytracing"}], False),
        ([{"io.fp4forge.extras": "ray"}, {"io.fp4forge.extras": ""}], False),
        ([{}], None),  # of another maker
        ([], None),
        (RegistryError("silent"), None),
    ],
)
def test_an_image_without_ray_is_refused(
    labels: Any, has: bool | None, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def answer(*_: str) -> Any:
        if isinstance(labels, Exception):
            raise labels
        return labels

    monkeypatch.setattr(registry, "image_labels", answer)
    assert cluster_files.has_extra(IMAGE, DIGEST, "ray") is has
    if has is False:
        with pytest.raises(UsageError, match="has no Ray"):
            cluster_files.check_ray(IMAGE, DIGEST, "0.33.0")
    else:
        cluster_files.check_ray(IMAGE, DIGEST, "0.33.0")
        assert ("nothing says" in capsys.readouterr().err) is (has is None)


def test_without_ray_no_machine_gets_a_token(folder: Path) -> None:
    made = files(folder)
    assert not [text for text in made.values() if "RAY_" in json.dumps(text)]


def test_data_parallel_ranks_are_started_as_vllm_says(folder: Path) -> None:
    made = files(folder, "--data-parallel", "2", "--expert-parallel")
    first, second = (made[name]["services"]["vllm"] for name in ("spark1", "spark2"))
    for service in (first, second):
        words = service["command"]
        assert words[words.index("--data-parallel-size") + 1] == "2"
        assert words[words.index("--data-parallel-size-local") + 1] == "1"
        assert words[words.index("--data-parallel-address") + 1] == "spark1"
        assert words[words.index("--data-parallel-rpc-port") + 1] == str(division.MASTER_PORT)
        assert "--enable-expert-parallel" in words and "--nnodes" not in words
    # A machine that answers requests and names a rank would balance only its own ranks.
    assert "--data-parallel-start-rank" not in first["command"]
    words = second["command"]
    assert words[words.index("--data-parallel-start-rank") + 1] == "1" and "--headless" in words


def test_the_experts_of_data_parallel_ranks_are_on_the_link(folder: Path) -> None:
    model = large(folder)
    split = GpuSplit(experts=True, data=2)
    assert link.bytes_per_token(model, split) == 2 * 60 * model.hidden * 2
    assert link.exchanges(model, split) == 120


def test_rays_ports_are_free_before_a_start() -> None:
    assert division.ports("mp", 8000) == (division.MASTER_PORT, 8000)
    assert set(division.ports("ray", 8000)) == {*ray.PORTS, 8000}


@pytest.mark.parametrize(
    "command", [("cluster", "--format", "lws", "--machines", "2"), ("compose",)]
)
@pytest.mark.parametrize("option", ["--feature", "--recipe-variant"])
def test_what_only_a_recipe_has(folder: Path, command: tuple[str, ...], option: str) -> None:
    done = run("serve", *command, "--model", str(folder), "--image", IMAGE, option, "x")
    assert done.returncode == 2
    assert f"{option} without --recipe" in done.stderr


ON_TWO = ("--hosts", "a,b", "--model", "MODEL")
TWO_PODS = ("--format", "lws", "--machines", "2", "--model", "MODEL")
RANKS = ("--expert-parallel", "--data-parallel")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ((), 2, "which machines, and which model"),
        (("--hosts", "a", "--model", "MODEL"), 2, "names one machine"),
        (("--hosts", "a,a", "--model", "MODEL"), 2, "names one machine"),
        (("--hosts", "u@a,v@a", "--model", "MODEL"), 2, "a machine twice"),
        (("--format", "lws", "--hosts", "a,b"), 2, "--hosts does not go with --format lws"),
        (("--hosts", "a;b,c", "--model", "MODEL"), 2, "is not [USER@]HOST"),
        (("--hosts", "a,b", "--model", "/nowhere"), 19, "/nowhere"),
        (("--format", "kuberay", "--hosts", "a,b"), 2, "does not go with --format kuberay"),
        (("--format", "kuberay", "--model", "MODEL"), 2, "over how many machines"),
        (("--hosts", "a,b,c", "--model", "MODEL"), 25, "cannot be divided over 3"),
        (("--hosts", "a,b", "--model", "MODEL", "--tensor-parallel", "4"), 25, "TP 4 does not use"),
        (("--hosts", "a,b", "--model", "MODEL", "--gpu", "x"), 2, "'x'"),
        (("--format", "lws", "--model", "MODEL"), 2, "over how many machines"),
        ((*ON_TWO, "--data-parallel", "2"), 2, "needs --expert-parallel"),
        ((*ON_TWO, *RANKS, "4"), 2, "over 2 machines"),
        ((*ON_TWO, *RANKS, "2", "--backend", "ray"), 2, "does not go with --backend ray"),
        ((*TWO_PODS, *RANKS, "2"), 2, "does not go with --format lws"),
        ((*ON_TWO, "--kv-cache-dtype", "nope"), 2, "nope"),
        ((*TWO_PODS, "--rdma-resource", "nvidia.com/gpu"), 2, "is the GPU"),
        ((*TWO_PODS, "--rdma-resource", ""), 2, "not the name of a resource"),
        ((*TWO_PODS, "--override", "x", "--no-smoke"), 2, "--override, --no-smoke do not go with"),
        ((*TWO_PODS, "--backend", "ray"), 2, "--backend does not go with --format lws"),
        ((*ON_TWO, "--machines", "3"), 2, "--machines does not go with --hosts"),
        ((*ON_TWO, "--backend", "ray", "--port", "6381"), 2, "a port of the cluster itself"),
        ((*ON_TWO, "--backend", "ray", "--port", "10500"), 2, "a port of the cluster itself"),
        ((*ON_TWO, "--port", "29501"), 2, "a port of the cluster itself"),
        ((*ON_TWO, "--interface", "$(id) x"), 2, "not the name of an interface"),
        ((*ON_TWO, "--release", "0.19.1"), 2, "has no wheel strategy"),
        ((*ON_TWO, "--dry-run", "--check"), 2, "--check does not go with --dry-run"),
        ((*ON_TWO, "--dry-run", "--override", "/nowhere"), 2, "--override cannot be read"),
        (("status", "--json"), 0, ""),
        (("logs", "nothing"), 2, "no cluster 'nothing'"),
    ],
)
def test_bad_wishes(
    folder: Path, tmp_path: Path, words: tuple[str, ...], code: int, says: str
) -> None:
    line = [str(folder) if word == "MODEL" else word for word in words]
    done = run("serve", "cluster", *line, FP4FORGE_BUILD=str(tmp_path / "state"))
    assert done.returncode == code, done.stderr
    assert says in done.stderr


def probe(request: dict[str, Any]) -> Any:
    line = [sys.executable, "-", json.dumps(request)]
    done = subprocess.run(
        line, input=PROBE.read_text(), capture_output=True, text=True, check=True, timeout=60
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_the_probe_sees_this_machine(folder: Path) -> None:
    with socket.socket() as listening:
        listening.bind(("", 0))
        listening.listen()
        port = listening.getsockname()[1]
        request = {"peers": ["127.0.0.1", "no.such.host.invalid"], "model": str(folder)}
        seen = probe(request | {"image": "none", "ports": [port], "interface": "lo"})
        assert probe({"connect": ["127.0.0.1", port]}) == {"error": ""}
    assert seen["taken"] == [port] and seen["address"] == "127.0.0.1"
    assert "no address" in seen["routes"][1]["error"]
    assert set(seen["model"]) == {path.name for path in folder.iterdir()}
    assert "refused" in probe({"connect": ["127.0.0.1", port]})["error"]


LINE = "(EngineCore pid=9) INFO 08-01 10:0{}:00 [core.py:1] {}\n"


def test_the_machine_that_differs_is_named() -> None:
    good = LINE.format(0, "Starting to load model") + LINE.format(9, "Model loading took 3 GiB")
    seen = doctor.look({"a": good, "b": good, "c": LINE.format(0, "NCCL INFO Bootstrap")})
    (line,) = doctor.odd(seen)
    assert line.startswith("c has been silent for 540 s") and "Bootstrap" in line
    assert doctor.odd(doctor.look({"a": good, "b": ""})) != []
