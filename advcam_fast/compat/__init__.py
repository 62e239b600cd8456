"""AdvCAM behind the faces of other packages: each module is named as the package whose class it stands in for."""
