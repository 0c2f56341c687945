"""Installed files and the RECORDs of their wheels."""

import base64
import concurrent.futures
import csv
import glob
import hashlib
import json
import os


def run(site: str, patched: list[str]) -> tuple[int, list[str]]:
    """How many files the RECORDs list, and the first that are missing or changed.

    Patched files, bytecode, and files that the build left out are not counted.
    """
    skipped = set(patched)
    for name in glob.glob("/opt/fp4forge/left-out/*.json"):
        with open(name) as file:
            skipped |= {entry["path"] for entry in json.load(file)}
    rows: dict[str, set[str]] = {}
    for record in glob.glob(site + "/*.dist-info/RECORD"):
        with open(record, newline="") as file:
            for path, digest, _ in csv.reader(file):
                name = os.path.relpath(os.path.join(site, path), site)
                hashed = digest.startswith("sha256=") and not name.endswith(".pyc")
                if hashed and name not in skipped:
                    rows.setdefault(name, set()).add(digest[7:])  # two wheels may bring one

    def check(row: tuple[str, set[str]]) -> str:
        name, digests = row
        try:
            with open(os.path.join(site, name), "rb") as file:
                found = hashlib.file_digest(file, "sha256").digest()
        except FileNotFoundError:
            return "missing " + name
        text = base64.urlsafe_b64encode(found).rstrip(b"=").decode()
        return "" if text in digests else "changed " + name

    with concurrent.futures.ThreadPoolExecutor() as pool:
        wrong = [said for said in pool.map(check, rows.items()) if said]
    return len(rows), wrong[:5]
