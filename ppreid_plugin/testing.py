"""The evaluation half of a private engine: clean figures by torchreid's own ``test``, protected ones beside them."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from . import ranks
from .autocast import model_autocast
from .components import Component
from .data.validation import VALIDATION, training_set_for_features
from .data.views import training_views
from .dp.protected import ProtectedGallery
from .evaluation import (
    Extracted,
    TargetResult,
    light_loader,
    protected_result,
    protected_sets,
)
from .extracting import extract
from .feature_cache import cached_shards
from .inference import fast_model
from .retrieval.engine_ranking import exact_ranking


class EvaluationMixin:
    """Overrides ``parse_data_for_eval``, ``extract_features`` and ``test`` of a torchreid engine."""

    components: tuple[Component, ...]
    exclude_same_camera: bool
    fast_extraction: bool
    feature_cache: str
    results: dict[str, TargetResult]
    datamanager: Any
    test_loader: dict[str, Any]
    epoch: int
    writer: Any
    use_gpu: bool
    _replaying: bool

    @property
    def galleries(self) -> list[ProtectedGallery]:
        """The protected galleries among the components: several budgets or mechanisms are evaluated in one pass."""
        return [component for component in self.components if isinstance(component, ProtectedGallery)]

    def parse_data_for_eval(self, data: Any) -> Any:
        """Parse as torchreid does; features that are evaluated again pass as they are."""
        if self._replaying:
            return data["img"], data["pid"], data["camid"]
        return super().parse_data_for_eval(data)  # type: ignore[misc]

    def extract_features(self, input: Tensor) -> Tensor:
        """Extract as torchreid does; features that are evaluated again pass as they are."""
        if self._replaying:
            return input
        return super().extract_features(input)  # type: ignore[misc]

    def test(self, *args: Any, **kwargs: Any) -> float:
        """Evaluate all targets as torchreid does, and beside them each `ProtectedGallery`.

        Each image is extracted once. `results` holds all figures; the research noise of the protected gallery is the
        same draw at each call. Of several ranks the first evaluates; the others wait for it, and have no `results`.

        Returns:
            rank-1 of the last target, unprotected, as a fraction (what torchreid's own ``test`` returns).
        """
        if not ranks.is_first():
            return ranks.from_first(0.0)
        bound = inspect.signature(super().test).bind(*args, **kwargs)  # type: ignore[misc]
        bound.apply_defaults()
        options = dict(bound.arguments)
        self.set_model_mode("eval")  # type: ignore[attr-defined]
        sets = {}
        with fast_model(self, self.fast_extraction), model_autocast(self):
            for name, loaders in self.test_loader.items():
                items = self.datamanager.test_dataset[name]
                sets[name] = {
                    # the validation gallery holds its queries, too
                    r: self._extract(loaders[r], f"{name} {r}", items[r], gallery=r == "gallery" or name == VALIDATION)
                    for r in ("query", "gallery")
                }
            train = self._training_features()
        rank1, rankings = self._replay(sets, options)
        self.results = {name: TargetResult(clean=ranking) for name, ranking in zip(sets, rankings, strict=True)}
        for gallery in self.galleries:
            self._test_protected(gallery, sets, train, options)
        if self.writer is not None:
            self._write_reconstructions()
        for name, result in self.results.items():
            print(f"{name}: mINP {result.clean.mINP:.1%}, {result.clean.num_valid_queries} queries with a match")
        return ranks.from_first(rank1)

    def _write_reconstructions(self) -> None:
        from .report.reconstructions import example_reconstructions, image_grid

        for name in self.test_loader:
            rows = example_reconstructions(self, name)
            if rows is not None:
                self.writer.add_image(f"Test/{name}/original, target, decoded", image_grid(rows), self.epoch)

    def _training_features(self) -> Extracted | None:
        fitting = [gallery for gallery in self.galleries if gallery.needs_training_features]
        if not fitting:
            return None
        first = fitting[0]
        loader = training_set_for_features(self.datamanager, first.fit_images, first.seed)
        extracted = self._extract(loader, "training split (for the public transform)", loader.dataset.data)  # type: ignore[attr-defined]
        if not first.fit_views:
            return extracted
        loader = training_views(self.datamanager, first.fit_views, first.fit_images, first.seed)
        return extracted.joined(self._extract(loader, "views of the training split", loader.dataset.data))  # type: ignore[attr-defined]

    def _extract(self, loader: Any, description: str, items: Sequence[Any], *, gallery: bool = False) -> Extracted:
        shards = None
        if self.feature_cache and not (gallery and self.galleries):  # clean rows of what is protected are kept nowhere
            shards = cached_shards(self.feature_cache, self, loader, items, description, fast=self.fast_extraction)
        return extract(self, loader, description, items, fast=self.fast_extraction, shards=shards)

    def _replay(self, sets: dict[str, dict[str, Extracted]], options: dict[str, Any]) -> tuple[float, list[Any]]:
        """Run torchreid's own ``test`` on features that are there already, with exact ranking in place of its own."""
        loaders, datasets = self.test_loader, self.datamanager.test_dataset
        self.test_loader = {name: {r: [light_loader(s)] for r, s in roles.items()} for name, roles in sets.items()}
        self.datamanager.test_dataset = {  # torchreid draws ranked pictures from it
            name: {role: _items(datasets[name][role], s.places) for role, s in roles.items()}
            for name, roles in sets.items()
        }
        self._replaying = True
        try:
            max_rank = max(50, *options["ranks"])
            with exact_ranking(
                exclude_same_camera=self.exclude_same_camera, max_rank=max_rank, use_gpu=self.use_gpu
            ) as rankings:
                rank1 = super().test(**options)  # type: ignore[misc]
        finally:
            self._replaying = False
            self.test_loader, self.datamanager.test_dataset = loaders, datasets
        return float(rank1), rankings

    def _test_protected(
        self,
        gallery: ProtectedGallery,
        sets: dict[str, dict[str, Extracted]],
        train: Extracted | None,
        options: dict[str, Any],
    ) -> None:
        gallery.fit(None if train is None else train.features, None if train is None else train.pids)
        made = {name: protected_sets(gallery, roles) for name, roles in sets.items()}
        protected = {name: matched for name, (matched, _) in made.items()}
        print(gallery.banner())
        writer, self.writer = self.writer, None
        save_dir = os.path.join(options["save_dir"], "protected", gallery.label)
        try:
            options = {**options, "dist_metric": "cosine", "normalize_feature": False, "save_dir": save_dir}
            _, rankings = self._replay(protected, options)
            beside: list[Any] = [None] * len(rankings)
            if not gallery.is_whole_gallery:
                print("##### Clean rows of the same units, for comparison #####")
                clean = {name: baseline for name, (_, baseline) in made.items()}
                _, beside = self._replay(clean, {**options, "visrank": False})
        finally:
            self.writer = writer
        for (name, roles), ranking, clean_ranking in zip(protected.items(), rankings, beside, strict=True):
            result = protected_result(
                gallery,
                sets[name],
                roles,
                made[name][1],
                ranking,
                exclude_same_camera=self.exclude_same_camera,
                clean_anonymous=clean_ranking,
            )
            self.results[name].protected.append(result)
            print(result.table(name, self.results[name].clean))
            if self.writer is not None:
                tag = f"Test/{name}/{gallery.label}"
                self.writer.add_scalar(f"{tag}/rank1", ranking.rank1, self.epoch)
                self.writer.add_scalar(f"{tag}/mAP", ranking.mAP, self.epoch)


def _items(items: list[Any], places: np.ndarray | None) -> list[Any]:
    return items if places is None else [items[place] for place in places if place >= 0]
