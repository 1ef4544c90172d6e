"""The scenarios that come with the package, one file each."""
