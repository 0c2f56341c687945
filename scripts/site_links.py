"""mkdocs hook: pages and linked files from outside docs/, so that every link works in both places.

On the repository's web page links are relative to the file. On the site README.md, CHANGELOG.md
and CONTRIBUTING.md are pages, and other files of the repository that a page links to are copied.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LOG = logging.getLogger("mkdocs.hooks.site_links")
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
# A Markdown link or an HTML image: everything up to the target, the target, an anchor.
_LINK = re.compile(r"""(\]\(|\b(?:src|href)=")([^\s:)#"]+)((?:#[^\s)"]*)?)""")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the top level's pages."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points links at the site's copy of their target; unknown targets are left to mkdocs."""
    source = Path(page.file.abs_src_path or "").relative_to(ROOT)

    def site(match: re.Match[str]) -> str:
        start, target, anchor = match.groups()
        path = os.path.normpath(source.parent / target)
        if start.endswith('"') and not (ROOT / path).is_file():
            # mkdocs itself checks Markdown links alone.
            LOG.warning("%s: no file '%s'", source, target)
        if path.startswith("docs/"):
            uri = path.removeprefix("docs/")
        elif path in PAGES:
            uri = PAGES[path]
        elif (ROOT / path).is_file():
            uri = f"repository/{path}"
            if uri not in files.src_uris:
                files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
        else:
            return match[0]
        return start + os.path.relpath(uri, PurePosixPath(page.file.src_uri).parent) + anchor

    # Code blocks stay as they are.
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else _LINK.sub(site, part) for part in parts)
