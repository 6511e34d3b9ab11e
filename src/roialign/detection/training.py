"""Train a detector: Accelerate runs the processes, torchvision's model computes the losses.

Everything random follows from the seed, the epoch and the image, never from what ran before, so a training that was
killed continues bit for bit from its last saved step, and how many processes share the work makes no difference but for
the order of summation.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate.utils import gather_object
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.models.detection import FasterRCNN

from ..outputs import Folder
from .checkpoint import pack_detector, pack_tensors, read_description
from .datasets import AnnotatedImages, open_photo
from .description import SMALLEST, check_card, check_model
from .devices import make_accelerator
from .evaluation import Report, evaluate_found
from .interruption import InterruptedTrainingError, Wish, deaf
from .mask_heads import has_masks
from .model import backbone_of, memory_format
from .precision import lower
from .recipe import Recipe
from .sampling import SeededSampler
from .tiles import detect
from .views import EpochBatches, Sample, TrainingViews, augmentation

LOSSES = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg")
MASKS = "loss_mask"  # one more, of a detector that draws them
JUDGED = ("AP", "AP50", "AP75", "mask_AP", "mask_AP50", "mask_AP75")  # of an epoch
STATE, BEST = "last.safetensors", "model.safetensors"
# What of a recipe every step obeys; the data and the model, which follow from the rest, are compared themselves.
STEPS = (
    *("batch", "accumulate", "crop", "repeat", "lr", "weight_decay", "ema", "seed", "precision"),
    *("freeze_backbone", "augment", "zoom", "colour"),
)


class NotFiniteError(ArithmeticError):
    """A loss is not finite; the message names the images of the batch."""


class TooManyDamagedError(ValueError):
    """More images than allowed cannot be decoded; the message names them."""


class Watcher(Protocol):
    """Who looks on, in the first process only."""

    def step(self, epoch: int, steps: int, losses: dict[str, float], images: int) -> None:
        """A step of an epoch with so many steps is done; ``images`` over all processes."""

    def skipped(self, fault: str) -> None:
        """An image cannot be decoded, and is left out from now on; said once, in whichever process."""

    def epoch(self, history: list[dict[str, float]], report: Report | None) -> None:
        """An epoch is done, judged and saved. ``history`` has one row for each so far."""


class Trainer:
    """A training in a folder: ``last.safetensors`` to go on from, ``model.safetensors`` the best averaged model.

    Args:
        model: from :func:`roialign.detection.build_detector`.
        data: the images to learn from.
        held: the images to judge by, or None.
        recipe: how; its crop and augmentation must be given. What it says of data and model was obeyed when these were
            made.
        out: the folder, which is this training's alone as long as it lives.
        card: what to tell about the model in its file.

    Raises:
        FileExistsError: another training is in the folder, or files that no training of ours has left.
        ValueError: the recipe has no crop or augmentation, or its device or tracker is not there.
    """

    def __init__(
        self,
        model: FasterRCNN,
        data: AnnotatedImages,
        held: AnnotatedImages | None,
        recipe: Recipe,
        out: Path | Folder,
        card: dict[str, Any] | None = None,
    ) -> None:
        if recipe.crop is None or recipe.augment is None:
            raise ValueError("recipe: got no crop or augmentation; expected its side in pixels and a profile's name")
        self.recipe, self.data, self.crop = recipe, data, recipe.crop
        self.how = augmentation(recipe.augment, recipe.zoom, recipe.colour)
        self.held = held if held is not None and len(held.boxes) else None  # without boxes there is nothing to judge by
        folder = out.path if isinstance(out, Folder) else out
        self.accelerator = make_accelerator(recipe, folder)
        self.device = self.accelerator.device
        main = self.accelerator.is_main_process
        self.folder = out if isinstance(out, Folder) else Folder(out, writes=main)
        if main:
            self.folder.claim(STATE, BEST)
        classes = {"classes": data.classes, "category_ids": data.category_ids}
        model.card = {**classes, "tile": max(SMALLEST, self.crop), **(card or {})}
        check_model(model.description)  # and not when an epoch is done and shall be saved
        check_card(model.card, model.description)
        self.losses = (*LOSSES, MASKS) if has_masks(model) else LOSSES
        if has_masks(model) and not (data.masks and (held is None or held.masks)):
            raise ValueError(
                "data: got boxes only; the model draws masks, so expected AnnotatedImages(..., masks=True)"
            )
        self.samplers = [SeededSampler(head.fg_bg_sampler) for head in (model.rpn, model.roi_heads)]
        model.rpn.fg_bg_sampler, model.roi_heads.fg_bg_sampler = self.samplers
        if recipe.freeze_backbone:
            backbone_of(model).requires_grad_(False)
        model.to(memory_format=memory_format(self.device))
        self.average = copy.deepcopy(model).to(self.device).requires_grad_(False)
        lower(model, recipe.precision)  # not the averaged one: it is judged as most will use it
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, recipe.lr, weight_decay=recipe.weight_decay)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.batches = EpochBatches(
            data.entries,
            self.crop,
            recipe.batch,
            recipe.repeat,
            recipe.seed,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        self.history: list[dict[str, float]] = []
        self.sums = dict.fromkeys(self.losses, 0.0)  # of the epoch that is under way, after batches.done of its steps
        self.faults: dict[Path, str] = {}
        # What must be the same for a training to go on where it was.
        self.identity = {
            "settings": {name: getattr(recipe, name) for name in STEPS},
            "model": model.description,
            "data": [data.digest(), held.digest() if held else None],
            "processes": self.accelerator.num_processes,
        }

    @property
    def bare(self) -> FasterRCNN:
        """The model without what Accelerate wraps around it."""
        return self.accelerator.unwrap_model(self.model)

    def run(self, watcher: Watcher, wish: Wish | None = None) -> list[dict[str, float]]:
        """Train to the end, or until ``patience`` epochs were none better than the best.

        Args:
            watcher: who looks on.
            wish: when it is asked, the state is saved after the step that is under way.

        Returns:
            A row per epoch: ``epoch`` (from 1), ``lr``, the losses, and with images to judge by AP, AP50 and AP75.

        Raises:
            InterruptedTrainingError: somebody wished it.
            NotFiniteError: a loss is not finite.
            TooManyDamagedError: more images than the recipe allows cannot be decoded.
        """
        loader: Iterable[list[Sample]] = DataLoader(
            TrainingViews(self.data, self.crop, self.recipe.seed, self.how),
            batch_sampler=self.batches,
            collate_fn=list,
            num_workers=self.recipe.workers,
            persistent_workers=self.recipe.workers > 0,
            pin_memory=False,
            worker_init_fn=deaf,
        )
        self.accelerator.init_trackers("roialign", {name: str(value) for name, value in _flat(self.identity).items()})
        self.saved = time.monotonic()
        try:
            for epoch in range(len(self.history), self.recipe.epochs):
                if self.finished:
                    break
                self._epoch(epoch, loader, watcher, wish)
        finally:
            self.accelerator.end_training()
        return self.history

    def _epoch(self, epoch: int, loader: Iterable[list[Sample]], watcher: Watcher, wish: Wish | None) -> None:
        self.batches.epoch = epoch
        self.model.train()
        if self.recipe.freeze_backbone:
            backbone_of(self.bare).eval()  # its norms, too
        main, steps = self.accelerator.is_main_process, len(self.batches)
        for number, samples in enumerate(loader, self.batches.done):
            self._note_damaged(samples, watcher)
            step = epoch * steps + number
            losses, stop = self._step(step, steps * self.recipe.epochs, samples, wish is not None and wish.asked)
            for name in self.losses:
                self.sums[name] += losses[name] / steps
            self.batches.done = number + 1
            self.accelerator.log(losses, step)
            if main:
                watcher.step(epoch, steps, losses, len(samples) * self.accelerator.num_processes)
            if main and (stop or time.monotonic() - self.saved >= 60 * self.recipe.save_minutes):
                self._save_state()
            if stop:
                raise InterruptedTrainingError(f"stopped in epoch {epoch + 1} after {number + 1} of its {steps} steps")
        row = {"epoch": epoch + 1, "lr": self._rate((epoch + 1) * steps - 1, steps * self.recipe.epochs)}
        row |= self.sums
        report = self._judge()
        if report is not None:
            row |= {name: report.metrics[name] for name in JUDGED if name in report.metrics}
        self.history.append(row)
        self.batches.done, self.sums = 0, dict.fromkeys(self.losses, 0.0)
        self.accelerator.log({f"epoch/{name}": value for name, value in row.items()}, (epoch + 1) * steps - 1)
        if main:
            self._save(report)
            watcher.epoch(self.history, report)
        self.accelerator.wait_for_everyone()

    def _note_damaged(self, samples: list[Sample], watcher: Watcher) -> None:
        for sample in samples:
            if sample.fault and sample.file not in self.faults:
                self.faults[sample.file] = sample.fault
                watcher.skipped(sample.fault)
        if len(self.faults) > self.recipe.damaged:
            raise TooManyDamagedError(
                f"{len(self.faults)} images cannot be decoded, --damaged allows {self.recipe.damaged}: "
                + "; ".join(self.faults.values())
            )

    @property
    def finished(self) -> bool:
        """Nothing is left to do."""
        done, patience = len(self.history), self.recipe.patience
        stalled = self.held is not None and 0 < patience <= done - _first_best(self.history)
        return done >= self.recipe.epochs or stalled

    def _step(self, step: int, steps: int, samples: list[Sample], stop: bool) -> tuple[dict[str, float], bool]:
        """One step of the optimizer; returns the losses, and whether any process wishes to ``stop``."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(step, steps)
        self.optimizer.zero_grad()
        # What is damaged has no part in it; where nothing else is, the step must be kept all the same.
        samples = [sample for sample in samples if sample.view.counts] or samples[:1]
        shares = self._by_images(samples) if self.recipe.accumulate > 1 else None
        size = math.ceil(len(samples) / self.recipe.accumulate)
        total = torch.zeros(len(self.losses), device=self.device)
        for first in range(0, len(samples), size):
            part = samples[first : first + size]
            # Processes exchange their gradients once, at the end.
            with nullcontext() if first + size >= len(samples) else self.accelerator.no_sync(self.model):
                losses = self._losses(part)
                losses = losses * (self._share(part[0].view.counts) if shares is None else shares * len(part))
                total += losses.detach()
                self.accelerator.backward(losses.sum())
        wished = torch.tensor([float(stop)], device=self.device)
        values = self.accelerator.reduce(torch.cat([total, wished]), "mean")  # so that all processes see the same
        if not bool(values.isfinite().all()):
            named = ", ".join(f"{name} {float(value):g}" for name, value in zip(self.losses, total, strict=True))
            files = ", ".join(str(sample.file) for sample in samples)
            where = f"process {self.accelerator.process_index}, step {step}: {named}; images: {files}"
            raise NotFiniteError(f"a loss is not finite; {where}")
        self.accelerator.clip_grad_norm_(self.model.parameters(), 10.0)
        self.optimizer.step()
        self._follow(step)
        *losses, wishes = values.tolist()
        return dict(zip(self.losses, losses, strict=True)), wishes > 0

    def _losses(self, samples: list[Sample]) -> Tensor:
        seeds = [sample.view.seed(self.recipe.seed) for sample in samples]
        for sampler in self.samplers:
            sampler.seeds = seeds
        torch.manual_seed(seeds[0])  # dropout, where a backbone has it
        images = [sample.image.to(self.device, non_blocking=True) for sample in samples]
        targets = [{name: value.to(self.device) for name, value in sample.target.items()} for sample in samples]
        losses = self.model(images, targets)
        return torch.stack([losses[name] for name in self.losses])

    def _by_images(self, samples: list[Sample]) -> Tensor:
        """The weight of an image where the whole batch's samples are not known yet: as if all gave equally many."""
        own = torch.tensor(float(sum(sample.view.counts for sample in samples)), device=self.device)
        mean: Tensor = self.accelerator.reduce(own, "mean").clamp(min=1e-9)
        return own.clamp(max=1) / mean

    def _share(self, counts: bool) -> Tensor:
        """Weights that make the processes' mean the whole batch's loss, since each loss is a mean over samples."""
        first, second = self.samplers
        numbers = (first.count, first.count, second.count, second.count, second.positive)[: len(self.losses)]
        own = torch.tensor([float(number * counts) for number in numbers], device=self.device)
        mean: Tensor = self.accelerator.reduce(own, "mean").clamp(min=1e-9)
        return own / mean

    def _rate(self, step: int, steps: int) -> float:
        """The learning rate: a warm-up over a twentieth of the steps, then a cosine down to 0."""
        warm = max(1, steps // 20)
        return self.recipe.lr * min(1, (step + 1) / warm) * (1 + math.cos(math.pi * step / steps)) / 2

    @torch.no_grad()
    def _follow(self, step: int) -> None:
        """The averaged model; early on it follows fast, or it would remember the beginning for long."""
        keep = min(self.recipe.ema, (1 + step) / (10 + step))
        mine, theirs = self.average.state_dict(), self.bare.state_dict()
        pairs = [(mine[name], value) for name, value in theirs.items()]
        floating = [(average, value) for average, value in pairs if average.is_floating_point()]
        torch._foreach_lerp_([average for average, _ in floating], [value for _, value in floating], 1 - keep)
        for average, value in pairs:
            if not average.is_floating_point():
                average.copy_(value)

    def _judge(self) -> Report | None:
        if self.held is None:
            return None
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        mine = self.held.entries[rank::processes]
        photos = (open_photo(entry.file, entry.width, entry.height) for entry in mine)
        found = list(zip((entry.id for entry in mine), detect(self.average, photos), strict=True))
        return evaluate_found(self.held, dict(gather_object(found) if processes > 1 else found))

    def _save(self, report: Report | None) -> None:
        if self.held is None or best_epoch(self.history) == len(self.history):  # or else it is the one that is there
            metrics = None if report is None else report.as_json()
            self.folder.write(BEST, pack_detector(self.average, epoch=len(self.history), metrics=metrics))
        self._save_state()

    def _save_state(self) -> None:
        state = {f"model.{name}": value for name, value in self.bare.state_dict().items()}
        state |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
        under_way = {"done": self.batches.done, "sums": self.sums}
        description = {"identity": self.identity, "history": self.history, "epoch": under_way}
        self.folder.write(STATE, pack_tensors(state, description))
        self.saved = time.monotonic()

    def resume(self) -> int:
        """Go on from the folder's state, if there is one; returns the epochs that are done.

        Raises:
            ValueError: the state is of a training with another recipe (in STEPS), data, model or number of
                processes.
        """
        path = self.folder.path / STATE
        if not path.is_file():
            return 0
        description = read_description(path)
        theirs, mine = _flat(description.get("identity", {})), _flat(self.identity)
        for name in sorted(theirs.keys() | mine.keys()):
            if theirs.get(name) != mine.get(name):
                raise ValueError(f"{path}: cannot go on: {name} was {theirs.get(name)}, now it is {mine.get(name)}")
        try:
            self._restore(load_file(path), description)
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path}: not the state of this training: {error}") from None
        return len(self.history)

    def _restore(self, tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimizer": {}}
        for name, value in tensors.items():
            part, rest = name.split(".", 1)
            parts[part][rest] = value
        self.bare.load_state_dict(parts["model"])
        self.average.load_state_dict(parts["average"])
        moments: dict[int, dict[str, Tensor]] = {}
        parameters = self.optimizer.param_groups[0]["params"]
        for name, value in parts["optimizer"].items():
            index, rest = name.split(".", 1)
            # Of the parameter's memory format, or the sums of two formats might round differently than before.
            alike = torch.empty_like(parameters[int(index)]).copy_(value) if value.dim() else value
            moments.setdefault(int(index), {})[rest] = alike
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.history = [dict(row) for row in description["history"]]
        under_way = description["epoch"]
        self.batches.done = int(under_way["done"])
        self.sums = {name: float(under_way["sums"][name]) for name in self.losses}


def _first_best(history: list[dict[str, float]]) -> int:
    """How many epochs were done when AP50 was highest; of equals by AP, and then the first."""
    scores = [(row.get("AP50", 0.0), row.get("AP", 0.0)) for row in history]
    return scores.index(max(scores)) + 1 if scores else 0


def best_epoch(history: list[dict[str, float]]) -> int:
    """The epoch to keep: the first best, or the last as long as nothing right was ever found."""
    first = _first_best(history)
    return first if first and history[first - 1].get("AP50", 0.0) > 0 else len(history)


def _flat(tree: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {name: list(tree) if isinstance(tree, tuple) else tree}
    return {key: leaf for part in tree for key, leaf in _flat(tree[part], f"{name}.{part}".strip(".")).items()}
