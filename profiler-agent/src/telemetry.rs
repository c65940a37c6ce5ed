//! What the agent counts about itself: every loss has a reason, and every reason a name.

/// Why a sample, or what belongs to it, is not in the profile. The one enum for all stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Loss {
    /// The ring of a CPU was full when the sample was taken.
    RingFull,
    /// The ring held bytes that are no record.
    TornRecord,
    /// The aggregator's budget of distinct stacks was used up.
    StackBudget,
}

impl Loss {
    /// Every reason.
    pub const ALL: [Self; 3] = [Self::RingFull, Self::TornRecord, Self::StackBudget];

    /// Name in metrics and summaries: lower case, words joined by `_`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RingFull => "ring_full",
            Self::TornRecord => "torn_record",
            Self::StackBudget => "stack_budget",
        }
    }
}
