"""MetaLR as the paper writes it, slow and obvious: explicit update directions, and autograd for the meta gradient.

Nothing of layertune is used here. One float64 tensor per parameter, layers as lists of names, every quantity with the
symbol of the equation.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.func import functional_call

Tensors = dict[str, Tensor]


def sgd(theta: Tensor, g: Tensor, state: dict, *, momentum=0.0, nesterov=False, weight_decay=0.0, **_) -> Tensor:
    """u of SGD: Sutskever's momentum as torch has it, decay in the gradient."""
    g = g + weight_decay * theta
    if not momentum:
        return g
    state["b"] = g if "b" not in state else momentum * state["b"] + g
    return g + momentum * state["b"] if nesterov else state["b"]


def adam(theta: Tensor, g: Tensor, state: dict, *, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, **_) -> Tensor:
    """u of Adam (Kingma and Ba, algorithm 1), decay in the gradient."""
    return _adam_direction(g + weight_decay * theta, state, betas, eps)


def adamw(theta: Tensor, g: Tensor, state: dict, *, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, **_) -> Tensor:
    """u of AdamW (Loshchilov and Hutter, algorithm 2): decoupled decay is a part of the direction."""
    return _adam_direction(g, state, betas, eps) + weight_decay * theta


def lion(theta: Tensor, g: Tensor, state: dict, *, betas=(0.9, 0.99), weight_decay=0.0, **_) -> Tensor:
    """u of Lion (Chen et al. 2023, algorithm 2)."""
    m = state.get("m", torch.zeros_like(theta))
    u = torch.sign(betas[0] * m + (1 - betas[0]) * g) + weight_decay * theta
    state["m"] = betas[1] * m + (1 - betas[1]) * g
    return u


def _adam_direction(g: Tensor, state: dict, betas: tuple[float, float], eps: float) -> Tensor:
    t = state["t"] = state.get("t", 0) + 1
    m = state["m"] = betas[0] * state.get("m", torch.zeros_like(g)) + (1 - betas[0]) * g
    v = state["v"] = betas[1] * state.get("v", torch.zeros_like(g)) + (1 - betas[1]) * g**2
    return (m / (1 - betas[0] ** t)) / ((v / (1 - betas[1] ** t)).sqrt() + eps)


DIRECTIONS: dict[str, Callable[..., Tensor]] = {"sgd": sgd, "adam": adam, "adamw": adamw, "lion": lion}


class ReferenceMetaLR:
    """Algorithm 1 of the paper, one step at a time.

    Args:
        model: the network; its own parameters are never changed.
        layers: names of parameters by layer.
        lr: initial learning rate of each layer.
        direction: a key of ``DIRECTIONS``, with ``options`` for it.
        eta, rule, min_lr, max_lr, max_change: as in ``layertune.MetaLR``.
        ratio: learning rate of a parameter over that of its layer; 1 where it is left out.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        layers: Mapping[str, list[str]],
        *,
        lr: Mapping[str, float],
        direction: str,
        eta: float,
        rule: str = "additive",
        min_lr: float = 1e-6,
        max_lr: float = math.inf,
        max_change: float = 2.0,
        ratio: Mapping[str, float] | None = None,
        **options,
    ) -> None:
        self.model = model
        self.layers = layers
        self.alpha = {name: torch.tensor(value, dtype=torch.float64) for name, value in lr.items()}
        self.theta: Tensors = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.direction, self.options = DIRECTIONS[direction], options
        self.eta, self.rule = eta, rule
        self.min_lr, self.max_lr = (torch.tensor(bound, dtype=torch.float64) for bound in (min_lr, max_lr))
        self.max_change = max_change
        self.ratio = ratio or {}
        self.state: dict[str, dict] = {name: {} for name in self.theta}
        self.h: dict[str, Tensor] = {}
        self.waiting: Tensors | None = None

    def loss(self, theta: Tensors, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return torch.nn.functional.mse_loss(functional_call(self.model, theta, (x,)), y)

    def gradient(self, theta: Tensors, batch: tuple[Tensor, Tensor]) -> Tensors:
        leaves = {name: value.detach().clone().requires_grad_() for name, value in theta.items()}
        return dict(zip(leaves, torch.autograd.grad(self.loss(leaves, batch), list(leaves.values())), strict=True))

    def move(self, alpha: dict[str, Tensor], u: Tensors) -> Tensors:
        """theta_j - alpha_j u_j (eq. 2 and 4), differentiable in alpha."""
        return {name: self.theta[name] - alpha[j] * u[name] for j, names in self.layers.items() for name in names}

    def step(self, train: tuple[Tensor, Tensor], meta: tuple[Tensor, Tensor]) -> None:
        """One step in exact mode."""
        u = self._directions(self.gradient(self.theta, train))
        alpha = {j: value.clone().requires_grad_() for j, value in self.alpha.items()}
        h = torch.autograd.grad(self.loss(self.move(alpha, u), meta), list(alpha.values()), materialize_grads=True)
        self.h = dict(zip(alpha, h, strict=True))
        self._learn(self.gradient(self.move(self.alpha, u), meta), u)
        self.theta = self.move(self.alpha, u)

    def streaming_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """One step in streaming mode: the gradient of this batch is the meta gradient of the step before."""
        g = self.gradient(self.theta if self.waiting is None else self.move(self.alpha, self.waiting), batch)
        if self.waiting is not None:
            self.h = {j: -sum((g[n] * self.waiting[n]).sum() for n in names) for j, names in self.layers.items()}
            self._learn(g, self.waiting)
            self.theta = self.move(self.alpha, self.waiting)
        self.waiting = self._directions(g)

    @property
    def weights(self) -> Tensors:
        """The weights that the optimizer shows: looked ahead where a step waits."""
        return self.theta if self.waiting is None else self.move(self.alpha, self.waiting)

    def _directions(self, g: Tensors) -> Tensors:
        names = [name for held in self.layers.values() for name in held]
        u = {n: self.direction(self.theta[n], g[n], self.state[n], **self.options).detach() for n in names}
        return {name: self.ratio.get(name, 1.0) * direction for name, direction in u.items()}

    def _learn(self, g_meta: Tensors, u: Tensors) -> None:
        self.alpha = {j: self._learned(j, g_meta, u) for j in self.layers}

    def _cosine(self, layers: list[str], g: Tensors, u: Tensors) -> Tensor:
        """The cosine of the meta gradient and the step alpha u over some layers."""
        names = [(j, name) for j in layers for name in self.layers[j]]
        gradient = torch.cat([g[name].flatten() for _, name in names])
        step = torch.cat([(self.alpha[j] * u[name]).flatten() for j, name in names])
        return torch.nn.functional.cosine_similarity(gradient, step, dim=0, eps=0)

    def _learned(self, j: str, g_meta: Tensors, u: Tensors) -> Tensor:
        alpha = self.alpha[j]
        if self.rule == "additive":
            new = alpha - self.eta * self.h[j]
        elif self.rule == "proportional":
            new = alpha * (1 - self.eta * self.h[j])
        else:
            cosine = self._cosine([j], g_meta, u)
            if self.rule == "joint":
                cosine = cosine + 5 * self._cosine(list(self.layers), g_meta, u)
            new = alpha * torch.exp(self.eta * cosine)
        new = min(max(new, alpha / self.max_change), alpha * self.max_change)
        return max(min(new, max(self.max_lr, alpha)), min(self.min_lr, alpha)).detach()
