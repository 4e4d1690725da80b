"""The LightningDataModule and what it is made of: data sets, splits, and batches cut from tensors in memory.

Read `datamodule`, `datasets`, `splits`, `loader`.

Rule: imports the foundation only.
"""
