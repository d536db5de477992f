"""Check the names in a study that only its data set, or the hosts of its network, can know."""

from layertune.hosts.networks import require_known_network
from layertune_studies.config.sets import SETS
from layertune_studies.config.study import Study
from layertune_studies.data.cases import class_count
from layertune_studies.errors import StudyError
from layertune_studies.training.metrics import CLASSIFICATION, SEGMENTATION

__all__ = ["require_known_names"]


def require_known_names(study: Study) -> None:
    """Refuse unknown names of metrics and of the network. No data are read.

    Raises:
        StudyError: The study names a metric that its task does not have.
        ModelError: The network is unknown.
    """
    classes, volumes = class_count(study.data), SETS[study.data.set].volumes
    known = (*SEGMENTATION, *(f"dice_{number}" for number in range(1, classes)))
    if not volumes:
        known = (*CLASSIFICATION, *(f"sensitivity_{number}" for number in range(classes)))
    unknown = [metric for metric in study.metrics if metric not in known]
    if unknown:
        task = "segmentation" if volumes else "classification"
        raise StudyError(f"metrics: {unknown[0]} is none of {', '.join(known)}, which {task} has")
    if study.loop != "nnunet":
        require_known_network(study.network.name)
