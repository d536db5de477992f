"""The public attributes that hosts' classes have in common, because they hold the same learner or session."""

from typing import Any

from layertune.alchemy.phases import Alchemy
from layertune.hosts.alchemy_session import AlchemySession
from layertune.hosts.alchemy_settings import AlchemySettings
from layertune.hosts.meta_learner import MetaLearner
from layertune.metalr.metalr import MetaLR
from layertune.metalr.settings import MetaLRSettings
from layertune.rates.profile import LRProfile

__all__ = ["AlchemyHolder", "LearnerHolder"]


class LearnerHolder:
    """Give a host's class the public attributes of the ``MetaLearner`` that it holds."""

    _learner: MetaLearner

    @property
    def settings(self) -> MetaLRSettings:
        """The complete settings of MetaLR."""
        return self._learner.settings

    @property
    def metalr(self) -> MetaLR | None:
        """The attached ``MetaLR``, or ``None``."""
        return self._learner.metalr

    @property
    def lrs(self) -> dict[str, float]:
        """The learning rate of each layer, now or when the run ended; empty before."""
        return self._learner.lrs

    @property
    def profile(self) -> LRProfile | None:
        """The rates over time, up to now or to the end of the run; ``None`` before any was learned."""
        return self._learner.profile

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the meta batches; what was learned is saved with the optimizer."""
        return self._learner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved position."""
        self._learner.load_state_dict(state_dict)


class AlchemyHolder:
    """Give a host's class the public attributes of the ``AlchemySession`` that it holds; see ``AlchemyPhases``."""

    _session: AlchemySession

    @property
    def settings(self) -> AlchemySettings:
        """The complete settings of Network Alchemy."""
        return self._session.settings

    @property
    def alchemy(self) -> Alchemy | None:
        """The phases, from the start of the first run on."""
        return self._session.alchemy

    @property
    def maximises(self) -> bool:
        """Whether the maximisation has begun: from then on the rates of all layers can be learned."""
        return self._session.maximises

    def state_dict(self) -> dict[str, Any]:
        """Return phase, progress and redundant kernels; empty before the first run."""
        return self._session.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state, with the state of network and optimizer of the same moment."""
        self._session.load_state_dict(state_dict)
