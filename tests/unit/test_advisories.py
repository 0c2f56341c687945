"""Advisories: which versions they affect, what the service says, and which verdicts count."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from packaging.version import Version

from fp4forge.advisories import audit, database, installed, osv, vex
from fp4forge.advisories.installed import AuditedPackages
from fp4forge.advisories.osv import GIT, PYPI, OsvPackage
from fp4forge.core.errors import AdvisoryError, BinaryError, UsageError, VulnerableError
from fp4forge.core.paths import ROOT
from fp4forge.inputs import image_extras, release
from fp4forge.sbom.components import SbomComponent
from fp4forge.serve import ray
from tests.fuzz import fuzz, spoilt, survives

DATA = Path(__file__).parent / "data" / "osv"
LISTED = {
    "CVE-2026-47155",
    "CVE-2026-41523",
    "GHSA-v97p-wpxp-px84",
    "PYSEC-2026-2303",
    "CVE-2026-105757",
    "CVE-2026-105760",
    "CVE-2026-115911",
    "GHSA-5r3c-5x4v-8gjh",
}
# Of Ray, which only images built --with ray have.
OF_RAY = {"CVE-2023-48022", "CVE-2025-34351"}
TODAY = date(2026, 11, 28)
VLLM = OsvPackage(PYPI, "vllm", "0.20.2")
DEBIAN = "Debian:13"


def quiet(_: str) -> None:
    pass


def record(*events: dict[str, str], ecosystem: str = PYPI, name: str = "vllm", **more: Any) -> Any:
    affected: dict[str, Any] = {
        "package": {"ecosystem": ecosystem, "name": name},
        "ranges": [{"type": "ECOSYSTEM", "events": list(events)}] if events else [],
        "versions": more.pop("versions", []),
    }
    return {"id": "CVE-2026-1", "affected": [affected], **more}


def read(value: Any) -> osv.Advisory:
    return osv.parse(json.dumps(value).encode(), "a record")


def affected(value: Any, version: str, ecosystem: str = PYPI, name: str = "vllm") -> bool:
    return osv.affects(read(value), OsvPackage(ecosystem, name, version)) is not None


# Versions


@pytest.mark.parametrize(
    ("events", "version", "is_in"),
    [
        ([{"introduced": "0"}, {"fixed": "0.22.0"}], "0.21.9", True),
        ([{"introduced": "0"}, {"fixed": "0.22.0"}], "0.22.0", False),
        # PEP 440: a pre-release is before, a local version after.
        ([{"introduced": "0"}, {"fixed": "0.22.0"}], "0.22.0rc1", True),
        ([{"introduced": "0"}, {"fixed": "0.22.0"}], "0.22.0+cu130", False),
        ([{"introduced": "0.9"}], "0.10.0", True),
        ([{"introduced": "0.9"}], "0.8.5", False),
        ([{"introduced": "0"}, {"last_affected": "0.20.2"}], "0.20.2", True),
        ([{"introduced": "0"}, {"last_affected": "0.20.2"}], "0.20.3", False),
        # Two ranges in one, out of order.
        ([{"introduced": "2"}, {"fixed": "1"}, {"introduced": "0"}, {"fixed": "3"}], "1.5", False),
        ([{"introduced": "2"}, {"fixed": "1"}, {"introduced": "0"}, {"fixed": "3"}], "2.5", True),
        ([{"introduced": "0"}, {"limit": "0.5"}], "0.6", False),
        ([{"introduced": "0"}, {"limit": "*"}], "0.6", True),
    ],
)
def test_ranges_of_python_packages(events: list[Any], version: str, is_in: bool) -> None:
    assert affected(record(*events), version) is is_in


@pytest.mark.parametrize(
    ("fixed", "version", "is_in"),
    [
        ("1:3.0-1", "2.9-1", True),  # an epoch comes first
        ("3.0-1~deb13u1", "3.0-1~", True),  # a tilde is before the end
        ("3.0-1+deb13u2", "3.0-1+deb13u1", True),
        ("3.0-1+deb13u2", "3.0-1+deb13u10", False),
        ("3.0-1", "3.0-1", False),
    ],
)
def test_ranges_of_debian_packages(fixed: str, version: str, is_in: bool) -> None:
    value = record({"introduced": "0"}, {"fixed": fixed}, ecosystem=DEBIAN, name="openssl")
    assert affected(value, version, DEBIAN, "openssl") is is_in
    assert not affected(value, version, "Debian:12", "openssl")  # another release


def test_versions_listed_one_by_one() -> None:
    assert affected(record(versions=["0.20.2.0", "not-a-version"]), "0.20.2")
    assert not affected(record(versions=["0.20.1"]), "0.20.2")


def test_names_are_compared_as_the_index_does() -> None:
    value = record({"introduced": "0"}, name="Flash_Attn.X")
    assert affected(value, "1", name="flash-attn-x")
    assert not affected(value, "1", name="flash-attn-y")


def test_a_withdrawn_record_affects_nothing() -> None:
    assert not affected(record({"introduced": "0"}, withdrawn="2026-01-01T00:00:00Z"), "1")


def test_a_version_that_cannot_be_compared_is_refused() -> None:
    with pytest.raises(AdvisoryError, match="CVE-2026-1"):
        affected(record({"introduced": "0"}, {"fixed": "next week"}), "0.20.2")


def test_the_fix_is_the_next_version_that_has_it() -> None:
    value = read(
        record({"introduced": "0"}, {"fixed": "0.19.3"}, {"introduced": "0.20"}, {"fixed": "0.21"})
    )
    part = osv.affects(value, VLLM)
    assert part and osv.fixes(part, VLLM) == ["0.21"]


# Sources that are compiled in

CUTLASS = "https://github.com/NVIDIA/cutlass"
OLD, NEW, OTHER = "1" * 40, "2" * 40, "3" * 40


def source(*events: dict[str, str], repo: str = CUTLASS, **more: Any) -> Any:
    """A record as OSV's converters write it: a repository, and often no package."""
    part = {"ranges": [{"type": "GIT", "repo": repo, "events": list(events)}], **more}
    return {"id": "CVE-2026-1", "affected": [part]}


@pytest.mark.parametrize(
    ("value", "version", "is_in"),
    [
        (source({"introduced": OLD}, {"last_affected": OLD}), OLD, True),
        (source({"introduced": OLD}, {"last_affected": OLD}), NEW, False),
        (source({"introduced": "0"}, {"fixed": NEW}), NEW, False),
        # Which of two commits came first only the repository knows: a verdict must say it.
        (source({"introduced": "0"}, {"fixed": NEW}), OLD, True),
        (source({"introduced": "0" * 40}, {"last_affected": NEW}), OTHER, True),
        (source({"introduced": "0"}, repo="https://github.com/nvidia/Cutlass.git"), OLD, True),
        (source({"introduced": "0"}, repo="https://github.com/NVIDIA/cutlass-fork"), OLD, False),
        # Tags are listed; a version that a header states has no v.
        (source({"introduced": "0"}, versions=["v4.4.1", "v4.4.2"]), "4.4.2", True),
        (source({"introduced": "0"}, versions=["v4.4.1", "v4.4.2"]), "v4.4.2", True),
        (source({"introduced": "0"}, versions=["v4.4.1", "v4.4.2"]), "v4.5.0", False),
        (source({"introduced": "0"}), "v4.5.0", True),
    ],
)
def test_sources_go_by_commit_or_tag(value: Any, version: str, is_in: bool) -> None:
    assert affected(value, version, GIT, osv.canonical(GIT, CUTLASS)) is is_in


def listed(version: str, **more: Any) -> SbomComponent:
    values: dict[str, Any] = {"name": "cutlass", "ecosystem": GIT, "source": CUTLASS, "purl": "x"}
    return SbomComponent(version=version, **values | more)


def test_an_sbom_adds_what_no_lock_names(tmp_path: Path) -> None:
    every = [
        listed(OLD),
        listed("", name="pynvml"),
        listed("3.5.1-1+b1", name="libssl", ecosystem=DEBIAN, source="openssl", source_version="3"),
        listed("1.0+cu130", name="torch", ecosystem=PYPI, source=""),
    ]
    found, left_out = installed.of_sbom(every)
    assert found == {
        OsvPackage(GIT, "github.com/nvidia/cutlass", OLD),
        OsvPackage(DEBIAN, "openssl", "3"),
        OsvPackage(PYPI, "torch", "1.0+cu130"),
    }
    assert len(left_out) == 1 and "pynvml" in left_out[0]
    value = source({"introduced": "0"}, {"fixed": NEW})
    (tmp_path / "git.json").write_text(json.dumps(value))
    debian = record({"introduced": "0"}, {"fixed": "4"}, ecosystem=DEBIAN, name="openssl")
    (tmp_path / "debian.json").write_text(json.dumps(debian | {"id": "CVE-2026-2"}))
    contents = AuditedPackages("0.20.2", tuple(sorted(found)), left_out)
    report = audit.run(contents, database.OsvFolder(tmp_path), quiet, TODAY)
    by_id = {finding.id: finding for finding in report.findings}
    assert by_id["CVE-2026-1"].packages == [f"github.com/nvidia/cutlass {OLD}"]
    assert by_id["CVE-2026-1"].fixed == [NEW] and by_id["CVE-2026-1"].grave
    assert by_id["CVE-2026-1"].releases == []  # no lock says what a newer release compiles in
    assert by_id["CVE-2026-2"].packages == ["openssl 3"]
    assert report.left_out == left_out
    later, _ = installed.of_sbom([listed(NEW)])
    contents = AuditedPackages("0.20.2", tuple(later))
    assert audit.run(contents, database.OsvFolder(tmp_path), quiet, TODAY).findings == ()


def test_an_image_without_an_sbom_says_what_was_not_audited() -> None:
    found, (left_out,) = installed.of_sbom(None)
    assert not found and "no SBOM" in left_out


def test_a_verdict_names_a_source_by_its_package_url() -> None:
    one = OsvPackage(GIT, "github.com/nvidia/cutlass", OLD)
    assert one.purl == f"pkg:github/nvidia/cutlass@{OLD}"


# Severity


@pytest.mark.parametrize(
    ("more", "level", "score"),
    [
        (
            {
                "severity": [
                    {"type": "CVSS_V3", "score": "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H"}
                ]
            },
            "critical",
            9.8,
        ),
        (
            {
                "severity": [
                    {"type": "CVSS_V3", "score": "CVSS:3.1/AV:N/AC:H/PR:N/UI:N/S:U/C:L/I:H/A:N"}
                ]
            },
            "medium",
            6.5,
        ),
        (
            {
                "severity": [
                    {
                        "type": "CVSS_V4",
                        "score": "CVSS:4.0/AV:N/AC:L/AT:N/PR:L/UI:N/VC:N/VI:N/VA:H/SC:N/SI:N/SA:N",
                    }
                ]
            },
            "high",
            7.1,
        ),
        (
            {
                "severity": [{"type": "CVSS_V3", "score": "nonsense"}],
                "database_specific": {"severity": "HIGH"},
            },
            "high",
            None,
        ),
        ({"database_specific": {"severity": "MODERATE"}}, "medium", None),
        ({"database_specific": {"severity": "dreadful"}}, "unknown", None),
        ({}, "unknown", None),
    ],
)
def test_severity(more: dict[str, Any], level: str, score: float | None) -> None:
    found = read(record({"introduced": "0"}, **more))
    assert osv.severity([found], found.affected) == (level, score)


def test_records_of_one_vulnerability_are_one_finding(tmp_path: Path) -> None:
    """PyPA's record has no severity, GitHub's of the same CVE has one."""
    first = record({"introduced": "0"}) | {"id": "PYSEC-2026-1", "aliases": ["CVE-2026-1"]}
    second = record({"introduced": "0"}, database_specific={"severity": "LOW"})
    second |= {"id": "GHSA-aaaa-bbbb-cccc", "aliases": ["CVE-2026-1"]}
    found = look(tmp_path, first, second).findings
    assert [(f.id, f.severity, f.grave) for f in found] == [("CVE-2026-1", "low", False)]


def look(folder: Path, *values: Any, name: str = "", today: date = TODAY) -> audit.AuditReport:
    for place, value in enumerate(values):
        (folder / f"{place}.json").write_text(json.dumps(value))
    return audit.run(AuditedPackages(name, (VLLM,)), database.OsvFolder(folder), quiet, today)


# Verdicts


@pytest.mark.parametrize("name", ["0.19.1", "0.20.2"])
def test_each_known_advisory_has_a_verdict(name: str) -> None:
    report = audit.run(installed.of_release(name), database.of(str(DATA)), quiet, TODAY)
    every = {finding.id: finding for finding in report.findings}
    assert all(finding.status and finding.reason for finding in every.values())
    found = {finding.id: finding for finding in report.findings if not finding.only_with}
    assert found.keys() == LISTED
    assert all(finding.releases[-1] == "0.33.0" for finding in found.values())
    # What bites, or could not be looked at, explains nothing.
    assert {f.id for f in found.values() if f.explained} == {"CVE-2026-41523", "CVE-2026-105760"}
    with pytest.raises(VulnerableError, match="PYSEC-2026-2303") as error:
        audit.demand(report)
    assert "--release 0.33.0" in error.value.remedy
    audit.demand(report, tuple(f.id for f in found.values() if f.grave))


def test_the_newest_release_is_in_none_of_them_but_rays() -> None:
    contents = installed.of_release("0.33.0")
    report = audit.run(contents, database.of(str(DATA)), quiet, TODAY)
    assert report.components > 100
    assert {f.id for f in report.findings if not f.only_with} == set()
    assert {f.id for f in report.findings} == OF_RAY


@pytest.mark.parametrize("name", release.names())
def test_an_advisory_of_an_extra_is_only_of_images_with_it(name: str) -> None:
    contents = installed.of_release(name)
    report = audit.run(contents, database.of(str(DATA / "ray")), quiet, TODAY)
    (version,) = {one.version for one in contents.components if one.name == "ray"}
    more = {"CVE-2026-57516"} if Version(version) < Version("2.56.0") else set()
    assert {f.id for f in report.findings} == OF_RAY | more
    for finding in report.findings:
        assert finding.only_with == ["ray"] and "(only --with ray)" in audit.line(finding)
        assert finding.severity in ("critical", "high") and finding.explained
    audit.demand(report)
    # An image without it has none of them; one with it, whose verdicts have expired, is refused.
    without = tuple(one for one in contents.components if one not in contents.optional)
    plain = audit.run(AuditedPackages(name, without), database.of(str(DATA / "ray")), quiet, TODAY)
    assert plain.findings == ()
    late = audit.run(contents, database.of(str(DATA / "ray")), quiet, date(2028, 1, 1))
    with pytest.raises(VulnerableError, match=r"only --with ray.*expired"):
        audit.demand(late)


@pytest.mark.parametrize("name", release.names())
def test_the_verdicts_on_ray_say_what_the_locks_and_the_image_hold(name: str) -> None:
    """Each reason is a fact of this repository: it must not outlive it."""
    names = {one.name for one in installed.of_release(name).components}
    assert not names & {"aiohttp-cors", "opencensus", "opentelemetry-exporter-prometheus"}
    assert not names & {"pandas", "pyarrow"}
    assert image_extras.table()["ray"].environment == {"RAY_AUTH_MODE": "token"}
    assert "--include-dashboard=false" in ray.SCRIPTS[ray.HEAD]


def test_a_verdict_counts_until_its_last_day(tmp_path: Path) -> None:
    value = record({"introduced": "0"}, database_specific={"severity": "HIGH"})
    value["id"] = "CVE-2026-41523"
    last = next(v.expires for v in vex.load("0.20.2") if v.name == "CVE-2026-41523")
    audit.demand(look(tmp_path, value, name="0.20.2", today=last))
    late = look(tmp_path, value, name="0.20.2", today=date.fromordinal(last.toordinal() + 1))
    assert late.findings[0].expired
    with pytest.raises(VulnerableError, match="expired"):
        audit.demand(late)


def test_an_exception_is_by_any_of_the_names_and_for_something(tmp_path: Path) -> None:
    value = record({"introduced": "0"}, aliases=["GHSA-aaaa-bbbb-cccc"])
    report = look(tmp_path, value)
    with pytest.raises(VulnerableError, match=r"CVE-2026-1 \(unknown"):
        audit.demand(report)
    audit.demand(report, ("GHSA-aaaa-bbbb-cccc",))
    with pytest.raises(UsageError, match="CVE-2026-2: this image has no"):
        audit.demand(report, ("CVE-2026-1", "CVE-2026-2"))
    with pytest.raises(VulnerableError):  # a part of the image: the exception may be for the rest
        audit.demand(report, ("CVE-2026-2",), complete=False)


@pytest.mark.parametrize(
    "name", ["", "CVE", "cve-2026-1", "CVE-2026-1\n", "CVE-2026-1;x", "CVE-" * 30]
)
def test_exceptions_have_the_form_of_identifiers(name: str) -> None:
    with pytest.raises(UsageError, match="not an identifier"):
        audit.check_allowed((name,))


GOOD: dict[str, Any] = {
    "@context": vex.CONTEXT,
    "@id": "urn:x",
    "author": "a",
    "timestamp": "2026-11-28T00:00:00Z",
    "version": 1,
    "statements": [
        {
            "vulnerability": {"name": "CVE-2026-1"},
            "products": [
                {"@id": "pkg:oci/vllm", "subcomponents": [{"@id": "pkg:pypi/vllm@0.20.2"}]}
            ],
            "status": "not_affected",
            "justification": "vulnerable_code_not_present",
            "impact_statement": "the code came later",
        }
    ],
}
EXPIRES = {"CVE-2026-1": "2027-01-01"}


def verdicts(
    change: dict[str, Any], expires: dict[str, str] | None = None
) -> tuple[vex.VexVerdict, ...]:
    document = GOOD | {"statements": [GOOD["statements"][0] | change]}
    content = json.dumps(document).encode()
    return vex.parse(content, "x.json", EXPIRES if expires is None else expires)


def test_a_release_that_an_image_names_is_no_path(tmp_path: Path) -> None:
    assert vex.load("../vex/0.20.2") == ()
    assert {verdict.name for verdict in vex.load("0.20.2")} > LISTED


def test_a_verdict_is_on_a_version() -> None:
    (found,) = verdicts({})
    names = frozenset({"CVE-2026-1", "GHSA-aaaa-bbbb-cccc"})
    assert found.about(names, VLLM)
    assert not found.about(names, OsvPackage(PYPI, "vllm", "0.20.3"))
    assert not found.about(frozenset({"CVE-2026-2"}), VLLM)
    (each,) = verdicts({"products": [{"@id": "pkg:pypi/vllm"}]})
    assert each.about(names, OsvPackage(PYPI, "vllm", "0.20.3"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"status": "harmless"}, "status 'harmless'"),
        ({"justification": "because"}, "justification 'because'"),
        ({"impact_statement": " "}, "no impact_statement"),
        ({"status": "fixed"}, "no status_notes"),
        ({"status": "affected", "status_notes": "it bites"}, "no action_statement"),
        ({"products": []}, "names no product"),
        ({"vulnerability": {"name": "x"}}, "not an identifier"),
    ],
)
def test_a_verdict_that_says_too_little_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(AdvisoryError, match=said):
        verdicts(change)


@pytest.mark.parametrize(
    ("expires", "said"),
    [
        ({}, "no expiry"),
        ({"CVE-2026-1": "2027-02-30"}, "a day that exists|expires on"),
        (EXPIRES | {"CVE-2026-2": "2027-01-01"}, "no verdict on CVE-2026-2"),
    ],
)
def test_each_verdict_has_one_expiry(expires: dict[str, str], said: str) -> None:
    with pytest.raises(AdvisoryError, match=said):
        verdicts({}, expires)


@fuzz
@given(spoilt(GOOD))
def test_fuzz_verdicts(value: Any) -> None:
    survives(lambda: vex.parse(json.dumps(value).encode(), "x.json", EXPIRES))


ANSWER = {"results": [{"vulns": [{"id": "CVE-2026-41523"}], "next_page_token": "2"}]}


@fuzz
@given(spoilt(ANSWER))
def test_fuzz_answers_of_a_service(value: Any) -> None:
    class Said(database.OsvService):
        def _ask(self, method: str, path: str, body: bytes | None) -> bytes:
            if method == "POST":
                return json.dumps(value).encode()
            return (DATA / "CVE-2026-41523.json").read_bytes()

    survives(lambda: Said("http://127.0.0.1:9").about([VLLM], quiet))


@fuzz
@given(spoilt({"expires": {"0.20.2": EXPIRES}}))
def test_fuzz_expiry(value: Any) -> None:
    survives(lambda: vex.FORMAT.parse(json.dumps(value), "expiry.yaml"))


@fuzz
@given(spoilt(json.loads((DATA / "PYSEC-2026-2303.json").read_text())))
def test_fuzz_records(value: Any) -> None:
    survives(lambda: affected(value, "0.20.2"))


# What an image has

STATUS = b"""Package: libssl3t64
Status: install ok installed
Architecture: amd64
Source: openssl (3.5.1-1)
Version: 3.5.1-1+b2

Package: bash
Status: install ok installed
Version: 5.2-1
Description: a shell
 of several lines

Package: gone
Status: deinstall ok config-files
Version: 1
"""
TRIXIE = b'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nID=debian\nVERSION_ID="13"\n'


def test_debian_packages_by_their_source() -> None:
    assert sorted(installed.of_dpkg(STATUS, TRIXIE)) == [
        OsvPackage(DEBIAN, "bash", "5.2-1"),
        OsvPackage(DEBIAN, "openssl", "3.5.1-1"),
    ]


def test_ubuntu_has_long_terms() -> None:
    text = b'ID=ubuntu\nVERSION_ID="24.04"\nVERSION="24.04.2 LTS (Noble Numbat)"\n'
    assert installed.ecosystem_of(text) == "Ubuntu:24.04:LTS"


def test_a_distribution_that_no_advisory_names() -> None:
    with pytest.raises(BinaryError, match="alpine"):
        installed.ecosystem_of(b"ID=alpine\nVERSION_ID=3.20.1\n")


def test_a_release_has_vllm_also_where_it_is_compiled() -> None:
    for name in release.names():
        found = installed.of_release(name).components
        assert OsvPackage(PYPI, "vllm", release.load(name).vllm_version) in found


# The service


class Service:
    """A server with the form of OSV's API: querybatch in pages, and records by name."""

    def __init__(self) -> None:
        self.records = {p.stem: p.read_bytes() for p in DATA.rglob("*.json")}
        self.asked: list[str] = []
        self.status = 200
        self.results: Any = None
        self.by_commit: dict[str, str] = {}
        self.queries: list[Any] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                service.asked.append(self.path)
                self.say(json.dumps(service.answer(asked["queries"])).encode())

            def do_GET(self) -> None:
                service.asked.append(self.path)
                self.say(service.records.get(self.path.rpartition("/")[2], b"{}"))

            def say(self, content: bytes) -> None:
                self.send_response(service.status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, queries: list[Any]) -> Any:
        if self.results is not None:
            return self.results
        self.queries += queries
        named: dict[str, list[str]] = {}
        for name in sorted(self.records.keys() - {*self.by_commit.values()}):
            for part in json.loads(self.records[name])["affected"]:
                named.setdefault(part["package"]["name"], []).append(name)
        out: list[Any] = []
        for query in queries:
            if "commit" in query:
                known = self.by_commit.get(query["commit"])
                out.append({"vulns": [{"id": known}]} if known else {})
            elif query["package"]["ecosystem"] != PYPI or not (
                names := named.get(query["package"]["name"], [])
            ):
                out.append({})
            elif query.get("page_token") == "second":
                out.append({"vulns": [{"id": name, "modified": "x"} for name in names[4:]]})
            elif len(names) <= 4:
                out.append({"vulns": [{"id": name} for name in names]})
            else:
                first = [{"id": name, "modified": "x"} for name in names[:4]]
                out.append({"vulns": first, "next_page_token": "second"})
        return {"results": out}


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_the_service_gives_what_a_folder_gives(service: Service) -> None:
    contents = installed.of_release("0.20.2")
    by_service = audit.run(contents, database.of(service.url), quiet, TODAY)
    by_folder = audit.run(contents, database.of(str(DATA)), quiet, TODAY)
    assert by_service.findings == by_folder.findings != ()
    # All packages in one request, the second page in another, each record once.
    assert service.asked.count("/v1/querybatch") == 2
    assert len(service.asked) == 2 + len(by_folder.findings)


def test_the_service_is_asked_by_commit_or_by_the_tag_of_a_repository(service: Service) -> None:
    name = "github.com/nvidia/cutlass"
    every = [OsvPackage(GIT, name, OLD), OsvPackage(GIT, name, "v4.4.2"), VLLM]
    service.records["CVE-2026-1"] = json.dumps(source({"introduced": "0"}, {"fixed": NEW})).encode()
    service.by_commit = {OLD: "CVE-2026-1"}
    found = database.of(service.url).about(every, quiet)
    assert [r.id for r in found[every[0]]] == ["CVE-2026-1"] and found[every[1]] == []
    assert service.queries[1]["package"] == {"name": f"https://{name}.git", "ecosystem": GIT}
    assert service.queries[1]["version"] == "v4.4.2"


def test_a_service_that_refuses(service: Service) -> None:
    service.status = 503
    with pytest.raises(AdvisoryError, match="503"):
        database.of(service.url).about([VLLM], quiet)


@pytest.mark.parametrize(
    "results",
    [
        {"results": []},
        {"results": [{"vulns": [{"id": "../../etc/passwd"}]}]},
        {"results": [{"vulns": [{"id": "CVE-2026-9"}]}]},  # whose record is another one
        {"results": [{"next_page_token": "more"}]},
        [],
    ],
)
def test_a_service_that_answers_wrongly(service: Service, results: Any) -> None:
    service.results = results
    service.records["CVE-2026-9"] = service.records["CVE-2026-41523"]
    with pytest.raises(AdvisoryError):
        database.of(service.url).about([VLLM], quiet)


def test_a_service_that_is_not_there() -> None:
    with pytest.raises(AdvisoryError, match="does not answer"):
        database.of("http://127.0.0.1:9").about([VLLM], quiet)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": "no"}', '{"id": 1}'])
def test_a_folder_with_a_broken_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "x.json").write_text(text)
    with pytest.raises(AdvisoryError, match=r"x\.json"):
        database.of(str(tmp_path)).about([VLLM], quiet)


def test_no_data_is_not_no_vulnerability(tmp_path: Path) -> None:
    with pytest.raises(AdvisoryError, match="holds no OSV files"):
        database.of(str(tmp_path)).about([VLLM], quiet)
    with pytest.raises(UsageError, match="neither a folder"):
        database.of(str(tmp_path / "none"))


# Publishing

BUILD = ("--arch", "sm121", "--release", "0.20.2", "--from", "wheel", "--base", "bootstrap")


def build(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "build.py"), *BUILD, *more],
        capture_output=True,
        text=True,
        env={**os.environ, "FP4FORGE_BUILD": str(folder), "DOCKER_HOST": "unix:///none"},
        timeout=60,
    )


def test_a_push_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    push = ("--push", "--registry", "127.0.0.1:9", "--advisories", str(DATA))
    done = build(tmp_path, *push)
    assert done.returncode == VulnerableError.exit_code == 30, done.stderr
    assert "PYSEC-2026-2303 (high 7.1)" in done.stderr and "--release 0.33.0" in done.stderr
    grave = ("PYSEC-2026-2303", "CVE-2026-115911", "GHSA-5r3c-5x4v-8gjh", "GHSA-v97p-wpxp-px84")
    accepted = build(tmp_path, *push, *(f"--allow-vulnerable={name}" for name in grave))
    # Accepted, and so the next step meets what is not there: the engine.
    assert "8 vulnerabilities" in accepted.stderr and accepted.returncode == 4, accepted.stderr


def test_an_exception_is_in_the_plan_and_its_id(tmp_path: Path) -> None:
    name = ("--advisories", str(DATA), "--allow-vulnerable", "PYSEC-2026-2303")
    plain, accepted = (
        json.loads(build(tmp_path, "--dry-run", "--json", *more).stdout) for more in ((), name)
    )
    assert (plain["allow_vulnerable"], accepted["allow_vulnerable"]) == ([], ["PYSEC-2026-2303"])
    assert plain["id"] != accepted["id"]


def test_an_exception_needs_data(tmp_path: Path) -> None:
    done = build(tmp_path, "--dry-run", "--allow-vulnerable", "PYSEC-2026-2303")
    assert done.returncode == 2 and "without --advisories" in done.stderr
    done = build(tmp_path, "--dry-run", "--advisories", str(DATA), "--allow-vulnerable", "x; rm")
    assert done.returncode == 2 and "not an identifier" in done.stderr
