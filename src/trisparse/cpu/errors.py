"""Why the kernels are not there."""


class BuildError(RuntimeError):
    """The kernels cannot be built or loaded; the message is one line that says why."""


class CacheError(BuildError):
    """The cache folder cannot be written, or must not be trusted."""


class LoadError(BuildError):
    """A library was built but cannot be loaded, or is not ours."""
