"""Every failure a user can meet: one class each, with its exit code and its remedy.

A message says what is wrong and where, ``rule`` what was expected, ``remedy`` what to do next.
Exit codes 0 and 2 keep their usual meaning (success, wrong usage); 70 is sysexits' EX_SOFTWARE.
"""

from __future__ import annotations

from fp4forge.kernels.base import BinaryError, ForgeError, ReleaseError, ToolError, UsageError

__all__ = ["BinaryError", "ForgeError", "ReleaseError", "ToolError", "UsageError"]


class BrokenReleasesError(ForgeError):
    """A release is broken; the command completed for the others."""

    exit_code = 22


class CoverageError(ForgeError):
    """A requested GPU would lack what was asked for."""

    exit_code = 3


class EngineError(ForgeError):
    """No Docker engine answers, or it lacks buildx or the containerd image store."""

    exit_code = 4


class RegistryError(ForgeError):
    """The registry is unreachable or refuses the request."""

    exit_code = 5


class PatchError(ForgeError):
    """A patch series is malformed, or a patch does not apply to its pinned source."""

    exit_code = 7


class ArtefactError(ForgeError):
    """A downloaded or local artefact does not have the pinned SHA-256."""

    exit_code = 8


class PlatformError(ForgeError):
    """This host's builder cannot build the platform."""

    exit_code = 9


class BaseImageError(ForgeError):
    """The base image is not available."""

    exit_code = 10


class BuildError(ForgeError):
    """A step of the image build failed."""

    exit_code = 11


class VerifyError(ForgeError):
    """A check on the built image failed; no tag was moved."""

    exit_code = 12


class DiskError(ForgeError):
    """There is not enough disk space."""

    exit_code = 13


class TagError(ForgeError):
    """An immutable tag already names another image."""

    exit_code = 14


class DriftError(ForgeError):
    """A generated file (lock, Dockerfile) differs from what its inputs give."""

    exit_code = 15


class CheckpointError(ForgeError):
    """A checkpoint is missing, unreadable, or cannot be served."""

    exit_code = 19


class ServingError(ForgeError):
    """A server is misconfigured, does not answer, or answers wrongly."""

    exit_code = 20


class FitError(ForgeError):
    """A model does not fit the GPUs that are to serve it."""

    exit_code = 25


class UnclearError(ForgeError):
    """The evidence shows neither a healthy server nor the cause of a fault."""

    exit_code = 26


class RegressionError(ForgeError):
    """A benchmark's result is worse than another by more than the threshold."""

    exit_code = 23


class BenchError(ForgeError):
    """A benchmark is malformed, its run has faults, or its results cannot be compared."""

    exit_code = 24


class CalibrationError(ForgeError):
    """A calibration text is missing, malformed, or too short for what was asked for."""

    exit_code = 28


class TransferError(ForgeError):
    """The image did not reach a target machine."""

    exit_code = 21


class SignatureError(ForgeError):
    """An image, attestation or record is not signed by the given key or identity."""

    exit_code = 27


class AdvisoryError(ForgeError):
    """Advisories or the verdicts on them cannot be obtained, or cannot be read."""

    exit_code = 29


class VulnerableError(ForgeError):
    """An image has an unexplained vulnerability of critical, high or unknown severity."""

    exit_code = 30


class RunLockError(ForgeError):
    """Image, model or settings differ from those in a run's lock."""

    exit_code = 31


class HostError(ForgeError):
    """This machine refuses what a step needs: a file, a folder, a handle."""

    exit_code = 17


class NoGpuError(ForgeError):
    """A step needs a GPU that this machine does not have."""

    exit_code = 32


class DefectError(ForgeError):
    """A defect in fp4forge. The message names a file with the details; please report it."""

    exit_code = 70


INTERRUPTED = 130
