"""The tables of the hippocampus study of Network Alchemy, as Markdown."""

from collections.abc import Iterable, Sequence
from statistics import fmean, median
from typing import Any

from layertune import rank_correlation
from layertune_studies.hippocampus_alchemy_training import phase_grid

__all__ = ["markdown"]

Seeds = Sequence[dict[str, Any]]


def markdown(results: dict[str, Any]) -> str:
    """All tables of a study, or of the seeds that are done: Dice on the test cases, the median and each seed.

    Args:
        results: what ``results.json`` holds.
    """
    seeds: Seeds = results["seeds"]
    plan = results["plan"]
    parts = [
        ("Pre-training", _pretraining(results["pretraining"])),
        ("Network Alchemy, each phase on and off (tab. 4.1)", _phases(seeds, plan["weights"][0])),
        ("The penalty alone (tab. 4.2)", _penalty(seeds)),
        ("Norms alone against all (tab. 4.3)", _norms_and_full(seeds)),
        ("Gammas after norm-only training (fig. 3.2)", _gammas(seeds)),
        ("Clip test (fig. 3.1)", _clips(seeds)),
        ("Ranking (sec. 4.4)", _ranking(seeds)),
    ]
    return "\n".join(f"## {title}\n\n{text}" for title, text in parts)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _told(values: Sequence[float]) -> str:
    """The median, and each seed where there are several."""
    middle = f"{median(values):.3f}"
    return middle if len(values) == 1 else f"{middle} ({', '.join(f'{value:.3f}' for value in values)})"


def _rates(found: Iterable[dict[str, Any]]) -> str:
    return ", ".join(f"{one['lr']:g}" for one in found)


def _pretraining(found: dict[str, Any]) -> str:
    rows = [
        [name, f"{one['first']:.4f}", f"{one['last']:.4f}", f"{one['unrestored']:.4f}" if "unrestored" in one else ""]
        for name, one in found.items()
    ]
    return _table(["", "loss, first tenth", "last tenth", "error of the deformed volumes themselves"], rows)


def _phases(seeds: Seeds, weight: float) -> str:
    def row(start: str, marks: Sequence[bool], found: list[dict[str, Any]], plain: list[dict[str, Any]]) -> list[str]:
        gains = _told([one["dice"] - other["dice"] for one, other in zip(found, plain, strict=True)])
        count = ", ".join(str(one["redundant"]) for one in found) if marks[1] else ""
        return [start, *("x" if mark else "" for mark in marks), _told([one["dice"] for one in found]), gains, count]

    plain = [seed["full"]["other"] for seed in seeds]
    rows = [row(name, (False,) * 3, [seed["full"][name] for seed in seeds], plain) for name in ("scratch", "same")]
    for way in phase_grid(weight):
        found = [seed["phases"][way.name] for seed in seeds]
        rows.append(row("other", (way.identification, way.modification, way.weight > 0), found, plain))
    head = ["start", "identification", "modification", "maximisation", "Dice", "against `other` alone", "kernels anew"]
    rates = "; ".join(f"{name} {_rates(seed['full'][name] for seed in seeds)}" for name in seeds[0]["penalty"])
    return _table(head, rows) + f"\nRates chosen: {rates}.\n"


def _penalty(seeds: Seeds) -> str:
    starts = list(seeds[0]["penalty"])
    rows = [
        [
            f"lambda {weight}",
            *(_told([seed["penalty"][name][weight]["dice"] for seed in seeds]) for name in starts),
        ]
        for weight in seeds[0]["penalty"][starts[0]]
    ]
    return _table(["", *starts], rows)


def _norms_and_full(seeds: Seeds) -> str:
    names = list(seeds[0]["full"])
    rows = [
        [
            name,
            *(_told([seed[kind][name]["dice"] for seed in seeds]) for kind in ("norms", "full")),
            _rates(seed["norms"][name] for seed in seeds),
            _rates(seed["full"][name] for seed in seeds),
        ]
        for name in names
    ]
    pairs = [[[seed[kind][name]["dice"] for name in names] for kind in ("norms", "full")] for seed in seeds]
    middle = [[median(values) for values in zip(*(pair[kind] for pair in pairs), strict=True)] for kind in (0, 1)]
    own = ", ".join(f"{rank_correlation(*pair):.2f}" for pair in pairs)
    short, long = (fmean(seed[kind][name]["seconds"] for seed in seeds for name in names) for kind in ("norms", "full"))
    return (
        _table(["checkpoint", "norms alone", "all", "rates, norms alone", "rates, all"], rows)
        + f"\nSpearman's rank correlation of the medians {rank_correlation(*middle):.2f}, of each seed {own}.\n"
        f"A training takes {short:.1f} s with the norms alone and {long:.1f} s with all.\n"
    )


def _gammas(seeds: Seeds) -> str:
    limits = list(seeds[0]["norms"]["scratch"]["small"])
    rows = [
        [name, *(_told([seed["norms"][name]["small"][key] for seed in seeds]) for key in limits)]
        for name in seeds[0]["norms"]
    ]
    return _table(["checkpoint", *(f"share of \\|γ\\| < {limit}" for limit in limits)], rows)


def _clips(seeds: Seeds) -> str:
    rows = []
    for kind in ("norms", "full"):
        for name in seeds[0]["clips"][kind]:
            found = [seed["clips"][kind][name] for seed in seeds]
            for number, point in enumerate(found[0]["points"]):
                small = [one["points"][number]["metric"] for one in found]
                random = [fmean(one["points"][number]["random"]) for one in found]
                before = _told([one["baseline"] for one in found])
                rows.append([kind, name, f"{point['share']:.0%}", before, _told(small), _told(random)])
    head = ["trained", "start", "clipped", "Dice before", "small γ clipped", "random γ clipped"]
    return _table(head, rows)


def _ranking(seeds: Seeds) -> str:
    rows = []
    for number, seed in enumerate(seeds):
        found = seed["ranking"]["metrics"], {name: one["dice"] for name, one in seed["full"].items()}
        orders = [sorted(values, key=lambda name: values[name], reverse=True) for values in found]
        rho = rank_correlation(*([values[name] for name in seed["full"]] for values in found))
        seconds = seed["ranking"]["seconds"], sum(one["seconds"] for one in seed["full"].values())
        same = "yes" if set(orders[0][:2]) == set(orders[1][:2]) else "no"
        texts = ["; ".join(order) for order in orders]
        rows.append([str(number), *texts, same, f"{rho:.2f}", f"{seconds[0]:.0f} of {seconds[1]:.0f}"])
    head = ["seed", "ranked", "fine-tuned (test)", "same best two", "Spearman's ρ", "seconds"]
    return _table(head, rows)
