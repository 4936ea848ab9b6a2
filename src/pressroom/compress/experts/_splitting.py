"""The channels of a dense feed-forward as experts, of which a router takes some for each position."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pressroom.compress.experts._grouping import by_use, in_turn
from pressroom.compress.experts.base import Split, loads_of
from pressroom.compress.rounding._curvature import computing, needs_torch
from pressroom.kernel import RecipeError

if TYPE_CHECKING:
    from pressroom.compress.experts.base import Floats

# The router's logits are this small, so that the softmax gives the experts that were taken the same weight, to a
# thousandth: which ones are taken does not hang on their size.
_SMALL = 2.0**-10
# Of the positions: nothing is fitted to them.
_HELD = 0.25
_STEPS = 150
_RATE = 0.02
# How much an uneven load costs against a wrong choice (the auxiliary loss of Switch Transformers, arXiv 2101.03961).
_BALANCE = 0.1
# Positions whose activity is compared to put channels together.
_COMPARED = 2048
_DAMPS = (0.1, 0.5)


@dataclass(frozen=True, slots=True, eq=False)
class _Dense:
    """A feed-forward on some positions: `hidden` what its down gets, `output` what it gives, torch tensors."""

    inputs: Any
    hidden: Any
    output: Any
    # One over the length of each position's output: so each counts alike, and the first of a text, whose output is a
    # hundred times as long, does not alone say what is best.
    weight: Any


def split(
    inputs: Floats,
    gate: Floats,
    up: Floats,
    down: Floats,
    *,
    experts: int,
    used: int,
    shared: int = 0,
    grouping: str = "use",
    refit: bool = True,
    seed: int = 0,
    threads: int = 1,
) -> Split:
    """Split the channels of a feed-forward (gate and up (channels, width), down (outputs, channels)) into experts, by
    what enters it: (positions, width).

    Channels that are active together come together (`grouping` "use"; "turn": in turn), but for those that are most
    active at all: they are the `shared` first experts, which a fitted router takes nearly always (as those of CMoE,
    arXiv 2502.04416, which llama has no place for). The router is fitted to which experts give most of the output at
    each position, with even loads (multinomial regression on the shares of the experts' squared outputs). Then `down`
    is fitted by least squares to the output of the dense one as far as the experts that are taken can give it, each
    position counting alike, where that helps on positions that were left out. With `used` = `experts` the result is the
    dense one, but for what rounding does.

    Raises:
        RecipeError: the arguments do not fit each other.
        MissingDependencyError: PyTorch is not installed.
    """
    channels = len(gate)
    if (
        not (1 <= used <= experts and 0 <= shared <= used)
        or experts < 2
        or channels % experts
        or len(inputs) < 8 * experts
    ):
        raise RecipeError(
            f"{channels:,} channels cannot be split into {experts} experts of which {used} are used, looking at "
            f"{len(inputs):,} positions",
            hint="The experts must divide the channels; take a longer text for more experts.",
        )
    with computing(threads):
        torch = needs_torch()
        matrices = [torch.from_numpy(np.ascontiguousarray(one)) for one in (gate, up, down)]
        every = _dense(torch.from_numpy(inputs.astype(np.float32)), *matrices)
        held = int(len(inputs) * (1 - _HELD))
        fit, left = _part(every, 0, held), _part(every, held, len(inputs))
        if grouping == "use":
            activity = (fit.hidden.abs() * matrices[2].norm(dim=0) * fit.weight)[:: max(1, held // _COMPARED)]
            groups = by_use(activity.numpy(), experts, shared, seed=seed)
        else:
            groups, shared = in_turn(channels, experts), 0
        where = np.empty(channels, np.int64)
        for number, group in enumerate(groups):
            where[group] = number
        place = torch.from_numpy(where)
        shares = _shares(fit, matrices[2], groups)
        router = _router(fit.inputs, shares, used, shared)
        taken, kept = _taken(fit, router, used), _taken(left, router, used)
        plain = _error(left, kept, place, matrices[2])
        best, error = matrices[2], plain
        if refit and used < experts:
            for found in _refits(fit, taken, place, matrices[2]):
                lost = _error(left, kept, place, found)
                if lost < error:
                    best, error = found, lost
        refitted = best is not matrices[2]
        # Each of the experts that are taken has the weight 1 / used.
        scaled = (best * used).numpy()
        turn = torch.zeros_like(kept)
        turn[torch.arange(len(turn))[:, None], (torch.arange(len(turn))[:, None] + torch.arange(used)) % experts] = True
        loads = kept.double().mean(dim=0)
        return Split(
            channels=groups,
            router=(router * _SMALL).float().numpy().copy(),
            down=np.stack([np.ascontiguousarray(scaled[:, group]) for group in groups]),
            error=error,
            even=_error(left, turn, place, matrices[2]),
            loads=loads_of(loads.numpy(), shared),
            refitted=refitted,
        )


def _dense(inputs: Any, gate: Any, up: Any, down: Any) -> _Dense:
    torch = needs_torch()
    hidden = torch.nn.functional.silu(inputs @ gate.t()) * (inputs @ up.t())
    output = hidden @ down.t()
    lengths = output.norm(dim=1, keepdim=True)
    return _Dense(inputs, hidden, output, 1 / lengths.clamp_min(1e-6 * float(lengths.mean()) + 1e-30))


def _part(every: _Dense, start: int, stop: int) -> _Dense:
    return _Dense(*(one[start:stop] for one in (every.inputs, every.hidden, every.output, every.weight)))


def _shares(dense: _Dense, down: Any, groups: Any) -> Any:
    """(positions, experts): each one's share of the squared outputs."""
    torch = needs_torch()
    squares = torch.stack(
        [(dense.hidden[:, group] @ down[:, group].t()).square().sum(dim=1) for group in map(torch.from_numpy, groups)],
        1,
    )
    return squares / squares.sum(dim=1, keepdim=True).clamp_min(1e-30)


def _router(inputs: Any, shares: Any, used: int, shared: int) -> Any:
    """(experts, width), of logits whose spread is about 1."""
    torch = needs_torch()
    with torch.inference_mode(False), torch.enable_grad():
        x = inputs.clone()
        scale = x.square().mean().sqrt().clamp_min(1e-30) * x.shape[1] ** 0.5
        x = x / scale
        # The experts that ought to be taken: those with the largest shares, by their shares.
        best = shares.topk(used, dim=1)
        wanted = torch.zeros_like(shares).scatter(1, best.indices, best.values).clone()
        wanted = wanted / wanted.sum(dim=1, keepdim=True).clamp_min(1e-30)
        router = torch.zeros(shares.shape[1], x.shape[1], requires_grad=True)
        steps = torch.optim.Adam([router], lr=_RATE * x.shape[1] ** 0.5)
        for _ in range(_STEPS):
            steps.zero_grad()
            logits = x @ router.t()
            soft = logits.softmax(dim=1)
            chosen = torch.zeros_like(soft).scatter(1, logits.topk(used, dim=1).indices, 1.0).mean(dim=0) / used
            uneven = (chosen * soft.mean(dim=0))[shared:].sum() * len(chosen)
            loss = -(wanted * logits.log_softmax(dim=1)).sum(dim=1).mean() + _BALANCE * uneven
            loss.backward()
            steps.step()
        found = router.detach()
        found = found - found.mean(dim=0)
        spread = (x @ found.t()).std().clamp_min(1e-12)
        return found / spread / scale


def _taken(dense: _Dense, router: Any, used: int) -> Any:
    """(positions, experts): True for those that the router takes."""
    torch = needs_torch()
    logits = dense.inputs @ router.t()
    return torch.zeros_like(logits, dtype=torch.bool).scatter(1, logits.topk(used, dim=1).indices, True)


def _error(dense: _Dense, taken: Any, place: Any, down: Any) -> float:
    """The share of the output, squared, that is lost with the experts that are taken, each position counting alike."""
    given = (dense.hidden * taken[:, place]) @ down.t()
    return float(((given - dense.output) * dense.weight).square().sum(dim=1).double().mean())


def _refits(dense: _Dense, taken: Any, place: Any, down: Any) -> Iterator[Any]:
    """`down` for which the experts that are taken give the dense output with the least error, for several dampings.

    With Z the channels of these and Y what is missing, the change is Yᵀ Z (ZᵀZ + d)⁻¹: the damping d, a share of each
    channel's own square, weighs the change, so that none is shrunk.
    """
    torch = needs_torch()
    seen = dense.hidden * taken[:, place] * dense.weight
    missing = dense.output * dense.weight - seen @ down.t()
    gram, target = seen.t() @ seen, seen.t() @ missing
    diagonal = gram.diagonal().clone()
    for damp in _DAMPS:
        gram.diagonal().copy_(diagonal + damp * (diagonal + diagonal.mean()))
        factor, failed = torch.linalg.cholesky_ex(gram)
        if not int(failed):
            yield down + torch.cholesky_solve(target, factor).t()
