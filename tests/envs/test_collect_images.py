"""dps-collect task=..._image: demonstrations with their cameras, which the trainer reads."""

import h5py
import numpy as np
import pytest

from diffpolicy_spec.data import read_robomimic
from diffpolicy_spec.envs.collect import CollectConfig, CollectError, collect

pytest.importorskip("robosuite")
IMAGES = {"agentview_image": (32, 40), "robot0_eye_in_hand_image": (24, 24)}


def test_cameras_are_recorded(tmp_path):
    plain, seen = tmp_path / "lift.hdf5", tmp_path / "lift_image.hdf5"
    collect(CollectConfig("lift", 1, plain), progress=False)
    collect(CollectConfig("lift", 1, seen, images=IMAGES), progress=False)
    shapes = {key: (3, *size) for key, size in IMAGES.items()}
    (episode,) = read_robomimic(seen, {"object": 10}, image_shapes=shapes)
    for key, (height, width) in IMAGES.items():
        images = episode.images[key].read(np.arange(len(episode)))
        assert images.shape == (len(episode), height, width, 3)
        assert images.std() > 10  # something is on them
        assert (images[0] != images[-1]).any()
    with h5py.File(plain) as one, h5py.File(seen) as other:  # looking changes nothing
        np.testing.assert_array_equal(one["data/demo_0/actions"], other["data/demo_0/actions"])
        np.testing.assert_array_equal(one["data/demo_0/states"], other["data/demo_0/states"])


def test_a_collection_with_other_images_is_another(tmp_path):
    parts = tmp_path / "lift.hdf5.parts"
    parts.mkdir()
    (parts / "collection.json").write_text('{"task": "lift", "seed": 0, "max_steps": 200}')
    with pytest.raises(CollectError, match="was begun with"):
        collect(CollectConfig("lift", 1, tmp_path / "lift.hdf5", images=IMAGES), progress=False)
