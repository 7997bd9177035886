"""Going over to another program in the same process (execve(2)), so that init and its like see no
change and no listener is ever closed.

Runs in the master. The steps:

1. the program that is installed now is tried in a child: it reads what this one would pass on,
   checks the configuration, and starts all workers with nothing to listen on; if one of that fails
   or takes too long, nothing has changed;
2. what this program has is written down: its listeners, workers, counters and bans (`state`);
3. the master executes the new program, `python -m superd.master.resume DESCRIPTOR`, which takes
   all of it up, while the old workers serve on;
4. the new program goes over to new workers by a reload, and the old ones drain. Where that fails
   the old workers stay.

How the new program is called, and the state's FORMAT, are an agreement between versions.
"""
