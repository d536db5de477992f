import pytest
import torch
from torch import Tensor, nn

from layertune_studies.data.case import Case
from layertune_studies.demo_train import evaluate


class Fixed(nn.Module):
    """Answers with given label maps in turn."""

    def __init__(self, labels: list[Tensor]) -> None:
        super().__init__()
        self.labels = labels

    def forward(self, image: Tensor) -> Tensor:
        label = self.labels.pop(0)
        return torch.stack([(label == tissue).float() for tissue in range(3)], 1).reshape(1, 3, *image.shape[2:])


def test_scores_are_those_of_their_definitions() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = [torch.randint(0, 3, (1, 8, 8, 8), generator=generator) for _ in range(3)]
    subjects = [Case(label.float(), label) for label in labels]
    predicted = [subject.label.roll(1, dims=1) for subject in subjects]
    scores = evaluate(Fixed(list(predicted)), subjects)
    expected: dict[str, list[float]] = {"dice": [], "ppv": [], "sensitivity": []}
    for guess, subject in zip(predicted, subjects, strict=True):
        for tissue in (1, 2):
            hit = float(((guess == tissue) & (subject.label == tissue)).sum())
            guessed, true = float((guess == tissue).sum()), float((subject.label == tissue).sum())
            expected["dice"].append(2 * hit / (guessed + true))
            expected["ppv"].append(hit / guessed)
            expected["sensitivity"].append(hit / true)
    for name, values in expected.items():
        assert getattr(scores, name) == pytest.approx(sum(values) / len(values), abs=1e-6)
