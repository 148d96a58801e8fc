"""The name under which version 0.1 saved `ASDDIMScheduler`: pipelines saved then still load."""

from diffusers import SchedulerMixin as SchedulerMixin

from asddim_lib.schedulers import ASDDIMScheduler as ASDDIMScheduler
