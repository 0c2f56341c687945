"""The SBOM: an image's files and packages, what belongs to what, and both documents."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fp4forge.core.errors import ForgeError, RegistryError, VerifyError
from fp4forge.inputs.release import Release
from fp4forge.inputs.sbom import FORMAT, expression, site_of, table
from fp4forge.plan.plan import Plan
from fp4forge.plan.request import ImageRequest
from fp4forge.plan.resolve import resolve
from fp4forge.sbom import contents, documents, inventory
from fp4forge.sbom.components import Inventory, SbomComponent, SbomSubject, assemble, inventory_of
from tests.fuzz import fuzz

PYTHON = "3.13"
SITE = site_of(PYTHON)
STATUS = """\
Package: libthing1
Status: install ok installed
Architecture: amd64
Source: thing (2:1.0-3)
Version: 2:1.0-3+b1

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1

Package: tool
Status: install ok installed
Architecture: all
Version: 7
"""


def wheel(root: Path, name: str, version: str, files: dict[str, str], licence: str) -> None:
    """An installed wheel with its RECORD, as uv leaves it."""
    site = root / SITE[1:]
    info = f"{name}-{version}.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n{licence}\n"
    }
    rows = []
    for path, text in files.items():
        target = site / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode()
        rows.append(f"{path},sha256={digest.rstrip('=')},{len(text)}")
    (site / info / "RECORD").write_text("\n".join([*rows, f"{info}/RECORD,,", ""]))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small image: two distribution packages, three wheels, and files of rules."""
    root = tmp_path / "root"
    for name, text in {
        "usr/lib/os-release": 'ID=debian\nVERSION_ID="13"\n',
        "usr/lib/x86_64-linux-gnu/libthing.so.1": "elf",
        "usr/bin/tool": "#!/bin/sh",
        "usr/lib/python3/tool.py": "pass",
        "usr/lib/python3/__pycache__/tool.cpython-313.pyc": "code",
        "usr/share/doc/libthing1/copyright": "License: Expat\n\nFiles: x\nLicense: GPL-2+\n",
        "var/lib/dpkg/status": STATUS,
        "var/lib/dpkg/info/libthing1:amd64.list": (
            "/.\n/lib\n/lib/x86_64-linux-gnu/libthing.so.1\n/usr/share/doc/libthing1\n"
            "/usr/share/doc/libthing1/copyright\n/usr/share/doc/libthing1/changelog.gz\n"
        ),
        "var/lib/dpkg/info/libthing1:amd64.md5sums": "",
        "var/lib/dpkg/info/tool.list": (
            "/.\n/usr/bin/tool\n/usr/lib/python3/tool.py\n/usr/lib/os-release\n"
        ),
        "var/lib/dpkg/alternatives/pager": "auto\n/usr/bin/pager\n\n/usr/bin/tool\n10\n\n",
        "etc/passwd": "root",
        "opt/fp4forge/plan.json": "{}",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "lib").symlink_to("usr/lib")
    (root / "etc/alternatives").mkdir()
    (root / "etc/alternatives/pager").symlink_to("/usr/bin/tool")
    (root / "usr/bin/pager").symlink_to("/etc/alternatives/pager")
    wheel(root, "vllm", "0.20.2", {"vllm/__init__.py": "", "vllm/_C.abi3.so": "elf"}, "")
    wheel(
        root,
        "nvidia_cublas",
        "13.1.0.3",
        {"nvidia/cu13/lib/libcublas.so.13": "elf"},
        "License-Expression: LicenseRef-NVIDIA-Proprietary",
    )
    wheel(root, "Odd.Name", "1", {"odd.py": ""}, "License: Very Odd Terms")
    (root / SITE[1:] / "nvidia/cu13/lib/libcublas.so").symlink_to("libcublas.so.13")
    return root


@pytest.fixture(scope="module")
def plan() -> Plan:
    return resolve(ImageRequest("blackwell", "0.20.2", "awq", "wheel", "bootstrap", aot="none"))


def read(root: Path) -> Inventory:
    return contents.read_root(str(root), PYTHON, table(), "a tree")


def subject(plan: Plan) -> SbomSubject:
    return SbomSubject(
        digest="sha256:" + "ab" * 32,
        platform=plan.platform,
        title="fp4forge vLLM",
        version=plan.vllm_version,
        plan="0123456789ab",
        epoch=plan.epoch,
    )


def test_every_file_belongs_to_an_entry_or_a_rule(root: Path, plan: Plan) -> None:
    found = read(root)
    assert found.unowned == []
    assert found.rules["python-bytecode"] == 1
    assert found.rules["cuda-names"] == 1
    assert found.rules["alternatives"] == 2
    assert contents.faults(assemble(found, plan, table()), found) == []


@pytest.mark.parametrize(
    "path",
    [
        "usr/bin/implant",
        f"{SITE[1:]}/vllm/implant.py",
        f"{SITE[1:]}/vllm/__pycache__/implant.cpython-313.pyc",  # no module of that name
        "opt/fp4forge/implant.json",
        "etc/ssl/certs/implant.pem",  # the rule is for links to packages' certificates
    ],
)
def test_a_file_that_was_added_is_noticed(root: Path, plan: Plan, path: str) -> None:
    components = assemble(read(root), plan, table())
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text("x")
    with pytest.raises(VerifyError, match=f"belong to no entry and no rule: /{path}"):
        contents.demand(components, read(root))


def test_a_link_that_leads_to_no_package_is_noticed(root: Path) -> None:
    (root / "etc/ssl/certs").mkdir(parents=True)
    (root / "etc/ssl/certs/good.pem").symlink_to("/usr/bin/tool")
    (root / "etc/ssl/certs/bad.pem").symlink_to("/tmp/mine")
    assert read(root).unowned == ["/etc/ssl/certs/bad.pem"]


def test_an_entry_that_was_deleted_is_noticed(root: Path, plan: Plan) -> None:
    found = read(root)
    components = assemble(found, plan, table())
    for gone in ("libthing1", "nvidia-cublas"):
        left = [component for component in components if component.name != gone]
        with pytest.raises(VerifyError, match=f"have files and no entry in the SBOM: {gone}"):
            contents.demand(left, found)


def test_a_package_record_that_was_deleted_leaves_its_files_to_nobody(root: Path) -> None:
    shutil.rmtree(root / SITE[1:] / "Odd.Name-1.dist-info")
    assert read(root).unowned == [f"{SITE}/odd.py"]


def test_an_entry_without_a_file_is_noticed(root: Path, plan: Plan) -> None:
    found = read(root)
    more = SbomComponent(name="ghost", version="1", purl="pkg:pypi/ghost@1", ecosystem="PyPI")
    lines = contents.faults([*assemble(found, plan, table()), more], found)
    assert lines == ["have an entry in the SBOM and no file: ghost 1"]
    for name in ("usr/bin/tool", "usr/lib/python3/tool.py", "usr/lib/os-release"):
        (root / name).unlink()
    (root / "var/lib/dpkg/info/tool.list").rename(root / "var/lib/dpkg/info/tool.list.old")
    assert read(root).empty == ["tool 7"]


def test_what_an_entry_says(root: Path, plan: Plan) -> None:
    by_name = {c.name: c for c in assemble(read(root), plan, table())}
    assert "gone" not in by_name
    thing = by_name["libthing1"]
    assert thing.purl == "pkg:deb/debian/libthing1@2:1.0-3%2Bb1?arch=amd64&distro=debian-13"
    assert (thing.ecosystem, thing.source, thing.source_version) == (
        "Debian:13",
        "thing",
        "2:1.0-3",
    )
    assert thing.licence == "GPL-2.0-or-later AND MIT"
    cublas = by_name["nvidia-cublas"]
    assert cublas.licence == "LicenseRef-NVIDIA-Proprietary"
    assert len(cublas.sha256) >= 1  # the lock's: this version is that of the release
    assert by_name["odd-name"].sha256 == ()
    assert set(by_name["vllm"].patches) == set(plan.patches)
    assert isinstance(plan.inputs.release, Release)
    assert by_name["vllm"].sha256 == (plan.inputs.release.vllm.wheels["linux/amd64"].sha256,)
    cutlass = by_name["cutlass"]
    assert cutlass.version == plan.inputs.release.externals["cutlass"].commit
    assert cutlass.inside == "pkg:pypi/vllm@0.20.2"


def test_a_vendored_source_is_of_the_repository_that_the_release_pins(root: Path) -> None:
    """A release may take a fork; the table has the project's own repository."""
    forked = resolve(ImageRequest("blackwell", "0.33.0", "plain", "wheel", "bootstrap", aot="none"))
    (root / SITE[1:] / "vllm/third_party/deep_gemm").mkdir(parents=True)
    (found,) = [c for c in assemble(read(root), forked, table()) if c.name == "DeepGEMM"]
    assert found.source == "https://github.com/vllm-project/DeepGEMM"
    assert found.purl.startswith("pkg:github/vllm-project/deepgemm@")
    own = resolve(ImageRequest("blackwell", "0.20.2", "awq", "wheel", "bootstrap", aot="none"))
    (found,) = [c for c in assemble(read(root), own, table()) if c.name == "DeepGEMM"]
    assert (found.source, found.version) == ("https://github.com/deepseek-ai/DeepGEMM", "")


def test_documents_repeat_and_can_be_read_back(root: Path, plan: Plan) -> None:
    components = assemble(read(root), plan, table())
    patches = plan.inputs.series.for_variant(plan.variant)
    cyclonedx = documents.cyclonedx(subject(plan), components, patches)
    assert documents.cyclonedx(subject(plan), components, patches) == cyclonedx
    assert documents.read(cyclonedx, "it") == components
    bom = json.loads(cyclonedx)
    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.6")
    vllm = next(c for c in bom["components"] if c["name"] == "vllm")
    assert len(vllm["pedigree"]["patches"]) == len(plan.patches)
    spdx = documents.spdx(subject(plan), components, patches)  # validated by its library
    assert documents.spdx(subject(plan), components, patches) == spdx
    document = json.loads(spdx)
    purls = {r["referenceLocator"] for p in document["packages"] for r in p.get("externalRefs", [])}
    assert purls == {component.purl for component in components}
    kinds = [relation["relationshipType"] for relation in document["relationships"]]
    assert kinds.count("PATCH_FOR") == len(plan.patches)
    assert {"Very Odd Terms"} <= {
        entry["extractedText"] for entry in document["hasExtractedLicensingInfos"]
    }


def test_globs() -> None:
    import re

    assert re.fullmatch(expression("/a/*.so"), "/a/x.so")
    assert not re.fullmatch(expression("/a/*.so"), "/a/b/x.so")
    assert re.fullmatch(expression("/a/**"), "/a/b/x.so")
    assert re.fullmatch(expression("/a/{doc,man}/x"), "/a/man/x")
    assert not re.fullmatch(expression("/a/.x"), "/a/bx")


def test_links_do_not_lead_out_of_the_root(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "up").symlink_to("../../../../etc")
    (tmp_path / "a" / "self").symlink_to("self")
    tree = inventory.RootTree(str(tmp_path))
    assert tree.real("/a/up/passwd") == "/etc/passwd"
    assert tree.text("/a/up/passwd") == ""
    assert tree.real("/a/self/x").endswith("/x")


@fuzz
@given(st.binary(max_size=300))
def test_an_inventory_of_any_bytes(answer: bytes) -> None:
    with pytest.raises(ForgeError):
        inventory_of(answer, "fuzz")


@fuzz
@given(st.recursive(st.none() | st.text() | st.integers(), lambda c: st.lists(c, max_size=3)))
def test_a_document_of_any_json(value: object) -> None:
    for content in (value, {"components": value}, {"components": [value]}):
        try:
            found = documents.read(json.dumps(content).encode(), "fuzz")
        except RegistryError as error:
            assert error.message
        else:
            assert all(isinstance(component, SbomComponent) for component in found)


@fuzz
@given(st.text(max_size=200))
def test_a_table_of_any_text(text: str) -> None:
    try:
        FORMAT.parse(text, "fuzz")
    except ForgeError as error:
        assert error.message


def test_a_layers_page_of_licences(root: Path) -> None:
    from fp4forge.image.stages import install

    rows = install.licences(root / SITE[1:]).splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| nvidia_cublas", "| Odd.Name", "| vllm"]
    assert "LicenseRef-NVIDIA-Proprietary | nvidia_cublas-13.1.0.3.dist-info" in rows[0]
    assert "Very Odd Terms" in rows[1]
    assert "its licence file" in rows[2]


def test_the_page_of_terms_is_in_the_build_context(plan: Plan) -> None:
    from fp4forge.image import context

    page = context.assemble(plan).files[context.TERMS_FILE].decode()
    for name, terms in table().terms.items():
        assert name in page
        assert terms.url in page
    assert all(source.repository in page for source in table().vendored)


def test_an_images_page_of_licences(root: Path, plan: Plan) -> None:
    from fp4forge.sbom import licences as page

    components = assemble(read(root), plan, table())
    text = page.licences(components, table(), "an image")
    assert text.count("| nvidia-cublas | 13.1.0.3 |") == 2  # under NVIDIA's terms, and in its list
    assert all(f"| {component.name} | {component.version} |" in text for component in components)


def test_a_warm_layer_is_two_files(root: Path) -> None:
    warm = root / "opt/fp4forge/warm"
    warm.mkdir()
    for name in ("cache.tar", "key.json", "more"):
        (warm / name).write_text("x")
    found = read(root)
    assert found.unowned == ["/opt/fp4forge/warm/more"] and found.rules["compile-caches"] == 2
