"""MetaLR with second derivatives, as written in the paper, for comparison in the benchmark."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import SGD

from layertune.errors import OptimizerError

__all__ = ["SecondOrderMetaLR"]


class SecondOrderMetaLR:
    """Algorithm 1 with the updated weights as a differentiable function of the learning rates.

    Each iteration builds a model for the look-ahead, differentiates the training loss with ``create_graph``, then the
    meta loss through the updated weights, and runs the training batch again for the real step. That is three passes and
    a model, where ``layertune.MetaLR`` needs two passes. The learned rates are the same.

    Args:
        build: Makes a model of the same architecture.
        model: The model that is trained. Its running statistics follow the real step alone.
        optimizer: Plain SGD, with or without momentum, over groups of one layer each. The ``lr`` of the groups is
            learned.
        loss: The loss, called with the model's output and the target.
        hyper_lr: Step size of the learning rates, eta of eq. 3.
        min_lr: The smallest learned rate.
        rates_only: Differentiate the meta loss with respect to the rates alone, by ``autograd.grad(...,
            create_graph=True)``, as the authors' public code does. Autograd then leaves out the second derivatives for
            the weights, which ``backward()`` on the meta loss computes although nobody reads them.

    Raises:
        OptimizerError: The optimizer is not SGD, or uses dampening, Nesterov's momentum or weight decay.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
        >>> optimizer = SGD([{"params": layer.parameters()} for layer in net], lr=0.1, momentum=0.9)
        >>> learner = SecondOrderMetaLR(
        ...     lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)), net, optimizer,
        ...     loss=nn.functional.mse_loss, hyper_lr=0.01,
        ... )
        >>> batch, meta_batch = (torch.randn(8, 3), torch.randn(8, 1)), (torch.randn(8, 3), torch.randn(8, 1))
        >>> h = learner.step(batch, meta_batch)
        >>> h.shape, optimizer.param_groups[0]["lr"] == 0.1
        (torch.Size([2]), False)
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        model: nn.Module,
        optimizer: SGD,
        *,
        loss: Callable[[Tensor, Tensor], Tensor],
        hyper_lr: float,
        min_lr: float = 1e-6,
        rates_only: bool = False,
    ) -> None:
        unknown = ("dampening", "nesterov", "weight_decay", "maximize")
        if type(optimizer) is not SGD or any(group[key] for group in optimizer.param_groups for key in unknown):
            raise OptimizerError(
                "the second-order reference differentiates SGD's own update rule, with momentum at most; give it "
                "torch.optim.SGD without dampening, Nesterov's momentum, weight decay or maximize"
            )
        self.build = build
        self.model = model
        self.optimizer = optimizer
        self.loss = loss
        self.hyper_lr = hyper_lr
        self.min_lr = min_lr
        self.rates_only = rates_only

    def step(self, batch: tuple[Tensor, Tensor], meta_batch: tuple[Tensor, Tensor]) -> Tensor:
        """Learn the rates on a meta batch, then take a step with them.

        Args:
            batch: Input and target of the training loss.
            meta_batch: Input and target of the meta loss.

        Returns:
            h_j = dL_meta/dalpha_j, one entry for each group.
        """
        groups = self.optimizer.param_groups
        rates = [torch.tensor(group["lr"], dtype=torch.float64, requires_grad=True) for group in groups]
        images, target = meta_batch
        lookahead = self.build()
        lookahead.load_state_dict(self.model.state_dict())
        updated = self._updated(lookahead, rates, batch)
        meta_loss = self.loss(functional_call(lookahead, dict(updated), (images,)), target)
        h = self._slopes(meta_loss, rates)
        for group, rate, slope in zip(groups, rates, h.tolist(), strict=True):
            group["lr"] = max(rate.item() - self.hyper_lr * slope, self.min_lr)

        images, target = batch
        self.optimizer.zero_grad()
        self.loss(self.model(images), target).backward()
        self.optimizer.step()
        return h

    def _slopes(self, meta_loss: Tensor, rates: Sequence[Tensor]) -> Tensor:
        if self.rates_only:
            return torch.stack(torch.autograd.grad(meta_loss, rates, create_graph=True)).detach()
        meta_loss.backward()
        return torch.stack([torch.zeros_like(rate) if rate.grad is None else rate.grad for rate in rates])

    def _updated(
        self, lookahead: nn.Module, rates: Sequence[Tensor], batch: tuple[Tensor, Tensor]
    ) -> Mapping[str, Tensor]:
        """Return theta^ = theta - alpha u with u = mu m + grad L, as a function of theta and alpha (eq. 2)."""
        images, target = batch
        weights = dict(lookahead.named_parameters())
        loss = self.loss(lookahead(images), target)
        grads = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        place = {
            id(parameter): (rate, group["momentum"])
            for rate, group in zip(rates, self.optimizer.param_groups, strict=True)
            for parameter in group["params"]
        }
        updated = {}
        for (name, weight), trained, grad in zip(weights.items(), self.model.parameters(), grads, strict=True):
            rate, momentum = place[id(trained)]
            past = self.optimizer.state[trained].get("momentum_buffer")
            update = grad if past is None else momentum * past + grad
            updated[name] = weight - rate.to(weight.dtype) * update
        return updated
