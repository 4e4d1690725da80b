"""Tables, statistics and figures from one run or many.

Read `command` (`train.py report`), `writer` (what is written), `aggregate` and `statistics` (what is pooled and
compared),
`comparable` and `comparison` (what may be), then tables (`table`, `paired_table`, `comparison_table`, `sheet`), figures
(`figures`, `curve_figure`, `comparison_figure`, `pictures`) and the page (`page`, `charts`).

Rule: imports `runs` and `tickets.packed_file`, never torch.
"""
