"""Several adapters to one that does what each of them does on its own examples, layer by layer.

Sums of trained adapters interfere: each moves the inputs that the others were trained on, and the
mistakes add up from layer to layer. Here the layers are fitted in order, every one on what the
merged layers below it really give. For a module with inputs x_t in the merged network,

    ΔW = argmin Σ_t c_t ‖(W + ΔW) x_t - y_t‖² + ridge τ ‖ΔW‖²,  τ = mean diagonal of Σ c_t x_t x_tᵀ

over all tokens t of all sources' examples, y_t being what the source gives there by itself. Where a
module writes into the residual stream, y_t also makes up for how far the stream is off by then. The
weight c_t is the squared gradient, at the module's output, of how surely the source gives its own
answer; of the best ΔW the rank is what matters most in the metric of those gradients. Least squares
in closed form and one backward pass for the weights: no step of training.

Papers: RegMean, arXiv 2212.09849, fits each layer apart on each source's own inputs; RegMean++,
arXiv 2508.03121, takes the merged network's inputs as here, but keeps the sources' weights for
targets and knows neither streams nor ranks; the weights are K-FAC's, arXiv 1503.05671.

Shape letters: B row, T token of a row, M real tokens, D hidden width, I in-features, O out, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from lorewright.adapters.adapter import HALVES, Adapter, capture, content_id, needs_plain
from lorewright.adapters.lora import Stack, attach
from lorewright.adapters.proof import validate
from lorewright.adapters.targets import Site, survey
from lorewright.errors import ConfigError, ModelError
from lorewright.knowledge.data import Example
from lorewright.merging.algebra import check_rank, checked_weights, names_of
from lorewright.merging.layerwise import Layers, Start, tapping
from lorewright.models.batching import by_length
from lorewright.models.model import Batch, Model

PASS_TOKENS = 4096
"""Padded tokens of a pass, at most."""
WIDEST_METRIC = 2048
"""Outputs above which a module's metric is its diagonal: a full one grows with their square."""
WRITES = 1e-2
"""Largest relative error with which outputs of modules may explain what a layer adds."""
LEAST_GAIN = 0.05
"""Of a module that writes into the residual stream; less is rounding."""


@dataclass(frozen=True, eq=False)
class Source:
    """An adapter and what it was trained on."""

    adapter: Adapter
    examples: Sequence[Example]


@dataclass(frozen=True, eq=False)
class Imitation:
    """One adapter that follows several, and how closely."""

    adapter: Adapter
    """A plain adapter: alpha = rank (scale 1), float32, the same rank in every module."""
    strayed: tuple[float, ...]
    """Per source: where answers are predicted, squared distance of its last hidden states from the
    merged ones, over that from the base's; 0 = does as the source, 1 = no nearer than the base."""
    notes: tuple[str, ...]


def imitate(
    model: Model,
    sources: Sequence[Source],
    weights: Sequence[float] | None = None,
    rank: int | None = None,
    *,
    ridge: float = 1e-3,
    floor: float = 0.02,
    damping: float = 0.1,
    progress: Callable[[str], None] = lambda text: None,
) -> Imitation:
    """Fit one adapter to what each source's adapter does on that source's examples.

    `weights` are factors on each source's ΔW (default 1), `rank` None = the sum of the ranks.
    `floor` is the least weight of a token as a share of the mean, `damping` the share of the mean
    that is added to the metric's diagonal. Needs memory for the hidden states of all examples,
    twice, and for the masks of their passes. The network is as before in every case.

    Raises ConfigError for no sources or examples and for settings out of range, WrongBase or
    AdapterError for an adapter that does not fit the model, ModelError for mixtures of experts
    and networks whose layers cannot be run one by one.
    """
    factors = _checked(sources, weights, rank, ridge, floor, damping)
    own = [source.adapter for source in sources]
    needs_plain(own, "imitation")
    for each in own:
        validate(each, model.network, model.digest)
    if any(".experts." in name for each in own for name in each.modules):
        raise ModelError(
            f"{model.name!r} sends tokens to experts, out of order; imitate needs every token in "
            "place. Merge with a method that uses weights only, such as tsv."
        )
    width = rank or sum(each.config.rank for each in own)
    every = dict.fromkeys(name for each in own for name in each.modules)
    config, _ = names_of(own, tuple(every), width)
    with attach(model.network, [*(each.config for each in own), config]) as stack:
        for n, (each, factor) in enumerate(zip(own, factors, strict=True)):
            by_half = dict(zip(HALVES, (1.0, factor), strict=True))
            scaled = [(k, t, h) for k, t in each.tensors.items() for h in HALVES if k.endswith(h)]
            stack.load(n, {key: tensor * by_half[half] for key, tensor, half in scaled})
        run = _Run(model, stack, sources, _Settings(width, ridge, floor, damping))
        strayed = run.through(progress)
        fitted = capture(stack, len(own), base_id=model.name, base_digest=model.digest)
    record = {
        "method": "imitate",
        "weights": factors,
        "rank": width,
        "options": {"ridge": ridge, "floor": floor, "damping": damping},
        "sources": [content_id(each) for each in own],
        "n_examples": [len(source.examples) for source in sources],
        "strayed": list(strayed),
    }
    return Imitation(replace(fitted, card={"merge": record}), strayed, tuple(run.notes))


@torch.no_grad()
def grams(model: Model, source: Source) -> dict[str, Tensor]:
    """XᵀX (I, I) of every adapted module's inputs on the source's own examples, in float64.

    What `merge.regmean` needs. One pass; padding does not count. Raises as `imitate`.
    """
    validate(source.adapter, model.network, model.digest)
    sums: dict[str, Tensor] = {}
    with model.using(source.adapter):
        for piece in _pieces(model, [source]):
            with tapping(model.network, source.adapter.modules) as tap:
                model.completion_logits(piece.batch)
            for name, (x_BTI, _) in tap.items():
                x_MI = x_BTI[piece.real_BT].double()
                gram_II = x_MI.T @ x_MI
                sums[name] = sums[name] + gram_II if name in sums else gram_II
    return {name: gram_II.cpu() for name, gram_II in sums.items()}


def _checked(
    sources: Sequence[Source],
    weights: Sequence[float] | None,
    rank: int | None,
    ridge: float,
    floor: float,
    damping: float,
) -> list[float]:
    """The weights, all settings being in range."""
    if not sources:
        raise ConfigError("imitate needs at least one source; there is none.")
    if bare := [n for n, source in enumerate(sources) if not source.examples]:
        raise ConfigError(
            f"imitate needs the examples that each source was trained on; source {bare[0]} has "
            "none. Merge with a method that uses weights only, such as tsv."
        )
    check_rank(rank)
    for name, value in (("ridge", ridge), ("floor", floor), ("damping", damping)):
        if not 0 < value < math.inf:
            raise ConfigError(f"{name} must be above 0; it is {value}.")
    return checked_weights(len(sources), weights)


# -- rows on their way through the layers --------------------------------------------------------


@dataclass(eq=False)
class _Piece:
    """Some rows of one source: their hidden states so far, by the source and merged."""

    source: int
    batch: Batch
    real_BT: Tensor
    start: Start | None = None
    own_BTD: Tensor = field(default_factory=lambda: torch.empty(0))
    merged_BTD: Tensor = field(default_factory=lambda: torch.empty(0))
    weight: dict[str, Tensor] = field(default_factory=dict)
    """Module -> weight_M of the real tokens."""
    outputs: dict[str, Tensor] = field(default_factory=dict)
    """Module of the present layer -> its output with the source, (M, O)."""
    next_BTD: Tensor = field(default_factory=lambda: torch.empty(0))
    """The source's states at the layer's end."""


def _pieces(model: Model, sources: Sequence[Source]) -> Iterator[_Piece]:
    for n, source in enumerate(sources):
        rows = [model.render(each.prompt, each.completion) for each in source.examples]
        for chosen in by_length([len(row) for row in rows], PASS_TOKENS):
            batch = model.batch([rows[i] for i in chosen])
            lengths_B = torch.tensor([len(rows[i]) for i in chosen], device=batch.ids_BT.device)
            at_T = torch.arange(batch.ids_BT.shape[1], device=batch.ids_BT.device)
            yield _Piece(n, batch, at_T < lengths_B[:, None])


# -- the fit -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Settings:
    rank: int
    ridge: float
    floor: float
    damping: float


class _Run:
    """A stack of sources and the merged adapter, fitted from the first layer to the last."""

    def __init__(
        self, model: Model, stack: Stack, sources: Sequence[Source], settings: _Settings
    ) -> None:
        self.model, self.stack, self.settings = model, stack, settings
        self.merged = len(sources)
        self.layers = Layers(model)
        self.pieces = list(_pieces(model, sources))
        self.tensors = {k: torch.zeros_like(t) for k, t in stack.tensors(self.merged).items()}
        self.metric: dict[str, Tensor] = {}
        self.notes: list[str] = []
        self.sites: dict[int, list[Site]] = {}
        for site in survey(model.network)[0]:
            self.sites.setdefault(site.layer, []).append(site)

    def through(self, progress: Callable[[str], None]) -> tuple[float, ...]:
        """Fit every layer in order; how far each source is from the merged in the end."""
        progress("weighing tokens")
        self._weigh()
        self.stack.load(self.merged, self.tensors)
        with torch.no_grad():
            for piece in self.pieces:
                self._bind(piece, -1)
                piece.start = self.layers.enter(piece.batch.ids_BT)
                piece.own_BTD = piece.merged_BTD = piece.start.hidden_BTD
            plain = []
            for at in range(len(self.layers)):
                progress(f"fitting layer {at + 1} of {len(self.layers)}")
                plain += [] if self._fit(at) else [at]
            first = self.pieces[0]
            self._bind(first, first.source)
            self.layers.check(first.batch.ids_BT, first.own_BTD, first.real_BT)
        if plain:
            self.notes.append(
                f"layers {plain} do not add their modules' outputs to the stream as they are; "
                "there outputs are imitated, and mistakes of the stream are not made up for."
            )
        return self._strayed()

    # -- what matters

    def _weigh(self) -> None:
        """Weights of tokens and metrics of outputs, from one backward pass of each source."""
        names = list(self.stack.modules)
        for piece in self.pieces:
            self._bind(piece, piece.source)
            with torch.enable_grad(), tapping(self.model.network, names) as tap:
                surely = self._surely(piece.batch)
                called = [name for name in names if name in tap]
                outputs = [tap[name][1] for name in called]
                grads = torch.autograd.grad(surely, outputs, allow_unused=True)
            for name, y_BTO, grad_BTO in zip(called, outputs, grads, strict=True):
                shown_BTO = torch.zeros_like(y_BTO) if grad_BTO is None else grad_BTO
                grad_MO = shown_BTO[piece.real_BT].float()
                piece.weight[name] = grad_MO.square().sum(dim=1)
                wide = grad_MO.shape[1] > WIDEST_METRIC
                metric = grad_MO.square().sum(dim=0) if wide else grad_MO.T @ grad_MO
                self.metric[name] = metric + self.metric.get(name, torch.zeros_like(metric))
        self._level()

    def _surely(self, batch: Batch) -> Tensor:
        """Sum over completion tokens of the target's logit less the best other one."""
        logits_BCV = self.model.completion_logits(batch)
        target_BC1 = batch.target_BC[..., None]
        right_BC = logits_BCV.gather(-1, target_BC1)[..., 0]
        best_BC = logits_BCV.scatter(-1, target_BC1, -math.inf).max(dim=-1).values
        return ((right_BC - best_BC) * batch.mask_BC).sum()

    def _level(self) -> None:
        """Make the weights' mean 1 for every source and module, and none smaller than the floor."""
        floor = self.settings.floor
        for n in range(self.merged):
            mine = [piece for piece in self.pieces if piece.source == n]
            for name in self.metric:
                mean = torch.cat([piece.weight[name] for piece in mine]).mean()
                for piece in mine:
                    flat = torch.ones_like(piece.weight[name])
                    share = piece.weight[name] / mean if mean > 0 else flat
                    piece.weight[name] = (floor + share) / (floor + 1)

    # -- layer by layer

    def _run(
        self, at: int, piece: _Piece, hidden_BTD: Tensor, until: nn.Module | None = None
    ) -> Tensor:
        assert piece.start is not None
        return self.layers.run(at, piece.start, hidden_BTD, until=until)

    def _bind(self, piece: _Piece, adapter: int) -> None:
        self.stack.bind(torch.full((len(piece.batch.ids_BT),), adapter))

    def _fit(self, at: int) -> bool:
        """Fit the layer's modules and go past it; False where its stream cannot be followed."""
        sites = [site for site in self.sites.get(at, []) if "experts" not in site.projection]
        groups, writers = self._own(at, [site.name for site in sites])
        for group in groups:
            wanted = [name for name in group if name in self.stack.modules]
            if not wanted:
                continue
            for name, (A_RI, B_OR) in self._solved(at, wanted, writers).items():
                for half, factor in zip(HALVES, (A_RI, B_OR), strict=True):
                    tensor = self.tensors[name + half]
                    tensor[: factor.shape[0], : factor.shape[1]] = factor.to(tensor)
            self.stack.load(self.merged, self.tensors)
        adapted = any(name in self.stack.modules for group in groups for name in group)
        for piece in self.pieces:
            if adapted or piece.merged_BTD is not piece.own_BTD:
                self._bind(piece, self.merged)
                piece.merged_BTD = self._run(at, piece, piece.merged_BTD)
            else:
                piece.merged_BTD = piece.next_BTD
            piece.own_BTD, piece.outputs = piece.next_BTD, {}
        return writers is not None or not adapted

    def _own(
        self, at: int, names: Sequence[str]
    ) -> tuple[list[list[str]], dict[str, float] | None]:
        """Run a layer with the sources: its modules in groups that share an input, its writers.

        A layer's addition to its stream is fitted by its modules' outputs. Those that explain it
        are writers, with their gain; None when they do not explain it.
        """
        groups: list[list[str]] = []
        writers: dict[str, float] | None = None
        for piece in self.pieces:
            self._bind(piece, piece.source)
            with tapping(self.model.network, names) as tap:
                piece.next_BTD = self._run(at, piece, piece.own_BTD)
            if not groups:
                groups = _groups(tap)
                writers = _writers(tap, piece.own_BTD, piece.next_BTD, piece.real_BT)
            fitted = {*self.stack.modules, *(writers or ())}
            piece.outputs = {
                name: y_BTO[piece.real_BT] for name, (_, y_BTO) in tap.items() if name in fitted
            }
        return groups, writers

    def _solved(
        self, at: int, group: Sequence[str], writers: Mapping[str, float] | None
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """A (R, I) and B (O, R) of modules that share an input, those before them being fitted."""
        sums: dict[str, tuple[Tensor, Tensor]] = {}
        watched = list(dict.fromkeys([*group, *(writers or ())]))
        last = self.model.network.get_submodule(group[-1])
        for piece in self.pieces:
            self._bind(piece, self.merged)
            with tapping(self.model.network, watched) as tap:
                self._run(at, piece, piece.merged_BTD, until=last)
            real_BT = piece.real_BT
            off_MD = (piece.own_BTD - piece.merged_BTD)[real_BT].double()
            for name, (x_BTI, y_BTO) in tap.items():  # in the order of calls
                gap_MO = piece.outputs[name].double() - y_BTO[real_BT].double()
                gain = (writers or {}).get(name, 0.0)
                if name in group:
                    wanted_MO = gap_MO + off_MD / gain if gain else gap_MO
                    x_MI = x_BTI[real_BT].double()
                    heavy_MI = x_MI * piece.weight[name].double()[:, None]
                    square, cross = sums.get(name, (0.0, 0.0))
                    sums[name] = (square + heavy_MI.T @ x_MI, cross + heavy_MI.T @ wanted_MO)
                if gain:
                    off_MD = off_MD + gain * gap_MO
        return {name: self._best(name, *pair) for name, pair in sums.items()}

    def _best(self, name: str, square_II: Tensor, cross_IO: Tensor) -> tuple[Tensor, Tensor]:
        """Reduced-rank regression: the least squares, then the rank that its metric wants most."""
        settings = self.settings
        level = settings.ridge * square_II.diagonal().mean()
        square_II.diagonal().add_(level if level > 0 else 1.0)
        lower_II = torch.linalg.cholesky(square_II)
        delta_OI = torch.cholesky_solve(cross_IO, lower_II).T
        metric = self.metric[name].double()
        diagonal = metric if metric.dim() == 1 else metric.diagonal()
        more = settings.damping * diagonal.mean()
        more = more if more > 0 else torch.ones_like(more)
        if metric.dim() == 1:
            upper_OO = (metric + more).sqrt().diag()
        else:
            upper_OO = torch.linalg.cholesky(metric + more * torch.eye(len(metric)).to(metric)).T
        seen_OI = upper_OO @ delta_OI @ lower_II
        rank = min(settings.rank, *seen_OI.shape)
        if seen_OI.shape[0] <= seen_OI.shape[1]:
            U_OR = torch.linalg.eigh(seen_OI @ seen_OI.T).eigenvectors[:, -rank:]
            B_OR = torch.linalg.solve_triangular(upper_OO, U_OR, upper=True)
            A_RI = U_OR.T @ upper_OO @ delta_OI
        else:
            V_IR = torch.linalg.eigh(seen_OI.T @ seen_OI).eigenvectors[:, -rank:]
            B_OR = delta_OI @ (lower_II @ V_IR)
            A_RI = torch.linalg.solve_triangular(lower_II.T, V_IR, upper=True).T
        # Both halves of one length, so that float32 rounds both alike.
        even_R = (A_RI.norm(dim=1) / B_OR.norm(dim=0).clamp(min=1e-300)).clamp(min=1e-300).sqrt()
        return A_RI / even_R[:, None], B_OR * even_R

    # -- in the end

    @torch.no_grad()
    def _strayed(self) -> tuple[float, ...]:
        """See `Imitation.strayed`; on the first rows of every source."""
        shares = []
        for n in range(self.merged):
            piece = next(piece for piece in self.pieces if piece.source == n)
            self._bind(piece, -1)
            base_BTD = self.layers.last(piece.batch.ids_BT)
            row_M, at_M = piece.batch.mask_BC.nonzero(as_tuple=True)
            place = (row_M, piece.batch.position_BC[row_M, at_M])
            own_MD = piece.own_BTD[place].double()
            away = (own_MD - piece.merged_BTD[place]).square().sum().item()
            whole = (own_MD - base_BTD[place]).square().sum().item()
            shares.append(away / whole if whole > 0 else 0.0)
        return tuple(shares)


def _groups(tap: Mapping[str, tuple[Tensor, Tensor]]) -> list[list[str]]:
    """Modules in the order of their calls, together where one follows the other on one input."""
    groups: list[list[str]] = []
    last: Tensor | None = None
    for name, (x_BTI, _) in tap.items():
        if x_BTI is last:
            groups[-1].append(name)
        else:
            groups.append([name])
        last = x_BTI
    return groups


def _writers(
    tap: Mapping[str, tuple[Tensor, Tensor]], before_BTD: Tensor, after_BTD: Tensor, real_BT: Tensor
) -> dict[str, float] | None:
    """The modules whose outputs make up what a layer adds to its stream, with their gains."""
    like = [name for name, (_, y_BTO) in tap.items() if y_BTO.shape == before_BTD.shape]
    if not like:
        return None
    after = after_BTD[real_BT].double().flatten()
    added = after - before_BTD[real_BT].double().flatten()
    y_N = torch.stack([tap[name][1][real_BT].double().flatten() for name in like])
    gain_N = torch.linalg.lstsq(y_N @ y_N.T, (y_N @ added)[:, None]).solution[:, 0]
    rounded = torch.finfo(before_BTD.dtype).eps * after.norm()
    if not (added - gain_N @ y_N).norm() < WRITES * added.norm() + rounded:
        return None
    gains = zip(like, gain_N.tolist(), strict=True)
    return {name: gain for name, gain in gains if abs(gain) > LEAST_GAIN}
