"""PEP 517 backend: setuptools, building against the torch of the environment it installs into.

A torch extension must be compiled with the torch it will run with. Under build isolation the
interpreter is the target's own and only its site-packages are hidden: they are put back at the end
of ``sys.path``, so that the isolated build tools still win. Where there is no torch to find, the
front end is asked for one.
"""

import importlib
import importlib.util
import os
import sys
import sysconfig

from setuptools import build_meta as _setuptools
from setuptools.build_meta import *  # noqa: F403  (the hooks that need no change)

_TORCH = "torch>=2.11"


def _torch_is_importable() -> bool:
    if importlib.util.find_spec("torch"):
        return True
    for path in dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))):
        if os.path.isdir(os.path.join(path, "torch")):
            sys.path.append(path)
            importlib.invalidate_caches()
            return True
    return False


# Without the library nothing is built against torch.
_NO_BUILD = os.environ.get("METASPARSE_NO_BUILD", "0") not in ("", "0")
_MISSING = [] if _NO_BUILD or _torch_is_importable() else [_TORCH]


def get_requires_for_build_wheel(config_settings=None):
    return [*_setuptools.get_requires_for_build_wheel(config_settings), *_MISSING]


def get_requires_for_build_editable(config_settings=None):
    return [*_setuptools.get_requires_for_build_editable(config_settings), *_MISSING]


def get_requires_for_build_sdist(config_settings=None):
    return []
