"""Images that a program has already: arrays and tensors, and datasets of torchvision's form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metasparse_ext._arguments import (
    refuse,
    require,
    require_count,
    require_type,
    shown,
)
from metasparse_ext.data.errors import DataError
from metasparse_ext.data.images import ImageClasses, require_texts
from metasparse_ext.data.listing import Listing
from metasparse_ext.data.options import FITS, GROUNDS, LARGEST_SIDE, ReadOptions, require_name
from metasparse_ext.data.picture import Picture, array_picture, pixels

_LAYOUTS = ("NHWC", "NCHW")
_ARRAY = "an array or a tensor of images (n, H, W), (n, H, W, C) or (n, C, H, W), C = 1 or 3"


class Dataset(Protocol):
    """What :func:`from_dataset` asks of a dataset: nothing of torchvision is imported."""

    def __len__(self) -> int:
        """The number of images."""
        ...

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """An image and its label."""
        ...


def from_arrays(
    images: np.ndarray | Tensor,
    labels: np.ndarray | Tensor | Sequence[int],
    class_names: Sequence[str] | None = None,
    *,
    name: str = "arrays",
    split: str = "train",
    layout: str | None = None,
) -> ImageClasses:
    """Makes classes of labelled images, for :func:`~metasparse_ext.data.episodes`.

    Args:
        images: (n, H, W), (n, H, W, C) or (n, C, H, W), C = 1 (grey) or 3 (RGB); uint8, or
            floating point in [0, 1], which is rounded to 255ths.
        labels: (n,) integers: indices into ``class_names`` where given, else any numbers, which
            name the classes.
        class_names: one name per class, each with an image.
        name: what the data set is called.
        split: of it; the seed of episodes is mixed with it.
        layout: ``"NHWC"`` or ``"NCHW"``, where the shape does not tell.

    Raises:
        DataError: a ValueError; images of another shape or range, labels that do not fit.
        TypeError: an argument of another type.
    """
    array = _as_array("from_arrays", "images", images)
    if array.ndim not in (3, 4):
        refuse("from_arrays", "images", _ARRAY, f"the shape {array.shape}", DataError)
    pixels = _bytes("from_arrays", "images", array)
    numbers = _labels("from_arrays", labels, len(pixels))
    for argument, value in (("name", name), ("split", split)):
        require_type("from_arrays", argument, value, str, "a text")
    if layout is not None:
        require_name("from_arrays", "layout", layout, _LAYOUTS)
    if class_names is None:
        values, numbers = np.unique(numbers, return_inverse=True)
        class_names = [str(value) for value in values.tolist()]
    require_texts("from_arrays", "class_names", class_names)
    expected = "a name for each class"
    require(len(class_names) > 0, "from_arrays", "class_names", expected, class_names)
    return ImageClasses.from_labels(
        _channels_last("from_arrays", pixels, layout), numbers, class_names, name=name, split=split
    )


def from_dataset(
    dataset: Dataset,
    *,
    name: str = "dataset",
    split: str = "train",
    image_size: int | None = None,
    fit: str = "squash",
    ground: str = "white",
) -> ImageClasses:
    """Makes classes of a dataset of (image, label) pairs, such as those of torchvision.

    All images are read once and held in memory as bytes.

    Args:
        dataset: has a length; ``dataset[i]`` is an image and its class, an integer or a text. An
            image is a Pillow image, an array (H, W) or (H, W, C), or a tensor (C, H, W), as
            ``transforms.ToTensor`` gives it; uint8 or floating point in [0, 1]. Classes are named
            by ``dataset.classes`` if there are such, else by their labels.
        name: what the data set is called.
        split: of it.
        image_size: side to which images are resized; needed where they differ in size.
        fit: as of :func:`~metasparse_ext.data.load`.
        ground: as of :func:`~metasparse_ext.data.load`.

    Raises:
        DataError: a ValueError; no images, an image of another form, sizes that differ.
        TypeError: an argument of another type.
    """
    expected = "a dataset with a length and items (image, label)"
    methods = all(hasattr(dataset, method) for method in ("__len__", "__getitem__"))
    if not methods or isinstance(dataset, (type, str, bytes, dict, np.ndarray, Tensor)):
        refuse("from_dataset", "dataset", expected, shown(dataset), TypeError)
    if not len(dataset):
        refuse("from_dataset", "dataset", expected, "one that is empty, with no images", DataError)
    for argument, value in (("name", name), ("split", split)):
        require_type("from_dataset", argument, value, str, "a text")
    if image_size is not None:
        require_count("from_dataset", "image_size", image_size, least=1, most=LARGEST_SIDE)
    require_name("from_dataset", "fit", fit, FITS)
    require_name("from_dataset", "ground", ground, GROUNDS)
    options = ReadOptions(image_size=image_size, fit=fit, ground=ground, cache=False)
    return Listing(name, split, (), lambda: _classes(dataset, options)).read(options)


def _classes(dataset: Dataset, options: ReadOptions) -> dict[str, list[Picture]]:
    names = getattr(dataset, "classes", None)
    names = names if isinstance(names, (list, tuple)) else None
    found: dict[str, list[Picture]] = {}
    for index in range(len(dataset)):
        item = dataset[index]
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            refuse("from_dataset", f"dataset[{index}]", "an image and a label", shown(item))
        image, label = item
        number = label.item() if isinstance(label, (Tensor, np.generic)) else label
        if names is not None and isinstance(number, int):
            if not 0 <= number < len(names):
                expected = f"a class of {len(names)}"
                refuse("from_dataset", f"the label of dataset[{index}]", expected, shown(label))
            number = names[number]
        each = _held(one_picture("from_dataset", f"dataset[{index}]", image), options)
        found.setdefault(str(number), []).append(each)
    return found


def _held(each: Picture, options: ReadOptions) -> Picture:
    """The picture in the size that is asked for: all are held until the last one is there."""
    size, fit, ground = options.image_size, options.fit, options.ground
    array = pixels("from_dataset", each, image_size=size, fit=fit, ground=ground)
    return array_picture(each.name, array[0] if len(array) == 1 else array.transpose(1, 2, 0))


def one_picture(owner: str, where: str, image: Any) -> Picture:
    """A Pillow image, an array (H, W) or (H, W, C), or a tensor (C, H, W), as a picture.

    Args:
        owner: who asks, for messages.
        where: what messages call the image.
        image: uint8, or floating point in [0, 1], which is rounded to 255ths.

    Raises:
        DataError: another shape or range.
        TypeError: another type.
    """
    if isinstance(image, Image.Image):
        return Picture(where, image.copy)
    if isinstance(image, Tensor) and image.ndim == 3:
        image = image.movedim(0, -1)
    array = _bytes(owner, where, _as_array(owner, where, image))
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if 0 in array.shape or (array.ndim != 2 and array.shape[2:] != (3,)):
        expected = "an image (H, W), (H, W, C) or, of a tensor, (C, H, W), C = 1 or 3"
        refuse(owner, where, expected, f"the shape {array.shape}", DataError)
    return array_picture(where, np.ascontiguousarray(array))


def _as_array(owner: str, argument: str, images: Any) -> np.ndarray:
    if isinstance(images, Tensor):
        if images.layout != torch.strided or images.device.type == "meta":
            refuse(owner, argument, _ARRAY, shown(images), TypeError)
        images = images.detach().cpu()
        images = images.float() if images.dtype == torch.bfloat16 else images
        return images.numpy()
    require_type(owner, argument, images, np.ndarray, _ARRAY)
    return images


def _bytes(owner: str, argument: str, images: np.ndarray) -> np.ndarray:
    """The images as uint8."""
    if images.dtype == np.uint8:
        return images
    expected = "uint8, or floating point in [0, 1]"
    if images.dtype.kind != "f":
        refuse(owner, argument, expected, str(images.dtype), DataError)
    if images.size and not (images.min() >= 0 and images.max() <= 1):
        found = f"{images.dtype} from {images.min():g} to {images.max():g}"
        refuse(owner, argument, expected, found, DataError)
    return np.rint(images * 255).astype(np.uint8)


def _channels_last(owner: str, images: np.ndarray, layout: str | None) -> np.ndarray:
    if images.ndim == 3 and layout is None:
        return images
    fits = {
        "NHWC": images.ndim == 4 and images.shape[3] in (1, 3),
        "NCHW": images.ndim == 4 and images.shape[1] in (1, 3),
    }
    if layout is None and all(fits.values()):
        got = f"images of shape {images.shape}, which may be either, and layout None"
        refuse(owner, "layout", "'NHWC' or 'NCHW'", got, DataError)
    chosen = layout or next((name for name, holds in fits.items() if holds), "")
    if not fits.get(chosen):
        refuse(owner, "images", f"{chosen} {_ARRAY}", f"the shape {images.shape}", DataError)
    return images if chosen == "NHWC" else np.moveaxis(images, 1, -1)


def _labels(owner: str, labels: Any, count: int) -> np.ndarray:
    expected = f"{count} integers, one for each image"
    if isinstance(labels, Tensor) and labels.layout == torch.strided:
        labels = labels.detach().cpu().numpy() if labels.device.type != "meta" else None
    if not isinstance(labels, (np.ndarray, list, tuple, range)):
        refuse(owner, "labels", expected, shown(labels), TypeError)
    array = np.asarray(labels)
    if array.dtype.kind not in "iu" or array.shape != (count,):
        refuse(owner, "labels", expected, f"{array.dtype} of shape {array.shape}", DataError)
    return array
