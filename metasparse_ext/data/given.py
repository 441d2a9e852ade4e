"""Single images from outside of any data set, brought to what a trained network takes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metasparse_ext._arguments import refuse, require, shown, typed
from metasparse_ext.data.arrays import one_picture
from metasparse_ext.data.errors import DataError, DataNotFoundError
from metasparse_ext.data.images import in_channels, left_out
from metasparse_ext.data.options import parse
from metasparse_ext.data.picture import Picture, file_picture, pixels
from metasparse_ext.data.walk import image_files

_IMAGES = "a path, a Pillow image, an array or a tensor, or a list of such"


@dataclass(frozen=True)
class ImageReader:
    """Brings images to the shape and range of those that a network was trained on.

    Attributes:
        shape: (C, H, W) of the network's images, H = W.
        fit: What becomes of pictures that are not square, as in ``data.load``.
        ground: What shows through transparent pixels.
        inverted: Whether dark becomes bright, in files and Pillow images.
    """

    shape: tuple[int, int, int]
    fit: str = "squash"
    ground: str = "white"
    inverted: bool = False

    def read(self, owner: str, argument: str, images: Any) -> tuple[list[str], Tensor]:
        """Reads one image or several.

        Args:
            owner, argument: Who asks and for what, for messages.
            images: A list of paths, of Pillow images, of arrays (H, W) or (H, W, C), of tensors
                (C, H, W); one of these; or a tensor (N, C, H, W). Arrays and tensors are uint8, or
                floating point in [0, 1]. A tensor of the network's own shape is taken as it is;
                any other image goes the way of a file's, by 8 bits a pixel.

        Returns:
            What to call each image, and (N, C, H, W) float32 in [0, 1].

        Raises:
            DataError: A file that cannot be read, or an image of another shape or range.
            TypeError: An image of another type.
            ValueError: No image.
        """
        each = _listed(owner, argument, images)
        require(len(each) > 0, owner, argument, "at least one image", images)
        names = [
            os.fspath(image) if isinstance(image, (str, os.PathLike)) else f"{argument}[{index}]"
            for index, image in enumerate(each)
        ]
        read = [self._one(owner, name, image) for name, image in zip(names, each, strict=True)]
        return names, torch.stack(read)

    def _one(self, owner: str, name: str, image: Any) -> Tensor:
        if isinstance(image, Tensor) and tuple(image.shape) == self.shape:
            exact = _exact(owner, name, image)
            if exact is not None:
                return exact
        size = self.shape[1]
        picture = self._picture(owner, name, image)
        array = pixels(owner, picture, image_size=size, fit=self.fit, ground=self.ground)
        array = in_channels(array, self.shape[0])
        return torch.from_numpy(np.divide(array, np.float32(255), dtype=np.float32))

    def _picture(self, owner: str, name: str, image: Any) -> Picture:
        if isinstance(image, (str, os.PathLike)):
            return file_picture(Path(image).expanduser(), inverted=self.inverted)
        if not isinstance(image, (Image.Image, Tensor, np.ndarray)):
            refuse(owner, name, _IMAGES, typed(image), TypeError)
        picture = one_picture(owner, name, image)
        drawn = self.inverted and isinstance(image, Image.Image)
        return replace(picture, inverted=True) if drawn else picture


def reader_of(data: str, shape: tuple[int, int, int], *, invert: bool | None = None) -> ImageReader:
    """The reader whose images are those of a data set, as a run names it.

    Args:
        data: One data set, with its options: ``NAME[:PATH][,OPTION=VALUE]...``.
        shape: (C, H, W) of the network's images.
        invert: Whether dark becomes bright in files and Pillow images; by default where the reader
            of the data set does so, which is Omniglot's.
    """
    spec = parse(data)
    chosen = {name: str(spec.options[name]) for name in ("fit", "ground") if name in spec.options}
    return ImageReader(
        shape, **chosen, inverted=spec.name == "omniglot" if invert is None else invert
    )


def class_folders(owner: str, folder: Path) -> dict[str, list[Path]]:
    """The images of a folder with a folder for each class, ``FOLDER/CLASS/*``, by class.

    Raises:
        DataNotFoundError: There is no such folder, or no image in it.
        DataError: A folder cannot be read, or images lie in none of a class.
    """
    if not folder.is_dir():
        raise DataNotFoundError(f"{owner}: no folder {folder}")
    images, strays = image_files(folder, owner)
    if "." in images:
        raise DataError(
            f"{owner}: expected a folder of images for each class, {folder}/CLASS/*, got "
            f"{len(images['.'])} images in {folder} itself, such as {images['.'][0].name}"
        )
    if not images:
        raise DataNotFoundError(f"{owner}: no images {folder}/CLASS/*")
    if strays:
        noted = left_out(list(map(str, strays)), "file", "of no image format")
        warnings.warn(f"{folder}: {noted}", stacklevel=2)
    return images


def _listed(owner: str, argument: str, images: Any) -> Sequence[Any]:
    if isinstance(images, (str, os.PathLike, Image.Image, np.ndarray)):
        return [images]
    if isinstance(images, Tensor):
        require(images.dim() in (2, 3, 4), owner, argument, "(N, C, H, W) or (C, H, W)", images)
        return list(images) if images.dim() == 4 else [images]
    if not isinstance(images, (list, tuple)):
        refuse(owner, argument, _IMAGES, typed(images), TypeError)
    return images


def _exact(owner: str, name: str, image: Tensor) -> Tensor | None:
    """A strided tensor of the network's shape, scaled to [0, 1]; None where it is no such image."""
    if image.layout != torch.strided or image.device.type == "meta":
        return None
    image = image.detach().cpu()
    if image.dtype == torch.uint8:
        return image.float() / 255
    if not image.is_floating_point():
        return None
    if not bool(((image >= 0) & (image <= 1)).all()):
        found = f"{shown(image.dtype)} from {image.min():g} to {image.max():g}"
        refuse(owner, name, "uint8, or floating point in [0, 1]", found, DataError)
    return image.float()
