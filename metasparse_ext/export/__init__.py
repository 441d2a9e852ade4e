"""What leaves this package: an adapted network as a file that others read.

:meth:`metasparse_ext.training.Trained.export` writes them, :func:`load_sparse` reads the sparse one
again.
"""

from metasparse_ext.export.sparse import load_sparse
from metasparse_ext.export.task import ExportedTask

__all__ = ["ExportedTask", "load_sparse"]
