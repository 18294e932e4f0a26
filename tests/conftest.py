"""Set up what must hold before any test module is imported."""

import importlib.util
import os

import pytest

# One BLAS thread, as on a device, and read by the libraries when they load: so before the first import of numpy.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"

if importlib.util.find_spec("hypothesis"):  # the environment of onnxruntime-training goes without
    from hypothesis import settings

    # A busy machine is no fault: what takes time is measured by the benchmarks.
    settings.register_profile("untimed", deadline=None)
    settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what only tests that make pictures read."""
    parser.addoption("--screenshots", metavar="DIR", help="write the pictures of docs/dashboard.md there")
