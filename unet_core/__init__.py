"""The science: tiling, the U-Net, exact inference, volumes. No Prefect, no Dask, no command line."""

import os

# Large tensors in huge pages: a network that makes and drops tensors of 100 MB spends a third of its time on
# pages otherwise (DESIGN.md, section 11). torch reads this once, with its first tensor.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
