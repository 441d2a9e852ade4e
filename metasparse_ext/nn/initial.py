"""The initial weights that the sources start from."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from metasparse_ext._arguments import require_choice, require_type

# Sets a weight, and a bias, in place.
_Fill = Callable[[Tensor], object]
_Layer = nn.Conv2d | nn.Linear


def initialize(model: nn.Module, name: str) -> None:
    """Draws the weights and biases of every convolution and linear layer anew, as a source does.

    =============  ====================================  =======================  =============
    name           convolutions                          linear layers            biases
    =============  ====================================  =======================  =============
    "xavier"       Xavier's uniform distribution         the same                 0
    "maml"         Xavier's uniform distribution         N(0, 1)                  0
    "imaml"        Xavier's uniform, gain 1.73           the same                 U(0, 0.05)
    "kaiming"      Kaiming's uniform (ReLU, fan in)      the same, for no ReLU    0
    "hypertorch"   N(0, 2 / (kh kw O))                   0                        0
    =============  ====================================  =======================  =============

    They are those of learn2learn, Reptile and MAML on mini-ImageNet ("xavier"), of MAML on
    Omniglot, of iMAML's code, of CAVIA's ("kaiming") and of hypertorch's example. MetaDOCK's code
    leaves torch's own. Other layers, masks among them, stay as they are.

    Raises:
        TypeError: if model is no module.
        ValueError: if the name is none of these.
    """
    require_type("initialize", "model", model, nn.Module, "an nn.Module")
    require_choice("initialize", "name", name, INITIALIZATIONS)
    convolution, linear, bias = INITIALIZATIONS[name]
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, _Layer):
                (convolution if isinstance(layer, nn.Conv2d) else linear)(layer.weight)
                if layer.bias is not None:
                    bias(layer.bias)


def _steep(weight: Tensor) -> None:
    nn.init.xavier_uniform_(weight, gain=1.73)


def _kaiming(weight: Tensor) -> None:
    nn.init.kaiming_uniform_(weight, nonlinearity="relu" if weight.dim() == 4 else "linear")


def _by_outputs(weight: Tensor) -> None:
    nn.init.normal_(weight, std=math.sqrt(2 / (len(weight) * math.prod(weight.shape[2:]))))


def _small(bias: Tensor) -> None:
    nn.init.uniform_(bias, 0, 0.05)


#: Of convolutions' weights, of linear layers' weights, of biases.
INITIALIZATIONS: dict[str, tuple[_Fill, _Fill, _Fill]] = {
    "xavier": (nn.init.xavier_uniform_, nn.init.xavier_uniform_, nn.init.zeros_),
    "maml": (nn.init.xavier_uniform_, nn.init.normal_, nn.init.zeros_),
    "imaml": (_steep, _steep, _small),
    "kaiming": (_kaiming, _kaiming, nn.init.zeros_),
    "hypertorch": (_by_outputs, nn.init.zeros_, nn.init.zeros_),
}
