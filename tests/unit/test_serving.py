"""Manifests, memory and questions: what a server is started with, and what it can hold."""

from __future__ import annotations

import csv
import http.server
import json
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from fp4forge.cli.serve import serve as command
from fp4forge.core.errors import CheckpointError, UsageError
from fp4forge.kernels.gpus import PRODUCTS, product
from fp4forge.models import switch_history
from fp4forge.serve import (
    card_comparison,
    client,
    kv_cache,
    manifest,
    memory,
    quality,
    sandbox,
    settings,
)
from fp4forge.serve.layer_state import LayerGroup
from fp4forge.serve.model_sizes import ModelSizes, read
from fp4forge.serve.setting import ServerSetting
from tests.checkpoints import REFERENCE, TINY, gemma4, write

IMAGE = "127.0.0.1:5000/fp4forge/vllm@sha256:" + "a" * 64
LOGS = Path(__file__).parent / "data/logs"


def model(folder: Path, name: str = "model") -> Path:
    return write(folder / name, gemma4(TINY), TINY | {"max_position_embeddings": 262144})


def server(folder: Path, **wishes: Any) -> settings.ServerSettings:
    return settings.server(folder, IMAGE, settings.ServerWishes(**({"version": "0.20.2"} | wishes)))


def test_a_model_by_a_path_with_dots_is_mounted_by_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kubernetes refuses a hostPath with two dots."""
    whole = model(tmp_path)
    (tmp_path / "beside").mkdir()
    monkeypatch.chdir(tmp_path / "beside")
    found = server(Path("..", whole.name))
    assert found.model == str(whole) and found.served_name == whole.name


def test_the_cards_rows_exactly(tmp_path: Path) -> None:
    rows = {
        "interactive": ("65536", "4"),
        "balanced": ("8192", "32"),
        "throughput": ("2048", "256"),
        "long-context": ("262144", "1"),
    }
    for workload, row in rows.items():
        found = server(model(tmp_path), workload=workload)
        flags = {f.name: f.value for f in found.flags}
        assert (flags["--max-model-len"], flags["--max-num-seqs"]) == row
        assert flags["--quantization"] == "modelopt"
        assert flags["--kv-cache-dtype"] == "fp8_e4m3"
        assert flags["--moe-backend"] == "marlin"
        assert all(f.why for f in found.flags)


def test_context_is_never_more_than_the_model_has(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", gemma4(TINY), TINY)
    flags = {f.name: f.value for f in server(folder, workload="balanced").flags}
    assert flags["--max-model-len"] == "256"


def test_a_removed_switch_is_never_written(tmp_path: Path) -> None:
    for version in ("0.18.1", "0.19.1", "0.20.2", "0.27.1", "0.33.0"):
        found = server(model(tmp_path, version), version=version)
        for setting in (*found.flags, *found.environment):
            if setting.name in switch_history.known():
                assert switch_history.known()[setting.name].known(version)
    assert not switch_history.known()["VLLM_TEST_FORCE_FP8_MARLIN"].known("0.33.0")
    assert not switch_history.known()["VLLM_NVFP4_GEMM_BACKEND"].known("0.27.1")


@pytest.mark.parametrize(
    ("version", "gpus", "forced"),
    [
        ("0.18.1", ("sm121",), "VLLM_TEST_FORCE_FP8_MARLIN"),
        ("0.19.1", ("sm121",), "--moe-backend"),
        ("0.20.2", ("sm100",), "--moe-backend"),
        ("0.33.0", ("sm121",), "--moe-backend"),
        ("0.33.0", ("sm100",), None),  # FlashInfer takes GELU there, ahead of Marlin
    ],
)
def test_marlin_is_forced_where_gemma_4_needs_it(
    version: str, gpus: tuple[str, ...], forced: str | None, tmp_path: Path
) -> None:
    found = server(model(tmp_path), version=version, gpus=gpus)
    names = {s.name for s in (*found.flags, *found.environment)}
    assert names & {"VLLM_TEST_FORCE_FP8_MARLIN", "--moe-backend"} == (
        {forced} if forced else set()
    )


def service(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text)["services"]["vllm"]
    return found


def test_the_compose_file(tmp_path: Path) -> None:
    found = server(model(tmp_path), workload="interactive")
    text = manifest.render(found, "compose")
    vllm = service(text)
    assert vllm["image"] == IMAGE
    assert vllm["command"] == found.arguments
    assert vllm["restart"] == "unless-stopped"
    assert vllm["healthcheck"]["start_period"] == "10m"
    mounts = {mount["target"]: mount for mount in vllm["volumes"]}
    assert mounts["/models/model"]["read_only"]
    assert set(mounts) == {"/models/model", "/home/vllm/.cache"}
    devices = vllm["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
    assert "VLLM_TEST_FORCE_FP8_MARLIN" not in text
    assert "dist-packages" not in text
    for flag in found.flags:
        assert f"# {flag.why}" in text


def test_every_format_gives_the_server_the_same_words(tmp_path: Path) -> None:
    found = server(model(tmp_path, "it's $HOME 100%"), workload="balanced", served_name="m")
    vllm = service(manifest.render(found, "compose"))
    assert vllm["command"] == found.arguments
    assert vllm["volumes"][0]["source"].replace("$$", "$") == found.model
    script = manifest.render(found, "run").split("exec ")[1].replace("\\\n", " ")
    words = shlex.split(script.replace('"${arguments[@]}"', ""))
    assert f"type=bind,source={found.model},target=/models/m,readonly" in words
    assert words[-1] == IMAGE
    array = re.search(r"arguments=\((.*?)\n\)", manifest.render(found, "run"), re.DOTALL)
    assert array
    assert shlex.split(array[1], comments=True) == found.arguments
    objects = list(yaml.safe_load_all(manifest.render(found, "k8s")))
    pod = objects[1]["spec"]["template"]["spec"]
    assert pod["containers"][0]["args"] == found.arguments
    assert pod["volumes"][0]["hostPath"]["path"] == found.model
    assert pod["securityContext"]["runAsNonRoot"]
    unit = manifest.render(found, "systemd")
    assert "$$HOME 100%%" in unit
    assert f'"{IMAGE}" serve "/models/m"' in unit


def test_a_stopped_server_finishes_its_requests_before_it_is_killed(tmp_path: Path) -> None:
    found = server(model(tmp_path), workload="balanced")
    (finishes,) = (int(f.value) for f in found.flags if f.name == "--shutdown-timeout")
    texts = {kind: manifest.render(found, kind) for kind in ("compose", "run", "systemd", "k8s")}
    pod = list(yaml.safe_load_all(texts["k8s"]))[1]["spec"]["template"]["spec"]
    (stop,) = re.findall(r"docker stop --time (\d+) ", texts["systemd"])
    given = {
        int(service(texts["compose"])["stop_grace_period"].removesuffix("s")),
        int(re.findall(r"--stop-timeout (\d+) ", texts["run"])[0]),
        int(pod["terminationGracePeriodSeconds"]),
        int(stop),
    }
    assert min(given) > finishes
    assert int(re.findall(r"TimeoutStopSec=(\d+)", texts["systemd"])[0]) > int(stop)


def test_a_path_with_quotes_and_commas_is_mounted_as_it_is(tmp_path: Path) -> None:
    """Docker reads --mount as a CSV record (docker/cli, opts/mount.go)."""
    folder = model(tmp_path, 'it\'s "new", a:b')
    found = server(folder, workload="balanced", served_name="m")
    script = manifest.render(found, "run").split("exec ")[1].replace("\\\n", " ")
    words = shlex.split(script.replace('"${arguments[@]}"', ""))
    (fields,) = csv.reader([words[words.index("--mount") + 1]])
    assert fields == ["type=bind", f"source={folder}", "target=/models/m", "readonly"]
    assert service(manifest.render(found, "compose"))["volumes"][0]["source"] == found.model


@pytest.mark.parametrize("kind", manifest.FORMATS)
def test_no_foreign_text_begins_a_line_of_a_manifest(kind: str, tmp_path: Path) -> None:
    """A recipe's texts stand in comments and arguments; a line of a script would be run."""
    evil = "x\nEVIL=$(id)\n"
    setting = ServerSetting("--chat-template", evil, evil)
    variable = ServerSetting("VLLM_X", evil, evil)
    found = server(model(tmp_path), workload="balanced")
    found = replace(found, flags=(setting,), environment=(variable,), notes=(evil,))
    more = {"size": 2, "master_port": 29500, "rdma_resource": ""}
    text = manifest.render(found, kind, **more)
    if kind == "run":  # a quoted word may have several lines
        code = f"docker() {{ printf '%s\\0' \"$@\"; }}; {text.replace('exec docker', 'docker')}"
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr
        assert evil in done.stdout.split("\0") and f"VLLM_X={evil}" in done.stdout.split("\0")
    else:
        assert not re.search(r"(?m)^\s*EVIL", text)


@pytest.mark.parametrize("served", ["Gemma_4.26B", "a-", "9", "x" * 128, "a" * 57 + "._b"])
def test_kubernetes_takes_the_names_of_every_model(served: str, tmp_path: Path) -> None:
    """A Service's name is a label of RFC 1035."""
    found = server(model(tmp_path), workload="balanced", served_name=served)
    objects = list(yaml.safe_load_all(manifest.render(found, "k8s")))
    names = {entry["kind"]: entry["metadata"]["name"] for entry in objects}
    for name in (names["Service"], names["Deployment"]):
        assert re.fullmatch("[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?", name), name
    assert re.fullmatch("[a-z](?:[-a-z0-9]{0,251}[a-z0-9])?", names["PersistentVolumeClaim"])


def test_a_groups_name_leaves_room_for_what_its_pods_add(tmp_path: Path) -> None:
    """A pod of a StatefulSet has a label of its name, a dash and a hash of ten digits."""
    found = server(model(tmp_path), workload="balanced", served_name="x" * 44 + "-" + "y" * 80)
    more = {"size": 2, "master_port": 29500, "rdma_resource": ""}
    _, _, service = yaml.safe_load_all(manifest.render(found, "kuberay", **more))
    assert len(service["metadata"]["name"] + "-head-svc") <= 50  # KubeRay cuts longer ones
    for entry in yaml.safe_load_all(manifest.render(found, "lws", **more)):
        name = entry["metadata"]["name"]
        assert len(f"{name}-0-0123456789") <= 63 and name == "vllm-" + "x" * 44


@pytest.mark.parametrize("text", ["$HOME", "$(A)", "$$(A)", "$$", "$$$(A)", "a$"])
def test_kubernetes_changes_no_dollar_sign(text: str) -> None:
    """In a container's arguments $$ is one dollar sign, and $(NAME) a variable."""
    written = yaml.safe_load(manifest._kubernetes_scalar(text))
    expanded = re.sub(r"\$(\$|\(.*?\))", lambda m: "$" if m[1] == "$" else "EXPANDED", written)
    assert expanded == text


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"workload": "fast"}, UsageError),
        ({"utilization": 1.5}, UsageError),
        ({"served_name": "a; rm -rf /"}, UsageError),
        ({"model": Path("/models/a\nb")}, UsageError),
    ],
)
def test_what_cannot_be_used_is_refused(changes: dict[str, Any], error: type[Exception]) -> None:
    given: dict[str, Any] = {"model": Path("/models/m"), "workload": "balanced"} | changes
    with pytest.raises(error):
        server(given.pop("model"), **given)


@pytest.mark.parametrize("listen", ["fe80::1%eth0", "fe80::1%25eth0"])
def test_an_address_with_a_zone_is_refused(listen: str) -> None:
    with pytest.raises(UsageError, match="has a zone"):
        server(Path("/models/m"), workload="balanced", listen=listen)


@pytest.mark.parametrize("content", [b"", b"two words", b"bell\x07", b"escape\x1b[2J", b"nul\0"])
def test_a_key_that_no_request_can_carry_is_refused(content: bytes, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(content)
    with pytest.raises(UsageError, match="--api-key-file") as raised:
        server(Path("/models/m"), workload="balanced", key_file=key)
    assert raised.value.message.isprintable()


@pytest.mark.parametrize(("mode", "said"), [(0o600, True), (0o640, True), (0o644, False)])
def test_a_key_that_the_containers_user_cannot_read(mode: int, said: bool, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("the-key")
    key.chmod(mode)
    notes = server(Path("/models/m"), workload="balanced", key_file=key).notes
    assert any("cannot read the key's file" in note for note in notes) == said


def test_an_image_reference_with_syntax_in_it() -> None:
    with pytest.raises(UsageError):
        manifest.by_digest("image; rm -rf /")
    assert manifest.by_digest(IMAGE) == IMAGE


def logged(name: str, pattern: str) -> float:
    text = (LOGS / name).read_text()
    match = re.search(pattern, text)
    assert match
    return float(match[1].replace(",", ""))


def test_the_cache_is_what_a_real_server_made_of_it() -> None:
    """The H200 run: two of the reference's layers, 2,048 tokens, 8,192 batched."""
    name = "vllm-0.20.2-h200/compiled.log"
    available = logged(name, r"Available KV cache memory: ([\d.]+) GiB") * 2**30
    two = ModelSizes(
        weights=0,
        hidden=2816,
        expert_width=704,
        vocabulary=4096,
        max_context=4096,
        num_layers=2,
        attention=(
            LayerGroup(1, 2 * 2 * 512, None),
            LayerGroup(1, 2 * 8 * 256, 1024, kind="sliding"),
        ),
    )
    size, page, groups = kv_cache.groups(two)
    assert [tokens for _, tokens in groups] == [32, 16]
    concurrency = available // (size * page) / kv_cache.blocks_per_sequence(two, 2048, 8192)
    said = logged(name, r"Maximum concurrency for 2,048 tokens per request: ([\d.]+)x")
    assert concurrency == pytest.approx(said, rel=2e-4)  # the log rounds GiB to two digits


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> ModelSizes:
    """The card's model in its real shapes; sparse files."""
    folder = write(tmp_path_factory.mktemp("reference"), gemma4(REFERENCE, 0), REFERENCE, shards=4)
    return read(folder)


def test_the_reference_on_the_spark(reference: ModelSizes) -> None:
    assert card_comparison.applies(reference)
    assert reference.weights == pytest.approx(16.4e9, rel=0.1)  # the vision tower is not in it
    found = memory.fit(reference, product("gb10"), 0.85, 4, 8192)
    assert found.groups == 6
    assert found.tokens_reported == pytest.approx(700_000, rel=0.1)  # the card's figure
    within, beyond = kv_cache.kv_bytes_per_token(reference)
    assert (within, beyond) == (25 * 4096 + 5 * 2048, 5 * 2048)
    rows = {row["figure"]: row["ours"] for row in card_comparison.rows(reference)}
    assert rows["dense_bf16"] == "54.0 GB a token, 2,700 GB/s"
    assert rows["dense_nvfp4"] == "15.2 GB a token, 759 GB/s"
    assert 2.8e9 < reference.read_per_token() < 3.6e9


def test_more_context_never_holds_more_sequences(reference: ModelSizes) -> None:
    for name in PRODUCTS:
        found = memory.fit(reference, product(name), 0.85, 16, 8192)
        counts = [memory.sequences_for(reference, found, c, 8192) for c in (2048, 8192, 65536)]
        assert counts == sorted(counts, reverse=True)
        for sequences in (1, 4, 32):
            context = memory.context_for(reference, found, sequences, 8192)
            if context:
                assert memory.sequences_for(reference, found, context, 8192) >= sequences
            if context < reference.max_context:
                more = memory.sequences_for(reference, found, context + 1, 8192)
                assert more < sequences or context == 0


def test_what_does_not_fit_says_so(reference: ModelSizes) -> None:
    small = memory.fit(reference, product("rtx5090"), 0.4, 4, 2048)
    assert not small.fits
    assert memory.context_for(reference, small, 1, 2048) == 0


def test_a_configuration_without_layers(tmp_path: Path) -> None:
    folder = write(tmp_path, gemma4(TINY), TINY)
    (folder / "config.json").write_text("{}")
    with pytest.raises(CheckpointError):
        read(folder)


RIGHT = "is_prime = lambda n: n > 1 and all(n % i for i in range(2, int(n**0.5) + 1))"


GOOD = {
    "capital": "The capital of France is Paris.",
    "product": "391",
    "haiku": "Blue waves kiss the shore,\nEndless water, salt and spray,\nDeep blue mysteries.",
    "cities": "1. Tokyo 2. Osaka 3. Kyoto",
    "prime": f"```python\n{RIGHT}\n```",
    "photosynthesis": "Plants turn sunlight, water and carbon dioxide into sugar and oxygen.",
    "reasoning": "391",
    "vision": "Red",
}
BAD = {
    "capital": "-Hello-Hello-Hello-Hello-",
    "product": "392",
    "haiku": "Waves.",
    "cities": "Tokyo, Paris and Rome",
    "prime": "lambda n: True",
    "photosynthesis": "Plants grow.",
    "reasoning": "390",
    "vision": "Blue",
}


class Scripted(http.server.BaseHTTPRequestHandler):
    """A server whose answers, right or wrong, are known; protocol tests have a real one (e2e)."""

    answers: dict[str, str]
    fault = ""

    def do_GET(self) -> None:
        self.send(200, {"data": [{"id": "m"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = body["messages"][0]["content"]
        text = content if isinstance(content, str) else content[-1]["text"]
        name = next(p.name for p in quality.PROMPTS if p.text == text)
        message: dict[str, Any] = {"content": self.answers.get(name, "")}
        if name == "reasoning":
            message["reasoning_content"] = "17 times 23" if self.answers is GOOD else ""
        if name == "tool" and self.answers is GOOD:
            call = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
            message["tool_calls"] = [{"function": call}]
        if self.fault == "500":
            self.send(500, {"error": "boom"})
        elif self.fault == "json":
            self.send(200, {"choices": "none"})
        elif self.fault == "slow":
            threading.Event().wait(3)
        elif body["stream"]:
            self.stream(message["content"])
        else:
            self.send(200, {"choices": [{"message": message, "finish_reason": "stop"}]})

    def stream(self, text: str) -> None:
        self.send_response(200)
        self.end_headers()
        for number, word in enumerate(text.split()):
            if self.fault == "cut" and number == 1:
                return
            delta = {"choices": [{"delta": {"content": word + " "}}]}
            self.wfile.write(f"data: {json.dumps(delta)}\n\n".encode())
        if self.fault == "garbage":
            self.wfile.write(b"data: {not json\n\n")
        end = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
        self.wfile.write(f"data: {json.dumps(end)}\n\ndata: [DONE]\n\n".encode())

    def send(self, status: int, data: dict[str, Any]) -> None:
        text = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def scripted() -> Iterator[str]:
    Scripted.answers, Scripted.fault = GOOD, ""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def ask(url: str, **options: Any) -> dict[str, quality.PromptVerdict]:
    return {v.name: v for v in quality.examine(url, lambda _: None, **options)}


def test_right_answers_pass_and_wrong_ones_do_not(scripted: str) -> None:
    good = ask(scripted)
    assert all(v.passed for v in good.values()), good
    assert len(good) == 9
    Scripted.answers = BAD
    bad = ask(scripted)
    assert not any(v.passed for v in bad.values()), bad
    assert not client.paris(scripted).ok


@pytest.mark.parametrize("as_json", [True, False])
def test_an_answer_that_cannot_be_judged_is_neither_right_nor_wrong(
    scripted: str, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    # Without site-packages the child has no Monty.
    monkeypatch.setattr(sandbox, "_CHILD", (sys.executable, "-I", "-S", sandbox.__file__))
    done = CliRunner().invoke(
        command, ["quality", "--url", scripted, "--only", "text", *["--json"] * as_json]
    )
    assert done.exit_code == 0, done.output
    assert "5 of 6 answers are right, 1 not judged" in done.stderr
    if as_json:
        prime = next(v for v in json.loads(done.stdout) if v["name"] == "prime")
        assert prime["passed"] is None
        assert prime["problem"].startswith("not run: the sandbox does not start: No module")
    else:
        assert "not judged: prime" in done.stdout
        assert "not run: the sandbox does not start" in done.stdout
        assert "wrong" not in done.stdout


@pytest.mark.parametrize(
    ("fault", "stream", "problem"),
    [
        ("500", False, "HTTP 500"),
        ("json", False, "not a chat completion"),
        ("slow", False, "no answer within"),
        ("cut", True, "cut before its end"),
        ("garbage", True, "not a chat chunk"),
    ],
)
def test_a_faulty_server_is_a_sentence(
    scripted: str, fault: str, stream: bool, problem: str
) -> None:
    assert ask(scripted, names=("capital",), stream=stream)["capital"].passed
    Scripted.fault = fault
    found = ask(scripted, names=("capital",), stream=stream, timeout=1)["capital"]
    assert not found.passed
    assert problem in found.problem


def test_a_server_that_is_not_there() -> None:
    assert client.unreachable("http://127.0.0.1:9") == "connection refused"


@pytest.mark.parametrize("image", ["a::b", "a:b:c", "h:5000/UP:x", "a//b:c", "a:tag@sha256:ab"])
def test_an_image_is_a_reference_before_any_registry_is_asked(image: str) -> None:
    with pytest.raises(UsageError, match=r"--image .* is not an image reference"):
        manifest.by_digest(image)
