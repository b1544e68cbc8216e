"""BEGAN: an autoencoder and a generator, kept in balance by a loss with a state.

Read in this order: `losses` has the balance k and the gradients of both players,
`networks` the two networks and a run's configuration, `history` its records, `run`
the state and a step, and `training` the loop with its checkpoints.
"""

from course_lib.began.history import History
from course_lib.began.losses import BEGANLoss, gradients_
from course_lib.began.networks import DIGITS, FOLDER_64, Config, autoencoder, generator
from course_lib.began.run import Run
from course_lib.began.training import image_folder, train, watch

__all__ = [
    "DIGITS",
    "FOLDER_64",
    "BEGANLoss",
    "Config",
    "History",
    "Run",
    "autoencoder",
    "generator",
    "gradients_",
    "image_folder",
    "train",
    "watch",
]
