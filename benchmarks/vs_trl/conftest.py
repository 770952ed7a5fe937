collect_ignore = ["theirs.py"]  # looked through for doctests it would import TRL, which may be missing
