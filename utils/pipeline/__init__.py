"""The stage graph and what every stage has around it: flags, plan, runner, lock, parts."""
