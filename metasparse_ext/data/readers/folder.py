"""Image sets kept as a folder of images per class."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from metasparse_ext.data.errors import DataError, DataNotFoundError
from metasparse_ext.data.leaks import require_disjoint_files, require_disjoint_names
from metasparse_ext.data.listing import SPLIT_NAMES, Layout, Listing, Request, split_folder
from metasparse_ext.data.picture import Picture, file_picture, suffixes
from metasparse_ext.data.splits import SplitList, published, split_list
from metasparse_ext.data.walk import image_files

Paths = Mapping[str, Sequence[Path]]


def find(request: Request) -> Listing:
    """``ROOT/SPLIT/CLASS/*``, or with a split list ``ROOT/CLASS/*``.

    Every folder below that of the split that holds images itself is a class, named by its path from
    there (``Greek/alpha``); classes and images come in the order of their names. The data set is
    called by the name of its folder.

    Raises:
        DataNotFoundError: no such folder, or no images in it.
        DataError: images without a class, a class of the list that is not there, or a class or a
            file that is in two splits.
    """
    if request.options.splits is not None:
        lists = split_list(request)
        if not request.root.is_dir():
            raise DataNotFoundError(f"folder: no folder {request.root}")
        return listed(request, [request.root], lists)
    found = split_folder(request.root, request.split)
    if found is None:
        there = sorted(path.name for path in request.root.glob("*/"))
        raise DataNotFoundError(
            f"folder: no folder {request.root / request.split}; folders in {request.root}: "
            f"{', '.join(there) or 'none'}; where they are the classes, splits names a list of "
            "those of each split"
        )
    return _in_folder(request, request.root, found, check_files=True)


def in_split_folders(request: Request, root: Path, *, check_files: bool = False) -> Listing | None:
    """``root/SPLIT/CLASS/*``, or None where the split has no folder.

    Args:
        request: the split.
        root: the folder of the splits.
        check_files: whether to compare the files of the splits byte for byte, not by class alone.
    """
    folder = split_folder(root, request.split)
    return None if folder is None else _in_folder(request, root, folder, check_files)


def _in_folder(request: Request, root: Path, folder: Path, check_files: bool) -> Listing:
    every = {
        place: image_files(place, request.name)
        for split in SPLIT_NAMES
        if (place := split_folder(root, split)) is not None
    }
    every.setdefault(folder, image_files(folder, request.name))
    images, strays = every[folder]
    if "." in images:
        raise DataError(
            f"{request.name}: {len(images['.'])} images lie in {folder} itself, such as "
            f"{images['.'][0].name}; expected a folder of images for each class, "
            f"{folder}/CLASS/*"
        )
    if not images:
        raise DataNotFoundError(
            f"{request.name}: no images {folder}/CLASS/*, with a suffix of "
            f"{', '.join(sorted(suffixes()))}"
        )
    others = {folder: images} | {place: found for place, (found, _) in every.items()}
    if request.options.allow_overlap:
        others = {folder: images}
    require_disjoint_names(request.name, others)
    files = {str(place): _flat(found) for place, found in others.items()}

    def classes() -> Mapping[str, Sequence[Picture]]:
        if check_files:
            require_disjoint_files(request.name, files)
        return _pictures(images)

    return Listing(
        name=_name(request, root),
        split=request.split,
        files=[path for paths in files.values() for path in paths],
        classes=classes,
        choice=folder.name,
        strays=strays,
    )


def listed(request: Request, roots: Sequence[Path], lists: SplitList) -> Listing:
    """``ROOT/CLASS/*`` of the classes of a list, each in the first of the roots that has it."""
    wanted = class_images(request, roots, lists, request.split)
    strays = [stray for _, strays in wanted.values() for stray in strays]
    images = {name: paths for name, (paths, _) in wanted.items()}
    files = {request.split: _flat(images)}
    if lists.path is not None and not request.options.allow_overlap:
        for split, names in lists.classes.items():
            if split != request.split and names:
                others = class_images(request, roots, lists, split)
                files[split] = _flat({name: paths for name, (paths, _) in others.items()})

    def classes() -> Mapping[str, Sequence[Picture]]:
        require_disjoint_files(request.name, files)
        return _pictures(images)

    return Listing(
        name=_name(request, roots[0]),
        split=request.split,
        files=[path for paths in files.values() for path in paths],
        classes=classes,
        choice="\n".join(images),
        strays=strays,
    )


def class_images(
    request: Request, roots: Sequence[Path], lists: SplitList, split: str
) -> dict[str, tuple[list[Path], list[Path]]]:
    """The images and the other files of each class of a split.

    Raises:
        DataError: a class is not there.
    """
    found: dict[str, tuple[list[Path], list[Path]]] = {}
    missing = []
    for name in sorted(lists.of(split)):
        folder = next((root / name for root in roots if (root / name).is_dir()), None)
        if folder is None:
            missing.append(name)
            continue
        images, strays = image_files(folder, request.name)
        found[name] = _flat(images), strays
        if not found[name][0]:
            missing.append(name)
    require_all(request, missing, lists, " and ".join(map(str, roots)))
    return found


def require_all(request: Request, missing: Sequence[str], lists: SplitList, where: str) -> None:
    """Refuses data that lack classes of the split: they would not be the published split."""
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise DataError(
            f"{request.name}: no images in {where} of {len(missing)} classes that {lists.name} "
            f"names, such as {shown}"
        )


def split_folders(text: str, dataset: str, *inside: str) -> Layout:
    """The layout ``ROOT/SPLIT/CLASS/*`` of a published list, in the root or in a folder of it.

    A folder ``train`` with other classes than the list has in its split is of another layout, such
    as that of ImageNet itself.
    """

    def find_split(request: Request) -> Listing | None:
        for place in (request.root, *(request.root / name for name in inside)):
            folder = split_folder(place, request.split)
            if folder is not None and _is_published(request, dataset, folder):
                return in_split_folders(request, place)
        return None

    return Layout(text, find_split)


def _is_published(request: Request, dataset: str, folder: Path) -> bool:
    """Whether the folders are classes of the split and no others; an error if some are missing."""
    (chosen,) = published(dataset)
    plain = replace(request, options=replace(request.options, splits=chosen))
    lists = split_list(plain, dataset)
    there = {path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."}
    wanted = set(lists.of(request.split))
    if not there <= wanted or not mostly_there(folder, wanted):
        return False
    require_all(request, sorted(wanted - there), lists, str(folder))
    return True


def class_folders(text: str, dataset: str, *inside: str) -> Layout:
    """The layout ``ROOT/CLASS/*`` of the classes of a published list."""

    def find_classes(request: Request) -> Listing | None:
        lists = split_list(request, dataset)
        for place in (request.root, *(request.root / name for name in inside)):
            if mostly_there(place, lists.of(request.split)):
                return listed(request, [place], lists)
        return None

    return Layout(text, find_classes, takes=("splits",))


def mostly_there(folder: Path, names: Collection[str]) -> bool:
    """Whether a folder has a folder of more than half of the names: one may be there by chance.

    CIFAR-100 has a class ``train``.
    """
    return 2 * sum((folder / name).is_dir() for name in names) > len(names)


def _name(request: Request, root: Path) -> str:
    return root.resolve().name if request.name == "folder" else request.name


def _flat(images: Paths) -> list[Path]:
    return [path for paths in images.values() for path in paths]


def _pictures(images: Paths) -> dict[str, list[Picture]]:
    return {name: [file_picture(path) for path in paths] for name, paths in images.items()}
