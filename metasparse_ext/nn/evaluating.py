"""A network in evaluation mode for a while."""

from collections.abc import Generator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """Puts a network into evaluation mode, and each of its modules back into the mode it was in.

    Dropout is off meanwhile. Batch norm that tracks no statistics takes those of the
    batch in either mode.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
