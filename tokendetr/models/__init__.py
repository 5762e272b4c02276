"""The detectors, each under the arguments, state-dict keys and numbers of upstream's."""
