"""The stage graph, and what every stage has around its work: flags, plan, runner, shards. Torch-free.

Words for pieces of the experiment, used in code, messages and file names alike:

stage         one of the eight steps (stages.py); finished when its flag holds (flags.py)
run           one call of run_all.sh: the stages it starts, with frozen settings
shard         what one task of a SLURM job array does of a stage: shard I of N (shards.py)
section       rows of one kind among a stage's records, such as those of one model; shards are merged section by section
cache entry   a finished piece of work on disk that a restarted stage takes over, with the fingerprint of what made it
progress      everything that a restarted stage resumes from: checkpoints of a training, cache entries of the others
batch         examples that are computed together; which ones never changes a number
"""
