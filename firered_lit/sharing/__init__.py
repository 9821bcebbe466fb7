"""Work in shards, done by processes of this machine or by a Ray cluster; its finished files are the checkpoints."""
