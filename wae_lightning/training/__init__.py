"""What surrounds a step of training: callbacks and functions that any LightningModule can use."""

from wae_lightning.training.compiling import CompileNetworks
from wae_lightning.training.finite import StopAtBadNumbers, first_bad_module, first_bad_weights
from wae_lightning.training.fit_flow import FitFlow, distance_from_normal
from wae_lightning.training.flags import BorrowedFlags
from wae_lightning.training.interruption import AtomicCheckpointIO, BackgroundCheckpointIO, LastCheckpoint
from wae_lightning.training.pretrain import MatchMoments, moment_mismatch
from wae_lightning.training.resume import ExactResume
from wae_lightning.training.schedulers import StepSchedulers

__all__ = [
    "AtomicCheckpointIO",
    "BackgroundCheckpointIO",
    "BorrowedFlags",
    "CompileNetworks",
    "ExactResume",
    "FitFlow",
    "LastCheckpoint",
    "MatchMoments",
    "StepSchedulers",
    "StopAtBadNumbers",
    "distance_from_normal",
    "first_bad_module",
    "first_bad_weights",
    "moment_mismatch",
]
