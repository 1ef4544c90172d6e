"""What the author of a scenario imports, besides `sophon_bench.api.scenarios`."""

from sophon_bench.data.roles import Role, split_domain
from sophon_bench.data.scenario import DomainData, Images, ScenarioData, ScenarioError
from sophon_bench.data.tasks.classification import Classification

__all__ = [
    "Classification",
    "DomainData",
    "Images",
    "Role",
    "ScenarioData",
    "ScenarioError",
    "split_domain",
]
