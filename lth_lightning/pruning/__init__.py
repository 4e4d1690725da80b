"""Masks and how they are made: tensors in, tensors out.

Read in this order: `masks` (which weights are kept), `mask_hooks` (keeps pruned weights at 0, by means of `held_mask`,
`optimizer_hooks` and `guard`), `criteria` (a score for each weight), `pruning` (how many weights to prune, and which
compete); then `prunable` and `matrices` (which weights may be pruned), `state` (a network's tensors by name), and
`network_function` with `gradient_criteria` (SNIP, GraSP, SynFlow).

Rule: nothing here knows about rounds, files or Lightning.
"""
