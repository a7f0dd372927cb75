//! Why connections are cut off.

/// Why a connection was cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// A new connection needed its place.
    Place,
    /// The client took nothing of its answer for too long.
    Stalled,
    /// Newer answers needed the memory of its answer.
    Superseded,
    /// The agent stops.
    Stopped,
}

impl Cut {
    /// Every reason.
    pub(super) const ALL: [Self; 4] = [Self::Place, Self::Stalled, Self::Superseded, Self::Stopped];

    /// The label of the counter.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Place => "place",
            Self::Stalled => "stalled",
            Self::Superseded => "superseded",
            Self::Stopped => "stopped",
        }
    }
}
