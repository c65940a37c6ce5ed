//! What the agent counts about itself: every loss has a reason, and every reason a name.

/// Why a sample, or what belongs to it, is not in the profile. The one enum for all stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Loss {
    /// The ring of a CPU was full when the sample was taken.
    RingFull,
    /// The ring held bytes that are no record.
    TornRecord,
}

impl Loss {
    /// Every reason.
    pub const ALL: [Self; 2] = [Self::RingFull, Self::TornRecord];

    /// Name in metrics and summaries: lower case, words joined by `_`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RingFull => "ring_full",
            Self::TornRecord => "torn_record",
        }
    }
}
