"""Where the tensors of a model lie, found once for many calls with others in their place."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch._C import _autograd

from metasparse_ext.data import Inputs
from metasparse_ext.nn import is_task_aware

_NOT_AGAIN = (
    "task networks: expected model to keep what its backward pass needs, got "
    "torch.utils.checkpoint or another saved-tensor hook in its forward, which would compute it "
    "again with the model's own parameters, not with the tasks'; task_chunk, and recompute=True of "
    "MAML, save memory"
)

# A module's dictionary of parameters or buffers, and a key of it.
Slot = tuple[dict[str, Any], str]


class Slots:
    """Calls a model with other parameters, as ``torch.func.functional_call`` does.

    That searches the model in each call, for modules by their names and for tensors that are tied;
    an inner loop calls one model many times. A tensor that several modules share is replaced in all
    of them.

    Args:
        model: Not changed in its modules and parameters as long as this is used.

    Attributes:
        task_aware: Whether the model takes the tasks' axis itself.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.task_aware = is_task_aware(model)
        of_tensor: dict[int, list[Slot]] = defaultdict(list)
        self._slots: dict[str, list[Slot]] = {}
        for name, module in model.named_modules():
            for held in (module._parameters, module._buffers):
                for key, tensor in held.items():
                    if tensor is not None:
                        slots = of_tensor[id(tensor)]
                        slots.append((held, key))
                        self._slots[f"{name}.{key}" if name else key] = slots

    def call(self, tensors: Mapping[str, Tensor], inputs: Inputs) -> Any:
        """What the model returns with these tensors, by name, in place of its own.

        A tuple of inputs is its arguments, a dict its keywords.
        """
        with self.holding(tensors):
            if isinstance(inputs, dict):
                return self._model(**inputs)
            return self._model(*(inputs if isinstance(inputs, tuple) else (inputs,)))

    @contextmanager
    def holding(self, tensors: Mapping[str, Tensor]) -> Generator[None]:
        """Has the model hold these tensors, by name, in place of its own.

        Raises:
            NotImplementedError: if it means to compute something again in its backward pass, when
                it holds its own again.
        """
        own: list[tuple[Slot, Tensor | None]] = []
        before = _autograd._saved_tensors_hooks_get_disabled_error_message()
        if tensors:
            # Hooks from outside stay at work, for which disable_saved_tensors_hooks would fail.
            _autograd._saved_tensors_hooks_disable(_NOT_AGAIN, fail_if_non_empty=False)
        try:
            for name, tensor in tensors.items():
                for held, key in self._slots[name]:
                    own.append(((held, key), held[key]))
                    held[key] = tensor
            yield
        except RuntimeError as error:
            if str(error) != _NOT_AGAIN:
                raise
            raise NotImplementedError(_NOT_AGAIN) from None
        finally:
            if before is None:
                _autograd._saved_tensors_hooks_enable()
            else:
                _autograd._saved_tensors_hooks_disable(before, fail_if_non_empty=False)
            for (held, key), kept in reversed(own):
                held[key] = kept
