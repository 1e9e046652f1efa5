"""Every loss of the library: the three that run through networks, and the families between tensors.

What holds for all of the families:

* Wrong kinds of arguments (no tensor, integers for numbers, a text for a number) are a `TypeError`. Wrong
  shapes, devices and numbers are a `ValueError`. Both name the function and the argument.
* Tensors of several floating-point types are computed in the widest of them, and at least in float32.
* The values of tensors are never read, since the host would wait for the device: a hyper-parameter that is a
  tensor is checked for its shape and type only.
* NaN that goes in comes out. A class that is excluded by the logit −∞ counts nothing.
"""

from .families.contrastive import (
    Banks as Banks,
    crd_nce as crd_nce,
    info_nce as info_nce,
    prototype_info_nce as prototype_info_nce,
    similarity_kl as similarity_kl,
)
from .families.detection import (
    box_deltas as box_deltas,
    generalized_iou as generalized_iou,
    kd_quality_focal as kd_quality_focal,
)
from .families.divergences import (
    ab_divergence as ab_divergence,
    akl as akl,
    alpha_mixture as alpha_mixture,
    gkl as gkl,
    ikl as ikl,
    taid as taid,
)
from .families.features import (
    activation_boundary as activation_boundary,
    attended_squared_error as attended_squared_error,
    bn_margin as bn_margin,
    cosine_distance as cosine_distance,
    factor_transfer as factor_transfer,
    mgd as mgd,
    ofd as ofd,
    pooled_squared_error as pooled_squared_error,
    relative_squared_error as relative_squared_error,
    squared_error as squared_error,
    srd as srd,
    vid as vid,
    vkd as vkd,
)
from .families.heads import (
    Logits as Logits,
    chunked as chunked,
    fused as fused,
)
from .families.logits import (
    binary_cross_entropy as binary_cross_entropy,
    binary_kl as binary_kl,
    cross_entropy as cross_entropy,
    dist as dist,
    dkd as dkd,
    jsd as jsd,
    kd_bce as kd_bce,
    kd_ce as kd_ce,
    kl as kl,
    mlkd_batch_corr as mlkd_batch_corr,
    mlkd_class_corr as mlkd_class_corr,
    nkd as nkd,
    ofa as ofa,
    reverse_kl as reverse_kl,
    skew_forward_kl_ce as skew_forward_kl_ce,
    skew_reverse_kl as skew_reverse_kl,
    tf_nkd as tf_nkd,
    total_variation as total_variation,
    wkd_logit as wkd_logit,
    wsld as wsld,
)
from .families.maps import (
    attention_transfer as attention_transfer,
    channel_stats_align as channel_stats_align,
    channel_wise_divergence as channel_wise_divergence,
    fsp_matrix as fsp_matrix,
    hcl as hcl,
    inter_channel_correlation as inter_channel_correlation,
    nst_poly as nst_poly,
    pkd as pkd,
    wavelet_compress as wavelet_compress,
    wkd_feature as wkd_feature,
)
from .families.positions import (
    dense as dense,
    ignoring as ignoring,
    masked as masked,
    next_token as next_token,
)
from .families.ranks import (
    gdkd as gdkd,
    gdkd3 as gdkd3,
    rld as rld,
    topk_nckd as topk_nckd,
)
from .families.relations import (
    cc_adjacent as cc_adjacent,
    cc_taylor_rbf as cc_taylor_rbf,
    cka_class_cost as cka_class_cost,
    hard_dark_rank as hard_dark_rank,
    linear_cka as linear_cka,
    pkt as pkt,
    rkd_angle as rkd_angle,
    rkd_distance as rkd_distance,
    similarity_preserving as similarity_preserving,
    taylor_rbf as taylor_rbf,
    vrm as vrm,
)
from .families.sparse import (
    sampled_kl as sampled_kl,
    topk_jsd as topk_jsd,
    topk_kl as topk_kl,
    topk_reverse_kl as topk_reverse_kl,
)
from .families.standardization import (
    PhiS as PhiS,
    phi_s as phi_s,
)
from .families.temperatures import (
    batch_standardize_logits as batch_standardize_logits,
    ea_weight as ea_weight,
    energy as energy,
    energy_temperature as energy_temperature,
    energy_thresholds as energy_thresholds,
    entropy as entropy,
    grad_reverse as grad_reverse,
    learned_temperature as learned_temperature,
    standardize_logits as standardize_logits,
)
from .families.tokens import (
    gram as gram,
    patch_similarity_kl as patch_similarity_kl,
    relation_kl as relation_kl,
    tinybert_attention as tinybert_attention,
)
from .families.vocabularies import (
    uld as uld,
    uld_hybrid as uld_hybrid,
)
from .objectives import (
    appearance as appearance,
    fcfd as fcfd,
    function as function,
)
