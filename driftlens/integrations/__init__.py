"""Where other people's trainers meet driftlens; each module needs the package that it is named for.

Nothing here is loaded by `import driftlens`.
"""
