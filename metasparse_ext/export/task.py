"""A network that left its run, with what it takes to classify images by it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from metasparse_ext._arguments import (
    refuse,
    require,
    require_choice,
    require_count,
    require_flag,
    require_mapping,
    require_size,
    require_text,
    require_type,
)
from metasparse_ext.data.given import ImageReader
from metasparse_ext.data.options import FITS, GROUNDS, LARGEST_SIDE
from metasparse_ext.training.trained import Prediction, predictions


@dataclasses.dataclass(frozen=True)
class ExportedTask:
    """A network of one task, adapted to named classes.

    Attributes:
        network: From images (N, C, H, W), float32 in [0, 1], to logits (N, classes).
        classes: Their names, in the order of the logits.
        reader: Brings images to what the network takes.
        settings: What the file says of itself, by name.
    """

    network: nn.Module
    classes: tuple[str, ...]
    reader: ImageReader
    settings: Mapping[str, str]

    @classmethod
    def of(cls, network: nn.Module, settings: Mapping[str, str]) -> ExportedTask:
        """From the text that :func:`~metasparse_ext.export.files.described` makes.

        Raises:
            KeyError, TypeError, ValueError: If that is not what it should be.
        """
        classes = json.loads(settings["classes"])
        require_type("ExportedTask", "classes", classes, list, "a list of names")
        for name in classes:
            require_text("ExportedTask", "each of classes", name)
        task = cls(network, tuple(classes), _reader(json.loads(settings["images"])), settings)
        task._try()
        return task

    @torch.no_grad()
    def _try(self) -> None:
        """Refuses a network that does not make a logit a class of images of this shape."""
        weight = next(iter(self.network.state_dict().values()), torch.ones(()))
        images = torch.zeros(2, *self.reader.shape, dtype=weight.dtype)
        made, wanted = self.network(images), (2, len(self.classes))
        require(made.shape == wanted, "ExportedTask", "logits", f"of shape {wanted}", made)

    @torch.no_grad()
    def classify(self, images: Any) -> list[Prediction]:
        """Classifies images, in any of the forms that :meth:`~metasparse_ext.training.Trained
        .classify` takes.

        Raises:
            DataError, TypeError, ValueError: As there; a ValueError too for one image alone where
                the network takes the statistics of the images given, of one number a channel.
        """
        names, pixels = self.reader.read("classify", "images", images)
        try:
            logits = self.network(pixels)
        except ValueError:
            # Of one number a channel PyTorch takes no statistics.
            if len(pixels) > 1:
                raise
            expected = "2 or more, whose statistics the network takes"
            refuse("classify", "images", expected, "one image")
        return predictions(names, self.classes, logits)


def _reader(said: Any) -> ImageReader:
    """The reader whose fields a file names."""
    require_mapping("ExportedTask", "images", said)
    fields: dict[str, Any] = {**said, "shape": tuple(said["shape"])}
    reader = ImageReader(**fields)
    channels, height, width = reader.shape
    require_size("ExportedTask", "channels", channels)
    for size in (height, width):
        require_count("ExportedTask", "image size", size, least=1, most=LARGEST_SIDE)
    require_choice("ExportedTask", "fit", reader.fit, FITS)
    require_choice("ExportedTask", "ground", reader.ground, GROUNDS)
    require_flag("ExportedTask", "inverted", reader.inverted)
    return reader
