"""Names to plugins: registry, selectors, suites, identity, templates."""
