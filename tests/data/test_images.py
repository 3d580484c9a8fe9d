"""Images of demonstrations: read from their file in every layout, and what is said where they cannot be."""

import multiprocessing
import pickle

import h5py
import numpy as np
import pytest
import zarr
from numcodecs import Blosc
from tiny_dataset import write_dataset

from diffpolicy_spec.data import DataError, read_dataset, read_replay_buffer, read_robomimic
from diffpolicy_spec.data.episodes import fingerprint
from diffpolicy_spec.data.frames import FrameTable
from diffpolicy_spec.data.image_sources import MappedImages, as_uint8

SHAPE = (3, 8, 10)  # (C, H, W)
CAMERAS = {"agentview_image": SHAPE}
LENGTHS = (20, 25, 18, 22)


def pictures(steps, seed):
    return np.random.default_rng(seed).integers(0, 256, (steps, 8, 10, 3), dtype=np.uint8)


def add_images(path, **options):
    """What robomimic's dataset_states_to_obs.py writes; with compress=True: compression="gzip"."""
    with h5py.File(path, "a") as file:
        for i, n in enumerate(LENGTHS):
            file[f"data/demo_{i}/obs"].create_dataset("agentview_image", data=pictures(n, i), **options)
    return path


LAYOUTS = {
    "contiguous": {},
    "gzip": {"compression": "gzip"},
    "chunks": {"chunks": (7, 4, 5, 3)},
    "a frame a chunk": {"chunks": (1, 8, 10, 3), "compression": "lzf"},
    "float": {"dtype": np.float32},
}


@pytest.fixture(params=LAYOUTS)
def hdf5(request, tmp_path):
    return add_images(write_dataset(tmp_path / "image.hdf5"), **LAYOUTS[request.param])


def table(episodes, camera="agentview_image"):
    return FrameTable([e.images[camera] for e in episodes])


def everything():
    return np.concatenate([pictures(n, i) for i, n in enumerate(LENGTHS)])


def test_rows_of_an_hdf5_in_any_order(hdf5):
    episodes = read_robomimic(hdf5, {"object": 10}, image_shapes=CAMERAS)
    assert [len(e.images["agentview_image"]) for e in episodes] == list(LENGTHS)
    assert list(episodes[0].obs) == ["object"]
    np.testing.assert_array_equal(episodes[2].images["agentview_image"].read([3, 1, 1]), pictures(18, 2)[[3, 1, 1]])
    rows = np.random.default_rng(0).integers(0, sum(LENGTHS), 60)
    for frames in (table(episodes), table(episodes).in_memory(), pickle.loads(pickle.dumps(table(episodes)))):
        np.testing.assert_array_equal(frames.read(rows), everything()[rows])
        assert len(frames) == sum(LENGTHS)
        assert frames.nbytes == sum(LENGTHS) * 240


def test_only_the_chosen_demonstrations(hdf5):
    episodes = read_robomimic(hdf5, {}, filter_key="valid", image_shapes=CAMERAS)
    np.testing.assert_array_equal(table(episodes).read(np.arange(22)), pictures(22, 3))


def test_uncompressed_images_are_mapped(tmp_path):
    """They take no memory and are read as quickly as memory is."""
    path = add_images(write_dataset(tmp_path / "image.hdf5"))
    frames = table(read_robomimic(path, {}, image_shapes=CAMERAS))
    assert frames.direct
    assert isinstance(frames.frames[0].source, MappedImages)
    with h5py.File(path, "a") as file:  # and are those of the file, not a copy
        file["data/demo_0/obs/agentview_image"][0] = 7
    assert (frames.read(np.array([0])) == 7).all()


STORES = {
    "many frames a chunk": {"dtype": np.uint8, "chunks": (11, 8, 10, 3)},
    "float, as upstream's Push-T": {"dtype": np.float32, "chunks": (11, 8, 10, 3)},
    "a frame a chunk": {"dtype": np.uint8, "chunks": (1, 8, 10, 3)},
}


def write_store(path, dtype=np.uint8, chunks=(11, 8, 10, 3), images=None):
    n = sum(LENGTHS)
    with zarr.storage.ZipStore(path, mode="w") if path.suffix == ".zip" else _folder(path) as store:
        root = zarr.open_group(store=store, mode="w", zarr_format=2)
        images = everything().astype(dtype) if images is None else images
        codec = Blosc(cname="zstd", clevel=5, shuffle=Blosc.BITSHUFFLE)
        root.create_array("data/img", data=images, chunks=chunks, compressors=codec)
        root.create_array("data/state", data=np.random.default_rng(0).uniform(0, 512, (n, 5)).astype(np.float32))
        root.create_array("data/action", data=np.random.default_rng(1).uniform(0, 512, (n, 2)).astype(np.float32))
        root.create_array("meta/episode_ends", data=np.cumsum(LENGTHS))
    return path


class _folder:
    def __init__(self, path):
        self.path = str(path)

    def __enter__(self):
        return self.path

    def __exit__(self, *error):
        pass


@pytest.mark.parametrize("layout", STORES)
@pytest.mark.parametrize("name", ["pusht.zarr", "pusht.zarr.zip"])
def test_rows_of_a_store_in_any_order(tmp_path, layout, name):
    store = write_store(tmp_path / name, **STORES[layout])
    episodes = read_replay_buffer(store, {"agent_pos": 2}, image_shapes={"image": SHAPE})
    rows = np.random.default_rng(0).integers(0, sum(LENGTHS), 60)
    frames = table(episodes, "image")
    assert not frames.direct
    for some in (frames, frames.in_memory(), pickle.loads(pickle.dumps(frames))):
        np.testing.assert_array_equal(some.read(rows), everything()[rows])
    assert frames.in_memory().direct
    valid = read_dataset(store, {"agent_pos": 2}, action_repr="raw", filter_key="valid", image_shapes={"image": SHAPE})
    assert len(valid) == 1
    start = sum(LENGTHS[: int(valid[0].name[-1])])
    np.testing.assert_array_equal(valid[0].images["image"].read([0, 5]), everything()[[start, start + 5]])


def _read_in_child(frames, rows, out):
    out.put(frames.read(rows))


@pytest.mark.parametrize(("method", "kind"), [("fork", "hdf5"), ("fork", "zarr"), ("fork", "zip"), ("spawn", "zarr")])
def test_other_processes_read_too(tmp_path, method, kind):
    """Handles do not survive a fork: each process opens the file for itself."""
    if kind == "hdf5":
        path = add_images(write_dataset(tmp_path / "image.hdf5"), compression="gzip")
        frames = table(read_robomimic(path, {}, image_shapes=CAMERAS))
    else:
        path = write_store(tmp_path / ("a.zarr" if kind == "zarr" else "a.zip"))
        frames = table(read_replay_buffer(path, {}, image_shapes={"image": SHAPE}), "image")
    rows = np.arange(10, 40)
    np.testing.assert_array_equal(frames.read(rows), everything()[rows])
    context = multiprocessing.get_context(method)
    out = context.SimpleQueue()
    child = context.Process(target=_read_in_child, args=(frames, rows, out))
    child.start()
    np.testing.assert_array_equal(out.get(), everything()[rows])
    child.join()


def test_fingerprint_sees_images(tmp_path):
    path = add_images(write_dataset(tmp_path / "image.hdf5"))
    before = fingerprint(read_robomimic(path, {}, image_shapes=CAMERAS))
    assert before != fingerprint(read_robomimic(path, {}))
    with h5py.File(path, "a") as file:
        file["data/demo_1/obs/agentview_image"][0, 3, 3] = 1
    assert fingerprint(read_robomimic(path, {}, image_shapes=CAMERAS)) != before


def test_files_without_masks_have_a_fixed_split(tmp_path):
    path = write_dataset(tmp_path / "lift.hdf5", lengths=tuple(range(8, 28)))
    with h5py.File(path, "a") as file:
        del file["mask"]
    parts = {key: read_robomimic(path, {"object": 10}, filter_key=key) for key in ("train", "valid")}
    lengths = {key: [len(e) for e in part] for key, part in parts.items()}
    assert sorted(lengths["train"] + lengths["valid"]) == list(range(8, 28))
    assert len(lengths["valid"]) == 2
    assert [len(e) for e in read_robomimic(path, {}, filter_key="valid")] == lengths["valid"]
    with pytest.raises(DataError, match="no mask/test; masks there: none"):
        read_robomimic(path, {}, filter_key="test")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pictures(17, 2), r"demo_2: 'obs/agentview_image' has shape \(17, 8, 10, 3\), expected \(18, 8, 10, 3\)"),
        (pictures(18, 2)[..., :2], r"demo_2: .*has shape \(18, 8, 10, 2\), expected"),
        (pictures(18, 2).astype(np.int64), "demo_2: 'obs/agentview_image' holds int64, expected images of 0 to 255"),
        (None, "demo_2: 'obs/agentview_image' is not there; there are: object, robot0_eef_pos"),
    ],
)
def test_images_that_do_not_fit(tmp_path, data, message):
    path = add_images(write_dataset(tmp_path / "image.hdf5"))
    with h5py.File(path, "a") as file:
        del file["data/demo_2/obs/agentview_image"]
        if data is not None:
            file["data/demo_2/obs/agentview_image"] = data
    with pytest.raises(DataError, match=message):
        read_robomimic(path, {}, image_shapes=CAMERAS)


def test_a_damaged_chunk_of_an_hdf5(tmp_path):
    path = add_images(write_dataset(tmp_path / "image.hdf5"), compression="gzip", chunks=(5, 8, 10, 3))
    with h5py.File(path, "r") as file:
        chunk = file["data/demo_2/obs/agentview_image"].id.get_chunk_info(1)
    data = bytearray(path.read_bytes())
    data[chunk.byte_offset : chunk.byte_offset + 20] = bytes(20)
    path.write_bytes(data)
    frames = table(read_robomimic(path, {}, image_shapes=CAMERAS))
    assert len(frames.read(np.arange(50))) == 50
    with pytest.raises(DataError, match=r"demo_2: 'obs/agentview_image' cannot be read"):
        frames.read(np.array([3, 51]))


def test_a_damaged_chunk_of_a_store(tmp_path):
    path = write_store(tmp_path / "a.zarr")
    (path / "data" / "img" / "3.0.0.0").write_bytes(b"nothing")  # rows 33 to 43, of episode 1
    frames = table(read_replay_buffer(path, {}, image_shapes={"image": SHAPE}), "image")
    assert len(frames.read(np.r_[np.arange(33), 44, 80])) == 35
    with pytest.raises(DataError, match=r"episode 1: 'data/img' cannot be read"):
        frames.read(np.array([0, 40, 80]))
    with pytest.raises(DataError, match=r"episode 1: 'data/img' cannot be read"):
        frames.in_memory()


def test_a_codec_that_is_missing_is_named(tmp_path):
    path = write_store(tmp_path / "a.zarr")
    described = path / "data" / "img" / ".zarray"
    described.write_text(described.read_text().replace('"blosc"', '"imagecodecs_jpegxl"'))
    with pytest.raises(DataError, match="imagecodecs_jpegxl"):
        read_replay_buffer(path, {}, image_shapes={"image": SHAPE})
    assert len(read_replay_buffer(path, {"state": 5})) == 4  # what is not asked for does not matter


@pytest.mark.parametrize("value", [np.nan, -1.0, 256.0, np.inf])
def test_floats_that_are_no_images(tmp_path, value):
    images = everything().astype(np.float32)
    images[50, 2, 3, 1] = value
    path = write_store(tmp_path / "a.zarr", images=images)
    frames = table(read_replay_buffer(path, {}, image_shapes={"image": SHAPE}), "image")
    with pytest.raises(DataError, match="episode 2: 'data/img' holds values outside 0 to 255, or NaN"):
        frames.read(np.array([49, 50]))


def test_fractions_are_rounded():
    assert as_uint8(np.array([0.4, 1.5, 254.6]), "here").tolist() == [0, 2, 255]


def test_rows_that_are_not_there(tmp_path):
    path = add_images(write_dataset(tmp_path / "image.hdf5"))
    frames = read_robomimic(path, {}, image_shapes=CAMERAS)[0].images["agentview_image"]
    for row in (-1, 20):
        with pytest.raises(IndexError, match="of 20"):
            frames.read([row])
