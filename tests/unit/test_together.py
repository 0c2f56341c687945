"""Several models in one compose file: shares of the memory, the file, what is refused."""

from __future__ import annotations

import http.server
import json
import os
import re
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from fp4forge.cli.serve import serve as command
from fp4forge.core import files
from fp4forge.core.errors import FitError, ForgeError, UsageError
from fp4forge.doctor import command_line, composed
from fp4forge.inputs import service_images
from fp4forge.kernels.gpus import product
from fp4forge.serve import gateway, manifest, placing, settings, sharing
from fp4forge.serve.model_sizes import ModelSizes, read
from fp4forge.serve.placing import WantedCapacity
from fp4forge.serve.split import ONE
from tests.unit.test_serving import IMAGE, model, server

WANTED = WantedCapacity(context=65536, sequences=1, utilization=0.85)
SPARK = product("gb10")


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> ModelSizes:
    """A model of the reference's kind, whose weights a test may set."""
    return read(model(tmp_path_factory.mktemp("sizes")))


def test_shares_hold_the_same_number_of_sequences(sizes: ModelSizes) -> None:
    small, large = replace(sizes, weights=8 << 30), replace(sizes, weights=40 << 30)
    shares = sharing.divide({"small": small, "large": large}, SPARK, WANTED)
    assert sum(shares.values()) <= WANTED.utilization
    assert shares["large"] > shares["small"]
    held = [
        placing.on(m, SPARK, ONE, replace(WANTED, utilization=shares[n])).sequences
        for n, m in (("small", small), ("large", large))
    ]
    assert min(held) >= 1 and max(held) / min(held) < 1.05


def test_a_tiny_model_gets_the_least_share_and_the_other_the_rest(sizes: ModelSizes) -> None:
    tiny = replace(sizes, attention=tuple(replace(a, token_bytes=1) for a in sizes.attention))
    large = replace(sizes, weights=60 << 30)
    shares = sharing.divide({"tiny": tiny, "large": large}, SPARK, WANTED)
    assert shares["tiny"] == sharing.LEAST
    assert shares["large"] == pytest.approx(WANTED.utilization - sharing.LEAST, abs=0.002)


def test_models_that_do_not_fit_are_refused_with_what_would(sizes: ModelSizes) -> None:
    big = replace(sizes, weights=50 << 30)
    with pytest.raises(FitError, match="a and b do not fit on one DGX Spark") as raised:
        sharing.divide({"a": big, "b": replace(big, weights=60 << 30)}, SPARK, WANTED)
    assert "a GPU for each" in raised.value.remedy and "B" in raised.value.remedy
    crowded = replace(WANTED, sequences=100_000)
    with pytest.raises(FitError) as raised:
        sharing.divide({"a": big, "b": sizes}, SPARK, crowded)
    found = re.search(r"at most ([\d,]+) tokens", raised.value.remedy)
    if found:
        smaller = replace(crowded, context=int(found[1].replace(",", "")))
        assert sharing.divide({"a": big, "b": sizes}, SPARK, smaller)


def test_a_share_that_is_too_small_is_named(sizes: ModelSizes) -> None:
    models = {"a": replace(sizes, weights=30 << 30), "b": sizes}
    with pytest.raises(FitError) as raised:
        sharing.divide(models, SPARK, replace(WANTED, utilization=0.2))
    found = re.search(r"--utilization ([\d.]+)", raised.value.remedy)
    assert found
    assert sharing.divide(models, SPARK, replace(WANTED, utilization=float(found[1])))
    with pytest.raises(FitError):
        sharing.divide(models, SPARK, replace(WANTED, utilization=float(found[1]) - 0.01))


_BYTES = st.integers(1 << 28, 80 << 30)


@given(weights=st.lists(_BYTES, min_size=2, max_size=5), share=st.floats(0.2, 0.98))
def test_a_division_holds_each_model_or_is_refused(
    weights: list[int], share: float, sizes: ModelSizes
) -> None:
    models = {str(n): replace(sizes, weights=size) for n, size in enumerate(weights)}
    wanted = replace(WANTED, utilization=share)
    try:
        shares = sharing.divide(models, SPARK, wanted)
    except FitError:
        return
    assert sum(shares.values()) <= share + 1e-9
    for name, part in shares.items():
        assert part >= sharing.LEAST
        placing.check(models[name], [SPARK], replace(wanted, utilization=part), ONE)


def servers(folder: Path, **wishes: Any) -> list[settings.ServerSettings]:
    return [server(model(folder, name), workload="balanced", **wishes) for name in ("a", "b")]


def test_two_servers_and_their_gateway(tmp_path: Path) -> None:
    key = tmp_path / "it's $k"
    key.write_text("secret-of-this-test")
    found = servers(tmp_path, key_file=key, port=9000)
    text = manifest.render_together(found, "gateway:1", service_images.images())
    read_back = yaml.safe_load(text)
    services = read_back["services"]
    assert list(services) == ["vllm-a", "vllm-b", "gateway", "prometheus", "grafana"]
    for each in found:
        assert services[each.name]["command"] == each.arguments
        assert "ports" not in services[each.name]
    alone = yaml.safe_load(manifest.render(found[0], "compose"))["services"]["vllm"]
    first, own = services["vllm-a"], {"ports": 0, "volumes": 0, "container_name": ""}
    assert first | own == alone | own
    assert "depends_on" not in first
    healthy = {"condition": "service_healthy"}
    assert services["vllm-b"]["depends_on"] == {"vllm-a": healthy}
    assert services["gateway"]["depends_on"] == {"vllm-a": healthy, "vllm-b": healthy}
    assert services["gateway"]["ports"] == ["127.0.0.1:9000:4000"]
    caches = [services[name]["volumes"][-1]["source"] for name in ("vllm-a", "vllm-b")]
    assert len(set(caches)) == 2 and set(caches) < set(read_back["volumes"])
    assert read_back["secrets"]["api_key"]["file"].replace("$$", "$") == str(key)
    assert "secret-of-this-test" not in text
    for service in services.values():
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["mem_limit"] and service["pids_limit"]


def test_without_a_key_nobody_asks_for_one(tmp_path: Path) -> None:
    text = manifest.render_together(servers(tmp_path), "gateway:1")
    read_back = yaml.safe_load(text)
    assert "secrets" not in read_back
    assert "KEY" not in read_back["services"]["gateway"]["command"][0]
    config = yaml.safe_load(gateway.configuration(servers(tmp_path)))
    assert "general_settings" not in config
    assert {m["litellm_params"]["api_key"] for m in config["model_list"]} == {"none"}


@pytest.mark.parametrize("content", [None, "", "\n", "the-key\n"])
def test_a_gateway_without_its_key_does_not_start(content: str | None, tmp_path: Path) -> None:
    """LiteLLM without a master key answers anyone."""
    key, secret, seen = tmp_path / "key", tmp_path / "secret", tmp_path / "seen"
    key.write_text("the-key")
    if content is not None:
        secret.write_text(content)
    program = tmp_path / "litellm"
    program.write_text(f'#!/bin/sh\nprintf %s "$LITELLM_MASTER_KEY" > {seen}\n')
    program.chmod(0o755)
    text = manifest.render_together(servers(tmp_path, key_file=key), "gateway:1")
    command = yaml.safe_load(text)["services"]["gateway"]["command"][0].replace("$$", "$")
    command = command.replace(settings.KEY_FILE, str(secret))
    path = f"{tmp_path}:/usr/bin:/bin"
    done = subprocess.run(["/bin/sh", "-c", command], env={"PATH": path}, capture_output=True)
    assert (done.returncode == 0) == seen.exists() == (content == "the-key\n")
    assert not seen.exists() or seen.read_text() == "the-key"


def test_the_gateway_knows_each_server_by_its_service(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret-of-this-test")
    found = servers(tmp_path, key_file=key)
    folder = gateway.write(tmp_path, manifest.group_name(found), found)
    text = (folder / "config.yaml").read_text()
    assert "secret-of-this-test" not in text
    services = yaml.safe_load(manifest.render_together(found, "g:1"))["services"]
    for entry in yaml.safe_load(text)["model_list"]:
        host = entry["litellm_params"]["api_base"].split("//")[1].split(":")[0]
        words = services[host]["command"]
        assert words[words.index("--served-model-name") + 1] == entry["model_name"]
    (mount,) = services["gateway"]["volumes"]
    assert (tmp_path / mount["source"]).resolve() == folder


def compose(folder: Path, *words: str) -> Any:
    line = ["compose", "--image", IMAGE, "--workload", "balanced", *words]
    return CliRunner().invoke(command, line)


def two(folder: Path) -> list[str]:
    return [word for name in ("a", "b") for word in ("--model", str(model(folder, name)))]


def test_the_command_divides_the_memory(tmp_path: Path) -> None:
    file = tmp_path / "out/compose.yaml"
    done = compose(tmp_path, *two(tmp_path), "-o", str(file), "--with", "monitoring")
    assert done.exit_code == 0, done.exception
    services = yaml.safe_load(file.read_text())["services"]
    shares = []
    for name in ("vllm-a", "vllm-b"):
        words = services[name]["command"]
        shares.append(float(words[words.index("--gpu-memory-utilization") + 1]))
    assert shares[0] == shares[1] and 0.8 < sum(shares) <= 0.85
    scraped = yaml.safe_load(
        (file.parent / "fp4forge_a_b-monitoring/prometheus/prometheus.yml").read_text()
    )
    (targets,) = scraped["scrape_configs"][0]["static_configs"]
    assert targets == {"targets": ["vllm-a:8000", "vllm-b:8000"]}
    assert (file.parent / "fp4forge_a_b-gateway/config.yaml").is_file()


def names(text: str) -> set[str]:
    """Everything in a compose file that another one of this folder or machine could have."""
    found = yaml.safe_load(text)
    mounts = [m for s in found["services"].values() for m in s["volumes"]]
    return {
        found["name"],
        *(service["container_name"] for service in found["services"].values()),
        *(volume["name"] for volume in found["volumes"].values()),
        *(mount["source"] for mount in mounts if mount["source"].startswith("./")),
        *(secret["file"] for secret in found["secrets"].values()),
    }


def test_files_of_other_models_share_a_folder_and_a_machine(tmp_path: Path) -> None:
    texts = []
    for other in ("b", "c"):
        words = [w for n in ("a", other) for w in ("--model", str(model(tmp_path, n)))]
        file = tmp_path / f"out/{other}.yaml"
        done = compose(tmp_path, *words, "-o", str(file), "--with", "monitoring")
        assert done.exit_code == 0, done.exception
        texts.append(file.read_text())
    assert not names(texts[0]) & names(texts[1])
    for text in texts:
        config = (tmp_path / "out" / yaml.safe_load(text)["name"]).with_name(
            f"{yaml.safe_load(text)['name']}-gateway"
        )
        hosts = re.findall(r"http://([^:]+):", (config / "config.yaml").read_text())
        assert set(hosts) < set(yaml.safe_load(text)["services"])


def test_the_name_of_several_is_theirs_alone_and_short(tmp_path: Path) -> None:
    one = servers(tmp_path)[0]

    def name(*models: str) -> str:
        return manifest.group_name([replace(one, name=f"vllm-{m}") for m in models])

    assert name("a-b", "c") != name("a", "b-c")
    long = [name("x" * 58, end) for end in "yz"]
    assert len(set(long)) == 2 and max(map(len, long)) <= 60


class Slow(http.server.BaseHTTPRequestHandler):
    """A server that is ready at the third question."""

    asked = 0

    def do_GET(self) -> None:
        Slow.asked += 1
        self.send_response(200 if Slow.asked > 2 else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def waiting(folder: Path, port: int) -> subprocess.Popen[str]:
    """The second server's entrypoint and command, with a vllm that prints its words."""
    found = yaml.safe_load(manifest.render_together(servers(folder), "g:1"))["services"]["vllm-b"]
    program = folder / "vllm"
    program.write_text('#!/bin/sh\necho "vllm $*"\n')
    program.chmod(0o755)
    line = [word.replace("$$", "$") for word in (*found["entrypoint"], *found["command"])]
    assert line[3] == "vllm-a"
    line[3], line[2] = "127.0.0.1", line[2].replace(str(settings.PORT), str(port))
    path = f"{folder}:/usr/bin:/bin"
    return subprocess.Popen(line, env={"PATH": path}, stdout=subprocess.PIPE, text=True)


def test_a_server_waits_in_its_container_for_the_one_before_it(tmp_path: Path) -> None:
    """After a reboot Docker starts all containers at once."""
    Slow.asked = 0
    with http.server.HTTPServer(("127.0.0.1", 0), Slow) as first:
        threading.Thread(target=first.serve_forever, daemon=True).start()
        said, _ = waiting(tmp_path, first.server_port).communicate(timeout=30)
        first.shutdown()
    assert said.split() == ["vllm", *servers(tmp_path)[1].arguments] and Slow.asked == 3


def test_a_server_that_waits_can_be_stopped(tmp_path: Path) -> None:
    process = waiting(tmp_path, 9)  # discard: nothing listens there
    time.sleep(1)
    assert process.poll() is None
    process.terminate()
    assert process.wait(10) == 143 and not process.communicate()[0]


def test_the_doctor_reads_a_server_that_waits(tmp_path: Path) -> None:
    text = manifest.render_together(servers(tmp_path)[::-1], "g:1")
    services = yaml.safe_load(text)["services"]
    alone = json.dumps({"services": {"vllm-a": services["vllm-a"]}})
    found = composed.from_text(alone, "x", tmp_path)
    assert command_line.model(found.command) == "/models/a"
    assert command_line.flag(found.command, "--served-model-name") == "a"


def test_nothing_new_stays_if_a_file_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "replace", full)
    done = compose(tmp_path, *two(tmp_path), "-o", str(tmp_path / "new/out/x.yaml"))
    assert isinstance(done.exception, OSError)
    assert not (tmp_path / "new").exists()


def test_files_that_were_there_stay_if_one_cannot_be_written(tmp_path: Path) -> None:
    taken = tmp_path / "out/fp4forge_a_b-monitoring/grafana-password"
    taken.mkdir(parents=True)
    words = [*two(tmp_path), "-o", str(tmp_path / "out/x.yaml"), "--with", "monitoring"]
    done = compose(tmp_path, *words)
    assert isinstance(done.exception, UsageError)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["fp4forge_a_b-monitoring"]


@pytest.mark.parametrize("output", ["-", "/dev/null", "PIPE"])
@pytest.mark.parametrize("monitored", [False, True])
def test_an_output_that_nothing_can_lie_beside(
    output: str, monitored: bool, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    output = str(tmp_path / "pipe") if output == "PIPE" else output
    models = two(tmp_path)[: 2 if monitored else 4]
    done = compose(tmp_path, *models, "-o", output, *["--with", "monitoring"] * monitored)
    assert isinstance(done.exception, UsageError)
    assert "is not a plain file" in done.exception.message


def test_an_empty_model_is_not_this_folder() -> None:
    for words in (["--model", ""], ["--model", "", "--model", "x"]):
        done = compose(Path(), *words)
        assert done.exit_code == 2 and "it is empty" in done.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--name", "x", "-o", "FILE"], "--name goes with one model"),
        (["--speculative", "ngram", "-o", "FILE"], "--speculative goes with one model"),
        ([], "need --output FILE"),
        (["--format", "k8s", "-o", "FILE"], "need --output FILE"),
        (["--json", "-o", "FILE"], "need --output FILE"),
        (["--tensor-parallel", "2", "-o", "FILE"], "several GPUs"),
        (["--arch", "blackwell", "-o", "FILE"], "which GPU?"),
        (["--model", "/nowhere/c", "-o", "FILE"], "has no weights"),
        (["--model", "SAME", "-o", "FILE"], "would be named a"),
        (["--model", "SLUG", "-o", "FILE"], "would be named vllm-a"),
    ],
)
def test_what_does_not_go_with_several_models_is_refused(
    words: list[str], said: str, tmp_path: Path
) -> None:
    there = {
        "FILE": str(tmp_path / "out/compose.yaml"),
        "SAME": str(model(tmp_path / "other", "a")),
        "SLUG": str(model(tmp_path, "A")),
    }
    done = compose(tmp_path, *two(tmp_path), *(there.get(word, word) for word in words))
    assert isinstance(done.exception, UsageError) and said in done.exception.message
    assert not (tmp_path / "out").exists()


def test_models_too_large_for_one_gpu_leave_nothing_behind(tmp_path: Path) -> None:
    file = tmp_path / "out/compose.yaml"
    done = compose(tmp_path, *two(tmp_path), "-o", str(file), "--utilization", "0.1")
    assert isinstance(done.exception, ForgeError)
    assert done.exception.exit_code == FitError.exit_code
    assert not file.parent.exists()
