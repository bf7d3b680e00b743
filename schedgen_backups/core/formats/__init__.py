"""The bytes of the two file formats, written and read (docs/file-format.md).

Add here what stands in a file. No server and no directory: paths and streams come in, values go out.
"""
