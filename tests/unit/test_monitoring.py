"""Monitoring: queries against each release's own metrics, the dashboard's form, what is written."""

from __future__ import annotations

import json
import re
import stat
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from click.testing import CliRunner

from fp4forge.cli.serve import serve as command
from fp4forge.core.errors import ReleaseError, UsageError
from fp4forge.core.paths import PACKAGE, ROOT
from fp4forge.inputs import release, service_images, switches
from fp4forge.launch.deployment import Deployment
from fp4forge.serve import manifest, monitoring
from tests.unit.test_serving import IMAGE, model, server

DASHBOARD = json.loads((monitoring.SOURCE / "grafana/dashboards/vllm.json").read_text())
ALERTS = yaml.safe_load((monitoring.SOURCE / "prometheus/alerts.yml").read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
CASES = yaml.safe_load((ROOT / "tests/e2e/monitoring/alerts.test.yml").read_text())
# Prometheus's own, and that of the HTTP instrumentation, which is not in vLLM's sources.
OTHERS = {"up", "http_requests_total"}


def expressions() -> list[str]:
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return panels + [rule["expr"] for rule in RULES]


def unknown(expression: str, names: list[str]) -> set[str]:
    """Series that an expression asks for, and that a server does not have."""
    plain = re.sub(r'"[^"]*"|(?:by|on) \([^)]*\)|\[[^]]*\]', "", expression)
    asked = set(re.findall(r"[a-z_]+:\w+|\b[a-z_]+(?=\{)", plain))
    assert asked, expression
    return asked - set(names) - OTHERS


@pytest.mark.parametrize("name", release.names())
def test_each_query_asks_for_what_the_release_has(name: str) -> None:
    known = switches.load(release.load(name).vllm_version)
    assert known
    for expression in expressions():
        assert unknown(expression, known.metrics) == set(), expression


def test_a_metric_that_was_renamed_is_found() -> None:
    known = switches.load(release.load(release.names()[-1]).vllm_version)
    assert known
    gone = "vllm:kv_cache_usage_perc"
    names = [name for name in known.metrics if name != gone] + ["vllm:cache_usage"]
    assert {gone} == set().union(*(unknown(text, names) for text in expressions()))


def test_each_metric_of_the_doctor_has_an_alert() -> None:
    source = (PACKAGE / "doctor/live_checks.py").read_text()
    asked = set(re.findall(r"(?:vllm|http):?[a-z_]*_(?:total|perc)", source))
    assert len(asked) >= 5
    text = " ".join(rule["expr"] for rule in RULES)
    assert {name for name in asked if name not in text} == set()


def test_each_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    found = {
        (case["alertname"], bool(case["exp_alerts"]))
        for test in CASES["tests"]
        for case in test["alert_rule_test"]
    }
    assert found == {(rule["alert"], fires) for rule in RULES for fires in (True, False)}


def test_the_dashboard_hangs_together() -> None:
    """What Grafana would only say when somebody looks: ids, places, data source, variables."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)
    provided = yaml.safe_load(
        (monitoring.SOURCE / "grafana/datasources/prometheus.yml").read_text()
    )
    (source,) = provided["datasources"]
    (variable,) = DASHBOARD["templating"]["list"]
    targets = [target for panel in panels for target in panel["targets"]]
    used = {thing["datasource"]["uid"] for thing in (*panels, *targets, variable)}
    assert used == {source["uid"]}
    names = {name for t in targets for name in re.findall(r"\$(\w+)", t["expr"])}
    assert names == {variable["name"], "__rate_interval"}
    for panel in panels:
        letters = [target["refId"] for target in panel["targets"]]
        assert letters == sorted(set(letters)) and panel["title"] and panel["description"]


def composed(folder: Path, **wishes: Any) -> dict[str, Any]:
    found = server(model(folder), workload="balanced", **wishes)
    text = manifest.render(found, "compose", monitoring=service_images.images())
    read: dict[str, Any] = yaml.safe_load(text)
    return read


def test_what_watches_is_as_closed_as_the_server(tmp_path: Path) -> None:
    read = composed(tmp_path)
    assert list(read["services"]) == ["vllm", "prometheus", "grafana"]
    for name, service in read["services"].items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["mem_limit"] and service["pids_limit"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert service.get("profiles") == (None if name == "vllm" else ["monitoring"])
        assert all(
            mount.get("read_only", mount["type"] == "volume") for mount in service["volumes"]
        )
    grafana = read["services"]["grafana"]
    assert grafana["environment"]["GF_AUTH_ANONYMOUS_ENABLED"] == "false"
    assert (
        grafana["environment"]["GF_SECURITY_ADMIN_PASSWORD__FILE"]
        == "/run/secrets/" + (grafana["secrets"][0])
    )
    assert set(read["volumes"]) == {"cache", "prometheus", "grafana"}


def test_what_is_mounted_is_what_is_written(tmp_path: Path) -> None:
    read = composed(tmp_path)
    name = server(model(tmp_path), workload="balanced").name
    monitoring.write(tmp_path, name)
    mounts = [
        mount
        for service in ("prometheus", "grafana")
        for mount in read["services"][service]["volumes"]
        if mount["type"] == "bind"
    ]
    assert all((tmp_path / mount["source"]).is_dir() for mount in mounts)
    assert (tmp_path / read["secrets"]["grafana_password"]["file"]).is_file()
    provider = yaml.safe_load((monitoring.SOURCE / "grafana/dashboards/provider.yml").read_text())
    target = next(m["target"] for m in mounts if m["source"].endswith("dashboards"))
    assert provider["providers"][0]["options"]["path"] == target
    scraped = yaml.safe_load((monitoring.SOURCE / "prometheus/prometheus.yml").read_text())
    (job,) = scraped["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["vllm:8000"]}]
    assert all(f'job="{job["job_name"]}"' in e for e in expressions() if re.match(r"up\b", e))


def test_a_server_without_monitoring_has_nothing_of_it(tmp_path: Path) -> None:
    text = manifest.render(server(model(tmp_path), workload="balanced"), "compose")
    assert "monitoring" not in text and "grafana" not in text
    with_key = tmp_path / "key"
    with_key.write_text("k")
    secrets = composed(tmp_path, key_file=with_key)["secrets"]
    assert set(secrets) == {"api_key", "grafana_password"}


def test_the_password_stays_and_others_cannot_enter(tmp_path: Path) -> None:
    folder = monitoring.write(tmp_path, "m")
    password = monitoring.password_file(tmp_path, "m")
    first = password.read_text()
    (folder / "prometheus/alerts.yml").write_text("spoilt")
    monitoring.write(tmp_path, "m")
    assert password.read_text() == first and len(first) >= 24
    assert "spoilt" not in (folder / "prometheus/alerts.yml").read_text()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in folder.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644)
    assert monitoring.password_file(tmp_path, "n").exists() is False


def compose(folder: Path, *words: str) -> Any:
    line = ["compose", "--model", str(model(folder)), "--image", IMAGE, "--with", "monitoring"]
    return CliRunner().invoke(command, [*line, *words])


@pytest.mark.parametrize("port", ["3000", "9090"])
def test_a_port_of_what_watches_is_refused(tmp_path: Path, port: str) -> None:
    done = compose(tmp_path, "-o", str(tmp_path / "c.yaml"), "--port", port)
    assert isinstance(done.exception, UsageError) and not (tmp_path / "c.yaml").exists()


def test_the_command_writes_the_files_beside_the_compose_file(tmp_path: Path) -> None:
    file = tmp_path / "out/compose.yaml"
    done = compose(tmp_path, "-o", str(file))
    assert done.exit_code == 0, done.stderr
    assert yaml.safe_load(file.read_text())["services"]["grafana"]
    written = {path.name for path in file.parent.rglob("*") if path.is_file()}
    assert {"prometheus.yml", "alerts.yml", "vllm.json", "grafana-password"} < written


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("-o", "FILE", "--format", "k8s"),
        ("-o", "FILE", "--lock", "LOCK"),
        ("-o", "FILE", "--json"),
        ("-o", "FILE", "--explain"),
    ],
)
def test_monitoring_without_a_written_compose_file_is_refused(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    there = {"FILE": str(tmp_path / "out/file"), "LOCK": str(tmp_path / "out/lock")}
    done = compose(tmp_path, *(there.get(word, word) for word in words))
    assert isinstance(done.exception, UsageError)
    assert "--with monitoring" in done.exception.message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["", "\n"])
def test_an_empty_password_is_replaced(content: str, tmp_path: Path) -> None:
    monitoring.write(tmp_path, "m")
    password = monitoring.password_file(tmp_path, "m")
    password.write_text(content)
    monitoring.write(tmp_path, "m")
    assert len(password.read_text()) >= 24


def test_a_folder_in_the_passwords_place_is_refused(tmp_path: Path) -> None:
    """Docker makes one where a file is missing that it mounts."""
    monitoring.password_file(tmp_path, "m").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"grafana-password is a folder"):
        monitoring.write(tmp_path, "m")
    assert len(list(monitoring.folder(tmp_path, "m").iterdir())) == 1


def test_compose_is_called_with_the_profile() -> None:
    made = Deployment(name="m", model="", served_name="m", image=IMAGE, release="", url="")
    assert "--profile" not in made.compose("up")
    line = msgspec.structs.replace(made, monitoring=True).compose("up")
    assert line[-3:] == ["--profile", monitoring.PROFILE, "up"]


def test_an_image_is_named_by_digest_as_soon_as_it_is_known() -> None:
    found = service_images.images().prometheus
    digest = "sha256:" + "a" * 64
    assert msgspec.structs.replace(found, digest="").reference == found.image
    assert msgspec.structs.replace(found, digest=digest).reference == f"{found.image}@{digest}"
    with pytest.raises(ReleaseError, match="image"):
        service_images.FORMAT.parse(
            "images:\n  prometheus: {image: no-tag}\n  grafana: {image: 'a:1'}\n", "x.yaml"
        )


def test_a_long_name_keeps_its_folder(tmp_path: Path) -> None:
    found = replace(server(model(tmp_path), workload="balanced"), name="v" * 63)
    text = manifest.render(found, "compose", monitoring=service_images.images())
    source = yaml.safe_load(text)["services"]["grafana"]["volumes"][0]["source"]
    folder = monitoring.folder(Path(), found.name)
    assert Path(source).parents[1] == folder
