"""The embedded world, small enough to align a policy on two cores in minutes: letters, volunteers, two judges, a policy."""
