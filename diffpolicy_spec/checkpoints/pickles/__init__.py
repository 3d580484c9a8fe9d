"""Checkpoints that torch.save pickled, read as data: nothing in them is imported, called or instantiated.

archive     the zip file around the pickle and the tensors' bytes
opcodes     the pickle by its opcodes, as an inert description
vocabulary  the short list of what it may name, and what each name stands for
stored      tensors that stay in the file until they are asked for
read        all of it: a file as plain data
"""

from diffpolicy_spec.checkpoints.pickles.read import read_pickled
from diffpolicy_spec.checkpoints.pickles.stored import StoredTensor, load_tensors

__all__ = ["StoredTensor", "load_tensors", "read_pickled"]
