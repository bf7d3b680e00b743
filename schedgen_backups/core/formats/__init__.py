"""Read and write the bytes of the two file formats (docs/file-format.md).

Add here what is stored in a file. No servers and no directories: paths and streams come in, values go out.
"""
