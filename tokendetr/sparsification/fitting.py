"""Fit a sparse detector to its dense teacher without labels.

First the bypass's maps are fitted, then scores, then optionally the encoder itself. Interrupted
fits can be resumed.
"""

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from tokendetr.encoder.bypass import AffineBypass
from tokendetr.encoder.forward_context import open_pass
from tokendetr.errors import NotSparsifiableError, check_choice
from tokendetr.sparsification.bypass_maps import BypassMaps, add_pass, empty_sums, fit_maps
from tokendetr.sparsification.distillation import (
    RATIOS,
    TARGETS,
    Targets,
    distillation_loss,
    schedule_of,
)
from tokendetr.sparsification.images import UnlabeledImages
from tokendetr.sparsification.least_squares import NormalEquations, relative_error
from tokendetr.sparsification.optimization import Schedule, distill
from tokendetr.sparsification.scores import SCORE_RATIO, attention_loss, sparse_scores
from tokendetr.sparsification.state import FitState, weights_digest
from tokendetr.sparsification.teacher import DensePass, DenseTeacher, find_encoder

__all__ = ["FitOptions", "FitResult", "fit"]

_FIRST_BATCHES = 4
_SAVED_EVERY = 25
_CALIBRATION_IMAGES = 64
_NOT_SCORES = ("bypass.", "class_embed.", "bbox_embed.")
_HEADS = ("sparsifier.class_embed.", "sparsifier.bbox_embed.")


@dataclass(frozen=True)
class FitOptions:
    """Options of a fit.

    Attributes:
        score_iterations: batches to train the scores on.
        distill_iterations: batches to then train encoder, maps and scores on; 0 leaves the
            detector's weights unchanged.
        targets: what the distillation compares with the dense detector, one of
            :data:`tokendetr.sparsification.TARGETS`.
        max_images: maximum number of images for the maps.
        tolerance: stop adding images to the maps when doubling their number lowers the error on
            held-back images by less than this share.
        seed: of all random numbers.

    Raises:
        ValueError: a number is out of range, or the targets are unknown.
    """

    score_iterations: int = 300
    distill_iterations: int = 0
    max_images: int = 2000
    tolerance: float = 0.01
    seed: int = 0
    targets: Targets = "both"

    def __post_init__(self) -> None:
        if min(self.score_iterations, self.distill_iterations) < 0 or self.max_images < 1:
            raise ValueError(f"iterations and max_images must not be negative: {asdict(self)}")
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance must lie in (0, 1), got {self.tolerance}")
        check_choice("targets", self.targets, TARGETS)


@dataclass
class FitResult:
    """Result of a fit.

    Attributes:
        curve: (images, share of the tokens' change that the maps leave unexplained on held-back
            images), as images were added.
        losses: mean loss of the last iterations of each stage.
    """

    curve: list[tuple[int, float]] = field(default_factory=list)
    losses: dict[str, float] = field(default_factory=dict)


class _Fit:
    """State shared by the stages of one fit."""

    def __init__(
        self,
        teacher: DenseTeacher,
        student: nn.Module,
        images: UnlabeledImages,
        options: FitOptions,
        state: FitState,
        progress: Callable[[str, int, int, float], None],
    ) -> None:
        self.teacher, self.student = teacher, student.eval()
        self.images, self.options, self.state = images, options, state
        self.encoder: Any = cast(Any, student).transformer.encoder
        self.sparsifier = self.encoder.sparsifier
        self.bypass: AffineBypass = self.sparsifier.bypass
        self.progress = progress
        self.result = FitResult()
        self.score_parameters = _parameters(self.sparsifier, besides=_NOT_SCORES)
        self.distilled_parameters = _parameters(self.encoder, besides=_HEADS)

    @property
    def needs_decoding(self) -> bool:
        """True if the distillation compares outputs."""
        return bool(self.options.distill_iterations) and self.options.targets != "memory"

    def check(self) -> None:
        """Refuse, before any stage has run, detectors that a later one could not use."""
        both = (*self.teacher.detector.parameters(), *self.student.parameters())
        dtypes = {parameter.dtype for parameter in both}
        if len(dtypes) > 1 or dtypes & {torch.float16, torch.bfloat16}:
            names = ", ".join(sorted(map(str, dtypes)))
            raise NotSparsifiableError(
                f"a fit needs both detectors in float32, or both in float64, got {names}: convert "
                "them by .float(), and the sparse one back after the fit"
            )
        trained = list(self.score_parameters if self.options.score_iterations else ())
        trained += self.distilled_parameters if self.options.distill_iterations else ()
        if not all(parameter.requires_grad for parameter in trained):
            raise NotSparsifiableError(
                "the fit trains frozen parameters: student.requires_grad_(True)"
            )
        if self.needs_decoding:
            self.teacher([self.images.read(self.images.held_back[0])], with_decoding=True)

    def maps(self) -> None:
        """Fit the maps, doubling the number of images until that no longer helps."""
        saved = self.state.of("maps")
        if saved == {}:
            return
        fitted, held_back = self._sums(saved)
        size = self.images.batch_size
        most_images = min(self.options.max_images, len(self.images.fitted))
        most = -(-most_images // size)
        done = 0 if not saved else int(saved["batches"])
        found: BypassMaps | None = None
        while done < most and not self._has_converged():
            target = min(max(2 * done, _FIRST_BATCHES), most)
            for number in range(done, target):
                add_pass(fitted, self.teacher(self.images.batch(number, most_images)))
                self.progress("maps", number + 1, most, float("nan"))
            done = target
            found = fit_maps(fitted, held_back)
            error = relative_error(found.of_inputs(), held_back)
            self.result.curve.append((min(done * size, most_images), error))
            self.state.save(
                "maps",
                batches=done,
                curve=self.result.curve,
                fitted=fitted.state(),
                held_back=held_back.state(),
            )
        (found or fit_maps(fitted, held_back)).write(self.bypass)

    def _has_converged(self) -> bool:
        errors = [error for _, error in self.result.curve[-2:]]
        return len(errors) == 2 and errors[1] > (1 - self.options.tolerance) * errors[0]

    def _sums(self, saved: dict[str, Any] | None) -> tuple[NormalEquations, NormalEquations]:
        if saved:
            self.result.curve = [(int(n), float(error)) for n, error in saved["curve"]]
            return (
                NormalEquations.from_state(saved["fitted"]),
                NormalEquations.from_state(saved["held_back"]),
            )
        fitted, held_back = empty_sums(self.bypass), empty_sums(self.bypass)
        for files in self.images.held_back_batches():
            add_pass(held_back, self.teacher([self.images.read(path) for path in files]))
        return fitted, held_back

    def scores(self) -> None:
        """Train the scores to predict the dense decoder's attention."""
        trained = self.score_parameters
        schedule = Schedule(self.options.score_iterations if trained else 0, 1e-3)

        def loss(dense: DensePass, iteration: int) -> Tensor:
            with _with_keep_ratio(self.sparsifier, SCORE_RATIO):
                score_BN = sparse_scores(self.student, dense)
            assert score_BN is not None and dense.mass_BN is not None
            return attention_loss(score_BN, dense.mass_BN, dense, SCORE_RATIO)

        self._train("scores", loss, trained, schedule)

    def budget(self) -> None:
        """Calibrate a budget by score mass; too quick to need a saved state."""
        budget = getattr(self.sparsifier, "mass_budget", None)
        if budget is None:
            return
        scores: list[Tensor] = []
        most_images = min(_CALIBRATION_IMAGES, len(self.images.fitted))
        batches = -(-most_images // self.images.batch_size)
        for number in range(batches):
            dense = self.teacher(self.images.batch(number, most_images))
            with torch.no_grad(), _with_keep_ratio(self.sparsifier, SCORE_RATIO):
                score_BN = sparse_scores(self.student, dense)
            assert score_BN is not None
            scores += [
                score_N[valid_N]
                for score_N, valid_N in zip(score_BN, dense.layout.valid_BN, strict=True)
            ]
            self.progress("budget", number + 1, batches, float("nan"))
        budget.calibrate(scores)

    def distillation(self) -> None:
        """Distill the dense detector into encoder, maps and scores, at random ratios."""
        schedule = schedule_of(self.options.targets, self.options.distill_iterations)

        def loss(dense: DensePass, iteration: int) -> Tensor:
            draw = random.Random(f"{self.options.seed} {iteration}")
            torch.manual_seed(draw.getrandbits(32))  # of sparsifiers that choose random tokens
            with _with_keep_ratio(self.sparsifier, draw.choice(RATIOS)), open_pass(self.student):
                return distillation_loss(self.student, dense, self.options.targets)

        trained, decodes = self.distilled_parameters, self.needs_decoding
        self._train("distillation", loss, trained, schedule, with_decoding=decodes)

    def _train(
        self,
        stage: str,
        loss: Callable[[DensePass, int], Tensor],
        parameters: list[nn.Parameter],
        schedule: Schedule,
        *,
        with_decoding: bool = False,
    ) -> None:
        saved = self.state.of(stage)
        if saved == {} or not schedule.iterations:
            return
        recent: deque[float] = deque(saved["recent"] if saved else (), maxlen=_SAVED_EVERY)

        def after(iteration: int, value: float, optimizer: dict[str, Any]) -> None:
            recent.append(value)
            done = iteration + 1
            self.progress(stage, done, schedule.iterations, sum(recent) / len(recent))
            if done % _SAVED_EVERY == 0 or done == schedule.iterations:
                self.state.save(
                    stage,
                    iteration=done,
                    optimizer=optimizer,
                    recent=list(recent),
                    curve=self.result.curve,
                    losses=self.result.losses,
                    encoder=self.encoder.state_dict(),
                )

        distill(
            loss,
            parameters,
            schedule,
            teacher=self.teacher,
            batch=self.images.batch,
            with_decoding=with_decoding,
            start=int(saved["iteration"]) if saved else 0,
            state=saved["optimizer"] if saved else None,
            after=after,
        )
        self.result.losses[stage] = sum(recent) / max(1, len(recent))

    def restore(self) -> None:
        """Restore weights and results of an interrupted fit."""
        if "encoder" in self.state.loaded:
            self.encoder.load_state_dict(self.state.loaded["encoder"])
            self.result.curve = [(int(n), float(e)) for n, e in self.state.loaded["curve"]]
            self.result.losses = dict(self.state.loaded["losses"])


def _parameters(module: nn.Module, *, besides: tuple[str, ...]) -> list[nn.Parameter]:
    """Return a module's parameters but for those whose names begin in a given way."""
    return [p for name, p in module.named_parameters() if not name.startswith(besides)]


@contextmanager
def _with_keep_ratio(sparsifier: Any, ratio: float) -> Iterator[None]:
    """Set another keep ratio inside the ``with`` block."""
    own = sparsifier.keep_ratio
    sparsifier.set_keep_ratio(ratio)
    try:
        yield
    finally:
        sparsifier.set_keep_ratio(own)


def fit(
    dense: nn.Module,
    student: nn.Module,
    images: UnlabeledImages,
    options: FitOptions | None = None,
    *,
    state_file: Path | None = None,
    progress: Callable[[str, int, int, float], None] = lambda *_: None,
) -> FitResult:
    """Fit a sparse detector to its dense teacher; only the sparse one changes.

    Args:
        dense: the trained detector.
        student: the same detector with the same weights, whose encoder has a sparsifier with a
            bypass (:func:`tokendetr.sparsification.sparse_model`).
        images: images to fit to.
        options: of the fit; None for the defaults.
        state_file: written during the fit; an existing file resumes it.
        progress: called with the stage, the number of steps done and at most needed, and the mean
            of the last losses.

    Raises:
        NotSparsifiableError: the student has no such encoder, or the dense detector's outputs,
            which ``options.targets`` asks for, cannot be compared; a precision is not float32 or
            float64, or what the fit trains is frozen.
        StaleFitError: the file belongs to another fit.
        FloatingPointError: a loss is not finite.
    """
    options = options or FitOptions()
    sparsifier: Any = getattr(find_encoder(student), "sparsifier", None)
    if getattr(sparsifier, "bypass", None) is None or not hasattr(sparsifier, "keep_ratio"):
        raise NotSparsifiableError(
            "the student's encoder needs a sparsifier that keeps tokens, with a bypass"
        )
    fingerprint = {
        **asdict(options),
        "batch_size": images.batch_size,
        "image_seed": images.seed,
        "images": images.digest(),
        "weights": weights_digest(dense),
        "sparsifier": type(sparsifier).__name__,
        "its parameters and buffers": sum(of.numel() for of in sparsifier.state_dict().values()),
    }
    state = FitState(state_file, fingerprint)
    work = _Fit(DenseTeacher(dense), student, images, options, state, progress)
    with torch.inference_mode(False), torch.enable_grad():  # the caller's may be off
        work.check()
        work.restore()
        work.maps()
        work.scores()
        work.distillation()
        work.budget()
    return work.result
