"""ELF files and the processors that they are for."""

import os


def run(machines: list[int]) -> tuple[int, list[str]]:
    """How many ELF files there are, and those for another machine (``e_machine``)."""
    seen, foreign = 0, []
    for folder, _, names in os.walk("/", followlinks=False):
        if folder.split("/")[1] in ("proc", "sys", "dev"):
            continue
        for name in names:
            path = os.path.join(folder, name)
            try:
                if os.path.islink(path) or os.path.getsize(path) < 64:
                    continue
                with open(path, "rb") as file:
                    head = file.read(20)
            except OSError:
                continue
            if head[:4] == b"\x7fELF":
                seen += 1
                if head[18] + 256 * head[19] not in machines:
                    foreign.append(path)
    return seen, foreign
