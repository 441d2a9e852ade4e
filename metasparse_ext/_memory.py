"""Memory that the process keeps instead of giving it back to the system at every step, or gives."""

import ctypes
import sys
import warnings

# Parameters of glibc's mallopt (malloc.h).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_DISABLED = -1
_PAD = 64 << 20  # bytes that the heap grows by at least


def keep_memory() -> bool:
    """Makes the process keep the memory that it frees, for its next tensors.

    glibc gives every large tensor back to the system when it is freed, and the system hands its
    pages out anew, zeroed one by one, at the next step: up to a third of the time of a meta-step on
    large images. After this call large blocks come from the heap, which is never trimmed. The
    process holds on to the most that it ever used at once, plus what falls between blocks (0 to
    15 %), and other libraries in it allocate in this way, too: that is why a program asks for it,
    once, at its start, and importing the package does not. The command line does ask.

    Returns:
        Whether memory is kept: False, after a warning, where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _DISABLED, _M_TOP_PAD: _PAD}
    if mallopt is None or not all(mallopt(name, value) for name, value in settings.items()):
        warnings.warn("keep_memory: expected glibc; memory is kept as before", stacklevel=2)
        return False
    return True


def give_back() -> None:
    """Gives the system what the process has freed, where the C library is glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
