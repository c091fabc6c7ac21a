"""The tests; a folder whose files share a fixture of scope "package" is a package, or pytest keeps that to its end."""
