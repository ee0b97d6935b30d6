"""The science: tiling, the U-Net, exact inference, volumes. No Prefect, no Dask, no command line."""
