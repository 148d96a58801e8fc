"""What goes into `pipe.scheduler`.

A saved pipeline names the module and class of its scheduler, and diffusers looks for them in a
module that is already imported. So these classes say that they live in `asddim_lib` itself: their
files can move, and `import asddim_lib` is all that loading needs.
"""

from asddim_lib.schedulers.ddim import ASDDIMScheduler as ASDDIMScheduler
from asddim_lib.schedulers.flow import ASFlowScheduler as ASFlowScheduler
from asddim_lib.schedulers.inverse import ASDDIMInverseScheduler as ASDDIMInverseScheduler
from asddim_lib.schedulers.multistep import DPMSolverGridScheduler as DPMSolverGridScheduler
from asddim_lib.schedulers.multistep import UniPCGridScheduler as UniPCGridScheduler

for _scheduler in (
    ASDDIMScheduler,
    ASDDIMInverseScheduler,
    ASFlowScheduler,
    DPMSolverGridScheduler,
    UniPCGridScheduler,
):
    _scheduler.__module__ = "asddim_lib"
