"""Tables, statistics and figures from one run or many.

Read `command` (`train.py report`), `writer` (the files written), `comparable` and `comparison` (which runs may be
pooled or compared), `aggregate` (runs pooled once, a `PooledRuns`), `statistics` and `conclusion` (the findings). Then
the presentation: `table` and `tables`; `charts` (`learning_curves` selects their rounds), drawn by `figures` and
`page`; `pictures`; `wording`. README.md is for users.

Rule: imports `runs` and `tickets.packed_file`, never torch.
"""
