"""Many runs side by side on Ray: the command `sweep`.

Read `combinations` (which runs a command asks for), `folder` (the sweep's folder, where the same command goes on),
`jobs` (a run, and the fits that it consists of), `sweep` (the loop that hands them to workers), `worker` (a process
that trains one run after the other), `cluster` (Ray), `display`, `command`.

Rule: imports runs, report, cli and notebook. Ray is imported only here, and only when a sweep starts; the process that
starts it loads neither torch nor Lightning.
"""
