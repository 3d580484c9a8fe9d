#!/bin/sh
# The environment in which upstream's own code runs: sh tools/upstream/setup.sh DIR
#
# DIR gets venv/ (torch, LeRobot), diffusion_policy/ and robomimic/ (their repositories at pinned commits), and folders for
# PYTHONPATH with what cannot stand beside the rest: robomimic-0.2.0/ and diffusers-0.11.1/ (the pins of diffusion_policy;
# robomimic's master pins that diffusers, too) and lerobot-0.3.2/ (statistics inside the weights).
#
# Repositories that are on this machine already: DIFFUSION_POLICY=folder ROBOMIMIC=folder. Python 3.11: PYTHON=python3.11.
set -eu
dir=$1
python=${PYTHON:-python3.11}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
pip="$dir/venv/bin/python -m pip install -q --disable-pip-version-check"

checkout() { # name, repository, commit, folder that has it already
    if [ -n "$4" ]; then
        [ -e "$dir/$1" ] || ln -s "$(cd "$4" && pwd)" "$dir/$1"
    elif [ ! -d "$dir/$1" ]; then
        git clone -q "$2" "$dir/$1"
        git -C "$dir/$1" checkout -q "$3"
    fi
}
checkout diffusion_policy https://github.com/real-stanford/diffusion_policy 5ba07ac "${DIFFUSION_POLICY:-}"
checkout robomimic https://github.com/ARISE-Initiative/robomimic d309eae "${ROBOMIMIC:-}"

[ -d "$dir/venv" ] || "$python" -m venv "$dir/venv"
# torch first and alone: whatever is installed later must not ask for another build of it.
$pip torch==2.13.0
echo torch==2.13.0 > "$dir/constraints.txt"
$pip --no-deps torchvision==0.28.0
# What the diffusion policies of LeRobot 0.4.4, diffusion_policy and robomimic import, within their bounds.
$pip -c "$dir/constraints.txt" numpy==1.26.4 diffusers==0.35.2 huggingface-hub==0.35.3 datasets==4.1.1 pyarrow==21.0.0 \
    pandas==2.3.3 safetensors==0.8.0 draccus==0.10.0 einops==0.8.1 gymnasium==1.2.3 packaging==25.0 'setuptools<81' \
    deepdiff==8.6.2 pyserial==3.5 av==15.1.0 accelerate==1.15.0 dill==0.4.0 hydra-core==1.3.2 omegaconf==2.3.0 \
    zarr==2.18.7 numcodecs==0.15.2 h5py==3.16.0 jsonlines imageio imageio-ffmpeg termcolor six scipy tqdm psutil \
    matplotlib tensorboard tensorboardX
$pip --no-deps lerobot==0.4.4

beside() { # folder, packages
    folder=$dir/$1
    shift
    [ -d "$folder" ] || $pip --no-deps --target "$folder" "$@"
}
beside robomimic-0.2.0 robomimic==0.2.0
beside diffusers-0.11.1 diffusers==0.11.1 huggingface-hub==0.23.4
beside lerobot-0.3.2 lerobot==0.3.2
echo "$dir is ready: UPSTREAM=$dir $dir/venv/bin/python tools/upstream/make_fixtures.py"
