"""Few-shot image data: data sets by name, and reproducible N-way K-shot tasks from them."""

from metasparse_ext.data.batch import Samples, TaskBatch
from metasparse_ext.data.episodes import episodes
from metasparse_ext.data.errors import DataError, DataNotFoundError
from metasparse_ext.data.images import ImageClasses
from metasparse_ext.data.learn2learn import from_learn2learn
from metasparse_ext.data.mixture import Mixture, MixtureSampler
from metasparse_ext.data.registry import DATASETS, load
from metasparse_ext.data.sampler import EpisodeSampler
from metasparse_ext.data.transfer import on_device

__all__ = [
    "DATASETS",
    "DataError",
    "DataNotFoundError",
    "EpisodeSampler",
    "ImageClasses",
    "Mixture",
    "MixtureSampler",
    "Samples",
    "TaskBatch",
    "episodes",
    "from_learn2learn",
    "load",
    "on_device",
]
