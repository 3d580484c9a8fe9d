"""Calibrated gains: a matrix per step that predicts how x0 moves when the state moves, in a form that fits."""

from .gains import STRUCTURES, Gains
from .kronecker import Kronecker
from .lowrank import LowRank
from .matrices import Dense, Matrices

__all__ = ["STRUCTURES", "Dense", "Gains", "Kronecker", "LowRank", "Matrices"]
