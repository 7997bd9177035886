"""Upgrades to another version of superd in the same process (execve(2)), so that the service
manager sees no change and no listener is ever closed.

Runs in the master. The steps:

1. a child tries the program that is installed now, `python -m superd.master.resume DESCRIPTOR
   trial`: it reads the state, checks the configuration, and starts all workers without listeners.
   If any of this fails or takes too long, nothing has changed;
2. the running program writes its state: listeners, workers, counters and bans (`state`);
3. the master executes the new program, `python -m superd.master.resume DESCRIPTOR`, which takes
   over the state, while the old workers keep serving;
4. the new program starts new workers by a reload, and the old ones drain. If the reload fails, the
   old workers stay.

The command line of the new program, and the state's FORMAT, are an interface between versions.
"""
