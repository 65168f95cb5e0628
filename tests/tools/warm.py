"""What boxseg and MLflow read once in a process, read when this is imported: which packages are installed."""

from mlflow.utils.requirements_utils import _init_packages_to_modules_map

from orchestration.record.origin import _packages

_init_packages_to_modules_map()
_packages()
