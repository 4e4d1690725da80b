"""What a run leaves on disk, written and read back.

Read `rows` (results.csv, layers.csv, curves/), `folder` (file names, who may write), `lock`, `class_paths` (how
settings name our classes), `settings` (which of them must be the same), `environment` (environment.json), `run` (a
folder read for a report).

Rule: imports the foundation only, and never torch, so that a report starts at once.
"""
