"""A registry's API over HTTP: answers are bounded in size and time; logins are docker's."""

from __future__ import annotations

import re
import time

from msgspec import Struct

from fp4forge.core import http, reading
from fp4forge.core.errors import DiskError, ForgeError, RegistryError
from fp4forge.core.limits import (
    MANIFEST_BYTES,
    REGISTRY_CONNECT_SECONDS,
    REGISTRY_PAUSES,
    REGISTRY_REDIRECTS,
    REGISTRY_SECONDS,
)
from fp4forge.core.text import shown
from fp4forge.oci.reference import ImageReference


def ask(
    method: str, repository: str, path: str, headers: dict[str, str], body: bytes | None = None
) -> http.HttpAnswer:
    """One request, with the login that the registry asks for.

    A read that meets a server's error is repeated: docker-registry answers 500 for a moment while
    another client writes the same manifest.

    Raises:
        RegistryError: no answer, or one that is too large or too slow.
    """
    answer = _ask_registry(method, repository, path, headers, body)
    for pause in REGISTRY_PAUSES if method in ("GET", "HEAD") else ():
        if answer.status < 500:
            break
        time.sleep(pause)
        answer = _ask_registry(method, repository, path, headers, body)
    return answer


def _ask_registry(
    method: str, repository: str, path: str, headers: dict[str, str], body: bytes | None
) -> http.HttpAnswer:
    reference = ImageReference(repository)
    host = reference.host or "registry-1.docker.io"
    name = repository.removeprefix(f"{reference.host}/") if reference.host else repository
    scheme = "http" if reference.loopback else "https"
    url = f"{scheme}://{host}/v2/" + (f"{name}/{path}" if path else "")
    answer = _send_request(method, url, headers, body, host)
    if answer.status == 401 and path:
        login = _authorization(host, answer.headers.get("www-authenticate", ""))
        answer = _send_request(method, url, headers | login, body, host)
    return answer


def _send_request(
    method: str, url: str, headers: dict[str, str], body: bytes | None, host: str
) -> http.HttpAnswer:
    limits = http.HttpLimits(
        REGISTRY_SECONDS, MANIFEST_BYTES, REGISTRY_CONNECT_SECONDS, REGISTRY_REDIRECTS
    )
    proxies = not ImageReference(f"{host}/").loopback
    try:
        answer = http.ask(method, url, limits, headers=headers, body=body, proxies=proxies)
    except http.NoHttpAnswer as error:
        raise RegistryError(
            f"no registry answers at {host}: {error}",
            rule=f"an answer within {REGISTRY_SECONDS} s (OCI distribution specification)",
            remedy="check the registry; scripts/registry.sh starts one on loopback",
        ) from None
    if answer.cut:
        raise RegistryError(
            f"{shown(url, 300)} is not answered whole: {answer.cut}",
            rule=f"at most {MANIFEST_BYTES >> 20} MiB, the limit for manifests (OCI distribution"
            f" specification), within {REGISTRY_SECONDS} s",
            remedy="check the registry; running again resumes",
        )
    return answer


class _Token(Struct, frozen=True):
    """A token server's answer (distribution's token specification)."""

    token: str | None = None
    access_token: str | None = None


def _docker_login(host: str) -> tuple[str, str]:
    """Name and password that ``docker login`` kept; empty if there are none.

    Raises:
        RegistryError: its file, or its credential helper, cannot be read.
    """
    from docker import auth

    try:
        known = auth.load_config().resolve_authconfig(host) or {}
        user, password = (known.get(k.lower()) or known.get(k) for k in ("Username", "Password"))
    except Exception as error:  # the library meets a file of any content
        raise RegistryError(
            f"the login for {host} cannot be read: {shown(error, 200) or type(error).__name__}",
            remedy="repair ~/.docker/config.json; 'docker login' writes it",
        ) from None
    return str(user or ""), str(password or "")


def _authorization(host: str, challenge: str) -> dict[str, str]:
    """The Authorization header that a challenge asks for (RFC 7235; token specification)."""
    import base64

    user, password = _docker_login(host)
    basic = ""
    if user and password:
        basic = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    kind, _, rest = challenge.partition(" ")
    if kind.lower() != "bearer":
        return {"Authorization": basic} if basic else {}
    fields = dict(re.findall(r'(\w+)="([^"]*)"', rest))
    query = {key: fields[key] for key in ("service", "scope") if key in fields}
    realm = fields.get("realm", "")
    if not realm.startswith("https://"):
        return {}
    from urllib.parse import urlencode

    headers = {"Authorization": basic} if basic else {}
    answer = _send_request("GET", f"{realm}?{urlencode(query)}", headers, None, host)
    try:
        found = reading.json(answer.content, _Token, "the token server's answer", RegistryError)
    except RegistryError:
        return {}
    token = found.token or found.access_token or ""
    return {"Authorization": f"Bearer {token}"} if re.fullmatch(r"[\x21-\x7e]+", token) else {}


def refused(repository: str, action: str, answer: http.HttpAnswer) -> ForgeError:
    """The error for a status that is none of success."""
    text = shown(answer.content[:200].decode(errors="replace"))
    if answer.status == 507 or "no space left" in text.lower():
        return DiskError(f"{action} in {repository}: {text}", remedy="free space at the registry")
    return RegistryError(
        f"{action} in {repository}: status {answer.status} {text}".strip(),
        remedy="check the registry and 'docker login'; running again resumes",
    )
