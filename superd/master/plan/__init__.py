"""From settings to pools of workers, and the check that tries a plan before it is used."""
