"""Tables, statistics and figures from one run or many.

Read `command` (`train.py report`), `writer` (what is written), `comparable` and `comparison` (which runs may be
pooled, or stand side by side), `aggregate` (runs pooled once, an `PooledRuns`), `statistics` and `conclusion` (what
they say). Then what shows it: `table` and `tables`; `charts` (and which `learning_curves` show), drawn by `figures`
and by `page`; `pictures`; `wording`. README.md is for users.

Rule: imports `runs` and `tickets.packed_file`, never torch.
"""
