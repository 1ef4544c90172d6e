"""The early timesteps of a denoiser, where there is little enough noise to see what is denoised."""

import dataclasses

from sophon_bench.api import DefenseView
from sophon_bench.data.tasks.denoising import Denoising


def early(view: DefenseView, timesteps: int) -> DefenseView:
    """A view whose restricted task draws from the first ``timesteps`` alone, if it draws any.

    In the others two domains look alike: what is unlearnt there of one is of the other too.
    """
    domain = view.restricted
    if not isinstance(domain.task, Denoising):
        return view
    task = dataclasses.replace(domain.task, timesteps=timesteps)
    return dataclasses.replace(view, restricted=dataclasses.replace(domain, task=task))
