"""What a run leaves on disk, written and read back.

Read `rows` (results.csv, layers.csv, curves/), `folder` (names of files, who may write), `lock`, `class_paths` (by
what names settings know our classes), `settings` (which of them must be the same), `environment` (environment.json),
`run` (a folder read for a report).

Rule: no torch, and the foundation only: a report starts at once.
"""
