"""The experiments by name, in the order in which ``all`` runs them."""

from fastbn.lab.experiment import Experiment
from fastbn.lab.experiments.lenet import LENET
from fastbn.lab.experiments.original import ORIGINAL

EXPERIMENTS: dict[str, Experiment] = {experiment.name: experiment for experiment in (LENET, ORIGINAL)}
