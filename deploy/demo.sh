#!/usr/bin/env bash
# The main job on embedded defaults: real FIB-SEM in, a trained 3D U-Net, seamless labels and objects out,
# measured on the part that nobody trained on. Needs Python 3.11 or newer; about five minutes on two cores.
# Usage: bash deploy/demo.sh [OUTPUT_FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=deploy/setup.sh
source deploy/setup.sh

out="${1:-demo-output}"
data=tests/data/fib25/fib25_crop.h5
train_region=0:72,0:192,0:192      # the network learns from these planes,
choose_region=72:88,0:192,0:192    # the best of its states is chosen on these,
test_region=88:128,0:192,0:192     # and it is judged on these
if [ -e "$out" ]; then
    echo "$out exists; remove it, or name another folder: bash deploy/demo.sh FOLDER" >&2
    exit 2
fi
mkdir -p "$out"
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

say "1/5 ingest: HDF5 to sharded, multiscale OME-Zarr"
unet-flows ingest "$data" --dataset raw --to "$out/volume.zarr"
unet-flows ingest "$data" --dataset label --as labels --to "$out/truth.zarr"

say "2/5 train: a small 3D U-Net learns the boundaries between neurons"
unet-flows train deploy/demo.toml --to "$out/model" \
    --image "$out/volume.zarr" --labels "$out/truth.zarr" \
    --region "$train_region" --validation-region "$choose_region"

say "3/5 segment: exact overlapping tiles over the whole volume, then an id for every object found"
unet-flows segment "$out/volume.zarr" --model "$out/model" --to "$out/neurons.zarr" \
    --tile 64,64,64 --workers 2 --instances watershed

say "4/5 evaluate: on the planes that nobody trained on; first the classes, then the objects"
unet-flows evaluate "$out/neurons.zarr/classes" "$out/truth.zarr" --target boundary --roi "$test_region" \
    --image "$out/volume.zarr" --trivial "$train_region" --picture "$out/classes.png"
unet-flows evaluate "$out/neurons.zarr" "$out/truth.zarr" --instances --roi "$test_region" \
    --image "$out/volume.zarr" --picture "$out/neurons.png"

say "5/5 where everything is"
cat <<END
  $out/volume.zarr   the image, OME-Zarr 0.5
  $out/model         the network: model.json, weights.safetensors, training.json
  $out/neurons.zarr  the labels, OME-Zarr 0.5, with a table of all objects: any Zarr reader opens it
  $out/neurons.png   raw, truth and objects in colours: look at it first; $out/classes.png: what the network says

What to type next (source .venv/bin/activate first):
  unet-flows query $out/neurons.zarr objects --where "touches_border == false" --sort -volume --limit 10
  unet-flows query $out/neurons.zarr at 100,90,90
  unet-flows query $out/neurons.zarr neighbours 1
  unet-flows stitch $out/neurons.zarr --persistence 0.6 --to $out/coarser.zarr
  python -c "import zarr; print(zarr.open('$out/neurons.zarr')['0'][100, 90:100, 90:120])"
END
