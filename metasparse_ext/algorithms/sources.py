"""Where each learner comes from, and how far what is here can follow it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """The origin of a learner.

    Attributes:
        paper: What it is published in.
        exact: What follows the paper or its public code to the letter.
        reconstructed: What the public sources leave open and is decided here, or where this
            package departs from them; empty if neither.
    """

    paper: str
    exact: str
    reconstructed: str = ""


_FINN = "Finn, Abbeel, Levine, ICML 2017"
_GEMS = "Pimpalkhute, Kunde, Singhal, GEMS, WACV 2023; only its supplement is public"
_CONVEX = "a report that gives no hyperparameters"

SOURCES: dict[str, Source] = {
    "maml": Source(
        paper=_FINN,
        exact="the meta-gradient through all inner steps; Meta-SGD's and LSLR's rates, the "
        "multi-step loss and the first-order warm-up of MAML++ as options",
        reconstructed="the weights of the multi-step loss fall by the iteration, in MAML++'s code "
        "by the epoch",
    ),
    "fomaml": Source(paper=_FINN, exact="the meta-gradient without Hessians"),
    "imaml": Source(
        paper="Rajeswaran, Finn, Kakade, Levine, NeurIPS 2019",
        exact="both the paper's equations and its code's, which differ: mode=paper, mode=official",
        reconstructed="tasks whose operator is not positive definite stop the solve there",
    ),
    "metadock": Source(
        paper="Chavan, Tiwari, Bamba, Gupta, CVPR 2022",
        exact="gates, budget, inner loop and solve of the public code; the supplement's reading "
        "as mode=paper",
        reconstructed="a checkpoint counts only once the budget holds; validation classes choose "
        "it, not test classes",
    ),
    "convex-maml": Source(
        paper=f"Raghu, Raghu, Bengio, Vinyals, ICLR 2020 (ANIL); the name is that of {_CONVEX}",
        exact="gradient steps on the head, differentiated through all of them",
        reconstructed="hyperparameters of the name's source",
    ),
    "anil": Source(
        paper="Raghu, Raghu, Bengio, Vinyals, ICLR 2020",
        exact="gradient steps on the head, differentiated through all of them",
    ),
    "convex-imaml": Source(
        paper=_CONVEX,
        exact="the definition: the head's regularised optimum and its implicit gradient",
        reconstructed="lambda, the solver, and the backbone's cross term, which the source omits",
    ),
    "reptile": Source(
        paper="Nichol, Achiam, Schulman, 2018",
        exact="the update, the inner Adam with beta1 = 0 that outlives its tasks, minibatches",
        reconstructed="the tasks of a meta-batch run side by side from the same moments, whose "
        "mean is kept, not one after the other",
    ),
    "cavia": Source(
        paper="Zintgraf, Shiarlis, Kurin, Hofmann, Whiteson, ICML 2019",
        exact="the context from zero, FiLM before the ReLU of the third block, the meta-gradient "
        "in both orders",
    ),
    "bmp": Source(
        paper=_GEMS,
        exact="a binary mask on layers' inner updates, from the mean weights and gradients of the "
        "layers, by a perceptron with 2 N hidden units; straight-through",
        reconstructed="ALFA's perceptron with a binary output: its depth, the head always moves, "
        "the output layer's start; the factor of the embedding, a learned vector or one made of "
        "the support images",
    ),
    "mmsup": Source(
        paper=_GEMS,
        exact="the top k of each convolution's adapted weights, detached scores, k learned from "
        "0.5 on",
        reconstructed="ranking by magnitude, the derivative in k, its floor of 0.05, and that the "
        "inner loop leaves k alone; each has its option but the floor",
    ),
    "multi-maml": Source(
        paper="Vuorio, Sun, Hu, Lim, NeurIPS 2019, and GEMS: their baseline",
        exact="one independent MAML for each distribution, told which is which",
    ),
    "meta-ticket": Source(
        paper="Finding Meta Winning Ticket to Train Your MAML, KDD 2022; only its abstract is "
        "public",
        exact="iterative magnitude pruning of MAML with rewinding, the mask held in both loops",
        reconstructed="the rule of early detection: the stability of the masks among and within "
        "layers, by the window and threshold of Early-Bird tickets; rates, scope and rewinding of "
        "the lottery-ticket papers",
    ),
}
