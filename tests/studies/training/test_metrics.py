"""Scores of networks on held-out cases, against other packages."""

from typing import Any

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from layertune_studies.data.case import Case
from layertune_studies.training.metrics import classification_scores, evaluate


@pytest.mark.parametrize("classes", [2, 4])
def test_the_macro_auc_is_that_of_scikit_learn(classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (60,), generator=generator)
    shares = torch.randn(60, classes, generator=generator).softmax(1)
    scores = classification_scores(shares, labels)
    given: Any = shares.double() / shares.double().sum(1, keepdim=True) if classes > 2 else shares[:, 1]
    assert scores["macro_auc"] == pytest.approx(roc_auc_score(labels, given, multi_class="ovr", average="macro"))
    assert (scores["macro_auc"] == pytest.approx(scores["auc"])) == (classes == 2)


def test_the_middle_of_an_image_is_evaluated() -> None:
    seen: list[Tensor] = []

    class Watching(nn.Linear):
        def forward(self, batch: Tensor) -> Tensor:
            seen.append(batch)
            return super().forward(batch[:, 0, 0])

    image = torch.arange(48.0).reshape(1, 6, 8)
    evaluate(Watching(4, 2), [Case(image, torch.tensor(0))], classes=2, patch=(2, 4))
    assert seen[0].equal(image[None, :, 2:4, 2:6])
