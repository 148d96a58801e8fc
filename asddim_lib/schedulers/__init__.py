"""What goes into `pipe.scheduler`.

A saved pipeline names this package and a class in it, never an inner file, so that files keep
loading when code moves. diffusers looks for `SchedulerMixin` beside the class.
"""

from diffusers import SchedulerMixin as SchedulerMixin

from asddim_lib.schedulers.asddim import ASDDIMScheduler as ASDDIMScheduler
from asddim_lib.schedulers.inverse import ASDDIMInverseScheduler as ASDDIMInverseScheduler
from asddim_lib.schedulers.unipc import UniPCGridScheduler as UniPCGridScheduler

for _scheduler in (ASDDIMScheduler, ASDDIMInverseScheduler, UniPCGridScheduler):
    _scheduler.__module__ = __name__
