"""Input files: whatever stands in one, its reader gives a value or one clear error."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fp4forge.core import limits, paths
from fp4forge.core.errors import ForgeError, PatchError, ReleaseError
from fp4forge.core.paths import PATCHES, RELEASES
from fp4forge.inputs import arch_rules, bases, defaults, patches, release, yaml_document
from fp4forge.inputs.reader import InputFormat
from fp4forge.maintain import schemas

FILES = {
    "release": RELEASES / "0.20.2.yaml",
    "bases": RELEASES / "bases.yaml",
    "defaults": RELEASES / "defaults.yaml",
    "series": PATCHES / "vllm/0.20.2/series.yaml",
}
REAL = {name: path.read_text() for name, path in FILES.items()}
FORMATS = {made.name: made for made in schemas.FORMATS}
LAUGHS = "a0: &a0 [ha]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 40)
)
BAD: dict[str, tuple[str | bytes, str]] = {
    "aliases that explode": (LAUGHS, "too many values"),
    "an alias of itself": ("a: &a [*a]", "no &a before it"),
    "lists in lists": ("a: " + "[" * 10_000, "nests too deep"),
    "lists in lists, closed": ("[" * 10_000 + "]" * 10_000, "nests too deep"),
    "mappings in mappings": ("{a: " * 10_000, "nests too deep"),
    "indented mappings": ("".join(" " * n + "a:\n" for n in range(300)), "nests too deep"),
    "many values": ("a: [" + "1, " * 6000 + "]", "too many values"),
    "a key twice": ("a: 1\nb: 2\na: 3", "line 3 has 'a' twice"),
    "a list": ("- a\n- b", "a list where a mapping is expected"),
    "null": ("null", "empty where a mapping is expected"),
    "nothing": ("", "empty where a mapping is expected"),
    "text": ("just text", "text where a mapping is expected"),
    "two documents": ("a: 1\n---\nb: 1", "line 2 starts a second document"),
    "Latin-1": ("a: 1\nb: é".encode("latin-1"), "line 2 is not UTF-8"),
    "UTF-16": ("a: 1".encode("utf-16"), "not UTF-8"),
    "NUL": ("a: \0", "control characters are not allowed"),
    "an escaped control character": ('a: "b\\n"', "control character"),
    "a block of lines": ("a: |\n  b\n  c\n", "control character"),
    "a surrogate": ('a: "\\ud800"', "not valid YAML"),
    "a huge integer": ("a: " + "9" * 5000, "takes for a number"),
    "a large integer": ("a: " + "9" * 16, "takes for a number"),
    "a base-60 integer": ("a: 190:20:30", "takes for a number"),
    "NaN": ("a: .nan", "takes for a number"),
    "infinity": ("a: 1.0e+999", "takes for a number"),
    "a date": ("a: 2026-01-01", "takes for a date"),
    "no date": ("a: 2026-99-99", "takes for a date"),
    "a merge key": ("a: &a {b: 1}\nc:\n  <<: *a", "line 3 has '<<'"),
    "a tag": ("a: !!python/object/apply:os.system [id]", "has the tag"),
    "a number as key": ("1: a", "a key that is a number"),
    "a list as key": ("[1]: a", "a key that is a list"),
    "an unknown alias": ("a: *b", "no &b before it"),
    "an open bracket": ("a: [1", "not valid YAML"),
    "a tab": ("a:\n\tb: 1", "line 2 is not valid YAML"),
    "too much": ("# " + "x" * limits.INPUT_BYTES, "too large"),
    "an unknown field": ("nonsense: 1", "nonsense is not a field"),
    "an unknown field like a place": ("'x` - at `$.torch': 1", "is not a field"),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_file_gives_one_clear_error(kind: str, bad: str, tmp_path: Path) -> None:
    content, says = BAD[bad]
    if FORMATS[kind].blocks and says == "control character":
        says = "not a field"  # its values may have several lines
    file = tmp_path / "file.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    start = time.monotonic()
    with pytest.raises(FORMATS[kind].failure) as caught:
        FORMATS[kind].read(file, "there/file.yaml")
    assert time.monotonic() - start < 20  # a busy machine; without limits it is for ever
    assert caught.value.message.startswith("there/file.yaml")
    assert says in caught.value.message
    assert len(caught.value.message) < 400
    assert caught.value.rule or caught.value.remedy


def test_a_key_is_one_line_where_values_may_have_more() -> None:
    assert yaml_document.compose('a: "b\\nc"', blocks=True).value == {"a": "b\nc"}
    with pytest.raises(yaml_document.MalformedYaml, match="key of several lines"):
        yaml_document.compose('"a\\nb": 1', blocks=True)


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_not_a_file_is_refused(kind: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path, tmp_path / "fifo", tmp_path / "loop", tmp_path / "missing"):
        said = r"^there (is a (folder|pipe)|cannot be read)"
        with pytest.raises(FORMATS[kind].failure, match=said):
            FORMATS[kind].read(path, "there")


@pytest.mark.parametrize(
    ("kind", "old", "new", "says", "rule"),
    [
        ("release", "torch: 2.11.0", "torch: 2.11", "torch is a number where text is", "2.11.0"),
        ("release", "torch: 2.11.0", "torch: [a]", "torch is a list where text is", "a version"),
        ("release", "torch: 2.11.0", "torch: two", "torch is 'two'", "a version, such as"),
        ("release", "torch: 2.11.0", "", "the file has no 'torch'", "a version, such as"),
        ("release", "58809377", "", "vllm.sdist.sha256 is '798", "a SHA-256"),
        ("release", "76ccf4c0", "x", "vllm.wheels.linux/arm64.sha256 is", "a SHA-256"),
        (
            "release",
            "    linux/arm64: 8",
            "    linux/riscv: 8",
            "wheel_arch_lists.linux/riscv is a",
            "a platform: linux/amd64, linux/arm64",
        ),
        ("release", "    linux/arm64: 8.0", "    # ", "vllm has no wheel_arch_lists", "arch list"),
        ("release", 'before: "2026-06-05"', 'before: "2026-13-05"', "before is '2026-13", "a day"),
        ("release", "sm103]", "sm99]", "leave_out[0].unless[1] is 'sm99'", "sm100, sm103"),
        ("release", "gb: 1.2", "gb: -1", "leave_out[0].gb is -1", "GB that the files take"),
        ("release", "gb: 1.2", "gb: much", "leave_out[0].gb is text where a number is", "GB"),
        ("release", "into: examples", "into: ../x", "externals.cutlass.pypi[1].into is", "root"),
        ("release", "into: examples", "goes: x", "pypi[1].goes is not a field", "folder, into"),
        ("bases", "suite: trixie", "image: a:b\n    suite: c", "bootstrap.image and", "one of"),
        ("bases", "suite: trixie", "", "bases.bootstrap.image and suite", "one of them"),
        ("bases", 'python: "3.13"', "python: 3.13", "bases.bootstrap.python is a number", "3.12"),
        ("bases", "image: ubuntu:24.04", "image: 'x:y AS z'", "ubuntu:24.04.image is", "a tag"),
        ("defaults", "strategy: wheel", "strategy: w", "image.strategy is 'w'", "source, wheel"),
        ("defaults", "product: gb10", "product: gb1", "product is 'gb1'", "as it is sold"),
        ("defaults", "  release: 0.19.1\n", "", "reference has no 'release'", "a release"),
        ("series", "tier: csrc", "tier: rust", "patches[7].tier is 'rust'", "python, csrc"),
        ("series", "'enable_sm120_family<'", "'('", "patches[7].detect has '('", "expression"),
        ("series", "[awq]", "[awk]", "patches[0].variants[0] is 'awk'", "awq, plain"),
        ("series", "file: gemma4-moe-prefix.patch", "file: ../x", "patches[0].file is", "beside"),
        ("series", "fixed_in: 0.21.0", "fixed_in: 0.21", "fixed_in is a number", "1.2.0"),
    ],
)
def test_a_message_names_file_line_field_and_rule(
    kind: str, old: str, new: str, says: str, rule: str
) -> None:
    assert old in REAL[kind]
    text = REAL[kind].replace(old, new, 1)
    with pytest.raises(FORMATS[kind].failure) as caught:
        FORMATS[kind].parse(text, "there.yaml")
    line = REAL[kind][: REAL[kind].index(old)].count("\n") + 1
    assert caught.value.message.startswith("there.yaml line ")
    assert says in caught.value.message
    assert rule in caught.value.rule
    assert caught.value.remedy
    said = int(caught.value.message.split()[2].rstrip(":"))
    around = any(word in says for word in ("has no", " and ", "detect"))
    assert said <= line if around else said == line


def test_numbers_where_text_is_wanted_belong_in_quotes() -> None:
    with pytest.raises(ReleaseError) as caught:
        release.parse(REAL["release"].replace('"13.0"', "13.0"), "releases/0.20.2.yaml")
    assert caught.value.remedy == "put it in quotes"


def test_names_that_are_not_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "0.1 copy.yaml").touch()
    (tmp_path / "vllm/old").mkdir(parents=True)
    (tmp_path / "vllm/old/series.yaml").touch()
    monkeypatch.setattr(release, "RELEASES", tmp_path)
    monkeypatch.setattr(paths, "PATCHES", tmp_path)
    with pytest.raises(ReleaseError, match="copy"):
        release.names()
    with pytest.raises(PatchError, match="old"):
        patches.versions("vllm")


UNFIT = (
    '{"units": [["a.cu"]], "targets": ["12.0f"], "results": ["%s"], '
    '"lists": {"13.0": {"12.0": %d}}, "fp8_guards": []}'
)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"units": 1}',
        "[" * 10_000,
        UNFIT % ("1", 0),
        UNFIT % ("0", 1),
        UNFIT % ("x", 0),
        UNFIT % ("0 0", 0),
        UNFIT % ("-1", 0),
    ],
)
def test_broken_arch_rules(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "archs").mkdir()
    (tmp_path / "archs/9.9.json").write_text(text)
    monkeypatch.setattr(arch_rules, "RELEASES", tmp_path)
    with pytest.raises(ReleaseError, match=r"archs/9.9.json does not hold a table"):
        arch_rules.load("9.9")


def test_schemas_are_what_the_types_give() -> None:
    assert schemas.differences() == []


def test_files_point_to_their_schemas() -> None:
    for kind, path in FILES.items():
        reference = REAL[kind].splitlines()[0].rpartition("$schema=")[2]
        assert (path.parent / reference).resolve() == paths.SCHEMAS / f"{kind}.json"


def test_schemas_describe_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemas, "SCHEMAS", tmp_path / "schemas")
    assert len(schemas.differences()) == schemas.write() == len(FORMATS)
    (tmp_path / "schemas/old.json").touch()
    assert schemas.differences() == ["differs: schemas/old.json"]
    schemas.write()
    assert schemas.differences() == []
    made = json.loads((tmp_path / "schemas/release.json").read_text())
    fields = made["$defs"]["Release"]["properties"]
    assert fields["strategies"]["propertyNames"]["pattern"] == "^(source|wheel)$"


# Whatever is in a file: the readers with the checks that come after the type.

EXAMPLES = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "300")),
    deadline=5000,  # ms; a hang, on a machine that does other things too
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
TOKENS = [
    "",
    "\n",
    "  ",
    ": ",
    "- ",
    "[",
    "]",
    "{",
    "}",
    "&a ",
    "*a",
    "<<",
    "!",
    "|\n",
    ">",
    "'",
    '"',
    "#",
    "%",
    "---\n",
    "\t",
    "\0",
    "\x7f",
    "é",
    "null",
    "2026-01-01",
    "1e9",
    "0x1",
    "~",
    "*runtime",
    "&runtime ",
    "9" * 30,
    "-1",
    ".inf",
    "yes",
    "` - at `$.torch`",
]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        ["awq", "wheel", "source", "linux/amd64", "0.20.2", "0" * 64, "a", "(", "a/b"]
    )
)


def _around(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=2)


KEYS = st.text(max_size=5) | st.sampled_from(["patches", "bases", "image", "vllm", "release"])
# Rather than st.recursive, which takes three times as long.
JSON = SCALARS | _around(SCALARS) | _around(_around(SCALARS))
VALUES = {kind: yaml_document.compose(text).value for kind, text in REAL.items()}


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Callable[[str], Any]]]:
    folder = tmp_path_factory.mktemp("patches")
    shutil.copytree(PATCHES / "vllm/0.20.2", folder / "vllm/0.20.2")

    def series(text: str) -> Any:
        (folder / "vllm/0.20.2/series.yaml").write_text(text)
        loaded = patches.load("vllm", "0.20.2")
        return [loaded.instructions(patch) for patch in loaded.patches]

    def of_release(text: str) -> Any:
        return release.parse(text, "releases/0.20.2.yaml").epoch

    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(paths, "PATCHES", folder)
        yield {
            "release": of_release,
            "bases": lambda text: bases.FORMAT.parse(text, "releases/bases.yaml"),
            "defaults": lambda text: defaults.FORMAT.parse(text, "releases/defaults.yaml"),
            "series": series,
        }


def survives(readers: dict[str, Callable[[str], Any]], kind: str, text: str) -> None:
    made: InputFormat[Any] = FORMATS[kind]
    try:
        readers[kind](text)
    except ForgeError as error:
        assert type(error) is made.failure
        assert error.message and (error.rule or error.remedy)


def test_the_readers_take_the_real_files(readers: dict[str, Callable[[str], Any]]) -> None:
    for kind, text in REAL.items():
        readers[kind](text)
        readers[kind](json.dumps(VALUES[kind]))


@EXAMPLES
@given(kind=st.sampled_from(list(FILES)), value=JSON)
def test_any_value(readers: dict[str, Callable[[str], Any]], kind: str, value: Any) -> None:
    survives(readers, kind, json.dumps(value))


@EXAMPLES
@given(kind=st.sampled_from(list(FILES)), data=st.data(), new=JSON | st.none())
def test_a_value_in_place_of_another(
    readers: dict[str, Callable[[str], Any]], kind: str, data: st.DataObject, new: Any
) -> None:
    value = json.loads(json.dumps(VALUES[kind]))
    inner = value
    while True:
        key = data.draw(
            st.sampled_from(list(inner) if isinstance(inner, dict) else range(len(inner)))
        )
        if not (isinstance(inner[key], (dict, list)) and inner[key] and data.draw(st.booleans())):
            break
        inner = inner[key]
    match data.draw(st.sampled_from(["replace", "remove", "add"])):
        case "replace":
            inner[key] = new
        case "remove":
            del inner[key]
        case "add":
            inner.update({data.draw(st.text()): new}) if isinstance(inner, dict) else inner.append(
                new
            )
    survives(readers, kind, json.dumps(value))


@EXAMPLES
@given(
    kind=st.sampled_from(list(FILES)),
    edits=st.lists(
        st.tuples(
            st.floats(0, 1), st.integers(0, 30), st.sampled_from(TOKENS) | st.text(max_size=10)
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_edited_text(
    readers: dict[str, Callable[[str], Any]], kind: str, edits: list[tuple[float, int, str]]
) -> None:
    text = REAL[kind]
    for where, length, new in edits:
        start = int(where * len(text))
        text = text[:start] + new + text[start + length :]
    survives(readers, kind, text)
