"""How good a policy has become, with the uncertainty of saying so."""
