"""The LightningDataModule and its parts: data sets, splits, and batches sliced from tensors in memory.

Read `datamodule`, `datasets`, `splits`, `loader`.

Rule: imports the foundation only.
"""
