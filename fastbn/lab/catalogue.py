"""The experiments by name, in the order in which ``all`` runs them."""

from fastbn.lab.experiment import Experiment
from fastbn.lab.experiments.batch_size import BATCH_SIZE
from fastbn.lab.experiments.covariate_shift import COVARIATE_SHIFT
from fastbn.lab.experiments.init import INIT
from fastbn.lab.experiments.landscape import LANDSCAPE
from fastbn.lab.experiments.learning_rate import LEARNING_RATE
from fastbn.lab.experiments.lenet import LENET
from fastbn.lab.experiments.original import ORIGINAL
from fastbn.lab.experiments.surface import SURFACE

ORDER = (LENET, ORIGINAL, INIT, COVARIATE_SHIFT, LANDSCAPE, SURFACE, LEARNING_RATE, BATCH_SIZE)
EXPERIMENTS: dict[str, Experiment] = {experiment.name: experiment for experiment in ORDER}
