"""What an image gets on request: its plan, its tag, its stage."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fp4forge.core.errors import ReleaseError, UsageError
from fp4forge.image import render
from fp4forge.inputs import image_extras
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


def test_an_unknown_extra_is_refused() -> None:
    with pytest.raises(UsageError, match="--with 'ray' does not exist"):
        resolve(replace(REQUEST, extras=("rdma", "ray")))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("packages", "[libibverbs1; reboot]"),
        ("packages", "[]"),
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
