"""The copy for inference: the same features to rounding, the model untouched, folded only where that is right."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from ppreid_plugin.extraction import extract_splits
from ppreid_plugin.inference import fast_model, inference_copy
from ppreid_plugin.toolbox import models

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def trained_looking(model):
    """Batch norms whose statistics and weights are not those of the start, where folding would do nothing."""
    generator = torch.Generator().manual_seed(0)
    for norm in model.modules():
        if isinstance(norm, NORMS) and norm.running_mean is not None:
            for tensor, low, high in (
                *((norm.running_mean, -0.5, 0.5), (norm.running_var, 0.3, 3.0)),
                *((norm.weight.data, 0.5, 2.0), (norm.bias.data, -0.5, 0.5)),
            ):
                tensor.uniform_(low, high, generator=generator)
    return model.eval()


def norms(model):
    return sum(isinstance(module, NORMS) for module in model.modules())


@pytest.mark.parametrize(("name", "left"), [("osnet_x0_25", 1), ("mobilenetv2_x1_0", 0), ("resnet50_ibn_a", 13)])
def test_features_are_the_same_and_the_model_is_untouched(name, left):
    torch.manual_seed(0)
    model = trained_looking(models.build_model(name, 5, pretrained=False))
    before = copy.deepcopy(model.state_dict())
    images = torch.randn(3, 3, 128, 64)
    with torch.inference_mode():
        wanted = model(images)
        copied = inference_copy(model)
        made = copied(images.contiguous(memory_format=torch.channels_last))
    assert torch.nn.functional.cosine_similarity(made, wanted).min() > 0.99999
    assert (made - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert norms(copied) == left < norms(model)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
        assert value.is_contiguous()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in copied.parameters())


class Net(nn.Module):
    """One convolution and one norm, wired as ``how`` says."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3, track_running_stats=how != "no statistics")
        self.other = self.conv if how == "two names" else nn.Conv2d(3, 3, 1)

    def forward(self, x, twice=False):
        if self.how == "depends on values" and x.mean() > 1e9:
            return x.flatten(1)
        mapped = self.conv(x)
        made = self.norm(mapped)
        if self.how in ("read twice", "needs channels first"):
            made = made + mapped
        if self.how == "called twice":
            made = self.conv(made)
        if self.how == "norm called twice":
            made = self.norm(self.other(made))
        if self.how == "two names":
            made = self.other(made)
        if self.how == "needs channels first":
            return made.view(len(made), -1)
        return (made + made if twice else made).flatten(1)


UNFOLDED = (
    *("no statistics", "read twice", "called twice", "norm called twice", "two names", "depends on values"),
    "needs channels first",
)


class Engine:
    """What `fast_model` needs of an engine."""

    def __init__(self, model):
        self.model = model


@pytest.mark.parametrize(("how", "left"), [("plain", 0), *((how, 1) for how in UNFOLDED)])
def test_folded_only_where_nothing_else_sees_the_difference(how, left):
    torch.manual_seed(1)
    model = trained_looking(Net(how))
    images = torch.randn(4, 3, 8, 6)
    engine = Engine(model)
    with torch.inference_mode(), fast_model(engine):
        assert norms(engine.model) == left
        made = engine.model(images)
        again = engine.model(images[:3])
    assert engine.model is model
    with torch.no_grad():
        assert torch.allclose(made, model(images), rtol=1e-5, atol=1e-5)
        assert torch.allclose(again, model(images)[:3], rtol=1e-5, atol=1e-5) or how == "no statistics"


def test_a_layer_that_somebody_watches_stays():
    model = trained_looking(Net("plain"))
    seen = []
    model.norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        inference_copy(model)(torch.randn(1, 3, 8, 6))
    assert len(seen) == 1


def test_the_model_is_back_after_an_error_and_a_real_error_is_not_hidden():
    engine = Engine(trained_looking(Net("plain")))
    model = engine.model
    with pytest.raises(RuntimeError, match="expected input.* to have 3 channels"), fast_model(engine):
        engine.model(torch.randn(1, 4, 8, 6))
    assert engine.model is model
    with fast_model(engine, enabled=False):
        assert engine.model is model


def test_extraction_is_the_same_and_the_model_keeps_its_norms(make_engine):
    engine = make_engine("test.evaluate", True)
    trained_looking(engine.model)
    plain = extract_splits(engine, splits=["query", "train"])
    fast = extract_splits(engine, splits=["query", "train"], fast=True)
    assert norms(engine.model) == 80
    for split, arrays in plain.items():
        np.testing.assert_allclose(fast[split]["features"], arrays["features"], atol=1e-5, rtol=1e-4)
        assert not np.array_equal(fast[split]["features"], arrays["features"])  # it did go another way
        for name in ("pids", "camids", "row_ids"):
            assert (fast[split][name] == arrays[name]).all()


def test_a_fast_evaluation_has_the_same_figures(make_engine):
    results = []
    for fast in (False, True):
        engine = make_engine("test.evaluate", True, "test.fast_extraction", fast, "privacy.gallery.enabled", True)
        engine.test()
        results.append(engine.results["synthetic_pedestrians"])
    plain, fast = results
    assert fast.clean.mAP == pytest.approx(plain.clean.mAP, abs=1e-3)
    assert fast.protected[0].anonymous.mAP == pytest.approx(plain.protected[0].anonymous.mAP, abs=0.02)
