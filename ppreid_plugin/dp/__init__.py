"""Stage 2, the DP gallery: mechanisms, their calibration, and the public transforms in front of them."""

from ppreid_plugin.dp.arrays import clip_rows
from ppreid_plugin.dp.audit import AuditResult, audit_mechanism
from ppreid_plugin.dp.bounds import (
    bound_auc_gaussian,
    bound_auc_pure,
    bound_query_to_row,
    bound_row_to_person,
    bound_row_to_person_gaussian,
    bound_tpr_gaussian,
    bound_tpr_pure,
)
from ppreid_plugin.dp.calibration import (
    compose_gaussian,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_sigma,
    person_level_epsilon,
)
from ppreid_plugin.dp.composition import compose, composed_delta
from ppreid_plugin.dp.ledger import Ledger
from ppreid_plugin.dp.mechanisms import MECHANISMS, Mechanism, build_mechanism, register_mechanism
from ppreid_plugin.dp.plan import ReleaseTerms
from ppreid_plugin.dp.prior import Prior, fit_prior
from ppreid_plugin.dp.projections import LDA, PCA, Whiten
from ppreid_plugin.dp.release import release_gallery
from ppreid_plugin.dp.sphere import PrivUnit, PrivUnitG
from ppreid_plugin.dp.stored import Release, load_release
from ppreid_plugin.dp.subset import CodebookMechanism, PriorSubset
from ppreid_plugin.dp.transforms import (
    TRANSFORMS,
    PublicTransform,
    build_transform,
    register_transform,
    transform_from_state,
)
from ppreid_plugin.dp.units import GalleryRows

__all__ = [
    "LDA",
    "MECHANISMS",
    "PCA",
    "TRANSFORMS",
    "AuditResult",
    "CodebookMechanism",
    "GalleryRows",
    "Ledger",
    "Mechanism",
    "Prior",
    "PriorSubset",
    "PrivUnit",
    "PrivUnitG",
    "PublicTransform",
    "Release",
    "ReleaseTerms",
    "Whiten",
    "audit_mechanism",
    "bound_auc_gaussian",
    "bound_auc_pure",
    "bound_query_to_row",
    "bound_row_to_person",
    "bound_row_to_person_gaussian",
    "bound_tpr_gaussian",
    "bound_tpr_pure",
    "build_mechanism",
    "build_transform",
    "clip_rows",
    "compose",
    "compose_gaussian",
    "composed_delta",
    "fit_prior",
    "gaussian_delta",
    "gaussian_epsilon",
    "gaussian_sigma",
    "load_release",
    "person_level_epsilon",
    "register_mechanism",
    "register_transform",
    "release_gallery",
    "transform_from_state",
]
