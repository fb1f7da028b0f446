"""Sharded checkpoints on a file system or an object store, written while training goes on.

A checkpoint is a folder `step_N`, made with torch.distributed.checkpoint. Every worker writes its own shards into it; a marker
with the checksum of every file, written last, commits it. A run never resumes from a folder without a marker, or with files that
do not match their checksums.
"""
