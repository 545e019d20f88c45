"""Every part of training on a GPU: of a first batch it says what it says on the CPU, and a second step works."""

import math

import pytest
import torch

from ppreid_plugin.data.pedestrians import NAME

DEID = ("privacy.deid.enabled", True)
ADVERSARY = ("privacy.adversary.enabled", True, "privacy.adversary.names")
BY_PERSON = ("sampler.train_sampler", "RandomIdentitySampler", "sampler.num_instances", 4)
PARTS = {
    "plain": (),
    "triplet": ("loss.name", "triplet", *BY_PERSON),
    "pixelate": DEID,
    "several targets": (*DEID, "privacy.deid.target", "blur:0.5,color_quantize:0.5,dp_pixelate:0.5"),
    "noise": (*DEID, "privacy.deid.target", "noise"),
    "mask": (*DEID, "privacy.deid.target", "mask"),
    "mean image": (*DEID, "privacy.deid.target", "mean_image"),
    "hdr decoder": (*DEID, "privacy.deid.decoder", "hdr"),
    "identity": (*DEID, *ADVERSARY, ["identity:input=reconstruction"]),
    "camera, alternating": (*ADVERSARY, ["camera:input=feature+schedule=alternating"]),
    "attributes": (*ADVERSARY, ["attributes:input=feature"]),
    "image": (*ADVERSARY, ["image:input=feature"]),
    "distillation": ("privacy.distillation.enabled", True),
    "erasure": ("privacy.erasure.enabled", True),
    "image erasure": ("privacy.image_erasure.enabled", True),
    "aware, codebook": ("privacy.aware.enabled", True, *BY_PERSON),
    "aware, noise": ("privacy.aware.enabled", True, "privacy.aware.mechanism", "gaussian", *BY_PERSON),
}


@pytest.mark.gpu
@pytest.mark.parametrize("part", PARTS)
def test_first_figures_are_the_cpus(make_engine, pedestrians, part):
    check_first_figures(make_engine, pedestrians, part, use_gpu=True)


@pytest.mark.parametrize("part", ["mask", "attributes", "aware, codebook"])
def test_two_engines_on_the_cpu_say_the_same(make_engine, pedestrians, part):
    """What the test above relies on: figures of a first batch depend on seed and batch alone."""
    check_first_figures(make_engine, pedestrians, part, use_gpu=False)


def check_first_figures(make_engine, pedestrians, part, *, use_gpu):
    labels = ("privacy.adversary.labels", str(pedestrians / NAME / "attributes.csv"))
    engines = [make_engine(*PARTS[part], *labels, "use_gpu", used) for used in (False, use_gpu)]
    batch, first = next(iter(engines[0].train_loader)), []
    for engine in engines:
        engine.max_epoch = 1
        engine.set_model_mode("train")
        for component in engine.components:
            component.start_at_once()
        first.append({name: float(value) for name, value in engine.forward_backward(batch).items()})
    assert next(engines[1].model.parameters()).is_cuda == use_gpu
    assert first[1] == pytest.approx(first[0], rel=2e-3, abs=2e-4)
    second = engines[1].forward_backward(batch)
    assert second.keys() == first[1].keys()
    assert all(math.isfinite(float(value)) for value in second.values())
    for name in engines[1].get_model_names():
        module = engines[1]._models[name]
        assert all(torch.isfinite(value).all() for value in module.state_dict().values())
