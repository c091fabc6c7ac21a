"""The standalone desktop of KOS (Tkinter). Nothing is built here yet; the package reserves its place in the layers."""
