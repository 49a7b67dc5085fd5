"""What only some systems have. Tests that need it are skipped on the others."""

import sys
from contextlib import contextmanager

import pytest

try:
    import resource
except ImportError:  # Windows
    resource = None

linux = pytest.mark.skipif(sys.platform != "linux", reason="forks, limits, links, names or files of Linux")


@contextmanager
def limited(what, most):
    """Lowers a limit of this process, such as RLIMIT_FSIZE: the bytes of a file."""
    kind = getattr(resource, what)
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))
