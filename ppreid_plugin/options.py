"""Every configuration key, once: its default and one sentence.

The yacs node (`config.get_default_config`), the help text of the command line and ``docs/configuration.md`` are made
from these tables. torchreid's keys keep torchreid's names and defaults; those marked (ours) are added.
"""

from __future__ import annotations

from typing import Any

# key: (default, what it does). Groups follow torchreid's own order.
TORCHREID_OPTIONS: dict[str, tuple[Any, str]] = {
    "use_gpu": (True, "use CUDA where there is a device"),
    "model.name": ("resnet50", "a model of torchreid's model zoo"),
    "model.pretrained": (True, "start from ImageNet weights where torchreid has them (downloads them once)"),
    "model.load_weights": ("", "weights to start from: a file, or zoo:NAME for torchreid's trained models"),
    "model.resume": ("", "checkpoint to continue from (model, optimizer, scheduler, privacy modules, epoch)"),
    "data.type": ("image", "image or video"),
    "data.root": ("reid-data", "folder that holds the data sets"),
    "data.sources": (["market1501"], "data sets to train on"),
    "data.targets": (["market1501"], "data sets to test on"),
    "data.workers": (4, "data loading processes"),
    "data.split_id": (0, "split number of data sets that have several"),
    "data.height": (256, "image height in pixels"),
    "data.width": (128, "image width in pixels"),
    "data.combineall": (False, "train on train + query + gallery"),
    "data.transforms": (
        ["random_flip"],
        "augmentation: random_flip, random_crop, random_patch, color_jitter, random_erase; and De-ID targets of "
        "training images, NAME or NAME:KEY=VALUE+KEY=VALUE, such as dp_pixelate:epsilon=2+blocks=8 (ours)",
    ),
    "data.transforms_test": ([], "De-ID targets of query, gallery and validation images, in the same form (ours)"),
    "data.k_tfm": (1, "augmented copies of an image; torchreid's engines need 1"),
    "data.norm_mean": ([0.485, 0.456, 0.406], "mean subtracted from RGB in [0, 1]"),
    "data.norm_std": ([0.229, 0.224, 0.225], "standard deviation that RGB is divided by"),
    "data.save_dir": ("log", "folder for checkpoints, TensorBoard and logs"),
    "data.load_train_targets": (False, "also load the targets' training split"),
    "data.download": (False, "let torchreid create missing folders and try its own download addresses (ours)"),
    "market1501.use_500k_distractors": (False, "add the 500k distractors to Market-1501's gallery"),
    "cuhk03.labeled_images": (False, "CUHK03: labeled boxes instead of detected ones"),
    "cuhk03.classic_split": (False, "CUHK03: the classic split"),
    "cuhk03.use_metric_cuhk03": (False, "CUHK03: single-gallery-shot metric, as the exact expectation of its draws"),
    "sampler.train_sampler": ("RandomSampler", "sampler of the source train loader"),
    "sampler.train_sampler_t": ("RandomSampler", "sampler of the target train loader"),
    "sampler.num_instances": (4, "images an identity in a batch (RandomIdentitySampler)"),
    "sampler.num_cams": (1, "cameras in a batch (RandomDomainSampler)"),
    "sampler.num_datasets": (1, "data sets in a batch (RandomDatasetSampler)"),
    "video.seq_len": (15, "images sampled from a tracklet"),
    "video.sample_method": ("evenly", "evenly, random or all"),
    "video.pooling_method": ("avg", "pooling of frame features over a tracklet: avg or max"),
    "train.optim": ("adam", "adam, amsgrad, sgd, rmsprop or radam"),
    "train.lr": (0.0003, "learning rate"),
    "train.weight_decay": (5e-4, "weight decay"),
    "train.max_epoch": (60, "number of epochs"),
    "train.start_epoch": (0, "first epoch (0-based)"),
    "train.batch_size": (32, "images (tracklets) in a training batch"),
    "train.fixbase_epoch": (0, "epochs in which only train.open_layers learn"),
    "train.open_layers": (["classifier"], "layers that learn during the first fixbase_epoch epochs"),
    "train.staged_lr": (False, "smaller learning rate for the base layers"),
    "train.new_layers": (["classifier"], "layers with the full learning rate under staged_lr"),
    "train.base_lr_mult": (0.1, "factor on the base layers' learning rate under staged_lr"),
    "train.lr_scheduler": ("single_step", "single_step, multi_step or cosine"),
    "train.stepsize": ([20], "epochs between (single_step) or at (multi_step) decays"),
    "train.gamma": (0.1, "factor of a decay"),
    "train.print_freq": (20, "batches between two printed lines"),
    "train.seed": (1, "seed of everything that may be seeded (never of a release)"),
    "train.rank_timeout_s": (1800.0, "seconds until a process of torchrun that does not answer is given up (ours)"),
    "train.amp": (False, "bfloat16 autocast of the model's forward pass; same as --amp (ours)"),
    "train.channels_last": (
        False,
        "weights and images laid out channels last: same training to rounding, faster on a CPU and under amp (ours)",
    ),
    "sgd.momentum": (0.9, "momentum of sgd and rmsprop"),
    "sgd.dampening": (0.0, "dampening of sgd"),
    "sgd.nesterov": (False, "Nesterov momentum"),
    "rmsprop.alpha": (0.99, "smoothing constant of rmsprop"),
    "adam.beta1": (0.9, "decay of the first moment"),
    "adam.beta2": (0.999, "decay of the second moment"),
    "loss.name": ("softmax", "softmax or triplet"),
    "loss.softmax.label_smooth": (True, "label smoothing"),
    "loss.triplet.margin": (0.3, "distance margin"),
    "loss.triplet.weight_t": (1.0, "weight of the hard triplet loss"),
    "loss.triplet.weight_x": (0.0, "weight of the cross entropy beside it"),
    "test.batch_size": (100, "images (tracklets) in a test batch"),
    "test.dist_metric": ("euclidean", "euclidean or cosine (a protected gallery is always matched by cosine)"),
    "test.normalize_feature": (False, "L2-normalize features before the distance"),
    "test.ranks": ([1, 5, 10, 20], "CMC ranks that are printed"),
    "test.evaluate": (False, "test only"),
    "test.eval_freq": (-1, "epochs between evaluations (-1: only after training)"),
    "test.start_eval": (0, "first epoch that may be evaluated"),
    "test.rerank": (False, "k-reciprocal re-ranking (with test.evaluate)"),
    "test.visrank": (False, "pictures of ranked results (with test.evaluate)"),
    "test.visrank_topk": (10, "ranks in these pictures"),
    "test.fast_extraction": (
        False,
        "batch norms folded into convolutions, channels last, float16 on CUDA: same features to rounding (ours)",
    ),
    "test.feature_cache": (
        "",
        "folder of clean features for the same weights and images, never of a protected gallery ('': none, ours)",
    ),
    "test.exclude_same_camera": (True, "drop gallery rows of the query's pid and camera; False for one camera (ours)"),
}

PRIVACY_OPTIONS: dict[str, tuple[Any, str]] = {
    "privacy.deid.enabled": (False, "stage 1: train a De-ID decoder with the encoder"),
    "privacy.deid.target": ("pixelate", "what it must reproduce: a name, or several as pixelate:1.0,blur:0.5"),
    "privacy.deid.blocks": (8, "pixelate, mask, dp_pixelate: blocks across the image's width"),
    "privacy.deid.sigma": (0.02, "blur: standard deviation as a fraction of the image's height"),
    "privacy.deid.weight": (10.0, "weight of the De-ID loss in the encoder's objective, >= 0"),
    "privacy.deid.loss": ("mse", "distance between decoded image and target: mse, l1, ssim, or mse:1.0,ssim:0.2"),
    "privacy.deid.scales": (1, "scales at which they are compared, each half the size of the one before"),
    "privacy.deid.decoder": ("light", "decoder network, by registered name"),
    "privacy.deid.input": ("feature", "what it decodes: feature or feature_map"),
    "privacy.deid.height": (64, "height of the decoded image in pixels (0: data.height)"),
    "privacy.deid.width": (32, "width of the decoded image in pixels (0: data.width)"),
    "privacy.deid.lr": (0.001, "learning rate of the decoder (Adam)"),
    "privacy.deid.kwargs": (
        {},
        "further arguments of De-ID targets: noise_std, levels, epsilon (of a channel), neighborhood, max_images, seed",
    ),
    "privacy.adversary.enabled": (False, "stage 1: train the encoder against Adv-ID adversaries"),
    "privacy.adversary.names": (
        ["identity"],
        "adversaries: identity, image, attributes, camera; one with settings of its own as NAME:KEY=VALUE+KEY=VALUE",
    ),
    "privacy.adversary.input": ("reconstruction", "what they read: reconstruction (needs the decoder) or feature"),
    "privacy.adversary.schedule": (
        "reversal",
        "reversal (bounded, adversaries step after the encoder) or alternating (before; the aim: a uniform posterior)",
    ),
    "privacy.adversary.weight": (0.1, "weight of each adversarial term in the encoder's objective, >= 0"),
    "privacy.adversary.ramp": (True, "let the weight grow from 0 over the training (Ganin and Lempitsky 2015)"),
    "privacy.adversary.steps": (1, "steps of an adversary on a batch, >= 1"),
    "privacy.adversary.lr": (0.001, "learning rate of the adversaries (Adam)"),
    "privacy.adversary.weight_decay": (0.0, "weight decay of the adversaries (AdamW), >= 0"),
    "privacy.adversary.dropout": (0.0, "dropout before their last layer, in [0, 1)"),
    "privacy.adversary.ensemble": (1, "members of an adversary, independently initialized, averaged"),
    "privacy.adversary.restart_epochs": (0, "epochs after which a member starts anew, the members in turn (0: never)"),
    "privacy.adversary.people": (
        "auto",
        "whom they learn and attack: all, held_out (not the same people), cross_fit (two folds), or auto: cross_fit "
        "for attributes and camera, all for identity and image",
    ),
    "privacy.adversary.held_out_people": (0.5, "held_out: share of the training people attacked and not learned"),
    "privacy.adversary.labels": (
        "",
        "attributes: labels by person: market_attribute.mat, attributes.csv or .npz; SOURCE=FILE with several sources",
    ),
    "privacy.adversary.attributes": ([], "attributes: those to predict ([]: all that the labels have)"),
    "privacy.adversary.kwargs": ({}, "further arguments of adversaries that others registered"),
    "privacy.erasure.enabled": (
        False,
        "stage 1: bring the mean features of an attribute's classes together",
    ),
    "privacy.erasure.weight": (30.0, "weight of the distance of the class means in the encoder's objective, >= 0"),
    "privacy.erasure.labels": ("", "labels by person, as privacy.adversary.labels ('': those)"),
    "privacy.erasure.attributes": ([], "attributes to erase ([]: all that the labels have)"),
    "privacy.erasure.bank": (4096, "features of past batches that the class means are taken over"),
    "privacy.image_erasure.enabled": (
        False,
        "stage 1: take the covariance of features and images to 0, against inversion",
    ),
    "privacy.image_erasure.weight": (100.0, "weight of the squared covariance in the encoder's objective, >= 0"),
    "privacy.image_erasure.bank": (4096, "past images that the covariance is taken over"),
    "privacy.distillation.enabled": (False, "keep the similarities that the starting weights see between images"),
    "privacy.distillation.weight": (50.0, "weight of the squared differences of cosines in the objective, >= 0"),
    "privacy.aware.enabled": (False, "training that knows stage 2: a contrastive term with protected gallery rows"),
    "privacy.aware.mechanism": (
        "prior_subset",
        "mechanism in the term: prior_subset, codebook, gaussian, privunit, privunit_g, or none (the control)",
    ),
    "privacy.aware.epsilon_min": (8.0, "smallest budget of one row that is trained for; each batch draws one"),
    "privacy.aware.epsilon_max": (16.0, "largest budget of one row that is trained for"),
    "privacy.aware.delta": (None, "failure probability of an approximate mechanism; None: 1e-5"),
    "privacy.aware.weight": (1.0, "weight of the term in the encoder's objective, >= 0"),
    "privacy.aware.temperature": (0.3, "temperature of the contrastive loss, in cosines"),
    "privacy.aware.codewords": (1024, "codebooks: codewords that learn with the encoder"),
    "privacy.aware.levels": (2, "codebooks: levels of vectors whose sums the codewords are"),
    "privacy.aware.set_size": (1, "prior_subset: codewords in a row's set"),
    "privacy.aware.assignment_temperature": (0.05, "codebooks: temperature of the soft assignment, in cosines"),
    "privacy.aware.commitment": (0.25, "codebooks: weight that draws a row to its person's codeword, >= 0"),
    "privacy.aware.usage": (0.1, "codebooks: weight against the collapse to few codewords, >= 0"),
    "privacy.aware.lr": (0.001, "codebooks: learning rate of the codewords (Adam)"),
    "privacy.gallery.enabled": (False, "stage 2: evaluate a differentially private gallery too"),
    "privacy.gallery.mechanism": ("gaussian", "DP mechanism, by registered name"),
    "privacy.gallery.unit": ("image", "unit of privacy: image (one gallery row) or person (all rows of a pid)"),
    "privacy.gallery.prototype": (True, "person unit: one mean row a person; False: his rows, each at an equal share"),
    "privacy.gallery.enroll_cameras": ([], "person unit: camids people are enrolled from ([]: the first half of them)"),
    "privacy.gallery.max_rows_per_person": (0, "rows of one person that are used, spread over cameras (0: all)"),
    "privacy.gallery.epsilon": (16.0, "budget of one unit under replace adjacency, > 0"),
    "privacy.gallery.epsilons": ([], "several budgets to evaluate in one run, instead of privacy.gallery.epsilon"),
    "privacy.gallery.delta": (None, "failure probability; None: 1e-5 for approximate mechanisms, 0 for pure ones"),
    "privacy.gallery.clip_norm": (1.0, "bound C on a row's L2 norm; the sensitivity is 2C"),
    "privacy.gallery.transform": (
        "center",
        "public transform, fitted on the training split: NAME, NAME:KEY=VALUE+... or NAME:FILE",
    ),
    "privacy.gallery.fit_images": (0, "training images that transform and codebook are fitted on (0: all)"),
    "privacy.gallery.fit_views": (0, "augmented views of each of these that they are fitted on beside it"),
    "privacy.gallery.background_pids": ([0], "pids that are no person: no template, no enrolled query"),
    "privacy.gallery.query": ("clean", "queries: clean, or noised by the mechanism at the same epsilon"),
    "privacy.gallery.release": ("", "folder of a stored release to evaluate instead of research noise"),
    "privacy.gallery.truth": ([], "files of --truth-out that label the rows of an anonymous release"),
    "privacy.gallery.kwargs": (
        {},
        "further arguments of the mechanism, or of fit_prior: codewords, set_size, kind, ...",
    ),
    "privacy.validation.ids_fraction": (0.0, "share of the training people held out to choose the best checkpoint"),
    "privacy.validation.seed": (1, "seed of the choice of these people"),
}

OPTIONS = {**TORCHREID_OPTIONS, **PRIVACY_OPTIONS}


def describe_options(options: dict[str, tuple[Any, str]] = OPTIONS) -> str:
    """One line a key: name, default, what it does. Made from `OPTIONS`; used by ``--help`` and the documentation."""
    width = max(map(len, options))
    return "\n".join(f"  {key:<{width}}  {text} [{default!r}]" for key, (default, text) in options.items())


def options_markdown() -> str:
    """The text of ``docs/configuration.md``: a table of the privacy keys, then torchreid's."""
    parts = [
        "# Configuration\n\nMade from `ppreid_plugin/options.py` by `make docs`; `python tools/train.py --help` shows "
        "the same.\nStock torchreid YAML files work unchanged; options on a command line are `KEY VALUE` pairs.\n"
    ]
    for title, options in (("Privacy keys", PRIVACY_OPTIONS), ("torchreid's keys", TORCHREID_OPTIONS)):
        rows = "\n".join(f"| `{key}` | `{default!r}` | {text} |" for key, (default, text) in options.items())
        parts.append(f"## {title}\n\n| key | default | what it does |\n| --- | --- | --- |\n{rows}\n")
    return "\n".join(parts)
