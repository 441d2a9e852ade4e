"""A network that left its run, with what it takes to classify images by it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from metasparse_ext._arguments import require, require_choice, require_size, require_text
from metasparse_ext.data.given import ImageReader
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
        require(isinstance(classes, list), "ExportedTask", "classes", "a list", classes)
        for name in classes:
            require_text("ExportedTask", "each of classes", name)
        images = json.loads(settings["images"])
        reader = ImageReader(**{**images, "shape": tuple(images["shape"])})
        for size in reader.shape:
            require_size("ExportedTask", "image shape", size)
        require_choice("ExportedTask", "inverted", reader.inverted, (True, False))
        return cls(network, tuple(classes), reader, settings)

    @torch.no_grad()
    def classify(self, images: Any) -> list[Prediction]:
        """Classifies images, in any of the forms that :meth:`~metasparse_ext.training.Trained
        .classify` takes.

        Raises:
            DataError, TypeError, ValueError: As there.
        """
        names, pixels = self.reader.read("classify", "images", images)
        return predictions(names, self.classes, self.network(pixels))
