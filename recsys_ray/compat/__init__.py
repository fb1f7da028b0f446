"""Contains everything this package uses of other libraries that is not public there, one module for each library.

Each module names the versions that it was checked for and refuses to be imported with another: a private name may change
its meaning in any release. To admit a version, check every use that the module lists with it, run the tests, and add it there.
"""
