"""The section of a study's file on the clip test of its trained networks."""

from layertune_studies.config.section import Count, Fraction, Section, Several, new_key

__all__ = ["ClipTestSection"]


class ClipTestSection(Section):
    """The clip test: are small gammas worth less than random ones (Network Alchemy, fig. 3.1)?

    Attributes:
        shares: Shares of all gammas that are set to 0, the smallest ones.
        draws: The number of random sets of as many gammas.
        cases: The number of validation cases that the networks are measured on; by default all.
        methods: Names of the methods that are tested; by default all.
        checkpoints: Names of the checkpoints that are tested; by default all.
    """

    shares: Several[Fraction] = (0.05, 0.1, 0.2, 0.3, 0.5)
    draws: Count = 3
    cases: Count | None = None
    methods: Several[str] | None = new_key(None)
    checkpoints: Several[str] | None = new_key(None)
