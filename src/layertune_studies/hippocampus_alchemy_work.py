"""The pieces of work of the hippocampus study of Network Alchemy, each done once and kept."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from layertune import GammaPenalty, clip_test, gammas, norm_only, rank_checkpoints, redundant_kernels, reinitialize
from layertune_studies.data.case import Batch
from layertune_studies.demo_store import Store
from layertune_studies.demo_train import evaluate
from layertune_studies.hippocampus_alchemy_data import Plan, Sets
from layertune_studies.hippocampus_alchemy_training import (
    Phases,
    fit,
    head_of,
    labelled_batches,
    measured,
    scores,
    segmentation_loss,
    start,
)

__all__ = ["Workshop"]

SMALL = (0.05, 0.2, 0.5)  # gammas are counted below these
Weights = Mapping[str, Tensor] | None


class Workshop:
    """Does each piece of work, or loads it where it is finished.

    Args:
        plan: of the study.
        store: where pieces are kept.
        sets: all cases.
        tell: told each piece that was done.
    """

    def __init__(self, plan: Plan, store: Store, sets: Sets, tell: Callable[[str], None]) -> None:
        self.plan, self.store, self.sets, self.tell = plan, store, sets, tell
        # All methods of a seed see the same batches, so they are made once.
        self._batch = lru_cache(maxsize=2 * plan.steps)(self._make_batch)

    def piece(self, name: str, make: Callable[[], Any]) -> Any:
        """What is kept under a name, or what is made now."""
        held = self.store.load(name)
        if held is None:
            began = time.perf_counter()
            held = make()
            self.store.save(name, held)
            self.tell(f"{name}: {time.perf_counter() - began:.0f} s")
        return held

    def best_full(self, name: str, weights: Weights, seed: int) -> dict[str, Any]:
        """Fine-tuned with the rate that the validation cases choose."""
        return self._best([self._full(name, weights, seed, lr, Phases()) for lr in self.plan.lrs])

    def best_norms(self, name: str, weights: Weights, seed: int) -> dict[str, Any]:
        """With the norms alone trained, and the rate that the validation cases choose."""
        return self._best([self._norms(name, weights, seed, lr) for lr in self.plan.norm_lrs])

    def tuned(self, name: str, weights: Weights, seed: int, *, lr: float, phases: Phases) -> dict[str, Any]:
        """Fine-tuned with phases of Network Alchemy."""
        return self._tested(self._full(name, weights, seed, lr, phases))

    def network(self, piece: str) -> nn.Module:
        """The network that a piece of work ended with."""
        network = start(self.plan, None, seed=0)
        network.load_state_dict(self.store.load(piece)["network"])
        return network

    def clipped(self, kind: str, name: str, seed: int, piece: str) -> dict[str, Any]:
        """The clip test of a trained network, at thresholds that clip given shares of its gammas."""

        def make() -> dict[str, Any]:
            network = self.network(piece)
            sizes = _sizes(network)
            # A threshold is found by a gamma that is the first not to be clipped.
            thresholds = [sizes.sort().values[int(share * len(sizes))].item() for share in self.plan.shares]
            cases = self.sets.validation[: max(1, len(self.sets.validation) // 2)]
            found = clip_test(
                network, lambda net: evaluate(net, cases).dice, thresholds, draws=self.plan.draws, seed=seed
            )
            return {**asdict(found), "harmless": found.harmless}

        found: dict[str, Any] = self.piece(f"clip-{kind}-{_file(name)}-seed{seed}", make)
        return found

    def ranked(self, checkpoints: Mapping[str, Weights], seed: int) -> dict[str, Any]:
        """All checkpoints, ranked by short norm-only trainings in which the new head trains along."""

        def make() -> dict[str, Any]:
            network = start(self.plan, None, seed=seed)
            batch = labelled_batches(self.plan, self.sets, seed, ranking=True)

            def train(model: nn.Module, steps: int) -> None:
                fit(model, batch, steps=steps, lr=self.plan.norm_lrs[0], loss_of=segmentation_loss())

            found = rank_checkpoints(
                {name: network.state_dict() if held is None else held for name, held in checkpoints.items()},
                network,
                train,
                lambda model: evaluate(model, self.sets.validation).dice,
                budget=self.plan.rank_steps,
                head=head_of(network, self.plan),
                seed=seed,
            )
            return {"metrics": {one.name: one.metric for one in found.candidates}, "seconds": found.seconds}

        found: dict[str, Any] = self.piece(f"ranking-seed{seed}", make)
        return found

    def _full(self, name: str, weights: Weights, seed: int, lr: float, phases: Phases) -> dict[str, Any]:
        def make() -> dict[str, Any]:
            network = start(self.plan, weights, seed=seed)
            if phases.identification:
                network = self.network(self.best_norms(name, weights, seed)["piece"])
            redundant = self._modify(network, seed) if phases.modification else 0
            penalty = GammaPenalty(network, weight=phases.weight) if phases.weight else None
            return {**self._measured(network, seed, lr, penalty), "redundant": redundant}

        key = f"full-{_file(name)}-{phases.name}-lr{lr:g}-seed{seed}"
        return {**self.piece(key, make), "piece": key, "lr": lr}

    def _norms(self, name: str, weights: Weights, seed: int, lr: float) -> dict[str, Any]:
        def make() -> dict[str, Any]:
            network = start(self.plan, weights, seed=seed)
            with norm_only(network):
                found = self._measured(network, seed, lr)
            sizes = _sizes(network)
            return {**found, "small": {str(limit): (sizes < limit).double().mean().item() for limit in SMALL}}

        key = f"norms-{_file(name)}-lr{lr:g}-seed{seed}"
        return {**self.piece(key, make), "piece": key, "lr": lr}

    def _modify(self, network: nn.Module, seed: int) -> int:
        # Where a layer has four kernels, a quantile may take all of them.
        found = redundant_kernels(
            network, torch.empty(2, 1, *self.plan.grid), quantile=self.plan.quantile, whole_layers=True
        )
        reinitialize(network, found, seed=seed)
        return found.count

    def _measured(
        self, network: nn.Module, seed: int, lr: float, penalty: GammaPenalty | None = None
    ) -> dict[str, Any]:
        return measured(
            network,
            lambda step: self._batch(seed, step),
            self.sets.validation,
            steps=self.plan.steps,
            lr=lr,
            penalty=penalty,
        )

    def _best(self, trials: list[dict[str, Any]]) -> dict[str, Any]:
        return self._tested(max(trials, key=lambda trial: trial["validation"]))

    def _tested(self, trial: dict[str, Any]) -> dict[str, Any]:
        """Without what is long, with the scores on the test cases."""
        piece = trial["piece"]
        found = self.piece(f"{piece}-test", lambda: scores(self.network(piece), self.sets.test))
        short = {key: value for key, value in trial.items() if key not in ("network", "losses")}
        return {**short, "loss": trial["losses"][-1], **found}

    def _make_batch(self, seed: int, step: int) -> Batch:
        return labelled_batches(self.plan, self.sets, seed)(step)


def _sizes(network: nn.Module) -> Tensor:
    """All |gamma| of a network in a row."""
    return torch.cat([gamma.flatten().abs() for gamma in gammas(network).values()])


def _file(name: str) -> str:
    return name.replace(", ", "-")
