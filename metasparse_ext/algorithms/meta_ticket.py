"""Meta winning tickets: sparse networks that meta-learn as well as their dense parent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn

from metasparse_ext._arguments import (
    LARGEST,
    refuse,
    require,
    require_choice,
    require_choices,
    require_count,
    require_number,
    require_size,
    require_type,
)
from metasparse_ext.algorithms import pruning
from metasparse_ext.algorithms.maml import MAML, MAMLOptions
from metasparse_ext.algorithms.pruning import Kind, Scope, Signal
from metasparse_ext.algorithms.records import Metrics, Source
from metasparse_ext.data import Inputs, TaskBatch
from metasparse_ext.data.batch import InputShape, input_dtype, input_shape
from metasparse_ext.implicit import Layout
from metasparse_ext.nn import FixedMask, MaskedConv2d, cost

Search = Literal["iterative", "early"]

# How far the stages are, which a checkpoint holds.
_PROGRESS = ("stage", "stage_start", "checks", "distances", "start_position", "elsewhere", "macs")


class MetaTicket(MAML):
    """MAML of a pruned network, and the search for the weights to keep.

    A mask with one entry a weight holds in the inner and the outer loop: a pruned weight is zero in
    theta and in every phi. Two searches end with the ticket's own training:

    - ``"iterative"``: train, prune the smallest weights of those left, put the others back to where
      they were at iteration ``rewind``; again, until ``density`` is reached.
    - ``"early"``: while training, draw the masks that a pruning would leave from time to time, and
      prune as soon as the newest is near the ``window - 1`` before it by every signal; once, or in
      ``rounds``. The published rule of early detection is not public. This one,
      ``mask_stability``, is a reconstruction: inter- and intra-layer distances of the masks, by the
      window and the threshold of Early-Bird tickets.

    The training loop runs the trainings one after the other, as stages (see
    :class:`~metasparse_ext.training.stages.Stages`): ``rounds + 1`` of them, each as long as that
    of a dense network unless ``search_length`` or an early search makes it shorter.

    Args:
        model: A network of ``MaskedConv2d``. Its maskers are replaced.
        search: ``"iterative"`` or ``"early"``.
        density: Fraction of the prunable weights that the ticket keeps, exactly; None leaves it to
            ``rounds`` and ``rate``.
        rounds: Prunings of the search, each of the same part of what is left. By default the
            iterative search takes as many as pruning ``rate`` at a time does, the early one 1.
        rate: Part of what is left that a round prunes.
        search_length: Length of each training of the search, as a fraction of the ticket's own. Its
            schedule is as much shorter: a rate that falls to 0 lets the masks settle.
        scope: ``"global"`` ranks the weights of all layers together, ``"layer"`` keeps the same
            part of each.
        skip: Kinds of parameters that stay whole, of ``pruning.Kind``.
        rewind: Iteration of the first training that surviving weights return to; 0 is the start.
            None: they stay as they are, as in Early-Bird tickets, and are trained anew.
        early_detection: The rule of the early search: ``"mask_stability"``.
        signals: Its distances, of ``pruning.Signal``.
        check_every: Iterations between two masks.
        window: Masks compared.
        threshold: The largest distance of a stable mask.
        **maml: The options of :class:`~metasparse_ext.algorithms.MAML`. They hold in every stage:
            learned rates go back with the weights, and ``multi_step`` and
            ``first_order_until`` count the iterations of the present one.

    Attributes:
        kept: (P,) zeros and ones, in the order of ``layout``: the parameters that are left.
        macs: Multiply-accumulates of the forward passes of one task of a meta-batch, summed over
            the iterations of the search, and of the last training: (search, training).

    Source: "Finding Meta Winning Ticket to Train Your MAML", KDD 2022 (abstract; the rest is not
        public), with the procedure of Frankle, Carbin, "The Lottery Ticket Hypothesis", ICLR 2019,
        and You et al., "Drawing Early-Bird Tickets", ICLR 2020.
    """

    source = Source(
        paper="Finding Meta Winning Ticket to Train Your MAML, KDD 2022; only its abstract is "
        "public",
        exact="iterative magnitude pruning of MAML with rewinding, the mask held in both loops",
        reconstructed="the rule of early detection: the stability of the masks among and within "
        "layers, by the window and threshold of Early-Bird tickets; rates, scope and rewinding of "
        "the lottery-ticket papers",
    )

    scope: Scope
    signals: tuple[Signal, ...]
    kept: Tensor
    start_point: Tensor
    start_rates: Tensor | None
    drawn: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        search: Search = "iterative",
        density: float | None = 0.2,
        rounds: int | None = None,
        rate: float = 0.2,
        search_length: float = 1.0,
        scope: Scope = "global",
        skip: Sequence[Kind] = ("head", "bias", "norm"),
        rewind: int | None = 0,
        early_detection: Literal["mask_stability"] = "mask_stability",
        signals: Sequence[Signal] = ("inter", "intra"),
        check_every: int = 50,
        window: int = 5,
        threshold: float = 0.1,
        **maml: Unpack[MAMLOptions],
    ) -> None:
        require_choice(self.name, "search", search, Search)
        if density is not None:
            require_number(self.name, "density", density, above=0, below=1)
        if rounds is not None:
            require_size(self.name, "rounds", rounds)
        given = density is not None or rounds is not None
        require(given, self.name, "rounds", "given where density is None", rounds)
        require_number(self.name, "rate", rate, above=0, below=1)
        require_number(self.name, "search_length", search_length, above=0, most=1)
        require_choice(self.name, "scope", scope, Scope)
        require_choices(self.name, "skip", skip, Kind)
        if rewind is not None:
            require_count(self.name, "rewind", rewind, most=LARGEST)
        require_choice(self.name, "early_detection", early_detection, ("mask_stability",))
        require_choices(self.name, "signals", signals, Signal)
        require(bool(signals), self.name, "signals", "at least one", signals)
        require_size(self.name, "check_every", check_every)
        require_count(self.name, "window", window, least=2, most=LARGEST)
        require_number(self.name, "threshold", threshold, above=0)
        require_type(self.name, "model", model, nn.Module, "an nn.Module")
        for layer in _convolutions(model).values():
            layer.masker = FixedMask(torch.ones_like(layer.weight))
        super().__init__(model, **maml)
        self.search, self.scope, self.rewind = search, scope, rewind
        self.signals, self.check_every = tuple(signals), check_every
        self.window, self.threshold = window, threshold
        self.search_length = search_length
        self.densities = pruning.schedule(density, rounds, rate)
        if search == "early" and rounds is None:
            self.densities = self.densities[-1:]
        self.stages, self.stage, self.stage_start = 1 + len(self.densities), 0, 0.0
        self.prunable = pruning.prunable(model, self.layout.names, skip)
        self._convolutions = _convolutions(model)
        if not self.prunable:
            wanted = f"one with weights to prune beside skip={tuple(skip)}"
            without = "" if self._convolutions else " without MaskedConv2d; nn.sparsify makes them"
            refuse(self.name, "model", wanted, f"{type(model).__name__}{without}")
        masked = {f"{name}.weight" for name in self._convolutions}
        self._holds_others = not masked.issuperset(self.prunable)
        whole = self.start(1)[0]
        self.register_buffer("kept", torch.ones_like(whole))
        self.register_buffer("start_point", whole.clone())
        rates = None if self.learned_rates is None else self.learned_rates.values.detach().clone()
        self.register_buffer("start_rates", rates)
        # The last masks that the early search drew, newest last.
        rows = window if search == "early" else 0
        self.register_buffer("drawn", whole.new_ones(rows, whole.numel(), dtype=torch.bool))
        self._reset_checks()
        self.start_position = 0.0
        # Iterations that are not the present training's.
        self.elsewhere = 0
        self.macs = (0, 0)
        self._costs: dict[str, int] = {}
        # How many inputs the last meta-step passed forward, and the shape and dtype of one.
        self._passed: tuple[int, InputShape, Any] = (0, (), None)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, search={self.search!r}, density={self.densities[-1]:g}"

    def _lay_out_anew(self, layout: Layout) -> None:
        self._refuse_new_layout("a mask and a starting point", layout)

    # Learning, under the mask.

    def logits(self, phi: Tensor, images: Inputs) -> Any:
        # The convolutions mask their weights themselves, and skip kernels with none left.
        return super().logits(phi * self.kept if self._holds_others else phi, images)

    def meta_backward(self, batch: TaskBatch) -> Metrics:
        found = super().meta_backward(batch)
        passes = batch.support.labels.shape[1] * self.inner_steps + batch.query.labels.shape[1]
        images = batch.query.images
        self._passed = passes, input_shape(images), input_dtype(images)
        return found

    def age(self) -> int:
        return super().age() - self.elsewhere

    def density(self) -> float:
        """The fraction of the prunable weights that is left."""
        kept = self._named(self.kept)
        return sum(float(m.sum()) for m in kept.values()) / sum(m.numel() for m in kept.values())

    def masks(self) -> dict[str, Tensor]:
        masked = {f"{name}.weight" for name in self._convolutions}
        others = {n: mask for n, mask in self._named(self.kept).items() if n not in masked}
        return {**super().masks(), **others}

    # The stages of the training.

    @property
    def searching(self) -> bool:
        """Whether another stage follows the present one."""
        return self.stage + 1 < self.stages

    def plan(self, iterations: int) -> None:
        self._require_reached(math.ceil(iterations * self.search_length))

    def stepped(self, iteration: int, position: float) -> None:
        search, training = self.macs
        count, shape, dtype = self._passed
        spent = count * self._cost(shape, dtype) if count else 0
        self.macs = (search + spent, training) if self.searching else (search, training + spent)
        if self.stage == 0 and iteration == self.rewind:
            self._mark_start()
            self.start_position = position
        checking = iteration >= (self.rewind or 0) and iteration % self.check_every == 0
        if self.search == "early" and self.searching and checking:
            self._check()

    def stage_ended(self, position: float, length: float) -> bool:
        return (self.searching and self.stable) or position - self.stage_start >= length

    def next_stage(self, position: float) -> None:
        """Prunes the smallest weights of those left, and puts the others back if they rewind.

        Raises:
            ValueError: if the first training was shorter than ``rewind``.
        """
        done = int(self.iteration)
        self._require_reached(done)
        self._keep(self._draw(self.densities[self.stage]))
        if self.rewind is None:
            self._mark_start()
        with torch.no_grad():
            start = self.layout.unflatten(self.start_point * self.kept)
            for name, parameter in self._adapted_parameters().items():
                parameter.copy_(start[name])
            if self.learned_rates is not None and self.start_rates is not None:
                self.learned_rates.values.copy_(self.start_rates)
        self.elsewhere = done - (self.rewind or 0)
        self.stage += 1
        self.stage_start = position - self.start_position
        self._reset_checks()

    @property
    def stable(self) -> bool:
        """Whether the masks of the early search have settled."""
        return bool(self.distances) and max(self.distances.values()) < self.threshold

    def status(self) -> dict[str, float]:
        search, training = self.macs
        return {
            "round": self.stage,
            "density": self.density(),
            "search_macs": search,
            "training_macs": training,
            **{f"distance/{name}": value for name, value in self.distances.items()},
        }

    def get_extra_state(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _PROGRESS}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self._costs.clear()

    def _require_reached(self, iterations: int) -> None:
        reached = self.rewind is None or self.rewind <= iterations
        require(reached, self.name, "rewind", f"at most {iterations}, the training", self.rewind)

    def _mark_start(self) -> None:
        """Saves the present weights as those that a training starts from."""
        self.start_point.copy_(self.start(1)[0])
        if self.learned_rates is not None and self.start_rates is not None:
            self.start_rates.copy_(self.learned_rates.values.detach())

    def _check(self) -> None:
        """Draws the masks of the next pruning, and compares them with the last ones."""
        newest = self._draw(self.densities[self.stage])
        self.drawn.copy_(torch.cat([self.drawn[1:], newest[None] != 0]))
        self.checks += 1
        if self.checks >= self.window:
            history = [self._named(mask) for mask in self.drawn]
            self.distances = pruning.distances(self.signals, history)

    def _reset_checks(self) -> None:
        self.checks, self.distances = 0, {}

    def _draw(self, density: float) -> Tensor:
        """(P,) what is kept of the present parameters at a density."""
        parameters = self._adapted_parameters()
        weights = {name: parameters[name] for name in self.prunable}
        masks = pruning.largest(weights, self._named(self.kept), density, self.scope)
        whole = self.layout.unflatten(torch.ones_like(self.kept))
        return self.layout.flatten({**whole, **masks})

    def _keep(self, kept: Tensor) -> None:
        self.kept.copy_(kept)
        masks = self.layout.unflatten(kept)
        for name, layer in self._convolutions.items():
            layer.masker.get_buffer("mask").copy_(masks[f"{name}.weight"])
        self._costs.clear()

    def _named(self, flat: Tensor) -> dict[str, Tensor]:
        parts = self.layout.unflatten(flat)
        return {name: parts[name] for name in self.prunable}

    def _cost(self, shape: InputShape, dtype: Any) -> int:
        """Multiply-accumulates of one input, with the masks in force."""
        key = repr((shape, dtype))
        if key not in self._costs:
            kept = self._named(self.kept)
            named = self.model.named_modules()
            linear = {n: f"{n}.weight".lstrip(".") for n, m in named if isinstance(m, nn.Linear)}
            heads = {name: kept[weight] for name, weight in linear.items() if weight in kept}
            self._costs[key] = int(cost(self.model, shape, heads, dtype=dtype).active_macs)
        return self._costs[key]


def _convolutions(model: nn.Module) -> dict[str, MaskedConv2d]:
    named = model.named_modules()
    return {name: module for name, module in named if isinstance(module, MaskedConv2d)}
