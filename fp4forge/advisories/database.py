"""Where OSV records come from: a folder of JSON files, or a service with OSV's API."""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from msgspec import Struct

from fp4forge.advisories import osv
from fp4forge.advisories.osv import Advisory, OsvPackage
from fp4forge.core import http, reading
from fp4forge.core.errors import AdvisoryError, UsageError
from fp4forge.core.limits import OSV_BYTES, OSV_FILES, OSV_PAGES, OSV_SECONDS
from fp4forge.core.text import shown, without_secrets
from fp4forge.kernels.base import Progress

# The public service (https://google.github.io/osv.dev/api/).
SERVICE = "https://api.osv.dev"
_BATCH = 1000  # queries of one request, the service's limit


class AdvisoryDatabase(Protocol):
    """Records by component."""

    name: str

    def about(
        self, components: Iterable[OsvPackage], report: Progress
    ) -> dict[OsvPackage, list[Advisory]]:
        """The records that may affect each component; ``osv.affects`` decides."""


def of(text: str) -> AdvisoryDatabase:
    """The database that ``--db`` or ``--advisories`` names.

    Raises:
        UsageError: it is neither an address nor a folder.
    """
    if text.startswith(("http://", "https://")):
        try:
            parts = http.address(text)
        except http.NoHttpAnswer as error:
            raise UsageError(str(error), rule=f"a folder of OSV files, or {SERVICE}") from None
        if parts.username or parts.password:
            raise UsageError(
                f"{without_secrets(text)} has a user or password in it",
                rule="an address without them: it is printed",
            )
        return OsvService(text.rstrip("/"))
    if not reading.is_folder(Path(text)):
        raise UsageError(
            f"{shown(text, 200)!r} is neither a folder of OSV files nor an address",
            rule=f"a folder with *.json in OSV's format, or {SERVICE}",
        )
    return OsvFolder(Path(text))


class OsvFolder:
    """A folder of OSV files, one record each, at any depth (as OSV's own exports are)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)
        self._named: dict[str, list[Advisory]] | None = None

    def about(
        self, components: Iterable[OsvPackage], report: Progress
    ) -> dict[OsvPackage, list[Advisory]]:
        """The records that name each component's package.

        Raises:
            AdvisoryError: a file is not an OSV record, or the folder has none.
        """
        if self._named is None:
            self._named = self._read(report)
        found = {}
        for one in components:
            records = self._named.get(osv.canonical(one.ecosystem, one.name), ())
            found[one] = list({record.id: record for record in records}.values())
        return found

    def _read(self, report: Progress) -> dict[str, list[Advisory]]:
        """Records by the packages that they name, of ecosystems that an image can have."""
        named: dict[str, list[Advisory]] = {}
        count = 0
        for path in sorted(self.path.rglob("*.json")):
            count += 1
            if count > OSV_FILES:
                raise AdvisoryError(f"{self.path} holds more than {OSV_FILES:,} files")
            if count % 500 == 0:
                report(f"{count:,} records of {self.path}")
            record = osv.parse(reading.content(path, AdvisoryError, OSV_BYTES), shown(path, 300))
            for part in record.affected:
                for key in osv.keys(part):
                    named.setdefault(key, []).append(record)
        if not count:
            raise AdvisoryError(
                f"{self.path} holds no OSV files",
                rule="*.json, one record in each",
                remedy="unpack an export of osv.dev there",
            )
        return named


class _OsvNamed(Struct, frozen=True):
    id: str


class _Result(Struct, frozen=True):
    vulns: list[_OsvNamed] = []
    next_page_token: str = ""


class _Results(Struct, frozen=True):
    results: list[_Result]


def _query_of(one: OsvPackage) -> dict[str, Any]:
    """What OSV's service is asked: a commit alone, a repository and its tag, or a package."""
    if osv.COMMIT.fullmatch(one.version) and one.ecosystem == osv.GIT:
        return {"commit": one.version}
    name = f"https://{one.name}.git" if one.ecosystem == osv.GIT else one.name
    return {"package": {"name": name, "ecosystem": one.ecosystem}, "version": one.version}


class OsvService:
    """A service with OSV's API: POST /v1/querybatch, then GET /v1/vulns/{id}."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.name = url

    def about(
        self, components: Iterable[OsvPackage], report: Progress
    ) -> dict[OsvPackage, list[Advisory]]:
        """The records that the service gives for each component's version.

        Raises:
            AdvisoryError: it does not answer, refuses, or sends something else.
        """
        every = list(components)
        found: dict[OsvPackage, list[str]] = {one: [] for one in every}
        for start in range(0, len(every), _BATCH):
            batch = every[start : start + _BATCH]
            report(f"{self.url}: {start + len(batch)} of {len(every)} packages")
            self._query(batch, found)
        wanted = sorted({name for names in found.values() for name in names})
        report(f"{self.url}: {len(wanted)} records")
        with ThreadPoolExecutor(8) as pool:  # they wait on the network
            records = dict(zip(wanted, pool.map(self._record, wanted), strict=True))
        return {one: [records[name] for name in names] for one, names in found.items()}

    def _query(self, batch: list[OsvPackage], found: dict[OsvPackage, list[str]]) -> None:
        """Adds identifiers by component; a package with many of them comes in pages."""
        waiting = [(one, "") for one in batch]
        for _ in range(OSV_PAGES):
            queries = [
                _query_of(one) | ({"page_token": token} if token else {}) for one, token in waiting
            ]
            body = json.dumps({"queries": queries}).encode()
            content = self._ask("POST", "/v1/querybatch", body)
            results = reading.json(content, _Results, self.url, AdvisoryError).results
            if len(results) != len(waiting):
                raise AdvisoryError(
                    f"{self.url} answers {len(results)} of {len(waiting)} queries",
                    rule="one result for each query, in their order (OSV's API)",
                )
            further = []
            for (one, _token), result in zip(waiting, results, strict=True):
                found[one] += [entry.id for entry in result.vulns]
                if result.next_page_token:
                    further.append((one, result.next_page_token))
            if not further:
                return
            waiting = further
        raise AdvisoryError(f"{self.url} sends more than {OSV_PAGES} pages for one package")

    def _record(self, name: str) -> Advisory:
        if not osv.IDENTIFIER.fullmatch(name):
            raise AdvisoryError(
                f"{self.url} names an advisory {shown(name, 80)!r}", rule="DATABASE-ENTRY"
            )
        record = osv.parse(self._ask("GET", f"/v1/vulns/{name}", None), f"{self.url} {name}")
        if record.id != name:
            raise AdvisoryError(f"{self.url} sends {record.id} for {name}")
        return record

    def _ask(self, method: str, path: str, body: bytes | None) -> bytes:
        limits = http.HttpLimits(OSV_SECONDS, OSV_BYTES)
        headers = {"Content-Type": "application/json"} if body else {}
        proxies = not self.url.startswith(("http://127.", "http://localhost"))
        remedy = "try again, or give --db a folder of OSV files"
        try:
            answer = http.ask(
                method, self.url + path, limits, headers=headers, body=body, proxies=proxies
            )
        except http.NoHttpAnswer as error:
            raise AdvisoryError(f"{self.url} does not answer: {error}", remedy=remedy) from None
        if answer.cut or answer.status != 200:
            why = (
                answer.cut
                or f"status {answer.status} {shown(answer.content[:200].decode(errors='replace'))}"
            )
            raise AdvisoryError(f"{self.url}{path}: {why}", remedy=remedy)
        return answer.content
