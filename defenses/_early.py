"""The early timesteps of a denoiser, where little enough noise is added to recognise the image."""

import dataclasses

from sophon_bench.api import DefenseView
from sophon_bench.data.tasks.denoising import Denoising


def early(view: DefenseView, timesteps: int) -> DefenseView:
    """The view with the restricted task limited to the first ``timesteps``, if it is denoising.

    At later timesteps, two domains look alike: what is unlearnt there for one is also unlearnt for
    the other.
    """
    domain = view.restricted
    if not isinstance(domain.task, Denoising):
        return view
    task = dataclasses.replace(domain.task, timesteps=timesteps)
    return dataclasses.replace(view, restricted=dataclasses.replace(domain, task=task))
