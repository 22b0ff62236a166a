"""The commands of `tracetune`, by what they are for; `tracetune.cli` gives them their names."""
