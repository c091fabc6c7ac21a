"""A mesh of real daemons, which these files share."""
