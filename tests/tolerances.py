"""The one tolerance table; it lies in the package, since `advcam-fast bench` holds its results against it too."""

from advcam_fast.bench.tolerances import TOLERANCE, close

__all__ = ["TOLERANCE", "close"]
