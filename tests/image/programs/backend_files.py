"""Which files there are of those that kernels come from."""

import glob
import os


def run(site: str, wanted: list[str]) -> tuple[list[str], list[str]]:
    """Those of some globs that match a file, and FlashInfer's modules that were compiled.

    Args:
        site: the folder of installed packages, which globs are relative to.
        wanted: the globs.
    """
    files = [one for one in wanted if glob.glob(os.path.join(site, one), recursive=True)]
    ahead = glob.glob(os.path.join(site, "flashinfer/data/aot/*/*.so"))
    return files, [os.path.basename(path)[: -len(".so")] for path in ahead]
