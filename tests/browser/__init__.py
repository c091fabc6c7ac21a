"""A browser, which these files share."""
