"""What an image gets on request: its plan, its tag, its stage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fp4forge.core.errors import DriftError, ReleaseError, UsageError
from fp4forge.core.paths import DOCKERFILES, LOCKS
from fp4forge.image import context as contexts
from fp4forge.image import render
from fp4forge.inputs import image_extras, locks, release, sbom
from fp4forge.inputs.broken_releases import Failures
from fp4forge.maintain import locking
from fp4forge.plan import packages
from fp4forge.plan.request import ImageRequest
from fp4forge.plan.resolve import resolve
from fp4forge.publish import distro_packages

REQUEST = ImageRequest("sm121", strategy="wheel", base="bootstrap", aot="none")


def test_a_plan_with_an_extra_has_another_tag_and_the_same_dockerfile() -> None:
    plain, more = resolve(REQUEST), resolve(replace(REQUEST, extras=("rdma", "rdma")))
    assert more.moving_tag == plain.moving_tag.replace("bootstrap-", "bootstrap-rdma-")
    assert more.index_tag == f"{plain.index_tag}-rdma"
    assert render.dockerfile(plain) == render.dockerfile(more)
    assert (render.arguments(plain)["RDMA"], render.arguments(more)["RDMA"]) == ("none", "with")
    assert more.unpacked_gb == pytest.approx(
        plain.unpacked_gb + image_extras.table()["rdma"].gb, abs=1e-6
    )
    assert plain.extras == {} and "libibverbs.so.1" in more.extras["rdma"]


def test_its_packages_have_a_record_of_their_own() -> None:
    base, platform = "bootstrap", "linux/arm64"
    assert (
        distro_packages.record_of(base, platform, {"rdma": ()}).name == "bootstrap-rdma-arm64.txt"
    )
    # Ray brings no distribution package.
    assert distro_packages.record_of(base, platform, {"ray": ()}).name == "bootstrap-arm64.txt"


def test_ray_of_an_image_demands_a_token() -> None:
    """By a variable of the stage that has Ray; the image test holds images against the plan's."""
    plain, more = resolve(REQUEST), resolve(replace(REQUEST, extras=("ray",)))
    assert more.environment == plain.environment | {"RAY_AUTH_MODE": "token"}
    assert "RAY_AUTH_MODE" not in plain.environment
    stages = render.dockerfile(more).split("\nFROM ")
    (own,) = [stage for stage in stages if "ENV RAY_AUTH_MODE=token" in stage]
    assert own.partition("\n")[0].endswith("AS ray-with")


def test_a_plan_with_ray_has_its_locked_packages_as_a_layer() -> None:
    plain, more = resolve(REQUEST), resolve(replace(REQUEST, extras=("ray",)))
    assert more.moving_tag == plain.moving_tag.replace("bootstrap-", "bootstrap-ray-")
    assert more.programs == ("ray",) and plain.programs == ()
    assert more.unpacked_gb == pytest.approx(plain.unpacked_gb + 0.25)
    added = set(packages.versions(more)) - set(packages.versions(plain))
    assert "ray" in added and "ray" not in packages.layers(plain)
    layer = locks.entries(packages.layers(more)["ray"])
    assert set(layer) == added and all("--hash=sha256:" in block for block in layer.values())
    (file,) = set(packages.files(more)) - set(packages.files(plain))
    assert file.endswith("-ray.txt")
    found = contexts.assemble(more)
    assert found.files["locks/ray.txt"].decode() == packages.layers(more)["ray"]
    assert found.plan.packages["ray"] and LOCKS / file in found.sources
    assert found.plan.id != contexts.assemble(plain).plan.id
    assert "locks/ray.txt" not in contexts.assemble(plain).files


def test_the_records_of_each_layer_on_request_belong_to_a_rule() -> None:
    listed = {glob for rule in sbom.table().files for glob in rule.globs}
    for name, extra in image_extras.table().items():
        records = {f"licences/{name}.md", f"left-out/{name}.json", f"startup/{name}"}
        owned = {f"/opt/fp4forge/{record}" for record in records} & listed
        assert len(owned) == (3 if extra.requirements else 0)


def test_every_dockerfile_that_serves_installs_ray_from_its_lock_on_request() -> None:
    for path in DOCKERFILES.glob("[0-9]*/*.Dockerfile"):
        text = path.read_text()
        stage = text.split("AS ray-packages\n")[1].split("FROM ")[0]
        assert "COPY locks/ray.txt" in stage and "--lock /fp4forge/locks/ray.txt" in stage
        wanted = text.split("AS ray-with\n")[1].split("FROM ")[0]
        assert "COPY --link --from=ray-packages /out /" in wanted and "apt-get" not in wanted
        assert "FROM ray-${RAY} AS system-ray" in text


def test_every_lock_has_one_of_each_extra_and_they_share_no_package() -> None:
    for name in locking.every(release.names(), Failures()):
        for extra in image_extras.locked():
            more = locks.read(replace(name, extra=extra))
            assert more and not set(more) & set(locks.read(name)), name


def test_what_an_extra_adds_is_resolved_with_the_locks_versions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: dict[str, list[str]] = {}

    def answer(wanted: list[str], _: list[str], *__: str, constraints: list[str]) -> str:
        given.update(wanted=wanted, constraints=constraints)
        return "click==8.1 \\\n    --hash=sha256:aa\nray==2.60.0 \\\n    --hash=sha256:bb\n"

    monkeypatch.setattr(locking, "compile_", answer)
    name = locks.LockName("0.20.2", "wheel", "linux/arm64", "3.12", "ray")
    base = "click==8.1 \\\n    --hash=sha256:aa\nvllm==0.20.2 \\\n    --hash=sha256:cc\n"
    text = locking.resolve_extra(name, base)
    assert given == {"wanted": ["ray>=2.48.0"], "constraints": ["click==8.1"]}
    assert list(locks.entries(text)) == ["ray"] and "--with ray" in text


def test_an_unknown_extra_is_refused() -> None:
    with pytest.raises(UsageError, match="--with 'rays' does not exist"):
        resolve(replace(REQUEST, extras=("rdma", "rays")))


def test_an_extra_that_adds_nothing_is_refused() -> None:
    text = "extras:\n  x:\n    title: t\n    gb: 0\n    source: s\n"
    with pytest.raises(ReleaseError) as refused:
        image_extras.FORMAT.parse(text, "releases/extras.yaml")
    assert "packages or requirements" in f"{refused.value.message} {refused.value.rule}"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("packages", "[libibverbs1; reboot]"),
        ("packages", "[]"),
        ("requirements", "[]"),
        ("requirements", "['ray @ file:///tmp/ray.whl']"),
        ("requirements", "['--index-url=http://x']"),
        ("programs", "['ray; reboot']"),
        ("libraries", "[../libc.so.6]"),
        ("gb", "-1"),
        ("nope", "1"),
    ],
)
def test_a_table_with_a_wrong_field_is_refused(field: str, value: str) -> None:
    entry = {"title": "t", "packages": "[libx1]", "libraries": "[libx.so.1]", "gb": "0.1"}
    entry |= {"source": "s", field: value}
    lines = ["extras:", "  rdma:", *(f"    {name}: {text}" for name, text in entry.items())]
    with pytest.raises(ReleaseError):
        image_extras.FORMAT.parse("\n".join(lines), "releases/extras.yaml")


@pytest.mark.parametrize("text", ["", "# only a comment\n"])
def test_a_lock_without_packages_is_refused(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = locks.LockName("1.0", "wheel", "linux/amd64", "3.12")
    (tmp_path / name.file).write_text(text)
    monkeypatch.setattr(locks, "LOCKS", tmp_path)
    with pytest.raises(DriftError, match="has no packages"):
        locks.read(name)
