"""Few-shot image data: data sets by name, and reproducible N-way K-shot tasks from them."""

from metasparse_ext.data.arrays import from_arrays, from_dataset
from metasparse_ext.data.augment import Augment, Normalize, augmented
from metasparse_ext.data.batch import Inputs, Samples, TaskBatch
from metasparse_ext.data.episodes import episodes
from metasparse_ext.data.errors import DataError, DataNotFoundError
from metasparse_ext.data.images import ImageClasses
from metasparse_ext.data.learn2learn import from_learn2learn
from metasparse_ext.data.mixture import Mixture, MixtureSampler
from metasparse_ext.data.registry import DATASETS, load
from metasparse_ext.data.sampler import EpisodeSampler
from metasparse_ext.data.sinusoid import Sinusoids
from metasparse_ext.data.splits import published
from metasparse_ext.data.transfer import on_device

__all__ = [
    "DATASETS",
    "Augment",
    "DataError",
    "DataNotFoundError",
    "EpisodeSampler",
    "ImageClasses",
    "Inputs",
    "Mixture",
    "MixtureSampler",
    "Normalize",
    "Samples",
    "Sinusoids",
    "TaskBatch",
    "augmented",
    "episodes",
    "from_arrays",
    "from_dataset",
    "from_learn2learn",
    "load",
    "on_device",
    "published",
]
