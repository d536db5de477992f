"""Load pre-trained weights into a network as far as they surely fit, with a report."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from layertune.errors import WeightsError
from layertune.weights.adapting.adaptation import adapt_misfits, read_adaptations
from layertune.weights.adapting.decoders import leave_out_decoders
from layertune.weights.checks import measure_shares, require_finite, require_share, require_types
from layertune.weights.file import read_weights
from layertune.weights.matching import Matching, match_by_guess, match_by_name
from layertune.weights.prefixes import choose_copy
from layertune.weights.report import MIN_SHARE, Loaded, listed
from layertune.weights.targets import Rename, Source, Targets

__all__ = ["Loaded", "load_weights", "read_weights"]


def load_weights(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    *,
    rename: Rename | None = None,
    guess: bool = True,
    prefix: str | None = None,
    allow_partial: bool = False,
    min_share: float = MIN_SHARE,
    adapt: str | Collection[str] = (),
) -> Loaded:
    """Copy pre-trained weights into a network as far as they surely fit; all other tensors stay as they were.

    A tensor of the network takes the tensor of the file that has its name and shape. If the names differ:

    - ``rename`` says how, and then nothing is guessed;
    - a prefix may be all that differs (``swinViT.``). It is used if it is the only one that fits at least half of the
      smaller side;
    - modules may have the same names and their parts others, as ``mlp.fc1`` and ``mlp.linear1``: see
      ``layertune.weights.enclosed``;
    - all names may differ and the architecture be the same: see ``layertune.weights.order``.

    If the weights hold several copies of the network that differ, as a student and a teacher or weights and their
    average, ``prefix`` chooses one; none is preferred. What is in doubt is left out and named, also the numbered stages
    of a decoder with another depth, since they are numbered from the deepest one. Nothing is copied if there is an
    error.

    Nothing is cut, averaged or interpolated unless ``adapt`` asks for it. All adaptations but rescaled channels keep
    what the network computed from the old channels, for the old classes, or where its input is constant along an axis:

    - ``zero_channels``, ``repeat_channels`` or ``average_channels``: the first convolution for more input channels. The
      old channels come first and keep their kernels; the new ones get zeros, a copy of the old ones in turn, or their
      mean. One channel gets the sum of all. ``rescale_channels`` is timm's way: all are repeated and rescaled.
    - ``classes``: the head for more classes. The old classes come first and keep their weights.
    - ``inflate``: 2D kernels in 3D, repeated along the depth and divided (I3D).
    - ``kernel_size``: kernels with size 1 along an axis, by the sum over it, and from size 1, by repetition.
    - ``positions``: positional embeddings, interpolated to another image size.
    - ``decoder``: a decoder of another depth stays fresh and does not count as missing.

    Weights of which little fits belong to another network most probably. They are refused unless at least
    ``min_share`` of the parameters outside the head match, of the network's or of the file's (an encoder alone fills a
    small part of a segmentation network, and is used whole), and a tenth of that of the network's. The share counts
    elements, and the head is the last module that owns parameters.

    Args:
        model: The network, also inside ``torch.compile`` or DDP. Names that share one tensor (nnU-Net's
            ``decoder.encoder``) count as one.
        weights: Name -> tensor, as ``read_weights`` returns them.
        rename: Name in the file -> name in the network. Names that a dict lacks stay; a function returns ``None`` for
            a tensor to leave out.
        guess: Whether a prefix and pairs by order may be found out.
        prefix: Beginning of the names in the file that are used, as ``"teacher"``; all other tensors are left out. An
            empty text prefers the names as they are to copies behind a prefix.
        allow_partial: Whether to load what fits however little it is.
        min_share: The share of the parameters that has to match, 0 to 1.
        adapt: The adaptations to use, one name or several.

    Returns:
        What matched, what did not, and why.

    Raises:
        WeightsError: An argument is of another type; nothing fits, or less than ``min_share``; weights that fit are NaN
            or infinite; the weights hold several copies of the network, and ``prefix`` chooses none; ``rename`` gives
            two tensors of the file one name; ``adapt`` names no adaptation; or the network's parameters have no memory
            of their own yet.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 5))
        >>> pretrained = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
        >>> loaded = load_weights(model, pretrained.state_dict())
        >>> loaded.missing
        {'1.weight': 'shape (4, 3) against (5, 3)', '1.bias': 'shape (4,) against (5,)'}
        >>> print(loaded.summary())
        2 of 4 tensors loaded; left as they were: 1.weight (shape (4, 3) against (5, 3)), 1.bias (shape (4,) ...
    """
    require_types(model, weights)
    asked, targets, source = read_adaptations(adapt), Targets(model), Source(weights)
    matching = _match(source, targets, rename, prefix, guess=guess)
    adapt_misfits(matching, source, targets, asked)
    fresh = leave_out_decoders(matching, source, targets, asked="decoder" in asked)
    if not matching.pairs:
        raise WeightsError(_nothing_fits(targets, source, matching))
    loaded = _report(matching, source, targets, fresh)
    if not allow_partial:
        require_share(loaded, min_share)
    require_finite(matching.pairs, source, targets)
    for own, file in matching.pairs.items():
        _copy(matching.tensors.get(own, source.tensors[file]), targets.tensors[own])
    return loaded


def _copy(tensor: Tensor, target: Tensor) -> None:
    # PyTorch refuses to write into a tensor of inference mode outside of it.
    with torch.inference_mode() if target.is_inference() else torch.no_grad():
        target.copy_(tensor)


def _match(source: Source, targets: Targets, rename: Rename | None, prefix: str | None, *, guess: bool) -> Matching:
    change = choose_copy(source, prefix or "")
    if rename is not None:
        source.rename(rename)
    if guess and rename is None:
        matching = match_by_guess(source, targets, plain_is_chosen=prefix == "")
    else:
        matching = match_by_name(source, targets)
    matching.prefix = ", ".join(filter(None, [change, matching.prefix]))
    return matching


def _report(matching: Matching, source: Source, targets: Targets, fresh: Collection[str]) -> Loaded:
    pairs, reasons = matching.pairs, matching.reasons
    shares = measure_shares(pairs, source, targets, fresh)
    return Loaded(
        matched={own: pairs[own] for own in targets.tensors if own in pairs},
        missing={own: reasons.get(own, "not in the file") for own in targets.tensors if own not in pairs},
        unused=_unused(matching, source, targets),
        by_order=matching.by_order,
        prefix=matching.prefix,
        share_of_network=shares.network,
        share_of_file=shares.file,
        adapted=matching.adapted,
    )


def _unused(matching: Matching, source: Source, targets: Targets) -> dict[str, str]:
    used = {source.place(file) for file in matching.pairs.values()}
    unused = {}
    for file in source.tensors:
        reason = _reason_against(file, matching, source, targets)
        if source.place(file) not in used and reason is not None:
            unused[file] = reason
    return unused


def _reason_against(file: str, matching: Matching, source: Source, targets: Targets) -> str | None:
    """Return why nothing took a tensor of the file; ``None`` if the tensor of its name took an equal one."""
    if file not in source.names:
        return "left out by prefix= or rename="
    candidate_of = [own for own, files in matching.candidates.items() if file in files]
    if candidate_of:
        return f"ambiguous: it may be {listed(candidate_of)} of the network"
    misfits = {partner: own for own, partner in matching.misfits.items()}
    own = targets.first_name.get(source.names.get(file, ""), misfits.get(file))
    if own in matching.pairs:
        return None
    return matching.reasons.get(own, "not in the network") if own else "not in the network"


def _nothing_fits(targets: Targets, source: Source, matching: Matching) -> str:
    if matching.misfits:
        reasons = (f"{own} ({why})" for own, why in matching.reasons.items())
        return f"no tensor of the weights fits the network: {listed(reasons)}"
    order = "order and shapes leave a doubt which is which" if matching.doubtful else "order and shapes differ too"
    return (
        f"the weights belong to another architecture: the file names {listed(source.tensors)}; the network names "
        f"{listed(targets.tensors)}; {order}. If they do belong together, say which name is which: "
        "rename= in Python, --rename where a command has it"
    )
