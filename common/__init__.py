"""What the scripts under methods/ and baselines/ share; each file has one job, see README.md, Layout."""
