"""Metrics of pictures, one module per metric. The public functions are re-exported here."""

from asddim_lib.metrics.clip import clip_cosine as clip_cosine
from asddim_lib.metrics.clip import clip_score as clip_score
from asddim_lib.metrics.clip import load_clip as load_clip
from asddim_lib.metrics.distance import images_to_uint8 as images_to_uint8
from asddim_lib.metrics.distance import relative_distance as relative_distance
from asddim_lib.metrics.fid import fid as fid
from asddim_lib.metrics.intervals import Paired as Paired
from asddim_lib.metrics.intervals import mean_interval as mean_interval
from asddim_lib.metrics.intervals import paired_difference as paired_difference
from asddim_lib.metrics.intervals import verdict as verdict
