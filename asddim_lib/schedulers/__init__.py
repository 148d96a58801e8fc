"""What goes into `pipe.scheduler`."""

from asddim_lib.schedulers.asddim import ASDDIMScheduler as ASDDIMScheduler
from asddim_lib.schedulers.unipc import UniPCGridScheduler as UniPCGridScheduler
